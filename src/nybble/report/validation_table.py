"""Validations as tables: one line a check, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from nybble.results.validate.check import Validation

_STYLES = {"pass": "green", "warn": "yellow", "fail": "red", "skipped": "dim"}
_STATES = ("pass", "warn", "fail", "skipped")


def counts(found: Validation) -> str:
    """How many checks ended which way."""
    told = [f"{n} {s}" for s in _STATES if (n := found.count(s))]  # type: ignore[arg-type]
    return f"{found.place}: {', '.join(told)}"


def rich_table(found: Validation) -> Table:
    """Check, state and reason."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("check", "state", "reason"):
        table.add_column(name, overflow="fold")
    for check in found.checks:
        # Reasons hold text of somebody else's files: no markup.
        table.add_row(check.name, Text(check.state, _STYLES[check.state]), Text(check.reason))
    return table


def markdown(found: Sequence[Validation]) -> str:
    """A table for each run, to paste."""
    parts = []
    for validation in found:
        lines = [f"### {_plain(counts(validation))}", "", "| check | state | reason |",
                 "|---|---|---|"]  # fmt: skip
        lines += [f"| {c.name} | {c.state} | {_plain(c.reason)} |" for c in validation.checks]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    """Text that stays in its cell and is no HTML or Markdown."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    for char in "\\|`*_[":
        text = text.replace(char, f"\\{char}")
    return text
