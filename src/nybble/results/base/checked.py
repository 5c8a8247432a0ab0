"""Cells and slices of a summary that may come from anybody, checked and flat for the index."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from nybble.results.base.cell import Cell
from nybble.results.records import Estimate, Row, Slice

MOST_METRICS = 100  # names in one record; nybble writes about a dozen
_LONGEST = 100_000  # characters of a text; commands that list many files are long
_SQL = {"str": "VARCHAR", "int": "BIGINT", "float": "DOUBLE", "bool": "BOOLEAN"}
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")

# A server's top-k comparison calls its estimate from above `mean_kld_high`; so is the upper end
# of the interval of `mean_kld` called in a flat table.
RENAMED = {"mean_kld_high": "mean_kld_upper"}
RENAMED_BACK = {column: name for name, column in RENAMED.items()}

PLAIN = {f.name: _SQL[str(f.type)] for f in fields(Cell) if f.name != "metrics"}
SLICE = {"kind": "VARCHAR", "name": "VARCHAR", "n_documents": "BIGINT", "n_tokens": "BIGINT"}


def cell_line(cell: Cell) -> dict[str, Any]:
    """A cell as one flat line, its metrics as columns with `_low` and `_high`.

    Raises:
        ValueError: a field holds what it may not; the text names it.
    """
    line = {name: plain(name, kind, getattr(cell, name)) for name, kind in PLAIN.items()}
    return {**line, **_metrics(cell.metrics)}


def slice_lines(row: Row) -> list[dict[str, Any]]:
    """The slices of a row as flat lines, by category and by position.

    Raises:
        ValueError: as `cell_line`.
    """
    found = []
    slices: Sequence[tuple[str, Sequence[Slice]]] = (
        ("category", row.by_category), ("position", row.by_position)
    )  # fmt: skip
    for kind, parts in slices:
        for part in parts or ():
            values = {"kind": kind, "name": part.name, "n_documents": part.n_documents,
                      "n_tokens": part.n_tokens}  # fmt: skip
            line = {name: plain(name, SLICE[name], value) for name, value in values.items()}
            found.append({**line, **_metrics(part.metrics)})
    return found


def metric_columns(columns: Sequence[str]) -> list[str]:
    """Those of the columns that are a metric's value."""
    known = set(columns)
    return [c for c in columns if {f"{c}_low", f"{c}_high"} <= known]


def plain(name: str, kind: str, value: Any) -> Any:
    """A value that is of its SQL type, as it is.

    Raises:
        ValueError: it is of another; the text names it.
    """
    if kind == "VARCHAR" and isinstance(value, str):
        if len(value) > _LONGEST:
            raise ValueError(f"{name} has {len(value):,} characters")
        if "\0" in value or not _encodes(value):
            raise ValueError(f"{name} is no text in UTF-8")
        return value
    if kind == "BOOLEAN" and isinstance(value, bool):
        return value
    if kind == "BIGINT" and type(value) is int and abs(value) < 2**63:
        return value
    if kind == "DOUBLE" and type(value) in (int, float) and _finite(value):
        return float(value)
    raise ValueError(f"{name} is {str(value)[:60]!r}")


def _metrics(metrics: Mapping[str, Estimate]) -> dict[str, float | None]:
    if len(metrics) > MOST_METRICS:
        raise ValueError(f"{len(metrics):,} metrics, {MOST_METRICS} at most")
    line: dict[str, float | None] = {}
    for name, found in metrics.items():
        column = RENAMED.get(name, name)
        if not _NAME.fullmatch(column) or column.endswith(("_low", "_high")) or column in PLAIN:
            raise ValueError(f"a metric may not be called {name[:60]!r}")
        for end, value in (("", found.value), ("_low", found.low), ("_high", found.high)):
            absent = value is None and end
            line[column + end] = None if absent else plain(column + end, "DOUBLE", value)
    return line


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    return True
