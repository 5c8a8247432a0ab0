"""A file of another tool, read whole and bounded, and what its user says about it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from nybble.errors import NybbleError
from nybble.results.base.external import External

MAX_BYTES = 64 << 20  # a log of days is under 10 MB
MAX_ROWS = 100_000
_BOMS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


@dataclass(frozen=True)
class Source:
    """One file to import.

    Attributes:
        path: where it lies.
        text: its content.
        sha256: of its bytes.
    """

    path: Path
    text: str
    sha256: str


@dataclass(frozen=True)
class Given:
    """What the user tells of a file, over what the file itself tells.

    Attributes:
        read_setting: checks a KV setting and returns it as nybble writes it; NybbleError for one
            it does not know.
        model: name of the model.
        setting: KV setting as nybble writes it.
        context: tokens.
        harness: name of the harness.
        address: where the numbers were published.
    """

    read_setting: Callable[[str], str]
    model: str | None = None
    setting: str | None = None
    context: int | None = None
    harness: str | None = None
    address: str | None = None


@dataclass
class Found:
    """What was read out of a file.

    Attributes:
        rows: its numbers.
        version: of the harness, empty where not told.
        notes: what was left out, and why.
    """

    rows: list[External] = field(default_factory=list)
    version: str = ""
    notes: list[str] = field(default_factory=list)


class Importer(Protocol):
    """Reads the files of one harness."""

    name: str
    about: str

    def knows(self, source: Source) -> bool:
        """Whether the file's content is this harness's."""

    def read(self, source: Source, given: Given) -> Found:
        """Every number of the file."""


def read_source(path: Path) -> Source:
    """Read a file that somebody else's program wrote.

    Args:
        path: UTF-8, or UTF-16 with a byte order mark (what PowerShell's `>` writes).

    Raises:
        NybbleError: it cannot be read, is larger than 64 MiB, or is not such text.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise NybbleError("cannot read the file to import", seen=f"{path}: {error.strerror}",
                          allowed="a log, a results_*.json or a CSV file") from error  # fmt: skip
    if len(raw) > MAX_BYTES:
        raise NybbleError("the file is too large to import", seen=f"{path}: over 64 MiB",
                          allowed="64 MiB; a summary, without samples")  # fmt: skip
    encoding = next((e for mark, e in _BOMS.items() if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise NybbleError(
            "the file is not text in UTF-8", seen=f"{path}: byte {error.start:,}: {error.reason}",
            allowed="UTF-8, or UTF-16 with a byte order mark",
            hint=f"iconv -f LATIN1 -t UTF-8 {path.name} > utf8-{path.name}",
        ) from error  # fmt: skip
    return Source(path, text, hashlib.sha256(raw).hexdigest())


def number(text: str) -> float | None:
    """A finite number, None for anything else ("nan", "N/A", text)."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
