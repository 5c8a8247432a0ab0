"""What every use of DuckDB in a base shares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import duckdb


@contextmanager
def interruptible() -> Iterator[None]:
    """Make Ctrl-C of the errors that DuckDB makes of it."""
    try:
        yield
    except (RuntimeError, duckdb.Error) as error:
        if "Query interrupted" in str(error) or "KeyboardInterrupt" in str(error):
            raise KeyboardInterrupt from error
        raise


def quoted(text: object) -> str:
    """A text or path as SQL."""
    return "'" + str(text).replace("'", "''") + "'"


def listed(texts: Iterable[object]) -> str:
    """Texts or paths as a list in SQL."""
    return "[" + ", ".join(map(quoted, texts)) + "]"


def message(error: BaseException) -> str:
    """DuckDB's message on one line, without the picture of the query below it."""
    return " ".join(str(error).split("\n\n")[0].split())[:500]
