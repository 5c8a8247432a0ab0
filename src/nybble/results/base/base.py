"""A result base: the cells of many runs, read at once or asked in SQL."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

from nybble.results.base import tokens
from nybble.results.base.cell import Cell
from nybble.results.base.checked import PLAIN, RENAMED_BACK, metric_columns
from nybble.results.base.external import EXTERNAL_SCHEMA_VERSION, Imported
from nybble.results.base.find import read_text
from nybble.results.base.index import discard, refreshed
from nybble.results.base.manifest import Manifest
from nybble.results.base.refresh import Progress
from nybble.results.base.views import Table, View, ask, connect, refusing, schema
from nybble.results.records import Estimate, read_record

_KEY = ("run", "sha256", "reference", "setting", "context", "role")  # a cell's, in its base
_CANDIDATES = "role = 'candidate' AND sha256 = reference"


@dataclass(frozen=True)
class Damaged:
    """A file that was left out, and why; its path is relative to the base."""

    path: str
    reason: str


class Base:
    """What `open_base` opens; a context manager that closes its database.

    Args:
        root: folder of the base.
        folder: of its index.
        manifest: what is in that.
    """

    def __init__(self, root: Path, folder: Path, manifest: Manifest) -> None:
        self.root, self._folder = root, folder
        found = [d for run in manifest.runs.values() for d in run.damaged]
        self.damaged = [Damaged(*d) for d in sorted(found + manifest.import_damage)]
        self._imports = sorted(manifest.imports)
        self._db = connect(folder, manifest)

    def __enter__(self) -> Base:
        """The base itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Close its database."""
        self._db.close()

    @cached_property
    def cells(self) -> list[Cell]:
        """Every cell, by run, in the order of its summary."""
        return self._cells("ORDER BY run, cell")

    def candidates(self, most: int | None = None) -> list[Cell]:
        """KV settings against the 16-bit cache of their own weights, by model, context and bits.

        Args:
            most: how many of them; all if None.
        """
        limit = "" if most is None else f"LIMIT {most}"
        return self._cells(
            f"WHERE {_CANDIDATES} ORDER BY model, weights, file, engine, context, bits DESC, "
            f"setting, run {limit}"
        )

    @property
    def n_candidates(self) -> int:
        """How many `candidates` there are."""
        return int(self.query(f"SELECT count(*) FROM cells WHERE {_CANDIDATES}").rows[0][0])

    @cached_property
    def externals(self) -> list[Imported]:
        """Imported files of other harnesses, by path; without the damaged ones."""
        bad = {d.path for d in self.damaged}
        return [
            read_record(read_text(self.root / name), Imported, EXTERNAL_SCHEMA_VERSION, "import")
            for name in self._imports if name not in bad
        ]  # fmt: skip

    def query(self, sql: str) -> Table:
        """Ask in DuckDB's SQL; `schema` says what there is.

        Raises:
            NybbleError: it is no single SELECT, DuckDB refuses it, or it gives too many rows.
        """
        return ask(self._db, sql, self._folder)

    def schema(self) -> list[View]:
        """The views that `query` knows, with their columns."""
        return schema(self._db)

    @property
    def n_imported(self) -> int:
        """Numbers of other harnesses."""
        return int(self.query("SELECT count(*) FROM imported").rows[0][0])

    def _cells(self, which: str) -> list[Cell]:
        found = self.query(f"FROM cells {which}")
        place = {name: i for i, name in enumerate(found.columns)}
        plain = {name: place[name] for name in PLAIN}
        names = [(RENAMED_BACK.get(m, m), place[m], place[f"{m}_low"], place[f"{m}_high"])
                 for m in metric_columns(found.columns)]  # fmt: skip
        made = []
        for line in found.rows:
            estimates = {
                name: Estimate(line[value], line[low], line[high])
                for name, value, low, high in names
                if line[value] is not None
            }
            values = {name: line[i] for name, i in plain.items()}
            made.append(Cell(**values, metrics=estimates))
        return made

    def tokens(self, cell: Cell) -> dict[str, npt.NDArray[Any]]:
        """Token rows of a cell, by category, document, chunk and position.

        Returns:
            Columns of one length: "category", "document", "chunk" and the fields of
            scoring.compare.ROW; of length 0 where the run kept no rows.
        """
        where = " AND ".join(f"{name} = ?" for name in _KEY)
        columns = (*tokens.PLACE, *tokens.ROW)
        sql = (f"SELECT {', '.join(columns)} FROM kept.tokens WHERE cell = (SELECT min(cell) FROM "
               f"cells WHERE {where}) ORDER BY category, document, chunk, position")  # fmt: skip
        with refusing(self._db, self._folder):
            found = self._db.execute(sql, [getattr(cell, name) for name in _KEY]).fetchnumpy()
        return {name: np.ma.filled(found[name], np.nan) for name in columns}


def open_base(root: Path, progress: Progress | None = None) -> Base:
    """Open a base; what changed in it since the last time is read first.

    Args:
        root: folder of runs, at any depth up to six, and `imported/`.
        progress: told of the runs that are read.

    Raises:
        NybbleError: there is no such folder, or its index cannot be written.
    """
    try:
        return Base(root, *refreshed(root, progress))
    except duckdb.Error:  # files of the right size with the wrong bytes
        discard(root)
        return Base(root, *refreshed(root, progress))
