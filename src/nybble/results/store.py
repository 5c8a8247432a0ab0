"""The run folder: one Parquet file per finished cell, written whole or not at all.

A cell is one chunk under one KV setting against one reference; its file name holds a hash of
everything that decides its numbers. So the same command finds its finished cells and goes on,
a wider command adds to them, and nothing stale is ever read. Plain Parquet: query it with
DuckDB, pandas or Polars, for example
`duckdb -c "select setting, avg(kld) from 'rows/*.parquet' group by 1"`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import filelock
import numpy as np
import numpy.typing as npt

from nybble.errors import NybbleError
from nybble.results.base.duck import interruptible, quoted


def content_key(data: object) -> str:
    """Sixteen hex digits of the SHA-256 of canonical JSON."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a read-only folder into an error that says what to do.

    Raises:
        NybbleError: naming the path and the free space.
    """
    try:
        yield
    except (OSError, duckdb.IOException) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        what = "the disk is full" if full else "cannot write results"
        raise NybbleError(
            f"{what}; finished cells are kept",
            seen=f"{path}: {_free(path):,} bytes free" if full else f"{path}: {error}",
            hint="free space, or --out FOLDER on another disk; the same command continues",
        ) from error


def check_folder(
    folder: Path, what: str = "the run folder", hint: str = "--out FOLDER where you may write"
) -> None:
    """Refuse a folder that cannot be made or written, before any work is done for it.

    Raises:
        NybbleError: a part of the path is a file, or may not be written.
    """
    near = folder.absolute()
    while not near.exists():
        near = near.parent
    if not near.is_dir() or not os.access(near, os.W_OK | os.X_OK):
        raise NybbleError(
            f"cannot write to {what}",
            seen=f"{folder}: {near} {'may not be written' if near.is_dir() else 'is a file'}",
            hint=hint,
        )


@contextmanager
def _database() -> Iterator[duckdb.DuckDBPyConnection]:
    """An in-memory DuckDB; it makes errors of its own of Ctrl-C, this makes Ctrl-C of them."""
    with interruptible(), duckdb.connect(":memory:") as db:
        yield db


def _free(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


class RunStore:
    """Cells, summary and report of one run folder.

    Args:
        folder: created if missing.
        cells: name of the folder in it that the cells are in.
    """

    def __init__(self, folder: Path, cells: str = "rows") -> None:
        self.folder = folder
        self._rows = folder / cells
        with disk_errors(folder):
            self._rows.mkdir(parents=True, exist_ok=True)
        self._lock = filelock.FileLock(folder / ".lock", blocking=False)
        self.damaged: list[str] = []  # cells that are there and could not be read

    def __enter__(self) -> RunStore:
        """Take the folder for this process.

        Raises:
            NybbleError: another run holds it.
        """
        with disk_errors(self.folder):
            try:
                self._lock.acquire()
            except filelock.Timeout as error:  # an OSError too, so it is caught in here
                raise NybbleError(
                    "another nybble run is writing to this folder",
                    seen=str(self.folder),
                    hint="wait for it, or give this run its own --out FOLDER",
                ) from error
        for stale in self._rows.glob("*.tmp"):
            stale.unlink(missing_ok=True)
        return self

    def __exit__(self, *exc: object) -> None:
        """Give the folder back."""
        self._lock.release()

    def path(self, name: str) -> Path:
        """Where the cell of that name is or will be."""
        return self._rows / f"{name}.parquet"

    def has(self, name: str) -> bool:
        """Whether that cell is there and whole from end to end (a power cut may leave less)."""
        try:
            with self.path(name).open("rb") as file:
                head = file.read(4)
                file.seek(-4, os.SEEK_END)
                return head == file.read(4) == b"PAR1"
        except OSError:
            return False

    def write_cell(
        self, name: str, rows: npt.NDArray[np.void], constants: dict[str, str | int]
    ) -> None:
        """Write one cell under a temporary name and rename it.

        Args:
            name: file name without suffix.
            rows: structured array; its fields become columns.
            constants: columns with one value for the whole cell (setting, document, ...).

        Raises:
            NybbleError: the disk is full or the folder cannot be written.
        """
        target = self.path(name)
        # A name of its own: two processes of a sweep may score the same cell.
        partial = target.with_suffix(f".{os.getpid()}-{secrets.token_hex(4)}.tmp")
        columns: dict[str, Any] = {f: np.ascontiguousarray(rows[f]) for f in rows.dtype.names or ()}
        fixed = ", ".join(f"{_literal(v)} AS {k}" for k, v in constants.items())
        try:
            with disk_errors(target), _database() as db:
                db.register("columns", columns)
                db.execute(
                    f"COPY (SELECT {fixed}, * FROM columns) TO {_literal(str(partial))} "
                    "(FORMAT parquet, COMPRESSION zstd)"
                )
                os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    def set_aside(self, name: str) -> Path:
        """Rename a damaged cell, so that the next run scores it again; nothing is deleted."""
        target = self.path(name).with_suffix(".damaged")
        with disk_errors(target):
            os.replace(self.path(name), target)
        return target

    def read_constants(self, name: str, columns: Sequence[str]) -> dict[str, Any]:
        """Constants of a cell; empty if it is missing, damaged or without these columns."""
        query = f"SELECT {', '.join(columns)} FROM read_parquet(?) LIMIT 1"
        try:
            with _database() as db:
                row = db.execute(query, [str(self.path(name))]).fetchone()
        except duckdb.Error:
            return {}
        return dict(zip(columns, row, strict=True)) if row else {}

    def read_cell(self, name: str, dtype: np.dtype[np.void]) -> npt.NDArray[np.void] | None:
        """Read a cell back; None if it is missing or damaged (then it is scored again)."""
        path = self.path(name)
        if not path.exists():
            return None
        try:
            with _database() as db:
                names = ", ".join(dtype.names or ())
                query = f"SELECT {names} FROM read_parquet({_literal(str(path))})"
                columns = db.execute(query).fetchnumpy()
        except duckdb.Error:
            self.damaged.append(name)
            return None
        rows = np.empty(len(next(iter(columns.values()))), dtype=dtype)
        for field in dtype.names or ():
            rows[field] = np.ma.filled(columns[field], np.nan)
        return rows


def write_text(target: Path, text: str) -> Path:
    """Write a small file (summary, report) whole or not at all.

    Raises:
        NybbleError: the disk is full or the folder cannot be written.
    """
    partial = target.with_name(f".{target.name}.tmp")
    try:
        with disk_errors(target):
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _literal(value: str | int) -> str:
    return str(value) if isinstance(value, int) else quoted(value)
