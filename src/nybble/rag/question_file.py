"""A user's own questions: a JSON object a line, with question, answer and source."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from nybble.errors import NybbleError
from nybble.jsonl import JsonLines
from nybble.rag.questions import Question

_LINE = '{"question": "...", "answer": "...", "source": "notes.md#Heading"}'
_FILE = JsonLines("question", ("question", "answer", "answers", "source"), _LINE, 64 << 20)
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
    return [_question(line, where, documents) for where, line in _FILE.read(path)[0]]


def digest(path: Path) -> str:
    """Sixteen hex digits of the file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _question(data: dict[str, Any], where: str, documents: Mapping[str, str]) -> Question:
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
