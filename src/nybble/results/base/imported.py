"""Imported numbers as flat lines for the index, checked."""

from __future__ import annotations

from typing import Any

from nybble.results.base.cell import HARNESS
from nybble.results.base.checked import plain
from nybble.results.base.external import Imported

COLUMNS = {
    "path": "VARCHAR", "harness": "VARCHAR", "harness_version": "VARCHAR", "source": "VARCHAR",
    "model": "VARCHAR", "setting": "VARCHAR", "metric": "VARCHAR", "value": "DOUBLE",
    "stderr": "DOUBLE", "task": "VARCHAR", "context": "BIGINT", "n": "BIGINT",
    "higher_is_better": "BOOLEAN", "note": "VARCHAR",
}  # fmt: skip
_OPTIONAL = ("stderr", "context", "n", "higher_is_better")
_OF_FILE = ("harness", "harness_version", "source")


def lines(record: Imported, path: str) -> list[dict[str, Any]]:
    """A line for each number.

    Args:
        record: of one file.
        path: of the file, relative to the base.

    Raises:
        ValueError: a field holds what it may not; the text names it.
    """
    if record.harness == HARNESS:
        raise ValueError(f"numbers of {HARNESS} itself are read from its runs")
    found = []
    for row in record.rows:
        line: dict[str, Any] = {"path": path}
        for name, kind in list(COLUMNS.items())[1:]:
            value = getattr(record if name in _OF_FILE else row, name)
            absent = value is None and name in _OPTIONAL
            line[name] = None if absent else plain(name, kind, value)
        found.append(line)
    return found
