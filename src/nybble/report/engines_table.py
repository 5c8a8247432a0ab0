"""Engines' capabilities as tables: the matrix, and one engine in full."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from nybble.results.engines import ChoiceLine, EngineLine, ProbedLine


def matrix(lines: Sequence[EngineLine]) -> Table:
    """One line an engine."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("engine", "read in", "flag", "KV types", "K and V", "quantized K/V read",
                 "told by"):  # fmt: skip
        table.add_column(name, overflow="fold")
    for line in lines:
        table.add_row(line.name, line.version, line.flags, line.types, line.sides, line.read,
                      line.told)  # fmt: skip
    return table


def choices(lines: Sequence[ChoiceLine]) -> Table:
    """One line a value of the flag."""
    asked = any(line.works is not None for line in lines)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("value", "KV setting", "bits", "read"):
        table.add_column(name, no_wrap=name != "KV setting", overflow="fold",
                         justify="right" if name == "bits" else "left")  # fmt: skip
    table.add_column("works" if asked else "needs", overflow="fold")
    for line in lines:
        bits = "" if line.bits is None else f"{line.bits:.4g}"
        told = (line.works or "") if asked else line.needs
        table.add_row(line.name, line.kv, bits, line.read, told)
    return table


def probed(found: Sequence[ProbedLine]) -> Table:
    """One line an installed engine: what it has that our data lacks, and the other way round."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("engine", "installed", "read up to", "KV values", "differences", "where"):
        table.add_column(name, overflow="fold")
    for p in found:
        told = [f"new: {', '.join(p.missing)}"] if p.missing else []
        told += [f"gone: {', '.join(p.gone)}"] if p.gone else []
        told += [p.note] if p.note else []
        # Text of somebody else's programs: no markup.
        cells = (p.engine, p.installed, p.read, " ".join(p.found), "; ".join(told) or "none",
                 p.where)  # fmt: skip
        table.add_row(*(Text(cell) for cell in cells))
    return table
