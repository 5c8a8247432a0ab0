"""A run of long-context tasks as tables: terminal, Markdown and CSV, from one grid."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nybble.report import format as fmt
from nybble.report.spreadsheet import ends, safe
from nybble.report.table import md, md_table
from nybble.results.records import Estimate
from nybble.results.tasks import ALL_TASKS, TaskCell, TaskRun

if TYPE_CHECKING:
    from rich.table import Table

LEVEL = 0.05
GLOSSARY = (
    ("n", "Questions; several are asked of one context."),
    (
        "by",
        "own words: the model's greedy answer holds the true one. choice: the true answer is the "
        "likeliest of the options. Own words count where the 16-bit cache has at least half of "
        "them right, else the choice, which small models can make too.",
    ),
    ("f16/f16", "Share of questions answered rightly with the 16-bit cache."),
    (
        "KV type",
        "Share answered rightly with this cache; + questions it alone has right, − questions only "
        "the 16-bit cache has right; ! where that is no chance (exact McNemar test, p below 0.05 "
        "after Holm's correction over all KV types, tasks and lengths of the run).",
    ),
    (
        "change [low, high]",
        "Share right less that of the 16-bit cache, with the 95 % interval of a bootstrap over "
        "contexts, paired.",
    ),
    (
        "answer NLL",
        "How much less likely the true answer became, nats an answer: it moves before answers do.",
    ),
)  # fmt: skip
FIRST = ("task", "tokens", "n", "by")
_COLUMNS = 5  # candidates beside each other in a terminal of 100 columns


@dataclass(frozen=True)
class Grid:
    """A table: column titles and rows, texts all, and how many columns are words."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    words: int = 1


def whole(run: TaskRun) -> list[TaskCell]:
    """Cells of all depths together."""
    return [c for c in run.cells if not c.depth]


def settings(run: TaskRun) -> list[str]:
    """Settings in the order of the run: reference, floor, candidates."""
    return list(dict.fromkeys(c.setting for c in run.cells))


def places(run: TaskRun) -> list[tuple[str, int]]:
    """Tasks and lengths, task by task, all tasks together last."""
    found = list(dict.fromkeys((c.task, c.length) for c in whole(run)))
    names = list(dict.fromkeys(t for t, _ in found))
    names.sort(key=lambda t: t == ALL_TASKS)
    return sorted(found, key=lambda p: (names.index(p[0]), p[1]))


def tested(cell: TaskCell) -> Estimate | None:
    """The accuracy that counts: by own words or by choice."""
    return cell.exact if cell.by == "exact" else cell.choice


def change(cell: TaskCell) -> Estimate | None:
    """Its change against the 16-bit cache."""
    return cell.exact_change if cell.by == "exact" else cell.choice_change


def significant(cell: TaskCell) -> bool:
    """Whether more is lost than chance explains."""
    p = cell.p_corrected
    return p is not None and p < LEVEL and cell.lost > cell.gained


def share(cell: TaskCell) -> str:
    """`87.5% +1 −3 !` as the glossary says."""
    if cell.status == "failed":
        return "failed"
    found = tested(cell)
    text = fmt.percent(found.value if found else None)
    if cell.role == "reference":
        return text
    moved = f" +{cell.gained} −{cell.lost}" if cell.gained or cell.lost else ""
    return f"{text}{moved}{' !' if significant(cell) else ''}"


def points(estimate: Estimate | None) -> str:
    """A change in percentage points: `−6.2 [−11.0, −1.5]`."""

    def one(value: float) -> str:
        return f"{100 * value:+.1f}".replace("-", "−") if round(1000 * value) else "0"

    return fmt.with_interval(estimate, one)


def grid(run: TaskRun, columns: Sequence[str] | None = None) -> Grid:
    """Task and length against KV setting."""
    by_place = {(c.task, c.length, c.setting): c for c in whole(run)}
    shown = settings(run) if columns is None else list(columns)
    rows = []
    for task, length in places(run):
        mine = [by_place[task, length, s] for s in settings(run) if (task, length, s) in by_place]
        n = max(c.n_queries for c in mine)
        by = "own words" if mine[0].by == "exact" else f"choice, {mine[0].chance:.0%} by chance"
        cells = {c.setting: c for c in mine}
        rows.append((
            fmt.clean(task, 30), fmt.count(length), fmt.count(n), by,
            *(share(cells[s]) if s in cells else fmt.NONE for s in shown),
        ))  # fmt: skip
    return Grid("Answered rightly", (*FIRST, *map(fmt.setting, shown)), rows)


def changes(run: TaskRun) -> Grid:
    """Every candidate's paired change with interval and test, and the answers' likelihood."""
    rows: list[tuple[str, ...]] = []
    for setting in settings(run):
        for task, length in places(run):
            for c in whole(run):
                if (c.setting, c.task, c.length) != (setting, task, length):
                    continue
                if c.role == "reference" or c.status == "failed":
                    continue
                rows.append((
                    fmt.setting(setting), fmt.clean(task, 30), fmt.count(length),
                    points(c.exact_change), points(c.choice_change), f"+{c.gained} −{c.lost}",
                    _p(c.p), _p(c.p_corrected), fmt.kld_with_interval(c.answer_nll),
                ))  # fmt: skip
    header = ("KV type", "task", "tokens", "own words, points [low, high]",
              "choice, points [low, high]", "gained, lost", "p", "p corrected",
              "answer NLL, nats [low, high]")  # fmt: skip
    return Grid("Change against the 16-bit cache", header, rows, words=2)


def headline(run: TaskRun) -> str:
    """Model, engine and how much was asked."""
    engine = fmt.clean(run.protocol.get("engine", "unknown engine"), 60)
    contexts = sum(c.n_items for c in whole(run) if c.role == "reference" and c.task != ALL_TASKS)
    asked = sum(c.n_queries for c in whole(run) if c.role == "reference" and c.task != ALL_TASKS)
    return (
        f"{fmt.clean(run.model.name, 60)} · in {engine} · {fmt.plural(asked, 'question')} about "
        f"{fmt.plural(contexts, 'context')}"
    )


def failures(run: TaskRun) -> list[str]:
    """What failed and why, once for a setting and length."""
    found = {
        (c.setting, c.length): f"{fmt.setting(c.setting)} at {fmt.count(c.length)} tokens failed: "
        f"{fmt.clean(c.error or 'unknown', 300)}"
        for c in whole(run) if c.status == "failed"
    }  # fmt: skip
    return list(found.values())


def rich_tables(run: TaskRun, width: int = 100) -> list[Table]:
    """The grid for a terminal, a few settings at a time."""
    from rich.table import Table
    from rich.text import Text

    every = settings(run)
    first, rest = every[:1], every[1:]
    most = max(1, (width - 52) // 14) if width < 120 else _COLUMNS
    found = []
    for start in range(0, max(1, len(rest)), most):
        part = grid(run, [*first, *rest[start : start + most]])
        table = Table(
            box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold",
            title=Text(headline(run), style="bold"), title_justify="left",
            caption=Text("+ gained, − lost against f16/f16; ! more than chance", style="dim"),
            caption_justify="left",
        )  # fmt: skip
        for i, name in enumerate(part.header):
            left = i == 0 or i == 3
            table.add_column(
                Text("\n".join(fmt.pieces(name, 14))), justify="left" if left else "right"
            )
        for row in part.rows:
            style = "bold" if row[0] == ALL_TASKS else None
            texts = (Text(t, style="red" if t.endswith("!") else "") for t in row)
            table.add_row(*texts, style=style)
        found.append(table)
    return found


def markdown(run: TaskRun) -> str:
    """Both grids as Markdown, with the conclusions and what a reader needs to judge them."""
    lines = [f"**{md(headline(run))}**", ""]
    lines += [f"- {md(fmt.clean(s))}" for s in run.conclusions] + [""]
    for part in (grid(run), changes(run)):
        if part.rows:
            left = [i for i, h in enumerate(part.header) if h in ("task", "by", "KV type")]
            lines += [f"**{part.title}**", "", *md_table(part.header, part.rows, left)]
    notes = [*failures(run), *map(fmt.clean, run.warnings), *(f"{a}: {b}" for a, b in GLOSSARY)]
    lines += [f"- {md(note)}" for note in notes]
    command = fmt.clean(run.command).replace("`", "'")
    return "\n".join([*lines, "", "```", command, "```", ""])


def csv_text(run: TaskRun) -> str:
    """One line per cell, by depth too; every estimate with its interval; no rounding."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    numbers = ("exact", "choice", "exact_change", "choice_change", "answer_nll")
    names = [f.name for f in dataclasses.fields(TaskCell) if f.name not in numbers]
    writer.writerow(
        ["model_name", *names, *(n + end for n in numbers for end in ("", "_low", "_high"))]
    )
    for cell in run.cells:
        line: list[object] = [safe(run.model.name)]
        line += [safe(getattr(cell, n) if getattr(cell, n) is not None else "") for n in names]
        for name in numbers:
            found = getattr(cell, name)
            line += ends(found)
        writer.writerow(line)
    return out.getvalue()


def _p(value: float | None) -> str:
    if value is None:
        return fmt.NONE
    return "<0.0001" if value < 1e-4 else f"{value:.2g}"
