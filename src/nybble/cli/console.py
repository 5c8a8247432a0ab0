"""What the command line shows: stdout is data, stderr is progress and errors."""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from nybble.errors import NybbleError

_WORDS = ("KV type", "role", "task")


def out() -> Console:
    """Console for data; wide enough for the tables when stdout is a file or a pipe."""
    console = Console(soft_wrap=False)
    asked = console.is_terminal or "COLUMNS" in os.environ
    return console if asked else Console(width=120, soft_wrap=False)


def err() -> Console:
    """Console for everything that is not data."""
    return Console(stderr=True)


def names(value: str | None) -> tuple[str, ...] | None:
    """The parts of an option with commas."""
    return None if value is None else tuple(v.strip() for v in value.split(",") if v.strip())


def integers(option: str, value: str) -> tuple[int, ...]:
    """Whole numbers with commas between, each once.

    Raises:
        NybbleError: other text.
    """
    try:
        return tuple(dict.fromkeys(int(n.replace("_", "")) for n in value.split(",")))
    except ValueError as error:
        raise NybbleError(f"{option} takes whole numbers with commas between", seen=value,
                          hint=f"{option} 1024,8192") from error  # fmt: skip


def shown(found: Any, form: str | None, table: Any) -> bool:
    """Print a record as JSON, CSV or Markdown; False where no such form was asked for.

    Args:
        found: with `as_dict`.
        form: "json", "csv", "markdown" or None.
        table: the report's module for such records, with `csv_text` and `markdown`.
    """
    if form == "json":
        click.echo(json.dumps(found.as_dict(), indent=1))
    elif form:
        text = table.csv_text(found) if form == "csv" else table.markdown(found)
        click.echo(text.rstrip("\n"))
    return form is not None


def planned(
    rows: Sequence[Any], form: str | None, title: str, columns: Mapping[str, Callable[[Any], str]]
) -> None:
    """Print what a run would do, a dataclass a row, and the time it would take.

    Args:
        rows: with `seconds`.
        form: "json", "csv" (both with every field), "markdown" or None.
        title: of the table.
        columns: heading -> text of a row; those named in `_WORDS` stand to the left.
    """
    if form == "json":
        click.echo(json.dumps([asdict(row) for row in rows], indent=1))
        return
    if form == "csv":
        lines = csv.writer(sys.stdout, lineterminator="\n")
        lines.writerow(asdict(rows[0]))
        lines.writerows(asdict(row).values() for row in rows)
        return
    table = Table(title=title, title_justify="left")
    if form == "markdown":
        table = Table(box=box.MARKDOWN)
    for name in (*columns, "about"):
        table.add_column(name, justify="left" if name in _WORDS else "right")
    for row in rows:
        table.add_row(*(text(row) for text in columns.values()), f"{row.seconds:.0f} s")
    out().print(table)
    total = sum(row.seconds for row in rows)
    click.echo(f"about {total / 60:.1f} minutes here, good to a factor of two; nothing was run")


class BarProgress:
    """A bar with time left on a terminal, a line now and then elsewhere, nothing if quiet.

    Use as a context manager; it is the library's Progress.
    """

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._console = err()
        self._plain = not self._console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=quiet or self._plain,
        )
        self._task: TaskID | None = None
        self._text, self._total, self._done = "", 1.0, 0.0
        self._begun = self._told = 0.0

    def __enter__(self) -> BarProgress:
        """Start drawing."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Stop drawing and clear the bar."""
        self._bar.stop()

    def stage(self, text: str) -> None:
        """Name a step of unknown length."""
        if self._quiet:
            return
        if self._plain:
            print(text, file=sys.stderr, flush=True)
        else:
            self._replace(text, None)

    def begin(self, text: str, total: float) -> None:
        """Start a step of known length."""
        self._text, self._total, self._done = text, total, 0.0
        self._begun = self._told = time.monotonic()
        if not self._quiet and not self._plain:
            self._replace(text, total)

    def advance(self, done: float) -> None:
        """Move on."""
        self._done += done
        if self._task is not None:
            self._bar.advance(self._task, done)
        elif self._plain and not self._quiet and time.monotonic() - self._told > 15:
            self._told = time.monotonic()
            share = min(1.0, self._done / self._total)
            left = (self._told - self._begun) * (1 - share) / max(share, 1e-6)
            line = f"{self._text} {share:.0%}, about {left / 60:.1f} min left"
            print(line, file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        if not self._quiet:
            self._bar.console.print(text, style="yellow", markup=False, highlight=False)

    def _replace(self, text: str, total: float | None) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(text, total=total)
