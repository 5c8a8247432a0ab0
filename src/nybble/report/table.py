"""The measurement as a table: terminal and Markdown (and CSV), from one list of columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nybble.report import cells, describe, parts, view
from nybble.report import format as fmt
from nybble.report.spreadsheet import csv_text as csv_text
from nybble.results.records import Measurement, Row

if TYPE_CHECKING:
    from rich.table import Table

WIDE = 100  # terminal columns from which every column is shown
_NARROWEST, _WIDEST = 14, 40  # characters of the first column in a terminal
_STYLES = {"safe": "green", "degraded": "yellow", "broken": "red", "unresolved": "cyan"}
_KLD = ("mean_kld", "interval", "p999_kld")


@dataclass(frozen=True)
class Column:
    """One column of the main table.

    Attributes:
        key: stable name, also the CSS class.
        title: in Markdown and HTML.
        short: in the terminal, on two lines at most.
        cell: text of a row's cell.
        right: numbers are aligned to the right.
        wide: left out in narrow terminals.
    """

    key: str
    title: str
    short: str
    cell: Callable[[Row], str]
    right: bool = True
    wide: bool = False


def _value(row: Row, name: str) -> float | None:
    found = row.metrics.get(name)
    return found.value if found else None


def setting(row: Row) -> str:
    """A row's KV setting, with its role where it is no candidate; * simulated, † by a server."""
    text = fmt.setting(row.setting)
    if row.role == "floor":
        text = f"{text} (noise floor)"
    elif row.role == "identity":
        text = f"{text} (identity)"
    return f"{text} *" if row.simulated else f"{text} †" if row.served else text


def short_setting(row: Row) -> str:
    """`setting`, but reference rows by their role alone where there is no room for both."""
    if row.role in ("floor", "identity"):
        return "noise floor" if row.role == "floor" else "identity"
    return setting(row)


def verdict(row: Row) -> str:
    """safe, degraded, broken, unresolved, failed, or nothing for reference rows."""
    if row.status == "failed":
        return "failed"
    return fmt.clean(row.verdict.label, 12) if row.verdict else ""


COLUMNS: tuple[Column, ...] = (
    Column("setting", "KV type", "KV type", setting, right=False),
    Column("bits", "bits", "bits", lambda r: fmt.bits(r.bits), wide=True),
    Column(
        "bytes",
        "bytes/token",
        "bytes/\ntoken",
        lambda r: fmt.size(r.bytes_per_token) if r.bytes_per_token else fmt.NONE,
        wide=True,
    ),
    Column(
        "cache",
        "cache at context (MiB)",
        "cache\nMiB",
        lambda r: fmt.mib(r.cache_bytes) if r.cache_bytes else fmt.NONE,
    ),
    Column(
        "mean_kld",
        "mean KLD [low, high]",
        "mean\nKLD",
        lambda r: fmt.kld_with_interval(r.metrics.get("mean_kld")),
    ),
    Column("p999_kld", "p99.9 KLD", "p99.9", lambda r: fmt.kld(_value(r, "p999_kld")), wide=True),
    Column("same_top", "same top ↑", "same\ntop ↑", lambda r: fmt.percent(_value(r, "same_top"))),
    Column("flips", "flips ↓", "flips\n↓", lambda r: fmt.percent(_value(r, "flips"))),
    Column("ppl_ratio", "PPL ratio", "PPL\nratio", lambda r: fmt.ratio(_value(r, "ppl_ratio"))),
    Column("verdict", "verdict", "verdict", verdict, right=False),
)


def rich_table(m: Measurement, width: int = WIDE) -> Table:
    """The main table for a terminal.

    Args:
        m: the measurement.
        width: columns of the terminal; below 100 bits, bytes/token and p99.9 are left out, and
            from 100 on as many of them as long settings need. Those go over several lines, too.
    """
    from rich.table import Table
    from rich.text import Text

    shown = [c for c in COLUMNS if width >= WIDE or not c.wide]
    groups, spans = view.groups(m), view.has_intervals(m)
    rows = [_terminal(r) for g in groups for r in (*g.candidates, *g.references)]
    wide = {c.key: _column(c, rows) + 1 for c in shown[1:]}
    if spans:
        wide["interval"] = max(map(len, ("[low,", *(t["interval"] for t in rows)))) + 1
    names = [name for t in rows for name in re.split(r"(?<=/)|(?=\+)", t["setting"])]
    need = min(max(map(len, names), default=0), fmt.LONG)
    for key in ("bytes", "p999_kld", "bits"):
        if key in wide and width - sum(wide.values()) - 1 < need:
            del wide[key]
    shown = [c for c in shown if c.key == "setting" or c.key in wide]
    first = min(max(_NARROWEST, width - sum(wide.values()) - 1), _WIDEST)
    table = Table(
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        title=Text(describe.headline(m), style="bold"),
        title_justify="left",
        caption=Text("\n".join(_footnotes(m)), style="dim"),
        caption_justify="left",
        header_style="bold",
    )
    for column in shown:
        table.add_column(
            column.short,
            justify="right" if column.right else "left",
            no_wrap=column.key != "setting",
            overflow="fold",
        )
        if column.key == "mean_kld" and spans:  # a column of its own, so that the values line up
            table.add_column(Text("[low,\nhigh]"), no_wrap=True)
    for i, group in enumerate(groups):
        if group.title:
            if i:
                table.add_row()
            table.add_row(Text(group.title, style="bold"))
        for row in (*group.candidates, *group.references):
            texts = _terminal(row)
            texts["setting"] = "\n".join(fmt.pieces(texts["setting"], first))
            found = [
                Text(texts[key], style=_style(row) if key == "verdict" else "")
                for c in shown
                for key in ((c.key, "interval") if c.key == "mean_kld" and spans else (c.key,))
            ]
            table.add_row(*found, style="dim" if row in group.references else None)
    return table


def rich_cells(m: Measurement) -> Table | None:
    """With two models, the four cells for a terminal; None with one model."""
    from rich.table import Table
    from rich.text import Text

    rows = cells.texts(m, gap=",")
    if not rows:
        return None
    kind = cells.header(m).index("KV type")
    names = [f"{x.label}: {fmt.clean(x.name, 60)}" for x in m.models]
    questions = [f"Own: {cells.OWN_QUESTION}", f"Other's: {cells.OTHER_QUESTION}"]
    table = Table(
        box=None,
        padding=(0, 2, 0, 0),
        title=Text("Both models, mean KLD", style="bold"),
        title_justify="left",
        caption=Text("\n".join(questions + names), style="dim"),
        caption_justify="left",
        header_style="bold",
    )
    for i, title in enumerate(cells.header(m)):
        last = i >= len(cells.header(m)) - 2
        table.add_column(
            title.removeprefix("mean KLD "), justify="right" if last else "left", overflow="fold"
        )
    for texts in rows:
        shown = ("\n".join(fmt.pieces(t)) if i == kind else t for i, t in enumerate(texts))
        table.add_row(*map(Text, shown))
    return table


def markdown(m: Measurement) -> str:
    """The tables as Markdown, with what a reader of an issue needs to judge them."""
    lines = [
        f"**{md(view.names(m))}** · in {md(describe.engine(m))} · "
        f"{md(describe.text_line(m))} · {md(describe.scale(m))}",
        "",
    ]
    titles = [c.title for c in COLUMNS]
    if not view.has_intervals(m):
        titles = [t.removesuffix(" [low, high]") for t in titles]
    left = [i for i, c in enumerate(COLUMNS) if not c.right]
    for group in view.groups(m):
        rows = [[c.cell(r) for c in COLUMNS] for r in (*group.candidates, *group.references)]
        if rows:
            lines += [f"**{md(group.title)}**", ""] if group.title else []
            lines += md_table(titles, rows, left)
    two = cells.texts(m)
    if two:
        head = cells.header(m)
        lines += md_table(head, two, range(len(head) - 2))
        lines += [f"Own: {cells.OWN_QUESTION} Other's: {cells.OTHER_QUESTION}", ""]
    lines += [f"- {md(note)}" for note in _footnotes(m, escape=False)]
    for split in parts.splits(m):
        lines += ["", f"**{parts.TITLE}: {md(split.name)}**", "", md(parts.sentence(split))]
        lines += [parts.EXPLAINED, ""]
        head = parts.header(split)
        lines += md_table(head, parts.texts(split), [head.index("side")])[:-1]
    command = fmt.clean(m.command)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0))
    return "\n".join([*lines, "", fence, command, fence, ""])


def _column(column: Column, rows: list[dict[str, str]]) -> int:
    """Width of a column in the terminal."""
    return max(map(len, (*column.short.split("\n"), *(t[column.key] for t in rows))))


def md_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int]
) -> list[str]:
    """Lines of a Markdown table, numbers to the right, and an empty one.

    Args:
        header: column titles.
        rows: texts, not escaped yet.
        left: columns that are words.
    """
    rule = (":--" if i in left else "--:" for i in range(len(header)))
    found = ["| " + " | ".join(header) + " |", "|" + "|".join(rule) + "|"]
    return [*found, *("| " + " | ".join(map(md, row)) + " |" for row in rows), ""]


def _terminal(row: Row) -> dict[str, str]:
    """A row's cells by column key; one space and one exponent digit shorter than elsewhere."""
    texts = {c.key: c.cell(row) for c in COLUMNS}
    texts["setting"] = short_setting(row)
    found = row.metrics.get("mean_kld")
    texts["mean_kld"] = fmt.kld(found.value if found else None)
    texts["interval"] = fmt.interval(found, gap=",")
    return {k: v.replace("e-0", "e-") if k in _KLD else v for k, v in texts.items()}


def _style(row: Row) -> str:
    if row.status == "failed":
        return "bold red"
    return _STYLES.get(row.verdict.label, "") if row.verdict else ""


def _footnotes(m: Measurement, escape: bool = True) -> list[str]:
    found = list(view.notes(m))
    for row, error in view.failures(m):
        where = f" at {fmt.count(row.context)}" if len({r.context for r in m.rows}) > 1 else ""
        found.append(f"{fmt.setting(row.setting)}{where} failed: {error}")
    if not escape and len(m.models) > 1:
        found += [f"model {x.label}: {fmt.clean(x.name, 100)}" for x in m.models]
    return found


def md(text: str) -> str:
    """Escape what Markdown or its HTML would act on; `_` inside words is left readable."""
    text = re.sub(r"([\\`*\[\]|~#])", r"\\\1", text)
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
