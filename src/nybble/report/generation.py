"""A run of free generation as tables: terminal, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nybble.report import format as fmt
from nybble.report.spreadsheet import ends, safe
from nybble.results.records import Estimate
from nybble.results.tasks import Divergence, GenerationRun

if TYPE_CHECKING:
    from rich.table import Table

ROLES = {"floor": "noise floor", "identity": "identity", "reference": "16-bit cache"}
GLOSSARY = (
    ("first difference", "Place of the first token that is not the 16-bit cache's; the median over "
     "prompts. From there on the two answers are different texts."),
    ("same until", "Share of prompts whose answer has not differed up to there."),
    ("agreement", "Share of places with the same token; after the first difference mostly chance."),
    ("beside rounding", "Agreement less that of the noise floor on the same prompts. Greedy "
     "answers part over any near tie, so 16-bit rounding alone has much of this effect."),
    ("KLD 1-64, ...", "Divergence from the 16-bit cache's prediction where both read the 16-bit "
     "answer, mean over the places named, in nats. Unlike the answers it is not a matter of luck."),
    ("slope", "Of log KLD over log place: 0 for no trend, 0.5 where KLD doubles as the answer "
     "grows fourfold. Text that becomes more predictable lowers it, also for the noise floor: "
     "compare with that row."),
    ("tokens", "Of an answer, end token included; the limit where it did not end."),
    ("ended", "Share of answers that ended by themselves within the limit."),
    ("length", "Tokens until the end over the 16-bit cache's, where both end; geometric mean."),
    ("did not stop", "Of the answers that the 16-bit cache ended, the share that ran into the "
     "limit."),
    ("loops", "Share of answers whose last 64 tokens repeat the same 1 to 16."),
)  # fmt: skip
LIMITS = (
    "An end token within the limit counts as the end, also of a model that thinks first; thoughts "
    "longer than the limit count as not ended. Nothing here tells whether an answer is right."
)


@dataclass(frozen=True)
class Column:
    """One column: its title and what it says of a row."""

    title: str
    cell: Callable[[Divergence], str]


@dataclass(frozen=True)
class Grid:
    """One of the tables, texts all; the first column is the setting."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


def limit(run: GenerationRun) -> int:
    """Most tokens of an answer."""
    found = run.protocol.get("limit")
    return found if isinstance(found, int) else 0


def by_number(found: dict[str, Estimate]) -> dict[str, Estimate]:
    """Sorted by the number that a key begins with; JSON sorts "17-32" before "5-8"."""
    return dict(sorted(found.items(), key=lambda item: _first(item[0])))


def _first(key: str) -> float:
    head = key.partition("-")[0]
    return int(head) if head.isdecimal() else float("inf")


def name(row: Divergence) -> str:
    """Setting of a row, with its part in the run."""
    setting = fmt.setting(row.setting)
    role = ROLES.get(row.role)
    return f"{setting} ({role})" if role else setting


def grids(run: GenerationRun) -> list[Grid]:
    """The tables: where answers part, how the error develops, how answers end."""
    stops = _keys(run, lambda r: r.same_at)
    cuts = _keys(run, lambda r: r.kld_at)
    most = limit(run)
    parts = [
        Column("prompts", lambda r: str(r.n_prompts) if r.n_prompts else fmt.NONE),
        Column("first difference ↑", lambda r: first(r, most)),
        *(Column(f"same until {_count(k)} ↑", _at(k, lambda r: r.same_at, share)) for k in stops),
        *(
            Column(f"agreement at {_count(k)} ↑", _at(k, lambda r: r.agreement_at, share))
            for k in stops[-1:]
        ),
        Column("beside rounding", lambda r: points(r.agreement_change)),
    ]
    error = [
        *(
            Column(f"KLD {_span(k)} ↓", _at(k, lambda r: r.kld_at, fmt.kld_with_interval))
            for k in cuts
        ),
        Column("slope", lambda r: number(r.trend)),
    ]
    end = [
        Column("tokens", lambda r: whole(r.mean_length)),
        Column("ended", lambda r: share(r.ended)),
        Column("length", lambda r: number(r.length_ratio)),
        Column("did not stop ↓", lambda r: share(r.failed_to_stop)),
        Column("loops ↓", lambda r: share(r.looped)),
    ]
    titles = (
        "Where answers part from the 16-bit cache's",
        "Error along the 16-bit answer",
        "How answers end",
    )
    return [
        Grid(title, ("KV type", *(c.title for c in columns)),
             [(name(r), *_cells(r, columns)) for r in run.rows])
        for title, columns in zip(titles, (parts, error, end), strict=True)
    ]  # fmt: skip


def _at(
    key: str,
    of: Callable[[Divergence], dict[str, Estimate]],
    show: Callable[[Estimate | None], str],
) -> Callable[[Divergence], str]:
    return lambda row: show(of(row).get(key))


def _cells(row: Divergence, columns: Sequence[Column]) -> list[str]:
    if row.status == "failed":
        return ["failed", *[""] * (len(columns) - 1)]
    return [c.cell(row) for c in columns]


def _keys(run: GenerationRun, of: Callable[[Divergence], dict[str, Estimate]]) -> list[str]:
    return sorted({key for row in run.rows for key in of(row)}, key=_first)


def _count(key: str) -> str:
    return fmt.count(int(key)) if key.isdecimal() else fmt.clean(key, 20)


def _span(key: str) -> str:
    return "-".join(_count(part) for part in key.split("-"))


def first(row: Divergence, most: int) -> str:
    """`45 [20, 113]`, `45 [20, >256]`, or `none` where over half never differ."""
    if row.role == "reference":
        return fmt.NONE
    found = row.first_median
    if found is None:
        return "none"
    text = fmt.count(found.value)
    if found.low is None:
        return text
    high = f">{fmt.count(most)}" if found.high is None else fmt.count(found.high)
    return f"{text} [{fmt.count(found.low)}, {high}]"


def share(found: Estimate | None) -> str:
    """`55% [36, 86]`, in whole per cent."""
    return fmt.with_interval(found, lambda x: f"{100 * x:.0f}%", lambda x: f"{100 * x:.0f}")


def whole(found: Estimate | None) -> str:
    """A number of tokens: `212 [180, 256]`."""
    return fmt.with_interval(found, fmt.count)


def points(found: Estimate | None) -> str:
    """A change of a share in points: `-4 [-20, +11]`."""
    return fmt.with_interval(found, lambda x: f"{100 * x:+.0f}")


def number(found: Estimate | None) -> str:
    """Two decimals and the interval."""
    return fmt.with_interval(found, lambda x: f"{x:.2f}")


def failures(run: GenerationRun) -> list[str]:
    """What failed and why."""
    return [
        f"{fmt.setting(r.setting)} failed: {fmt.clean(r.error or 'no reason given', 300)}"
        for r in run.rows
        if r.status == "failed"
    ]


def rich_tables(run: GenerationRun) -> list[Table]:
    """The tables for a terminal."""
    from rich.table import Table
    from rich.text import Text

    found = []
    for grid in grids(run):
        table = Table(box=None, padding=(0, 2, 0, 0), title=Text(grid.title, style="bold"),
                      title_justify="left", header_style="bold")  # fmt: skip
        for i, title in enumerate(grid.header):
            table.add_column(Text(title), justify="right" if i else "left", overflow="fold")
        for row, cells in zip(run.rows, grid.rows, strict=True):
            style = "dim" if row.role != "candidate" else ""
            table.add_row(*(Text(text) for text in cells), style=style)
        found.append(table)
    return found


def markdown(run: GenerationRun) -> str:
    """Tables to paste."""
    found = [f"**{_escape(title(run))}**", ""]
    for grid in grids(run):
        found += [
            "| " + " | ".join(map(_escape, grid.header)) + " |",
            "|---" + "|--:" * (len(grid.header) - 1) + "|",
            *("| " + " | ".join(map(_escape, row)) + " |" for row in grid.rows),
            "",
        ]
    said = [fmt.clean(run.recommendation), LIMITS, *failures(run), *map(fmt.clean, run.warnings)]
    return "\n".join([*found, *(f"- {_escape(text)}" for text in said)]) + "\n"


def title(run: GenerationRun) -> str:
    """`Gemma 3 270m: greedy answers of up to 256 tokens to 8 prompts`."""
    return f"{fmt.clean(run.model.name, 60)}: {about(run)}"


def about(run: GenerationRun) -> str:
    """`greedy answers of up to 256 tokens to 8 prompts`."""
    n = max((r.n_prompts for r in run.rows), default=0)
    most = fmt.count(limit(run))
    return f"greedy answers of up to {most} tokens to {fmt.plural(n, 'prompt')}"


def csv_text(run: GenerationRun) -> str:
    """One line for every number of every setting, full precision."""
    out = io.StringIO()
    write = csv.writer(out, lineterminator="\n").writerow
    write(["setting", "role", "what", "at", "value", "low", "high", "n_prompts"])
    for row in run.rows:
        who = (safe(row.setting), safe(row.role))
        if row.status == "failed":
            write([*who, "failed", "", safe(row.error or ""), "", "", ""])
        for what, at, e in _numbers(row):
            write([*who, what, at, *ends(e), row.n_prompts])
    return out.getvalue()


def _numbers(row: Divergence) -> list[tuple[str, str, Estimate]]:
    single = ("first_median", "agreement_change", "trend", "mean_length", "length_ratio", "ended",
              "failed_to_stop", "looped")  # fmt: skip
    found = [(key, "", getattr(row, key)) for key in single if getattr(row, key) is not None]
    for key in ("same_at", "agreement_at", "kld_at", "kld_along"):
        found += [(key, at, e) for at, e in by_number(getattr(row, key)).items()]
    return found


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
