"""The files of a folder that an index may hold, and why others are left out.

Hidden files and folders, and the index itself, are passed over without a word: they are not
documents. Whatever else is left out is told with its reason.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from nybble.errors import NybbleError


@dataclass(frozen=True)
class Found:
    """A file that may be a document.

    Attributes:
        path: relative to the folder, with "/".
        place: where it lies.
        size: bytes.
        mtime_ns: of its last change.
    """

    path: str
    place: Path
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Skipped:
    """A file that was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """What a folder holds: files in the order of their paths, and what is left out of them."""

    found: tuple[Found, ...]
    skipped: tuple[Skipped, ...]


@dataclass
class _Walk:
    folder: Path
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    own: Path
    max_bytes: int
    found: list[Found] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def listing(
    folder: Path,
    *,
    own: Path,
    include: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    max_bytes: int = 50_000_000,
) -> Listing:
    """List the files below a folder.

    Links are followed to files inside the folder only; folders behind links are not entered, so
    that nothing outside is read and no loop is walked.

    Args:
        folder: to look through.
        own: the index's folder, which is passed over wherever it lies.
        include: globs of paths or names; where given, others are left out. `*` crosses "/".
        exclude: globs of paths or names that are left out, before `include` is asked.
        max_bytes: larger files are left out with a reason.

    Raises:
        NybbleError: the folder does not exist or cannot be listed.
    """
    if not folder.is_dir():
        raise NybbleError("there is no such folder of documents", seen=folder,
                          hint="nybble rag index DIR")  # fmt: skip
    walk = _Walk(folder.resolve(), include, exclude, own.resolve(), max_bytes)
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise NybbleError(f"cannot list the folder: {error.strerror or error}", seen=folder,
                          hint="check its permissions") from error  # fmt: skip
    for path, entry in _entries(walk, walk.folder, ""):
        _judge(walk, path, entry)
    return Listing(
        tuple(sorted(walk.found, key=lambda f: f.path)),
        tuple(sorted(walk.skipped, key=lambda s: s.path)),
    )


def _entries(walk: _Walk, place: Path, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    try:
        with os.scandir(place) as scan:
            entries = sorted(scan, key=lambda e: e.name)
    except OSError as error:
        walk.skipped.append(Skipped(_shown(prefix), f"cannot be listed: {error.strerror}"))
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = prefix + entry.name
        if entry.is_dir(follow_symlinks=False):
            if Path(entry.path) != walk.own and not _matches(path, walk.exclude):
                yield from _entries(walk, Path(entry.path), path + "/")
        else:
            yield path, entry


def _judge(walk: _Walk, path: str, entry: os.DirEntry[str]) -> None:
    if _matches(path, walk.exclude) or (walk.include and not _matches(path, walk.include)):
        return
    place = Path(entry.path)

    def skip(reason: str) -> None:
        walk.skipped.append(Skipped(_shown(path), reason))

    try:
        if entry.is_symlink():
            place = place.resolve(strict=True)
            if not place.is_relative_to(walk.folder):
                return skip("a link that leaves the folder")
            if place.is_dir():
                return skip("a link to a folder")
        seen = place.stat()
    except (OSError, RuntimeError) as error:
        return skip(f"cannot be read: {getattr(error, 'strerror', None) or error}")
    if not stat.S_ISREG(seen.st_mode):
        return skip("not a file")
    if _shown(path) != path:
        return skip("its name is not UTF-8")
    if seen.st_size == 0:
        return skip("empty")
    if seen.st_size > walk.max_bytes:
        size, limit = seen.st_size / 1e6, walk.max_bytes / 1e6
        return skip(f"{size:,.1f} MB, over the limit of {limit:,g} MB (--max-mb)")
    walk.found.append(Found(path, place, seen.st_size, seen.st_mtime_ns))


def _matches(path: str, globs: tuple[str, ...]) -> bool:
    name = path.rsplit("/", 1)[-1]
    return any(fnmatchcase(path, g) or fnmatchcase(name, g) for g in globs)


def _shown(path: str) -> str:
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
