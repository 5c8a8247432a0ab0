"""The index's file: documents, passages and vectors in one SQLite database, sqlite-vec for those.

Through apsw, because Python's own sqlite3 is often built without extensions. One process writes
(a lock beside the file), any number read while it does (write-ahead log). Every transaction
leaves a whole index, so a run that is killed loses the batch it was at and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nybble.errors import NybbleError
from nybble.rag.packages import need
from nybble.rag.passages import Passage

FILE = "index.db"
_VERSION = 1
_APPLICATION = 0x6E796272  # "nybr"
_SCHEMA = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE documents(
  id INTEGER PRIMARY KEY AUTOINCREMENT, path TEXT UNIQUE NOT NULL, title TEXT NOT NULL,
  kind TEXT NOT NULL, sha256 TEXT NOT NULL, bytes INTEGER NOT NULL,
  whole INTEGER NOT NULL DEFAULT 0);
CREATE INDEX documents_by_content ON documents(sha256);
-- Every file that was looked at: of a document, a copy of one, or left out for a reason.
CREATE TABLE files(
  path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, sha256 TEXT NOT NULL,
  document INTEGER, reason TEXT) WITHOUT ROWID;
CREATE INDEX files_by_document ON files(document);
CREATE TABLE passages(
  id INTEGER PRIMARY KEY AUTOINCREMENT, document INTEGER NOT NULL, heading TEXT NOT NULL,
  page INTEGER, "start" INTEGER NOT NULL, "end" INTEGER NOT NULL, tokens INTEGER NOT NULL,
  text TEXT NOT NULL);
CREATE INDEX passages_by_document ON passages(document, "start");
"""
_COLUMNS = """p.id, d.path, d.title, p.heading, p.page, p."start", p."end", p.tokens, p.text
FROM passages p JOIN documents d ON d.id = p.document"""


class Store:
    """One connection to an index's file; for one thread at a time.

    Args:
        folder: the index's.
        write: whether it may be changed, and made if it is not there.

    Raises:
        NybbleError: there is no index, it is not one, or of another version.
        MissingExtraError: apsw or sqlite-vec is not installed.
    """

    def __init__(self, folder: Path, *, write: bool = False) -> None:
        self.path = folder / FILE
        self._apsw, extension = _packages()
        if not write and not self.path.is_file():
            raise NybbleError("there is no index here", seen=folder, hint="nybble rag index DIR")
        try:
            self._db = self._connect(write)
            self._db.set_busy_timeout(20_000)
            self._db.enable_load_extension(True)
            self._db.load_extension(extension)
            self._db.enable_load_extension(False)
            self._db.execute("PRAGMA trusted_schema=OFF; PRAGMA foreign_keys=OFF")
            if write:
                self._db.execute("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL")
                self._make()
            self._check()
        except self._apsw.Error as error:
            raise self._damaged(error) from error

    def _connect(self, write: bool) -> Any:
        flags = self._apsw.SQLITE_OPEN_READONLY
        if write:
            flags = self._apsw.SQLITE_OPEN_READWRITE | self._apsw.SQLITE_OPEN_CREATE
            return self._apsw.Connection(str(self.path), flags=flags)
        try:
            db = self._apsw.Connection(str(self.path), flags=flags)
            db.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        except (self._apsw.CantOpenError, self._apsw.ReadOnlyError):
            # A folder that cannot be written has no room for the log, and no writer either.
            uri = self.path.resolve().as_uri() + "?immutable=1"
            return self._apsw.Connection(uri, flags=flags | self._apsw.SQLITE_OPEN_URI)
        return db

    def _make(self) -> None:
        with self.transaction():
            if self._one("SELECT count(*) FROM sqlite_schema"):
                return
            self._db.execute(_SCHEMA)
            self._db.execute(
                f"PRAGMA application_id={_APPLICATION}; PRAGMA user_version={_VERSION}"
            )

    def _check(self) -> None:
        if self._one("PRAGMA application_id") != _APPLICATION:
            raise NybbleError("this is not an index of nybble rag", seen=self.path,
                              hint="nybble rag index DIR --index ANOTHER")  # fmt: skip
        version = self._one("PRAGMA user_version")
        if version != _VERSION:
            raise NybbleError("the index is of another version", seen=version,
                              allowed=str(_VERSION),
                              hint="delete its folder and index again")  # fmt: skip

    def _damaged(self, error: Exception) -> NybbleError:
        return NybbleError(f"the index cannot be read: {str(error)[:120]}", seen=self.path,
                           hint="delete its folder and index again")  # fmt: skip

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is written inside appears at once, or not at all.

        Raises:
            NybbleError: the disk is full, or the file damaged.
        """
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except self._apsw.FullError as error:
            raise NybbleError(
                "the disk is full; what was indexed before is kept",
                seen=self.path,
                hint="free some space, then the same command again",
            ) from error
        except self._apsw.Error as error:
            raise self._damaged(error) from error

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """What is read inside is of one moment, whatever another process writes."""
        self.all("SAVEPOINT reading")
        try:
            yield
        finally:
            self._db.execute("RELEASE reading")

    def run(self, sql: str, values: Sequence[Any] = ()) -> None:
        """Run a statement that answers nothing."""
        self._db.execute(sql, values)

    def many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a statement once for each row."""
        self._db.executemany(sql, rows)

    def all(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query.

        Raises:
            NybbleError: the file is damaged.
        """
        try:
            rows: list[tuple[Any, ...]] = self._db.execute(sql, values).fetchall()
        except self._apsw.Error as error:
            raise self._damaged(error) from error
        return rows

    def _one(self, sql: str, values: Sequence[Any] = ()) -> Any:
        rows = self.all(sql, values)
        return rows[0][0] if rows else None

    def insert(self, sql: str, values: Sequence[Any]) -> int:
        """Insert a row and return its id."""
        self._db.execute(sql, values)
        return int(self._db.last_insert_rowid())

    def meta(self) -> dict[str, str]:
        """What the index says of itself."""
        return {str(k): str(v) for k, v in self.all("SELECT key, value FROM meta")}

    def set_meta(self, **values: object) -> None:
        """Write facts about the index, inside a transaction."""
        self.many("INSERT OR REPLACE INTO meta VALUES(?, ?)",
                  [(k, str(v)) for k, v in values.items()])  # fmt: skip

    @property
    def revision(self) -> int:
        """Counts the changes of content."""
        return int(self._one("SELECT value FROM meta WHERE key='revision'") or 0)

    def changed(self) -> None:
        """Count a change of content, inside its transaction."""
        self.set_meta(revision=self.revision + 1)

    def make_vectors(self, dims: int) -> None:
        """Make the empty table of vectors, inside a transaction."""
        self.run("DROP TABLE IF EXISTS vectors")
        self.run("CREATE VIRTUAL TABLE vectors USING vec0(passage INTEGER PRIMARY KEY, "
                 f"embedding float[{int(dims)}] distance_metric=cosine)")  # fmt: skip

    def nearest(self, vector: npt.NDArray[np.float32], k: int) -> dict[int, float]:
        """Cosines of the passages whose vectors are nearest, by id, best first."""
        rows = self.all("SELECT passage, distance FROM vectors WHERE embedding MATCH ? AND k = ? "
                        "ORDER BY distance", (vector.tobytes(), k))  # fmt: skip
        return {int(found): 1.0 - float(distance) for found, distance in rows}

    def cosines(self, vector: npt.NDArray[np.float32], ids: Iterable[int]) -> dict[int, float]:
        """Cosines of these passages' vectors; those that are gone are left out."""
        named = tuple(ids)
        marks = ",".join("?" * len(named))
        rows = self.all("SELECT passage, vec_distance_cosine(embedding, ?) FROM vectors "
                        f"WHERE passage IN ({marks})", (vector.tobytes(), *named))  # fmt: skip
        return {int(found): 1.0 - float(distance) for found, distance in rows}

    def passages(self, ids: Sequence[int]) -> dict[int, Passage]:
        """The passages with these ids; those that are gone are left out."""
        marks = ",".join("?" * len(ids))
        rows = self.all(f"SELECT {_COLUMNS} WHERE p.id IN ({marks})", tuple(ids))
        return {int(row[0]): Passage(*row) for row in rows}

    def passages_of(self, path: str) -> list[Passage]:
        """A document's passages in its order; empty where there is none of this path."""
        rows = self.all(
            f'SELECT {_COLUMNS} WHERE d.path = ? OR d.id = (SELECT document FROM files '
            'WHERE path = ?) ORDER BY p."start", p.id', (path, path))  # fmt: skip
        return [Passage(*row) for row in rows]

    def texts(self) -> Iterator[tuple[int, str, str, str]]:
        """Id, title, heading and text of every passage, by id."""
        yield from self._db.execute(
            "SELECT p.id, d.title, p.heading, p.text FROM passages p "
            "JOIN documents d ON d.id = p.document ORDER BY p.id")  # fmt: skip

    def remove(self, document: int) -> None:
        """Delete a document with all that is its own, inside a transaction."""
        self.run("DELETE FROM vectors WHERE passage IN "
                 "(SELECT id FROM passages WHERE document = ?)", (document,))  # fmt: skip
        self.run("DELETE FROM passages WHERE document = ?", (document,))
        self.run("DELETE FROM files WHERE document = ?", (document,))
        self.run("DELETE FROM documents WHERE id = ?", (document,))

    def n_bytes(self) -> int:
        """Bytes of the file on disk, the log with it."""
        log = self.path.with_name(FILE + "-wal")
        return sum(os.stat(p).st_size for p in (self.path, log) if p.exists())


def _packages() -> tuple[Any, str]:
    need("apsw", "sqlite_vec")
    import apsw
    import sqlite_vec

    return apsw, str(sqlite_vec.loadable_path())
