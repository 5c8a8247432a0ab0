"""What a run folder holds, file by file, so that a copy of it can be checked."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nybble.errors import NybbleError
from nybble.results.base.find import SUMMARY, read_text
from nybble.results.records import read_record
from nybble.results.store import disk_errors, write_text

MANIFEST = "manifest.json"
MANIFEST_SCHEMA_VERSION = 1
GROUPS = "groups"  # of a sweep's run: who scored what and how long; no part of the result
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileEntry:
    """One file: its path below the run folder with forward slashes, and what it holds."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Every file of a run folder, by path; `manifest.json` is this record."""

    files: list[FileEntry]
    schema_version: int = MANIFEST_SCHEMA_VERSION


def write_manifest(folder: Path) -> Path:
    """List a run folder's files in its `manifest.json`, the same text for the same files.

    Left out are the manifest itself, links, names that begin with a dot or end in .tmp, a sweep's
    groups/ and damaged cells, and run folders inside this one.

    Raises:
        NybbleError: a file cannot be read, or the manifest cannot be written.
    """
    with disk_errors(folder):
        files = [
            FileEntry(name, path.stat().st_size, _sha256(path)) for name, path in _files(folder)
        ]
    text = json.dumps(dataclasses.asdict(Manifest(files)), sort_keys=True, indent=1)
    return write_text(folder / MANIFEST, text + "\n")


def check_manifest(folder: Path) -> list[str]:
    """What a run folder holds otherwise than its `manifest.json` says; empty where nothing.

    Raises:
        NybbleError: no manifest, a damaged one, or a file that cannot be read.
    """
    found = read_record(
        read_text(folder / MANIFEST), Manifest, MANIFEST_SCHEMA_VERSION, "manifest of a run"
    )
    here = dict(_files(folder))
    listed = set()
    differences = []
    for entry in found.files:
        if not _sound(entry):
            raise NybbleError("a damaged nybble manifest of a run", seen=str(entry)[:120])
        listed.add(entry.path)
        path = here.get(entry.path)  # a path that leads out of the folder is not among them
        if path is None:
            differences.append(f"missing: {entry.path}")
        elif path.stat().st_size != entry.bytes or _sha256(path) != entry.sha256:
            differences.append(f"changed: {entry.path}")
    return differences + [f"not in the manifest: {name}" for name in sorted(here.keys() - listed)]


def _sound(entry: FileEntry) -> bool:
    """Types are not checked on reading."""
    return (
        isinstance(entry, FileEntry)
        and isinstance(entry.path, str)
        and type(entry.bytes) is int
        and isinstance(entry.sha256, str)
        and _HEX.fullmatch(entry.sha256) is not None
    )


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Path below the folder and path of every file that counts, in order of the former."""
    found = {}
    for root, folders, names in os.walk(folder):
        here = Path(root)
        folders[:] = [
            f for f in folders
            if not f.startswith(".") and not (here / f / SUMMARY).exists()
            and not (here == folder and f == GROUPS)
        ]  # fmt: skip
        for name in names:
            path = here / name
            if name.startswith(".") or name.endswith((".tmp", ".damaged")) or path.is_symlink():
                continue
            found[path.relative_to(folder).as_posix()] = path
    found.pop(MANIFEST, None)
    yield from sorted(found.items())


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise NybbleError("cannot read a file of the run", seen=f"{path}: {error.strerror}",
                          allowed="files that you may read") from error  # fmt: skip
