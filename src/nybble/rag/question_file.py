"""A user's own questions: a JSON object a line, with question, answer and source."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from nybble.errors import NybbleError
from nybble.rag.questions import Question

_LINE = '{"question": "...", "answer": "...", "source": "notes.md#Heading"}'
_KEYS = ("question", "answer", "answers", "source")
_MOST_BYTES = 64 * 2**20  # a larger file is no list of questions
_MOST_TEXT = 20_000  # characters of a question; a longer one would fill the context


def read_questions(path: Path, documents: Mapping[str, str]) -> list[Question]:
    """The questions of a JSONL file; empty lines are skipped.

    `answer` is one right answer, `answers` are more of them; at least one is needed. `source` is
    a document's path in the index, with "#" and a heading where only that section answers.

    Args:
        path: the file, UTF-8.
        documents: paths that a source may have, copies' too, and the path each is indexed under.

    Raises:
        NybbleError: the file cannot be read, has no question, or a line is not one; says which.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise NybbleError("cannot read the questions", seen=f"{path}: {error.strerror or error}",
                          hint=f"a file with lines {_LINE}") from error  # fmt: skip
    if len(raw) > _MOST_BYTES:
        raise NybbleError("the file is too large for a list of questions", seen=path,
                          allowed=f"up to {_MOST_BYTES // 2**20} MiB")  # fmt: skip
    found = []
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        if line.strip():
            found.append(_question(line, f"{path.name}, line {number}", documents))
    if not found:
        raise NybbleError("the file has no question", seen=path, hint=f"lines {_LINE}")
    return found


def digest(path: Path) -> str:
    """Sixteen hex digits of the file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _question(line: bytes, where: str, documents: Mapping[str, str]) -> Question:
    try:
        data = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise NybbleError("not a line of JSON", seen=f"{where}: {error}",
                          allowed="one object a line, UTF-8", hint=_LINE) from error  # fmt: skip
    if not isinstance(data, dict):
        raise NybbleError("not a question", seen=f"{where}: {type(data).__name__}",
                          allowed="an object", hint=_LINE)  # fmt: skip
    if unknown := sorted(set(data) - set(_KEYS)):
        raise NybbleError("unknown field of a question", seen=f"{where}: {', '.join(unknown)}",
                          allowed=_KEYS, hint=_LINE)  # fmt: skip
    text = _text(data, "question", where)
    answers = [_text(data, "answer", where)] if "answer" in data else []
    answers += _more(data, where)
    if not answers:
        raise NybbleError("a question without an answer", seen=f"{where}: {text[:60]}",
                          allowed="answer, or answers with at least one", hint=_LINE)  # fmt: skip
    document, heading = _source(_text(data, "source", where), where, documents)
    return Question(text, answers[0], document, -1, "file", answers=tuple(answers[1:]),
                    heading=heading)  # fmt: skip


def _text(data: dict[str, Any], name: str, where: str) -> str:
    value = data.get(name)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and name == "answer":
        value = str(value)
    if not isinstance(value, str) or not value.strip() or len(value) > _MOST_TEXT:
        seen = "missing" if name not in data else repr(value)[:60]
        raise NybbleError(f"{name} is not a text", seen=f"{where}: {seen}",
                          allowed=f"1 to {_MOST_TEXT:,} characters", hint=_LINE)  # fmt: skip
    return value.strip()


def _more(data: dict[str, Any], where: str) -> list[str]:
    value = data.get("answers", [])
    if not isinstance(value, list):
        raise NybbleError("answers is not a list", seen=f"{where}: {repr(value)[:60]}",
                          hint='"answers": ["...", "..."]')  # fmt: skip
    return [_text({"answer": v}, "answer", where) for v in value]


def _source(source: str, where: str, documents: Mapping[str, str]) -> tuple[str, str]:
    """Path and heading; a path may itself have a "#", so the whole is looked for first."""
    plain = str(PurePosixPath(source.replace("\\", "/")))
    if plain in documents:
        return documents[plain], ""
    path, sharp, heading = plain.rpartition("#")
    if sharp and path in documents:
        return documents[path], heading.strip()
    near = difflib.get_close_matches(path or plain, list(documents), n=1, cutoff=0.5)
    raise NybbleError(
        "the source is not in the index", seen=f"{where}: {source[:200]}",
        allowed=near[0] if near else "a document's path relative to the folder that was indexed",
        hint="nybble rag index adds it",
    )  # fmt: skip
