"""Cells of a result base as tables: terminal, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING, Any

from nybble.report import format as fmt
from nybble.report.spreadsheet import ends, safe
from nybble.report.table import md, md_table
from nybble.results.base.cell import Cell
from nybble.results.base.checked import RENAMED

if TYPE_CHECKING:
    from rich.table import Table

HEADER = ("model", "weights", "engine", "KV type", "context", "bits", "mean KLD [low, high]",
          "same top ↑", "flips ↓", "verdict")  # fmt: skip
_LEFT = (0, 1, 2, 3, 9)
_text = cache(safe)  # names and hashes are those of many cells
_PLAIN = [f.name for f in fields(Cell) if f.name != "metrics"]
_NOTES = {
    "*": "* the bytes of the cache were only simulated",
    "†": "† through a server, from its top-k tokens: KLDs are lower bounds",
}


def labels(cells: Sequence[Cell]) -> dict[tuple[str, str], str]:
    """What to call each model, by name and hash: the name, with the file where several share it."""
    files: dict[str, dict[str, str]] = {}
    for cell in cells:
        files.setdefault(cell.model, {})[cell.sha256] = cell.file
    return {
        (name, sha): fmt.clean(f"{name} ({file})" if len(own) > 1 else name, 90)
        for name, own in files.items() for sha, file in own.items()
    }  # fmt: skip


def texts(cell: Cell, label: str) -> tuple[str, ...]:
    """One line of the table, as `HEADER`; not escaped for Markdown yet."""
    m = cell.metrics
    mark = " *" if cell.simulated else " †" if cell.top_k else ""
    share = {n: fmt.percent(m[n].value) if n in m else fmt.NONE for n in ("same_top", "flips")}
    return (
        label, fmt.clean(cell.weights, 20), fmt.clean(cell.engine, 20),
        fmt.setting(cell.setting) + mark, fmt.count(cell.context), fmt.bits(cell.bits),
        fmt.kld_with_interval(m.get("mean_kld")), share["same_top"], share["flips"],
        "failed" if cell.status == "failed" else fmt.clean(cell.verdict, 12),
    )  # fmt: skip


def notes(cells: Sequence[Cell]) -> list[str]:
    """What the marks mean that these cells have, and why any of them failed."""
    found = [_NOTES["*"]] if any(c.simulated for c in cells) else []
    found += [_NOTES["†"]] if any(c.top_k and not c.simulated for c in cells) else []
    failed = (c for c in cells if c.status == "failed")
    return found + [
        f"{fmt.clean(c.model, 60)} {fmt.setting(c.setting)} at {fmt.count(c.context)} failed: "
        f"{fmt.clean(c.error, 300)}" for c in failed
    ]  # fmt: skip


def rich_table(cells: Sequence[Cell]) -> Table:
    """The table for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for i, title in enumerate(HEADER):
        left = i in _LEFT
        short = title.replace(" [", "\n[").replace(" ↑", "\n↑").replace(" ↓", "\n↓")
        table.add_column(Text(short),
                         justify="left" if left else "right", no_wrap=not left,
                         overflow="fold")  # fmt: skip
    named, before = labels(cells), [""] * 3
    for cell in cells:
        line = list(texts(cell, named[cell.model, cell.sha256]))
        # Model, weights and engine once: a name is long and takes lines.
        before, line[:3] = line[:3], [""] * 3 if line[:3] == before else line[:3]
        line[3] = "\n".join(fmt.pieces(line[3]))
        table.add_row(*map(Text, line))
    return table


def markdown(cells: Sequence[Cell]) -> str:
    """A table for each model, with the notes they need."""
    lines = []
    for model, label in labels(cells).items():
        own = [c for c in cells if (c.model, c.sha256) == model]
        lines += [f"## {md(label)}", ""]
        lines += md_table(HEADER[1:], [texts(c, label)[1:] for c in own], [i - 1 for i in _LEFT])
        lines += [f"- {md(note)}" for note in notes(own)]
        lines += [""] if notes(own) else []
    return "\n".join(lines)


def csv_text(cells: Sequence[Cell]) -> str:
    """One line a cell: every field, every metric with its interval, full precision."""
    metrics = sorted({name for c in cells for name in c.metrics})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = [RENAMED.get(name, name) for name in metrics]
    writer.writerow([*_PLAIN, *(c + end for c in columns for end in ("", "_low", "_high"))])
    for cell in cells:
        line: list[Any] = [
            _text(v) if isinstance(v := getattr(cell, name), str) else v for name in _PLAIN
        ]
        for name in metrics:
            found = cell.metrics.get(name)
            line += ends(found)
        writer.writerow(line)
    return out.getvalue()
