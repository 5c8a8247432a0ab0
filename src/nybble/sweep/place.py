"""Where a sweep's results go: a folder that all nodes see, or any address fsspec knows.

    PLACE/sweep.json                  the sweep as it was first asked for
    PLACE/runs/NAME/rows/*.parquet    one file a finished document under a setting, by content
    PLACE/runs/NAME/groups/KEY.json   one a finished group: where, how long, what failed
    PLACE/runs/NAME/summary.json      the run as `nybble measure` would write it

Files appear whole or not at all and are named by content, so writing one twice changes nothing.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nybble.errors import MissingExtraError, NybbleError
from nybble.results.store import RunStore, check_folder, disk_errors

INSTALL = 'pip install "nybble[ray]"'


class Place(Protocol):
    """A shared place; paths in it are relative, with forward slashes."""

    address: str

    def check(self) -> None:
        """Refuse a place that cannot be written, before any work is done for it."""

    def store(self, run: str) -> RunStore:
        """The cells of a run."""

    def read(self, path: str) -> bytes | None:
        """A small file; None if it is not there."""

    def write(self, path: str, data: bytes) -> None:
        """Write a small file whole or not at all."""

    def names(self, folder: str) -> list[str]:
        """Names in a folder, sorted; empty if it is not there."""

    def remove(self, path: str) -> None:
        """Remove a file if it is there."""


def open_place(address: str) -> Place:
    """A folder, or an address such as s3://bucket/folder.

    Raises:
        MissingExtraError: an address without fsspec or the package behind its protocol.
        NybbleError: an address that fsspec does not know.
    """
    if "://" not in address or address.startswith("file://"):
        return FolderPlace(Path(address.removeprefix("file://")))
    return RemotePlace(address)


def read_json(place: Place, path: str) -> dict[str, Any] | None:
    """A JSON object; None if it is missing or damaged."""
    data = place.read(path)
    try:
        found = json.loads(data) if data is not None else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def write_json(place: Place, path: str, value: object) -> None:
    """Canonical JSON."""
    text = json.dumps(value, sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False)
    place.write(path, text.encode())


class FolderPlace:
    """A folder of this machine's file system, shared or not.

    Args:
        folder: made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.address = str(self.folder)

    def check(self) -> None:
        """By the folder's rights, and by a file that is written and removed."""
        hint = "--place FOLDER where all workers may write"
        check_folder(self.folder, "the sweep's place", hint)
        probe = f".probe-{secrets.token_hex(4)}"
        self.write(probe, b"nybble")
        self.remove(probe)

    def store(self, run: str) -> RunStore:
        """Not locked: several workers write to it."""
        return RunStore(self.folder / "runs" / run)

    def read(self, path: str) -> bytes | None:
        """A small file; None if it is not there.

        Raises:
            NybbleError: it may not be read.
        """
        try:
            return (self.folder / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise NybbleError("cannot read the sweep's place",
                              seen=f"{self.folder / path}: {error.strerror}",
                              allowed="one that you may read and write") from error  # fmt: skip

    def write(self, path: str, data: bytes) -> None:
        """Under a name of its own first, then renamed."""
        target = self.folder / path
        partial = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                partial.write_bytes(data)
                os.replace(partial, target)
            finally:
                partial.unlink(missing_ok=True)

    def names(self, folder: str) -> list[str]:
        """Names in a folder, sorted, without half-written ones."""
        try:
            found = os.listdir(self.folder / folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name for name in found if not name.startswith("."))

    def remove(self, path: str) -> None:
        """Remove a file if it is there."""
        (self.folder / path).unlink(missing_ok=True)


class RemotePlace:
    """An object store or server, through fsspec.

    Args:
        address: for example s3://bucket/folder.
    """

    def __init__(self, address: str) -> None:
        try:
            import fsspec
        except ImportError as error:
            raise MissingExtraError("a place with an address needs fsspec", seen=address,
                                    hint=INSTALL) from error  # fmt: skip
        protocol = address.partition("://")[0]
        try:
            self.fs, self._root = fsspec.core.url_to_fs(address, use_listings_cache=False)
        except ImportError as error:
            raise MissingExtraError(f"nothing here speaks {protocol}", seen=address,
                                    hint=f"{error}") from error  # fmt: skip
        except (ValueError, TypeError) as error:
            raise NybbleError("no such kind of place", seen=address,
                              allowed="a folder, or an address of fsspec: s3://, gs://, ...",
                              hint=str(error)) from error  # fmt: skip
        if not address.partition("://")[2].strip("/"):
            raise NybbleError("an address of a place needs a bucket or a folder", seen=address,
                              allowed=f"{protocol}://NAME/FOLDER")  # fmt: skip
        self.address = address.rstrip("/")
        # Buckets have no folders; making one would make a bucket out of a typing error.
        self._bucket = "" if self._root.startswith("/") else self._root.partition("/")[0]

    def path(self, path: str) -> str:
        """In the file system's own spelling."""
        return f"{self._root.rstrip('/')}/{path}"

    @contextmanager
    def errors(self, path: str) -> Iterator[None]:
        """Name the place in what its client raises.

        Raises:
            NybbleError: with what the client said.
        """
        try:
            yield
        except Exception as error:  # every client has exceptions of its own
            if isinstance(error, NybbleError):
                raise
            raise NybbleError(
                "the sweep's place cannot be used; finished cells are kept",
                seen=f"{self.address}/{path}: {type(error).__name__}: {str(error)[:200]}",
                hint="check address, rights and free space; the same command continues",
            ) from error

    def check(self) -> None:
        """By a file that is written, read back and removed."""
        probe = f".probe-{secrets.token_hex(4)}"
        with self.errors(probe):
            if self._bucket and not self.fs.exists(self._bucket):
                raise NybbleError("the sweep's place is not there, or may not be listed",
                                  seen=self.address, allowed="a bucket that exists",
                                  hint="make the bucket, or --place ANOTHER")  # fmt: skip
        self.write(probe, b"nybble")
        with self.errors(probe):
            if self.fs.cat_file(self.path(probe)) != b"nybble":
                raise NybbleError("the sweep's place does not keep what is written",
                                  seen=self.address)  # fmt: skip
        self.remove(probe)

    def store(self, run: str) -> RunStore:
        """Cells are written here first, then put there in one piece."""
        return RemoteStore(self, run)

    def read(self, path: str) -> bytes | None:
        """A small file; None if it is not there."""
        with self.errors(path):
            try:
                data: bytes = self.fs.cat_file(self.path(path))
            except FileNotFoundError:
                return None
        return data

    def write(self, path: str, data: bytes) -> None:
        """Object stores show a file when it is whole."""
        with self.errors(path):
            if not self._bucket:
                self.fs.makedirs(self.path(path).rpartition("/")[0], exist_ok=True)
            self.fs.pipe_file(self.path(path), data)

    def names(self, folder: str) -> list[str]:
        """Names in a folder, sorted."""
        with self.errors(folder):
            try:
                found = self.fs.ls(self.path(folder), detail=False)
            except FileNotFoundError:
                return []
        return sorted(str(f).rstrip("/").rpartition("/")[2] for f in found)

    def remove(self, path: str) -> None:
        """Remove a file if it is there."""
        with self.errors(path):
            try:
                self.fs.rm_file(self.path(path))
            except FileNotFoundError:
                pass


class RemoteStore(RunStore):
    """Cells of a run behind an address, with a copy in a temporary folder.

    Args:
        place: where they are.
        run: its name.
    """

    def __init__(self, place: RemotePlace, run: str) -> None:
        self._scratch = tempfile.mkdtemp(prefix="nybble-sweep-")
        super().__init__(Path(self._scratch))
        self._place, self._run = place, run
        self.look()

    def look(self) -> None:
        """Ask the place what is there by now: other workers write to it as well."""
        self._there = set(self._place.names(f"runs/{self._run}/rows"))

    def _remote(self, name: str) -> str:
        return f"runs/{self._run}/rows/{name}.parquet"

    def has(self, name: str) -> bool:
        """Whether the cell was there at the last look, or is written since."""
        return f"{name}.parquet" in self._there or super().has(name)

    def write_cell(
        self, name: str, rows: npt.NDArray[np.void], constants: dict[str, str | int]
    ) -> None:
        """Write here, then put there."""
        super().write_cell(name, rows, constants)
        self._place.write(self._remote(name), self.path(name).read_bytes())
        self._there.add(f"{name}.parquet")

    def set_aside(self, name: str) -> Path:
        """The same there: under another name."""
        data = self.path(name).read_bytes()
        self._place.write(self._remote(name).removesuffix(".parquet") + ".damaged", data)
        self._place.remove(self._remote(name))
        self._there.discard(f"{name}.parquet")
        return super().set_aside(name)

    def read_constants(self, name: str, columns: Sequence[str]) -> dict[str, Any]:
        """Constants of a cell, fetched if it is only there."""
        self._fetch(name)
        return super().read_constants(name, columns)

    def read_cell(self, name: str, dtype: np.dtype[np.void]) -> npt.NDArray[np.void] | None:
        """A cell, fetched if it is only there."""
        self._fetch(name)
        return super().read_cell(name, dtype)

    def _fetch(self, name: str) -> None:
        """Others may have written since the last look, so the place itself is asked."""
        local = self.path(name)
        if local.exists():
            return
        data = self._place.read(self._remote(name))
        if data is not None:
            with disk_errors(local):
                local.write_bytes(data)

    def discard(self) -> None:
        """Remove the copies here."""
        shutil.rmtree(self._scratch, ignore_errors=True)
