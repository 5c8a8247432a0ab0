"""SHA-256 of weight files, remembered so that gigabytes are hashed once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from nybble.errors import ModelFileError


def file_sha256(path: Path, cache: Path) -> str:
    """SHA-256 of a file in hex, remembered in `cache` by path, size and time of change.

    Raises:
        ModelFileError: the file cannot be read.
    """
    try:
        stat = path.stat()
        place = [str(path.resolve()), stat.st_size, stat.st_mtime_ns]
        text = json.dumps(place, separators=(",", ":"), ensure_ascii=False)
        key = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        note = cache / "sha256" / key
        with contextlib.suppress(OSError, ValueError):
            remembered = note.read_text(encoding="ascii").strip()
            if len(bytes.fromhex(remembered)) == 32:
                return remembered
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        raise ModelFileError("Cannot read the model", seen=f"{path}: {e.strerror or e}",
                             hint="check the permissions of the file") from e  # fmt: skip
    with contextlib.suppress(OSError):  # only saves time: a run can do without
        note.parent.mkdir(parents=True, exist_ok=True)
        partial = note.with_name(f".{key}.{secrets.token_hex(4)}.tmp")
        try:
            partial.write_text(digest, encoding="ascii")
            os.replace(partial, note)
        finally:
            partial.unlink(missing_ok=True)
    return digest


def files_sha256(paths: Iterable[Path], cache: Path) -> str:
    """One SHA-256 over several files: of their names and their own SHA-256, sorted by name.

    Raises:
        ModelFileError: a file cannot be read.
    """
    total = hashlib.sha256()
    for path in sorted(paths, key=lambda p: p.name):
        total.update(
            f"{file_sha256(path, cache)}  {path.name}\n".encode("utf-8", "surrogateescape")
        )
    return total.hexdigest()
