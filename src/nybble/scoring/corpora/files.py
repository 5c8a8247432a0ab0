"""The user's own texts: plain text files and JSONL files of texts or conversations."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from nybble.errors import NybbleError
from nybble.scoring.corpora.document import Document
from nybble.scoring.corpora.records import parse_record

MAX_TEXT_BYTES = 64 * 1024 * 1024
MAX_LINE_BYTES = 16 * 1024 * 1024
UNKNOWN_LICENCE = "LicenseRef-user"
_BOM = b"\xef\xbb\xbf"


def from_text_files(paths: Sequence[Path]) -> list[Document]:
    """Return one document a file, category "text", in the order given.

    Args:
        paths: UTF-8 text files; the id is the file name, with "-2" and so on when it repeats.

    Raises:
        NybbleError: a file is missing, not a file, empty, too large, binary or not UTF-8.
    """
    documents: list[Document] = []
    taken: set[str] = set()
    for path in paths:
        _check_file(path, what="text file", limit=MAX_TEXT_BYTES)
        text = _decode(path)
        name = _unique(path.name, taken)
        documents.append(
            Document(id=name, category="text", text=text, source=str(path), licence=UNKNOWN_LICENCE)
        )
    return documents


def from_jsonl(path: Path) -> list[Document]:
    """Return one document a line of a JSONL file, in file order.

    Each line is an object with "text", or with "messages" and optionally "tools" in the
    OpenAI chat format; "id" and "category" are optional. Blank lines are skipped.

    Raises:
        NybbleError: the file cannot be read, or a line is malformed; names file and line.
    """
    _check_file(path, what="JSONL file", limit=None)
    documents: list[Document] = []
    first_seen: dict[tuple[str, str], int] = {}
    for number, line in _lines(path):
        record = parse_record(
            line, where=str(path), number=number, source=str(path), licence=UNKNOWN_LICENCE
        )
        category = record.category or "jsonl"
        name = record.id or f"line-{number}"
        earlier = first_seen.setdefault((category, name), number)
        if earlier != number:
            raise NybbleError(
                f"{path}, line {number}: the id is already used in line {earlier}",
                seen=name,
                allowed="ids that are unique within a category, or none",
            )
        documents.append(record.to_document(category=category, name=name))
    if not documents:
        raise NybbleError("The JSONL file is empty", seen=path, allowed="at least one line")
    return documents


def _check_file(path: Path, *, what: str, limit: int | None) -> None:
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise NybbleError(
            f"The {what} cannot be read",
            seen=f"{path} ({getattr(error, 'strerror', None) or error})",
            allowed="an existing, readable file",
        ) from error
    if not stat.S_ISREG(status.st_mode):
        # Also keeps pipes and devices out, which could block or never end.
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise NybbleError(
            f"The {what} is {kind}", seen=path, allowed="a file", hint="name the files one by one"
        )
    if status.st_size == 0:
        raise NybbleError(f"The {what} is empty", seen=path, allowed="at least one character")
    if limit is not None and status.st_size > limit:
        raise NybbleError(
            f"The {what} is too large",
            seen=f"{path} ({status.st_size} bytes)",
            allowed=f"at most {limit} bytes",
            hint="split the file",
        )


def _decode(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise NybbleError("The text file cannot be read", seen=f"{path} ({error})") from error
    # A BOM is an encoding mark of some editors and no part of the text.
    start = len(_BOM) if data.startswith(_BOM) else 0
    nul = data.find(b"\0")
    if nul >= 0:
        raise NybbleError(
            f"The file is binary: NUL byte at offset {nul}", seen=path, allowed="UTF-8 text"
        )
    try:
        text = data[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        offset = start + error.start
        raise NybbleError(
            f"The text file is not UTF-8 at byte offset {offset}",
            seen=f"{path} (byte 0x{data[offset]:02x})",
            allowed="UTF-8",
            hint="convert it, for example: iconv -f latin1 -t utf-8 FILE",
        ) from error
    if not text.strip():
        raise NybbleError("The text file is empty", seen=path, allowed="at least one character")
    return text


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise NybbleError(
                        f"{path}, line {number}: the line is too long",
                        seen=f"more than {MAX_LINE_BYTES} bytes",
                        allowed=f"at most {MAX_LINE_BYTES} bytes",
                    )
                if number == 1 and line.startswith(_BOM):
                    line = line[len(_BOM) :]
                if line.strip():
                    yield number, line
    except OSError as error:
        raise NybbleError("The JSONL file cannot be read", seen=f"{path} ({error})") from error


def _unique(name: str, taken: set[str]) -> str:
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name}-{count}"
    taken.add(candidate)
    return candidate
