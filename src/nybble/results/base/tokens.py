"""Token rows of one run, from its many small Parquet files into one table, checked and counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from nybble.results.base.duck import message

# The fields of scoring.compare.ROW and their types in Parquet.
ROW = {
    "position": "INTEGER", "token": "INTEGER", "kld": "FLOAT", "nll_ref": "FLOAT", "nll": "FLOAT",
    "top_ref": "INTEGER", "top": "INTEGER", "margin_ref": "FLOAT", "rank": "INTEGER",
}  # fmt: skip
PLACE = {"category": "VARCHAR", "document": "VARCHAR", "chunk": "INTEGER"}
COLUMNS = {"cell": "INTEGER", **PLACE, **ROW}
_NAMED = 20  # damaged files of one run that are named one by one


@dataclass(frozen=True)
class Expected:
    """A cell whose token rows are looked for; its constants are those of the row files.

    Attributes:
        cell: its number in the index.
        model: "a" or "b".
        reference: "a" or "b".
        role: as in records.Row.
        setting: KV setting.
        context: tokens.
        n: token rows that the summary counts.
    """

    cell: int
    model: str
    reference: str
    role: str
    setting: str
    context: int
    n: int


def prepare(db: duckdb.DuckDBPyConnection) -> None:
    """Make the tables that `read_run` fills: `tokens` of the batch, `run` and `expected`."""
    columns = ", ".join(f"{name} {kind} NOT NULL" for name, kind in COLUMNS.items())
    db.execute(f"CREATE TABLE tokens ({columns})")
    db.execute(f"CREATE TABLE run ({columns})")
    db.execute("CREATE TABLE expected (cell INTEGER, model VARCHAR, reference VARCHAR, "
               "role VARCHAR, setting VARCHAR, context BIGINT, n BIGINT)")  # fmt: skip


def read_run(
    db: duckdb.DuckDBPyConnection, files: Sequence[Path], expected: Sequence[Expected]
) -> tuple[int, list[tuple[str, str]]]:
    """Append a run's token rows to `tokens`.

    Files of settings that the summary does not have are left out: probes of a budget, or cells of
    another command with the same folder.

    Args:
        db: prepared.
        files: of rows/.
        expected: the run's cells.

    Returns:
        Token rows appended; and name and reason of what was left out or is short.
    """
    if not files or not expected:
        return 0, []
    db.execute("DELETE FROM run; DELETE FROM expected")
    marks = ", ".join(["(?, ?, ?, ?, ?, ?, ?)"] * len(expected))  # far quicker than one by one
    db.execute(f"INSERT INTO expected VALUES {marks}",
               [value for e in expected for value in vars(e).values()])  # fmt: skip
    damaged: list[tuple[str, str]] = []
    try:
        _append(db, files)
    except (duckdb.Error, OSError):
        for path in files:
            try:
                _append(db, [path])
            except (duckdb.Error, OSError) as error:
                damaged.append((path.name, message(error)))
    found = len(damaged)
    if found > _NAMED:
        damaged = [*damaged[:_NAMED], ("", f"{found - _NAMED:,} more damaged row files")]
    damaged += _counts(db, expected, bool(found))
    db.execute("INSERT INTO tokens SELECT * FROM run ORDER BY cell, document, chunk, position")
    appended = db.execute("SELECT count(*) FROM run").fetchone()
    assert appended is not None
    return int(appended[0]), damaged


def _append(db: duckdb.DuckDBPyConnection, files: Sequence[Path]) -> None:
    casts = ", ".join(f"r.{name}::{kind}" for name, kind in (PLACE | ROW).items())
    same = " AND ".join(
        f"e.{name} = r.{name}" for name in ("model", "reference", "role", "setting", "context")
    )
    # No real file has more rows than bytes; a bomb ends here and then counts wrong.
    most = sum(path.stat().st_size for path in files)
    db.execute(
        f"INSERT INTO run SELECT e.cell, {casts} FROM read_parquet(?) r JOIN expected e ON {same} "
        f"WHERE length(r.document) < 500 AND length(r.category) < 500 LIMIT {most}",
        [[str(path) for path in files]],
    )


def _counts(
    db: duckdb.DuckDBPyConnection, expected: Sequence[Expected], explained: bool
) -> list[tuple[str, str]]:
    """Leave out cells with too many rows: nobody can tell which are the summary's."""
    counts = dict(db.execute("SELECT cell, count(*) FROM run GROUP BY cell").fetchall())
    wrong = []
    for e in expected:
        found = counts.get(e.cell, 0)
        if found > e.n:
            db.execute("DELETE FROM run WHERE cell = ?", [e.cell])
        if found > e.n or (found < e.n and not explained):
            what = f"{e.setting} at context {e.context:,} ({e.role}) has {found:,} token rows, "
            what += f"summary.json counts {e.n:,}"
            wrong.append(("", what + ("; they are left out" if found > e.n else "")))
    return wrong
