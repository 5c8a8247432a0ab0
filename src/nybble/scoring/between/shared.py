"""Tokens that two cells share, summed by document in DuckDB: millions of rows never come here.

Tokens are shared where context, category, document, chunk, position and token id are equal. A
chunk in which any shared position holds another token is another text (another tokenizer, framing
or edition), so all of it is left out: ids that agree by chance pair nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

from nybble.errors import NybbleError
from nybble.results.base.duck import interruptible
from nybble.results.base.find import ROWS
from nybble.scoring.statistics import FLIP_MARGIN

MAX_ROWS = 50_000_000  # of one cell; a large one has a million
MAX_DOCUMENTS = 5_000  # 10,000 draws of them take 400 MB
_MEMORY = "4GB"
_PLACE = "category, document, chunk, position"
_TYPES = {
    "category": "VARCHAR", "document": "VARCHAR", "chunk": "BIGINT", "position": "BIGINT",
    "token": "BIGINT", "kld": "FLOAT", "nll": "FLOAT", "nll_ref": "FLOAT", "top": "BIGINT",
    "top_ref": "BIGINT", "margin_ref": "FLOAT",
}  # fmt: skip
# Of a token, by side; `right` is a word of SQL.
_VALUES = {
    "mean_kld": "{s}.kld",
    "same_top": "({s}.top = {s}.top_ref)::INT",
    "flips": f"({{s}}.top <> {{s}}.top_ref AND {{s}}.margin_ref > {FLIP_MARGIN})::INT",
    "nll": "{s}.nll",
    "right": "({s}.top = {s}.token)::INT",
}
METRICS = tuple(_VALUES)
_BOTH = {
    "n": "1",
    "differs": "(a.top <> b.top)::INT",
    "lost": "(a.top = a.token AND b.top <> b.token)::INT",
    "gained": "(a.top <> a.token AND b.top = b.token)::INT",
}

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Place:
    """Where the token rows of a cell are.

    Attributes:
        folder: of the run.
        label: of the model, which is its own reference.
        role: of the row.
        setting: KV setting.
        context: tokens.
    """

    folder: Path
    label: str
    role: str
    setting: str
    context: int


@dataclass(frozen=True)
class Shared:
    """Sums over shared tokens with finite numbers on both sides, one a document.

    Attributes:
        n: tokens of each document.
        a: metric -> sums of A; names as `METRICS`.
        b: the same of B.
        differs: tokens whose most likely ones differ.
        lost: tokens that A has right and B has not.
        gained: tokens that B has right and A has not.
        n_nonfinite: shared tokens left out.
        only_a: tokens that only A has.
        only_b: tokens that only B has.
        other_chunks: chunks left out because the two hold other tokens in the same places.
        why_none: why nothing is shared; empty where something is.
    """

    n: Array
    a: dict[str, Array]
    b: dict[str, Array]
    differs: Array
    lost: Array
    gained: Array
    n_nonfinite: int
    only_a: int
    only_b: int
    other_chunks: int
    why_none: str

    @property
    def n_tokens(self) -> int:
        """Shared tokens with finite numbers on both sides."""
        return int(self.n.sum())


@contextmanager
def database() -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB in memory that writes no file and adds up in one order, so equal calls are equal."""
    settings: dict[str, Any] = {"threads": 1, "memory_limit": _MEMORY, "temp_directory": ""}
    with interruptible(), duckdb.connect(":memory:", config=settings) as db:
        yield db


def shared(db: duckdb.DuckDBPyConnection, a: Place, b: Place) -> Shared:
    """Pair two cells.

    Args:
        db: of `database`.
        a: one cell.
        b: the other.

    Raises:
        NybbleError: token rows are missing, damaged, twice there or too many.
    """
    n_a, n_b = _read(db, "a", a), _read(db, "b", b)
    other = _one(
        db, "CREATE OR REPLACE TEMP TABLE other AS SELECT DISTINCT category, document, chunk "
        f"FROM a JOIN b USING ({_PLACE}) WHERE a.token <> b.token",
    )  # fmt: skip
    sums = [f"sum({value}) AS {name}" for name, value in _BOTH.items()]
    for s in "ab":
        sums += [f"sum({value.format(s=s)}) AS {s}_{m}" for m, value in _VALUES.items()]
    finite = " AND ".join(f"isfinite({s}.{c})" for s in "ab" for c in ("kld", "nll", "nll_ref"))
    same = f"FROM a JOIN b USING ({_PLACE}) ANTI JOIN other USING (category, document, chunk)"
    n_shared = _one(db, f"SELECT count(*) {same}")
    sums_of = f"SELECT {', '.join(sums)} {same} WHERE {finite} GROUP BY category, document"
    columns = db.execute(f"{sums_of} ORDER BY category, document").fetchnumpy()
    found = {name: np.asarray(values, dtype=np.float64) for name, values in columns.items()}
    if len(found["n"]) > MAX_DOCUMENTS:
        raise NybbleError("the runs share more documents than can be resampled",
                          seen=f"{len(found['n']):,} in {a.folder} and {b.folder}",
                          allowed=f"{MAX_DOCUMENTS:,}", hint="--context N")  # fmt: skip
    return Shared(
        n=found["n"],
        a={m: found[f"a_{m}"] for m in METRICS},
        b={m: found[f"b_{m}"] for m in METRICS},
        differs=found["differs"], lost=found["lost"], gained=found["gained"],
        n_nonfinite=n_shared - int(found["n"].sum()),
        only_a=n_a - n_shared, only_b=n_b - n_shared, other_chunks=other,
        why_none="" if len(found["n"]) else _why_none(db, n_a, n_b, n_shared, other),
    )  # fmt: skip


def _read(db: duckdb.DuckDBPyConnection, name: str, place: Place) -> int:
    """Load a cell's rows into a table; returns how many."""
    files = sorted(str(p) for p in (place.folder / ROWS).glob("*.parquet"))
    columns = ", ".join(f"CAST({c} AS {t}) AS {c}" for c, t in _TYPES.items())
    if not files:
        nothing = ", ".join(f"CAST(NULL AS {t}) AS {c}" for c, t in _TYPES.items())
        db.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS SELECT {nothing} LIMIT 0")
        return 0
    where = (
        "FROM read_parquet($files, union_by_name = true) WHERE model = $label AND "
        "reference = $label AND role = $role AND setting = $setting AND context = $context"
    )
    values = {"files": files, "label": place.label, "role": place.role,
              "setting": place.setting, "context": place.context}  # fmt: skip
    try:
        n = _one(db, f"SELECT count(*) {where}", values)
        if n > MAX_ROWS:
            raise NybbleError("too many token rows in one cell", seen=f"{n:,} in {place.folder}",
                              allowed=f"{MAX_ROWS:,}")  # fmt: skip
        db.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS SELECT {columns} {where}", values)
        distinct = _one(db, f"SELECT count(*) FROM (SELECT DISTINCT {_PLACE} FROM {name})")
        holes = " OR ".join(f"{c} IS NULL" for c in _TYPES)
        if n_holes := _one(db, f"SELECT count(*) FROM {name} WHERE {holes}"):
            raise NybbleError(
                "token rows of a run have holes, so it is damaged",
                seen=f"{n_holes:,} rows in {place.folder / ROWS}",
                hint=f"nybble measure ... --out {place.folder} --fresh, or get the folder again",
            )
    except duckdb.Error as error:
        raise NybbleError(
            "cannot read the token rows of a run",
            seen=f"{place.folder / ROWS}: {str(error).splitlines()[0][:300]}",
            hint=f"remove the damaged file, or nybble measure ... --out {place.folder} --fresh",
        ) from error
    if distinct < n:
        raise NybbleError(
            "the run folder holds tokens of this setting more than once: two measurements, or two "
            "versions of an engine, were written to it",
            seen=f"{place.setting} at context {place.context:,} in {place.folder}: {n:,} rows, "
            f"{distinct:,} tokens",
            hint="measure each into its own --out FOLDER",
        )
    return n


def _why_none(db: duckdb.DuckDBPyConnection, n_a: int, n_b: int, n_shared: int, other: int) -> str:
    """Say why two cells share no token."""
    for side, n in (("A", n_a), ("B", n_b)):
        if not n:
            return f"{side} has no token rows (its rows/ is missing or holds other settings)"
    if n_shared:
        return "no shared token has finite numbers on both sides"
    if other:
        return ("the same places of the same documents hold other tokens: another tokenizer, "
                "framing, or edition of the text")  # fmt: skip
    documents = (
        "SELECT count(*) FROM (SELECT DISTINCT category, document FROM a) JOIN "
        "(SELECT DISTINCT category, document FROM b) USING (category, document)"
    )
    if not _one(db, documents):
        return "they scored other documents"
    spans = [
        db.execute(f"SELECT min(position), max(position) FROM {t}").fetchone() or (0, 0)
        for t in "ab"
    ]
    (a, b), (c, d) = spans
    if b < c or d < a:
        return f"they scored other positions, {a}-{b} and {c}-{d} (another --score-from)"
    return "they scored other chunks of the same documents"


def _one(db: duckdb.DuckDBPyConnection, sql: str, values: dict[str, Any] | None = None) -> int:
    row = db.execute(sql, values or {}).fetchone()
    return int(row[0]) if row else 0
