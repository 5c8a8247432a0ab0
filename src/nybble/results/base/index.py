"""The index of a base: what its run folders hold, in a few Parquet files that answer quickly.

It is kept in the user's cache and not in the base: a base may come from somebody else, and what
its index said would be believed. Only runs whose files changed are read again.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import duckdb
import filelock

from nybble.environment import cache_dir
from nybble.errors import NybbleError
from nybble.results.base.duck import message
from nybble.results.base.find import ROWS, SUMMARY, imported_files, run_folders
from nybble.results.base.manifest import FILE, Manifest, file_stamps, load, run_stamps
from nybble.results.base.refresh import Progress, Refresh
from nybble.results.store import content_key

_WAIT_S = 1800.0  # for another process that is indexing the same base


class _Quiet:
    def begin(self, text: str, total: float) -> None:
        pass

    def advance(self, done: float) -> None:
        pass


def refreshed(root: Path, progress: Progress | None = None) -> tuple[Path, Manifest]:
    """The index of a base, brought up to date.

    Args:
        root: folder of the base.
        progress: told of runs read.

    Returns:
        Folder of the index, and what is in it.

    Raises:
        NybbleError: there is no such base, the index cannot be written, or another process is
            at it for too long.
    """
    runs = run_stamps(root, run_folders(root), SUMMARY, ROWS)
    imports = file_stamps(root, imported_files(root))
    folder = index_folder(root)
    found = load(folder)
    if found and found.matches(runs, imports):
        return folder, found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / ".lock", timeout=_WAIT_S):
            found = load(folder) or Manifest(str(root.resolve()))
            if not found.matches(runs, imports) or not found.tables:
                Refresh(root, folder, found, runs, imports, progress or _Quiet()).run()
                _forget(folder.parent)
    except filelock.Timeout as error:
        raise NybbleError("another nybble is indexing this base", seen=root,
                          hint="wait for it, then the same command") from error  # fmt: skip
    except (OSError, duckdb.IOException) as error:
        raise NybbleError(
            "cannot write the index of the base", seen=f"{folder}: {message(error)}",
            hint="NYBBLE_CACHE=FOLDER on a disk with room where you may write",
        ) from error  # fmt: skip
    return folder, found


def index_folder(root: Path) -> Path:
    """Where the index of a base is."""
    return cache_dir() / "bases" / content_key(os.fsencode(root.resolve()).hex())


def discard(root: Path) -> None:
    """Let the index of a base be built anew."""
    (index_folder(root) / FILE).unlink(missing_ok=True)


def _forget(folder: Path) -> None:
    """Delete indexes of bases that are no more."""
    for path in folder.iterdir():
        found = load(path)
        if found and not Path(found.root).exists():
            shutil.rmtree(path, ignore_errors=True)
