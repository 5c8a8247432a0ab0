"""A run of free generation as one HTML file; nothing is fetched, nothing foreign is trusted.

The same style sheet, script and content security policy as report/html.py.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import TYPE_CHECKING, Any

from nybble.report import format as fmt
from nybble.report import generation as tables
from nybble.report.describe import Entry
from nybble.report.html import script_json
from nybble.results.tasks import GenerationRun, to_json

if TYPE_CHECKING:
    from nybble.report.plots import Chart

_LEFT = ("KV type", "tokens", "first difference of each prompt, 0 for none")


def generation_html(run: GenerationRun) -> str:
    """The page of a run."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    script = _asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    values: dict[str, Any] = {
        "title": tables.title(run),
        "name": fmt.clean(run.model.name, 120),
        "sub": _sub(run),
        "recommendation": fmt.clean(run.recommendation),
        "limits": tables.LIMITS,
        "grids": tables.grids(run),
        "roles": [r.role for r in run.rows],
        "failures": tables.failures(run),
        "glossary": [Entry(*pair) for pair in tables.GLOSSARY],
        "charts": [vars(c) | {"svg": Markup(c.svg)} for c in _charts(run)],
        "pieces": fmt.pieces,
        "left": _LEFT,
        "how": how(run),
        "texts": _texts(run),
        "warnings": [fmt.clean(w) for w in run.warnings],
        "command": fmt.clean(run.command).split(),
        "setup": _setup(run),
        "version": fmt.clean(run.versions.get("nybble", ""), 40),
        "json": Markup(script_json(to_json(run))),
        "css": Markup(_asset("report.css")),
        "js": Markup(script),
        "script_hash": f"sha256-{digest}",
    }
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(_asset("generation.html.j2")).render(values)


def _charts(run: GenerationRun) -> list[Chart]:
    # Imported here: the plotting library takes half a second.
    from nybble.report import generation_charts as pictures
    from nybble.report.charts import canvas, svg
    from nybble.report.plots import Chart

    found = []
    for key, draw in (("survival", pictures.survival), ("along", pictures.along)):
        with canvas.style(f"nybble-generation-{key}"):
            if p := draw(run, canvas.MARKED):
                drawn = svg.inline(p, f"chart-{key}")
                found.append(Chart(key, p.title, drawn, p.summary, p.caption, p.header, p.rows))
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


def _asset(name: str) -> str:
    return resources.files("nybble.report").joinpath(name).read_text(encoding="utf-8")
