"""Run folders and imported files of a result base: found, bounded, never outside its folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from nybble.errors import NybbleError
from nybble.results.base.external import FOLDER

SUMMARY = "summary.json"
ROWS = "rows"
_CELLS = (ROWS, "tops")  # of a run: many files, and no runs among them
DEPTH = 6  # folders below the base that are looked into
MAX_BYTES = 64 << 20  # of one summary.json or imported file; real ones are under 1 MB


def run_folders(root: Path) -> list[Path]:
    """Folders with a summary.json at most `DEPTH` below the base, in alphabetical order.

    Folders that begin with a dot are not looked into, nor linked ones; a summary.json may be a
    link to a file of the base.

    Args:
        root: folder of the base.

    Raises:
        NybbleError: there is no such folder, or it may not be read.
    """
    if not root.is_dir():
        raise NybbleError("there is no such result base", seen=root, allowed="a folder of runs",
                          hint="nybble measure MODEL, or its results' folder")  # fmt: skip
    try:
        os.listdir(root)
    except OSError as error:
        raise NybbleError("cannot read the result base", seen=f"{root}: {error.strerror}",
                          hint="a folder that you may read") from error  # fmt: skip
    top = root.resolve()
    return sorted(Path(path) for path in _walk(str(root), top, DEPTH))


def imported_files(root: Path) -> list[Path]:
    """Files of other harnesses' numbers, in alphabetical order."""
    return _files(root / FOLDER, ".json", root.resolve())


def row_files(folder: Path, root: Path) -> list[Path]:
    """Files of token rows of a run, in alphabetical order."""
    return _files(folder / ROWS, ".parquet", root.resolve())


def read_text(path: Path) -> str:
    """A file's text.

    Raises:
        NybbleError: it is larger than `MAX_BYTES`, no text, or may not be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise NybbleError("cannot be read", seen=error.strerror) from error
    if len(data) > MAX_BYTES:
        raise NybbleError("too large", seen=f"over {MAX_BYTES >> 20} MiB")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NybbleError("not text in UTF-8", seen=error.reason) from error


def _walk(folder: str, top: Path, depth: int) -> Iterator[str]:
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda e: e.name)
    except OSError:
        return
    for entry in entries:
        if entry.name == SUMMARY and entry.is_file() and _inside(entry, top):
            yield folder
        elif depth and entry.name[0] != "." and entry.name not in _CELLS:
            # Where a link leads in the base, the run is found there.
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path, top, depth - 1)


def _inside(entry: os.DirEntry[str], top: Path) -> bool:
    return not entry.is_symlink() or Path(entry.path).resolve().is_relative_to(top)


def _files(folder: Path, end: str, top: Path) -> list[Path]:
    """Files of a folder of the base with such an ending, in alphabetical order."""
    if not folder.resolve().is_relative_to(top):
        return []
    try:
        with os.scandir(folder) as found:
            kept = [e.path for e in found
                    if e.name.endswith(end) and e.is_file() and _inside(e, top)]  # fmt: skip
    except OSError:
        return []
    return [Path(path) for path in sorted(kept)]
