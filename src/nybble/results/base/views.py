"""The tables that a base is asked in SQL, and the asking: one SELECT, no files, no settings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from nybble.errors import NybbleError, nearest
from nybble.results.base.duck import interruptible, listed, message, quoted
from nybble.results.base.manifest import FILE, Manifest
from nybble.results.base.tokens import COLUMNS, PLACE, ROW

MOST_ROWS = 1_000_000  # of an answer
SCHEMA_HINT = "nybble results query --schema"
VIEWS = {
    "cells": "one KV setting of one model at one context length in one run, metrics as columns",
    "runs": "one run folder",
    "slices": "a category or a stretch of positions of a cell",
    "tokens": "one scored token of a cell: KLD, NLLs, top tokens, rank, margin",
    "imported": "one number of another harness; never in one column with nybble's",
}
_OF_CELL = "run model file sha256 weights engine setting role context".split()
_ALLOWED = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN, duckdb.StatementType.MULTI)


@dataclass(frozen=True)
class Table:
    """What a query answers."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


@dataclass(frozen=True)
class View:
    """A view: name, meaning, and its columns with their types."""

    name: str
    meaning: str
    columns: list[tuple[str, str]]


def connect(folder: Path, manifest: Manifest) -> duckdb.DuckDBPyConnection:
    """A database with the views of `VIEWS`, that can read nothing but the index.

    Args:
        folder: of the index.
        manifest: what is in it.
    """
    db = duckdb.connect(":memory:")
    db.execute("CREATE SCHEMA kept")
    for table, name in manifest.tables.items():
        db.execute(f"CREATE VIEW kept.{table} AS FROM read_parquet({quoted(folder / name)})")
    segments = [folder / name for name in manifest.segments]
    empty = ", ".join(f"NULL::{kind} AS {name}" for name, kind in COLUMNS.items())
    source = f"FROM read_parquet({listed(segments)})" if segments else f"SELECT {empty} LIMIT 0"
    of_cell = ", ".join(f"c.{name}" for name in _OF_CELL)
    of_row = ", ".join(f"t.{name}" for name in (*PLACE, *ROW))
    db.execute(f"""
        CREATE VIEW cells AS FROM kept.cells;
        CREATE VIEW imported AS FROM kept.imported;
        CREATE VIEW kept.tokens AS {source};
        CREATE VIEW slices AS SELECT {of_cell}, s.* FROM kept.slices s JOIN cells c USING (cell);
        CREATE VIEW tokens AS SELECT c.cell, {of_cell}, {of_row}
            FROM kept.tokens t JOIN cells c USING (cell);
        CREATE VIEW runs AS SELECT run, min(created) AS created, min(nybble) AS nybble,
            string_agg(DISTINCT model, ', ') AS models, string_agg(DISTINCT engine, ', ') AS
            engines, min(cpu) AS cpu, min(device) AS device, min(categories) AS categories,
            min(text_sha256) AS text_sha256, count(*) AS cells,
            count(*) FILTER (status = 'failed') AS failed, min(command) AS command
            FROM cells GROUP BY run;
    """)
    files = [folder / name for name in manifest.files()]
    db.execute(f"SET allowed_paths = {listed(files)}")
    # Spilling would write to the folder that the user is in.
    db.execute("SET temp_directory = ''; SET python_enable_replacements = false; "
               "SET enable_external_access = false; SET lock_configuration = true")  # fmt: skip
    return db


def ask(db: duckdb.DuckDBPyConnection, sql: str, folder: Path) -> Table:
    """Answer one SELECT.

    Args:
        db: of `connect`.
        sql: the question.
        folder: of the index.

    Raises:
        NybbleError: it is something else, DuckDB refuses it, or it gives too many rows.
    """
    with refusing(db, folder):
        sql.encode()  # an argument of the command line may hold any bytes
        statements = db.extract_statements(sql)
        if len(statements) != 1 or statements[0].type not in _ALLOWED:
            raise NybbleError("a base answers one SELECT at a time", seen=sql[:200] or "nothing",
                              allowed="SELECT, WITH, FROM, PIVOT, DESCRIBE, SUMMARIZE, EXPLAIN",
                              hint=SCHEMA_HINT)  # fmt: skip
        found = db.execute(sql)
        columns = tuple(d[0] for d in found.description or ())
        rows = found.fetchmany(MOST_ROWS + 1)
    if len(rows) > MOST_ROWS:
        raise NybbleError("the answer is too long", seen=f"over {MOST_ROWS:,} rows",
                          hint="group it, or add a LIMIT")  # fmt: skip
    return Table(columns, rows)


def schema(db: duckdb.DuckDBPyConnection) -> list[View]:
    """What can be asked for."""
    found = []
    for name, meaning in VIEWS.items():
        columns = db.execute(f"DESCRIBE {name}").fetchall()
        found.append(View(name, meaning, [(str(c[0]), str(c[1])) for c in columns]))
    return found


@contextmanager
def refusing(db: duckdb.DuckDBPyConnection, folder: Path) -> Iterator[None]:
    """Make DuckDB's errors the user's; an index that turns out to be damaged is given up.

    Raises:
        NybbleError: DuckDB refused what was done in here.
    """
    try:
        with interruptible():
            yield
    except (duckdb.Error, UnicodeEncodeError) as error:
        raise _refused(db, error, folder) from error


def _refused(db: duckdb.DuckDBPyConnection, error: Exception, folder: Path) -> NybbleError:
    """DuckDB's message, and the names that may have been meant."""
    text = str(error)
    # What reads Parquet has errors without a class of their own.
    if type(error) in (duckdb.Error, duckdb.IOException) or "Failed to read file" in text:
        (folder / FILE).unlink(missing_ok=True)
        return NybbleError("the index of the base is damaged", seen=message(error),
                           hint="the same command again; the index is then built anew")  # fmt: skip
    near, allowed = None, None
    if found := re.search(r'column "([^"]+)"', text):
        names = {name for view in schema(db) for name, _ in view.columns}
        near = nearest(found[1], sorted(names))
    elif found := re.search(r"Table with name (\S+) does not exist", text):
        allowed = ", ".join(VIEWS)
        near = nearest(found[1], VIEWS)
    what = "the query failed" + (f"; did you mean {near}?" if near else "")
    return NybbleError(what, seen=message(error), allowed=allowed, hint=SCHEMA_HINT)
