"""A verification on the terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table

from nybble.results.verification import Verification

_STYLES = {"ok": "green", "differs": "red", "broken": "red", "echo": "yellow", "untold": "dim"}


def verification_table(found: Verification) -> Table:
    """One line a check: asked, reported, observed, verdict."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("", "asked", "reported", "observed", "verdict"):
        table.add_column(name, overflow="fold")
    for check in found.checks:
        style = _STYLES[check.state]
        table.add_row(check.name, check.asked, check.reported, check.observed,
                      f"[{style}]{check.state}[/{style}]")  # fmt: skip
    return table
