"""A run of free generation as one HTML file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nybble.report import format as fmt
from nybble.report import generation as tables
from nybble.report.describe import Entry
from nybble.report.page import Page, drawn, render
from nybble.results.tasks import GenerationRun, to_json

if TYPE_CHECKING:
    from nybble.report.plots import Chart

_LEFT = ("KV type", "tokens", "first difference of each prompt, 0 for none")


def generation_html(run: GenerationRun) -> str:
    """The page of a run."""
    page = Page(
        id="generation",
        json=to_json(run),
        title=tables.title(run),
        eyebrow="free generation with a quantized KV cache",
        name=fmt.clean(run.model.name, 120),
        sub=_sub(run),
        how=how(run),
        how_title="How it was run",
        setup=_setup(run),
        warnings=[fmt.clean(w) for w in run.warnings],
        command=fmt.clean(run.command).split(),
        version=fmt.clean(run.versions.get("nybble", ""), 40),
    )
    return render(
        "generation.html.j2", page,
        recommendation=fmt.clean(run.recommendation),
        limits=tables.LIMITS,
        grids=tables.grids(run),
        roles=[r.role for r in run.rows],
        failures=tables.failures(run),
        glossary=[Entry(*pair) for pair in tables.GLOSSARY],
        charts=[drawn(c) for c in _charts(run)],
        left=_LEFT,
        texts=_texts(run),
    )  # fmt: skip


def _charts(run: GenerationRun) -> list[Chart]:
    # Imported here: the plotting library takes half a second.
    from nybble.report import generation_charts as pictures
    from nybble.report.charts import canvas, svg
    from nybble.report.plots import Chart

    found = []
    for key, draw in (("survival", pictures.survival), ("along", pictures.along)):
        with canvas.style(f"nybble-generation-{key}"):
            if p := draw(run, canvas.MARKED):
                svg_text = svg.inline(p, f"chart-{key}")
                found.append(Chart(key, p.title, svg_text, p.summary, p.caption, p.header, p.rows))
    return found


def _sub(run: GenerationRun) -> str:
    engine = fmt.clean(run.protocol.get("engine", "unknown engine"), 60)
    return f"in {engine} · {tables.about(run)} · {fmt.clean(run.created, 40)}"


def how(run: GenerationRun) -> list[Entry]:
    """How it was run: the model, then what the protocol says."""
    m = run.model
    found = [
        Entry("file", f"{fmt.clean(m.file, 120)} ({fmt.size(m.size_bytes)})"),
        Entry("sha256", fmt.clean(m.sha256, 80)),
        Entry("weights", f"{fmt.clean(m.scored_weights, 60)} (shipped as "
                         f"{fmt.clean(m.shipped_weights, 40)})"),
        Entry("framing", fmt.clean(m.framing, 300)),
    ]  # fmt: skip
    for key, value in run.protocol.items():
        if isinstance(value, list) and all(isinstance(v, str) for v in value):
            value = "; ".join(value)
        if isinstance(value, (str, int, float)):
            found.append(Entry(fmt.clean(key, 40).replace("_", " "), fmt.clean(value, 300)))
    return found


def _texts(run: GenerationRun) -> list[tuple[str, str, str, str]]:
    """Where prompts come from: category, prompts, licence, source."""
    text = run.protocol.get("text")
    found = [t for t in text if isinstance(t, dict)] if isinstance(text, list) else []
    return [
        (
            fmt.clean(f"{t.get('category', '')} ({t.get('title', '')})", 120),
            fmt.clean(t.get("prompts", ""), 20),
            fmt.clean(t.get("licence", "not stated"), 60),
            fmt.clean(t.get("source", ""), 200),
        )
        for t in found
    ]


def _setup(run: GenerationRun) -> list[Entry]:
    every = {**run.versions, **run.hardware, "created": run.created, "schema": run.schema_version}
    return [
        Entry(fmt.clean(k, 40).replace("_", " "), fmt.clean("unknown" if v is None else v, 300))
        for k, v in every.items()
    ]
