"""The answer to a query as a table: terminal, Markdown, CSV, and lists for JSON."""

from __future__ import annotations

import csv
import datetime
import io
import math
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from nybble.errors import NybbleError
from nybble.report import format as fmt
from nybble.report.spreadsheet import safe
from nybble.report.table import md, md_table
from nybble.results.base.views import Table as Answer

if TYPE_CHECKING:
    from rich.table import Table


def rich_table(answer: Answer) -> Table:
    """The table for a terminal; numbers in six significant digits."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for i, name in enumerate(answer.columns):
        table.add_column(Text(fmt.clean(name, 200)), overflow="fold",
                         justify="right" if _numbers(answer, i) else "left")  # fmt: skip
    for row in answer.rows:
        table.add_row(*(Text(_text(value)) for value in row))
    return table


def markdown(answer: Answer) -> str:
    """A table to paste."""
    left = [i for i in range(len(answer.columns)) if not _numbers(answer, i)]
    titles = [md(fmt.clean(name, 200)) for name in answer.columns]
    return "\n".join(md_table(titles, [[_text(v) for v in row] for row in answer.rows], left))


def csv_text(answer: Answer) -> str:
    """Every value in full."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(safe(name) for name in answer.columns)
    writer.writerows([safe(value) for value in row] for row in answer.rows)
    return out.getvalue()


def records(answer: Answer) -> list[dict[str, Any]]:
    """A mapping for each row, of what JSON can hold; a number that is not finite is None.

    Raises:
        NybbleError: two columns have one name.
    """
    if len(set(answer.columns)) < len(answer.columns):
        raise NybbleError("two columns have one name", seen=", ".join(answer.columns),
                          hint="name them: select ... AS NAME")  # fmt: skip
    return [
        {name: _plain(v) for name, v in zip(answer.columns, row, strict=True)}
        for row in answer.rows
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return value.isoformat() if isinstance(value, (datetime.date, datetime.time)) else str(value)


def _numbers(answer: Answer, column: int) -> bool:
    values = [row[column] for row in answer.rows[:100] if row[column] is not None]
    kinds = (int, float, Decimal)
    return bool(values) and all(
        isinstance(v, kinds) and not isinstance(v, bool) for v in values
    )  # fmt: skip


def _text(value: Any) -> str:
    if value is None:
        return fmt.NONE
    return f"{value:.6g}" if isinstance(value, float) else fmt.clean(value)
