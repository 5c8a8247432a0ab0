"""Copies of what feeds answered, so that a look asks only for what changed and works offline.

One file an address: a JSON line about it, then the body as it came. What does not match its own
checksum counts as not there. Writes are atomic; the oldest copies go when the folder grows too
large. The cache never fails a look: what cannot be written is told in words.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

MAX_BYTES = 64 << 20  # of the whole folder; the ten engines take about 8 MiB
_MAX_HEADER = 1 << 14
_SUFFIX = ".feed"


@dataclass(frozen=True)
class Copy:
    """What a server gave.

    Attributes:
        body: as it came.
        etag: of it, empty without.
        modified: its Last-Modified, empty without.
        at: Unix time when the server gave or confirmed it.
    """

    body: bytes
    etag: str
    modified: str
    at: float

    def age(self) -> float:
        """Seconds since then; 0 where the clock was set back."""
        return max(0.0, time.time() - self.at)


class FeedCache:
    """A folder of copies, by address."""

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self._folder, self._max_bytes = folder, max_bytes

    def _path(self, url: str) -> Path:
        return self._folder / (hashlib.sha256(url.encode()).hexdigest() + _SUFFIX)

    def load(self, url: str) -> Copy | None:
        """The copy of an address; None where there is none, or a damaged one."""
        try:
            with self._path(url).open("rb") as file:
                header = json.loads(file.readline(_MAX_HEADER))
                body = file.read(self._max_bytes + 1)
            if header["url"] != url or header["sha256"] != hashlib.sha256(body).hexdigest():
                return None
            return Copy(body, str(header["etag"]), str(header["modified"]), float(header["at"]))
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None

    def save(self, url: str, copy: Copy) -> str:
        """Keep a copy; returns why it could not be kept, empty if it was."""
        if len(copy.body) > self._max_bytes:
            return f"not cached: over {self._max_bytes >> 20} MiB"
        header = {"url": url, "etag": copy.etag, "modified": copy.modified, "at": copy.at,
                  "sha256": hashlib.sha256(copy.body).hexdigest()}  # fmt: skip
        temporary = ""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._make_room(len(copy.body), self._path(url))
            handle, temporary = tempfile.mkstemp(dir=self._folder, suffix=".part")
            with os.fdopen(handle, "wb") as file:
                file.write(json.dumps(header).encode() + b"\n" + copy.body)
            os.replace(temporary, self._path(url))
        except OSError as error:
            if temporary:
                Path(temporary).unlink(missing_ok=True)
            return f"not cached: {error.strerror or error}"
        return ""

    def _make_room(self, wanted: int, but: Path) -> None:
        """Delete the oldest copies until `wanted` bytes fit, and parts that a crash left."""
        for path in self._folder.glob("*.part"):
            if time.time() - path.stat().st_mtime > 3600:
                path.unlink(missing_ok=True)
        held = sorted((p.stat().st_mtime, p.stat().st_size, p)
                      for p in self._folder.glob("*" + _SUFFIX) if p != but)  # fmt: skip
        total = sum(size for _, size, _ in held)
        for _, size, path in held:
            if total + wanted <= self._max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
