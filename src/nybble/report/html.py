"""The report of a measurement as one HTML file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nybble.report import cells, describe, parts, table, view
from nybble.report import format as fmt
from nybble.report.page import Grid, Page, drawn, json_part, render
from nybble.results.records import Measurement, Row, to_json

if TYPE_CHECKING:
    from nybble.report.plots import Chart

GLOSSARY = (
    describe.Entry(
        "mean KLD",
        "Kullback-Leibler divergence from the 16-bit cache's prediction to this cache's, over "
        "the whole vocabulary, in nats; mean over the scored tokens.",
    ),
    describe.Entry("p99.9 KLD", "One scored token in a thousand drifts more than this."),
    describe.Entry("same top", "Share of tokens whose most likely next token is the same."),
    describe.Entry(
        "flips",
        "Share of tokens whose most likely next token changed although the 16-bit cache put it "
        "more than 0.5 nat ahead of its second choice.",
    ),
    describe.Entry(
        "PPL ratio",
        "Perplexity of the text with this cache divided by that with the 16-bit cache.",
    ),
    describe.Entry(
        "bytes/token", "What one more token adds to the cache once sliding windows are full."
    ),
    describe.Entry("unresolved", "The interval spans a threshold; more documents would narrow it."),
)
_LEFT = (
    "KV type", "group", "tokens", "which", "verdict", "side", "engine", "on the front",
    "kind of text",
)  # fmt: skip
_FEW_CHIPS = 10


@dataclass(frozen=True)
class _Cell:
    text: str
    interval: str | None = None


@dataclass(frozen=True)
class _Line:
    setting: str
    cells: list[_Cell]
    verdict: str
    reference: bool
    error: str | None


@dataclass(frozen=True)
class _Lines:
    title: str
    rows: list[_Line]


@dataclass(frozen=True)
class _Chip:
    name: str
    label: str
    reason: str


@dataclass(frozen=True)
class _Hurt:
    said: str
    chart: dict[str, Any] | None


@dataclass(frozen=True)
class Front:
    """What a page tells above the report of its measurement: a model before and after.

    Attributes:
        eyebrow: kind of page, also the end of its title.
        name: heading.
        lead: one sentence.
        said: what was done, a paragraph.
        gains: every setting.
        facts: label and text.
        charts: pictures.
        promises: what the formula says of each layer; None without.
        promised: its summary.
        json: the record.
    """

    eyebrow: str
    name: str
    lead: str
    said: str
    gains: Grid
    facts: list[describe.Entry]
    charts: list[Chart]
    promises: Grid | None
    promised: str
    json: str


def html_report(m: Measurement, front: Front | None = None) -> str:
    """The report of a measurement as one HTML page.

    Args:
        m: the measurement.
        front: what comes before it, on a page about more than the measurement.
    """
    from nybble.report import plots

    eyebrow = front.eyebrow if front else "quality of a quantized KV cache"
    page = Page(
        id="measurement",
        json=to_json(m),
        title=f"{front.name if front else view.names(m)}: {eyebrow}",
        eyebrow=eyebrow,
        name=front.name if front else view.names(m, 120),
        # A sweep's runs have no date: they are the same whenever they are made.
        sub=" · ".join(
            filter(None, (f"in {describe.engine(m)}", describe.scale(m), fmt.clean(m.created, 40)))
        ),
        how=describe.how(m),
        setup=describe.setup(m),
        warnings=[fmt.clean(w) for w in m.warnings],
        command=fmt.clean(m.command).split(),
        version=fmt.clean(m.versions.get("nybble", ""), 40),
        whole="measurement",
    )
    hurts = [
        _Hurt(parts.sentence(split), drawn(plots.part_chart(split, f"parts{i}")))
        for i, split in enumerate(parts.splits(m))
    ]
    return render(
        "measurement.html.j2", page,
        front=front,
        front_json=json_part(front.json) if front else "",
        front_charts=[drawn(c) for c in front.charts] if front else [],
        recommendation=fmt.clean(m.recommendation),
        scope=describe.SCOPE,
        chips=_chips(m),
        columns=table.COLUMNS,
        groups=[_lines(g) for g in view.groups(m)],
        intervals=view.has_intervals(m),
        width=len(table.COLUMNS) + view.has_intervals(m),
        notes=view.notes(m),
        glossary=GLOSSARY,
        cells=cells.texts(m),
        cells_header=cells.header(m),
        own_question=cells.OWN_QUESTION,
        other_question=cells.OTHER_QUESTION,
        models=[describe.Entry(x.label, fmt.clean(x.name, 120)) for x in m.models],
        charts=[drawn(c) for c in plots.charts(m)],
        hurts=hurts,
        hurts_title=parts.TITLE,
        left=_LEFT,
        texts=describe.texts(m),
        known_verdicts=(*view.VERDICTS, "failed"),
    )  # fmt: skip


def _chips(m: Measurement) -> list[_Chip]:
    found = []
    for group in view.groups(m):
        for row in group.candidates:
            label = table.verdict(row)
            if not label:
                continue
            name = table.setting(row) + (f" ({group.title})" if group.title else "")
            if row.status == "failed":
                reason = view.short_error(row)
            else:
                reason = fmt.clean(row.verdict.reason, 200) if row.verdict else ""
            found.append(_Chip(name, label, reason))
    if len(found) <= _FEW_CHIPS:
        return found
    return [
        _Chip(fmt.plural(len(same), "setting"), label, "; ".join(c.name for c in same))
        for label in (*view.VERDICTS, "failed")
        if (same := [c for c in found if c.label == label])
    ]


def _lines(group: view.Group) -> _Lines:
    rows = [*group.candidates, *group.references]
    return _Lines(group.title, [_line(r, r.role != "candidate") for r in rows])


def _line(row: Row, reference: bool) -> _Line:
    found = []
    for column in table.COLUMNS[1:-1]:
        if column.key == "mean_kld":
            mean = row.metrics.get("mean_kld")
            text = fmt.kld(mean.value if mean else None)
            found.append(_Cell(text, fmt.interval(mean)))
        else:
            found.append(_Cell(column.cell(row)))
    error = f"failed: {view.short_error(row, 200)}" if row.status == "failed" else None
    return _Line(table.short_setting(row), found, table.verdict(row), reference, error)
