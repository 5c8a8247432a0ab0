"""Bringing the index of a base up to date: runs that changed are read, the rest is kept."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import duckdb

from nybble.errors import NybbleError
from nybble.results.base import tokens
from nybble.results.base.cell import cells_of
from nybble.results.base.checked import PLAIN, SLICE, cell_line, slice_lines
from nybble.results.base.duck import interruptible, listed, quoted
from nybble.results.base.external import EXTERNAL_SCHEMA_VERSION, Imported
from nybble.results.base.find import ROWS, SUMMARY, read_text, row_files
from nybble.results.base.imported import COLUMNS as IMPORTED
from nybble.results.base.imported import lines as imported_lines
from nybble.results.base.manifest import FILE, IndexedRun, Manifest
from nybble.results.records import Measurement, from_json, read_record

_BATCH = 2_000_000  # token rows of a Parquet file, give or take a run
_SEGMENTS = 24  # of them, before they are made one
# What a record may do that holds other things than it should.
_WRONG = (NybbleError, ArithmeticError, LookupError, TypeError, AttributeError, ValueError,
          RecursionError)  # fmt: skip


class Progress(Protocol):
    """Told how far indexing is."""

    def begin(self, text: str, total: float) -> None:
        """A step of known length starts."""

    def advance(self, done: float) -> None:
        """It moves on."""


@dataclass
class Refresh:
    """One update of an index, under its lock.

    Attributes:
        root: folder of the base.
        folder: of the index.
        manifest: of the state before; `run` makes it that of the state after.
        runs: stamps of the run folders as they are now.
        imports: the same of imported files.
        progress: told of runs.
        cells: lines of the cells read.
        slices: lines of their slices.
        waiting: token rows read and not yet in a file.
    """

    root: Path
    folder: Path
    manifest: Manifest
    runs: dict[str, list[int]]
    imports: dict[str, list[int]]
    progress: Progress
    cells: list[dict[str, Any]] = field(default_factory=list)
    slices: list[dict[str, Any]] = field(default_factory=list)
    waiting: int = 0

    def run(self) -> None:
        """Read what changed, and write the new state.

        Raises:
            OSError: the index cannot be written; so does duckdb.IOException.
        """
        old = set(self.manifest.files())
        known = {name: run.stamp for name, run in self.manifest.runs.items()}
        gone = [name for name in known if known[name] != self.runs.get(name)]
        new = [name for name in self.runs if known.get(name) != self.runs[name]]
        with interruptible(), duckdb.connect(":memory:") as db:
            tokens.prepare(db)
            self.progress.begin(f"indexing {len(new):,} runs", len(new))
            for name in gone:
                del self.manifest.runs[name]
            for name in new:
                self.manifest.runs[name] = self._read(db, name)
                if self.waiting >= _BATCH:
                    self._flush(db)
                self.progress.advance(1)
            self._flush(db)
            self._tables(db, {*gone, *new})
            self._compact(db)
        self.manifest.before = sorted(old - set(self.manifest.files()))
        self.manifest.save(self.folder)
        self._sweep()

    def _sweep(self) -> None:
        """Delete files of older states than the one before, and what a killed update left."""
        used = {FILE, *self.manifest.files(), *self.manifest.before}
        for path in self.folder.iterdir():
            if path.suffix in (".parquet", ".json", ".tmp") and path.name not in used:
                path.unlink(missing_ok=True)

    def _read(self, db: duckdb.DuckDBPyConnection, name: str) -> IndexedRun:
        folder, found = self.root / name, IndexedRun(self.runs[name])
        text = ""
        try:
            text = read_text(folder / SUMMARY)
            record = from_json(text)
            expected = self._cells(record, name)
        except _WRONG as error:
            if not _of_rag(text):
                found.damaged.append([_join(name, SUMMARY), _line(error)])
            return found
        found.tokens, wrong = tokens.read_run(db, row_files(folder, self.root), expected)
        found.damaged += [[_join(name, ROWS, file), reason] for file, reason in wrong]
        self.waiting += found.tokens
        return found

    def _cells(self, record: Measurement, name: str) -> list[tokens.Expected]:
        """Keep the cells and slices of a record, all of them or none."""
        cells, slices, expected = [], [], []
        for number, (cell, row) in enumerate(
            zip(cells_of(record, name), record.rows, strict=True), self.manifest.next_cell
        ):
            cells.append({"cell": number, **cell_line(cell)})
            slices += [{"cell": number, **line} for line in slice_lines(row)]
            if row.status == "done":
                n = row.n_tokens + row.n_nonfinite
                expected.append(tokens.Expected(number, row.model, row.reference, row.role,
                                                row.setting, row.context, n))  # fmt: skip
        self.cells += cells
        self.slices += slices
        self.manifest.next_cell += len(cells)
        return expected

    def _flush(self, db: duckdb.DuckDBPyConnection) -> None:
        if self.waiting:
            name = self._write(db, "tokens", "SELECT * FROM tokens")
            self.manifest.segments[name] = self.waiting
            db.execute("DELETE FROM tokens")
            self.waiting = 0

    def _tables(self, db: duckdb.DuckDBPyConnection, changed: set[str]) -> None:
        """Write the small tables anew: what stays of the old ones, and what was read."""
        db.execute("CREATE TABLE changed (run VARCHAR)")
        db.execute("INSERT INTO changed SELECT unnest(?)", [sorted(changed)])
        kinds: Iterable[tuple[str, dict[str, str], list[dict[str, Any]]]] = (
            ("cells", {"cell": "INTEGER", **PLAIN}, self.cells),
            ("slices", {"cell": "INTEGER", **SLICE}, self.slices),
        )
        for table, columns, lines in kinds:
            made = self._lines(db, table, columns, lines)
            if old := self.manifest.tables.get(table):
                stay = "run NOT IN (FROM changed)" if table == "cells" else (
                    "cell IN (SELECT cell FROM cells)")  # fmt: skip
                made = (f"SELECT * FROM read_parquet({quoted(self.folder / old)}) WHERE {stay} "
                        f"UNION ALL BY NAME {made}")  # fmt: skip
            db.execute(f"CREATE TABLE {table} AS {made}")
            self.manifest.tables[table] = self._write(db, table, f"FROM {table} ORDER BY cell")
        if self.imports != self.manifest.imports or "imported" not in self.manifest.tables:
            made = self._lines(db, "imported", IMPORTED, self._imported())
            self.manifest.tables["imported"] = self._write(db, "imported", made)

    def _imported(self) -> list[dict[str, Any]]:
        self.manifest.imports, self.manifest.import_damage = self.imports, []
        found = []
        for name in self.imports:
            try:
                record: Imported = read_record(
                    read_text(self.root / name), Imported, EXTERNAL_SCHEMA_VERSION, "import"
                )
                found += imported_lines(record, name)
            except _WRONG as error:
                self.manifest.import_damage.append([name, _line(error)])
        return found

    def _lines(
        self, db: duckdb.DuckDBPyConnection, table: str, columns: dict[str, str],
        lines: Sequence[dict[str, Any]],
    ) -> str:  # fmt: skip
        """SQL that gives these lines; every column that is not named is a number."""
        extra = dict.fromkeys(sorted({k for line in lines for k in line} - columns.keys()))
        path = self.folder / f"{table}-lines.json"
        with path.open("w", encoding="ascii") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        types = ", ".join(f"'{c}': '{columns.get(c, 'DOUBLE')}'" for c in (*columns, *extra))
        db.execute(
            f"CREATE TABLE {table}_new AS SELECT * FROM read_json({quoted(path)}, "
            f"format = 'newline_delimited', maximum_object_size = {64 << 20}, "
            f"columns = {{{types}}})"
        )
        path.unlink()
        return f"SELECT * FROM {table}_new"

    def _compact(self, db: duckdb.DuckDBPyConnection) -> None:
        """Make the files of token rows one where they are many, or mostly of cells now gone."""
        held = sum(self.manifest.segments.values())
        live = sum(run.tokens for run in self.manifest.runs.values())
        if len(self.manifest.segments) <= _SEGMENTS and held <= 2 * live + _BATCH // 10:
            return
        files = listed(self.folder / name for name in self.manifest.segments)
        self.manifest.segments = {}
        if live:
            name = self._write(db, "tokens", f"SELECT * FROM read_parquet({files}) "
                                             "WHERE cell IN (SELECT cell FROM cells)")  # fmt: skip
            self.manifest.segments[name] = live

    def _write(self, db: duckdb.DuckDBPyConnection, table: str, query: str) -> str:
        name = f"{table}-{secrets.token_hex(6)}.parquet"
        db.execute(f"COPY ({query}) TO {quoted(self.folder / name)} (FORMAT parquet, "
                   "COMPRESSION zstd)")  # fmt: skip
        return name


def _of_rag(text: str) -> bool:
    """Whether it is the summary.json of `nybble rag eval`, which lies in the same folders."""
    try:
        return bool({"retrieval", "questions"} <= json.loads(text).keys())
    except (ValueError, AttributeError, RecursionError):
        return False


def _join(*parts: str) -> str:
    return "/".join(p for p in parts if p not in ("", "."))


def _line(error: Exception) -> str:
    if not isinstance(error, NybbleError):
        return f"a damaged nybble measurement: {error}"
    seen = f": {error.seen}" if error.seen else ""
    return " ".join(f"{error.what}{seen}".split())[:300]
