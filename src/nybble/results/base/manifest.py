"""What the index of a base holds, and of which state of which files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

INDEX_VERSION = 1  # another layout of the index's files; such an index is built anew
FILE = "manifest.json"


@dataclass
class IndexedRun:
    """One run folder as it was when it was read.

    Attributes:
        stamp: of summary.json (mtime, ctime, size) and of rows/ (mtime, number of files).
        tokens: token rows in the index.
        damaged: path relative to the base, and reason, of what was left out.
    """

    stamp: list[int]
    tokens: int = 0
    damaged: list[list[str]] = field(default_factory=list)


@dataclass
class Manifest:
    """The index's own list; `FILE` of its folder is this record.

    Attributes:
        root: folder of the base, resolved.
        next_cell: number of the next new cell; numbers are not used again, so that token rows of
            a cell that is gone belong to nobody.
        runs: by folder relative to the base.
        imports: stamp of each file of another harness, by path relative to the base.
        import_damage: as `IndexedRun.damaged`, of those.
        tables: "cells", "slices", "imported" -> file name.
        segments: file name -> token rows in it, those of cells that are gone included.
        sizes: file name -> bytes.
        before: files of the state before this one; a query that began then may still read them.
        version: `INDEX_VERSION`.
    """

    root: str
    next_cell: int = 0
    runs: dict[str, IndexedRun] = field(default_factory=dict)
    imports: dict[str, list[int]] = field(default_factory=dict)
    import_damage: list[list[str]] = field(default_factory=list)
    tables: dict[str, str] = field(default_factory=dict)
    segments: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    before: list[str] = field(default_factory=list)
    version: int = INDEX_VERSION

    def files(self) -> list[str]:
        """Names of all files that hold data of this state."""
        return [*self.tables.values(), *self.segments]

    def whole(self, folder: Path) -> bool:
        """Whether every file is there with the bytes that were written."""
        try:
            return all(os.stat(folder / f).st_size == self.sizes[f] for f in self.files())
        except (OSError, KeyError):
            return False

    def matches(self, runs: dict[str, list[int]], imports: dict[str, list[int]]) -> bool:
        """Whether the files of the base are those that were read."""
        return imports == self.imports and runs == {k: r.stamp for k, r in self.runs.items()}

    def save(self, folder: Path) -> None:
        """Write it; from now on readers take this state.

        Raises:
            OSError: the disk is full or the folder cannot be written.
        """
        self.sizes = {f: (folder / f).stat().st_size for f in self.files()}
        partial = folder / f"{FILE}.tmp"
        partial.write_text(json.dumps(asdict(self)), encoding="ascii")
        os.replace(partial, folder / FILE)


def load(folder: Path) -> Manifest | None:
    """The manifest of an index; None where there is none, a damaged one or another version's."""
    try:
        data = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if data["version"] != INDEX_VERSION:
            return None
        data["runs"] = {name: IndexedRun(**run) for name, run in data["runs"].items()}
        found = Manifest(**data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if found.whole(folder) else None


def run_stamps(
    root: Path, folders: Iterable[Path], summary: str, rows: str
) -> dict[str, list[int]]:
    """Name of a run -> what changes when its files do."""
    found = {}
    for folder in folders:
        try:
            stat = (folder / summary).stat()
        except OSError:  # gone since it was found
            continue
        stamp = [stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size]
        try:
            stamp += [(folder / rows).stat().st_mtime_ns, len(os.listdir(folder / rows))]
        except OSError:  # a run without token rows, or none that may be read
            stamp += [0, 0]
        found[folder.relative_to(root).as_posix()] = stamp
    return found


def file_stamps(root: Path, files: Iterable[Path]) -> dict[str, list[int]]:
    """Path relative to the base -> mtime, ctime and size."""
    found = {}
    for path in files:
        try:
            stat = path.stat()
        except OSError:
            continue
        found[path.relative_to(root).as_posix()] = [
            stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size
        ]  # fmt: skip
    return found
