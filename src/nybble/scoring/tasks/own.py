"""Questions of a user's own: a JSON object a line, with context, question and answer.

    {"context": "...", "question": "...", "answer": "...", "wrong": ["...", "..."]}

Lines with the same task and context are questions about one context, which is read once. Wrong
options are what the forced choice weighs the answer against; where a line has none, the answers
of other lines of its task stand in, those that are not in the line's own `answers`.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nybble.errors import NybbleError
from nybble.jsonl import JsonLines
from nybble.scoring.tasks.answers import names_first
from nybble.scoring.tasks.base import Item, Query
from nybble.scoring.tasks.make import around

SUFFIX = ".jsonl"
DEFAULT_TASK = "own"
LEAD = "The answer is"
UNKNOWN = -1.0  # depth of an answer that the context does not have word by word
_LINE = '{"context": "...", "question": "...", "answer": "...", "wrong": ["...", "..."]}'
_FILE = JsonLines(
    "question", ("task", "context", "question", "answer", "answers", "wrong", "lead"), _LINE,
    512 << 20,
)  # fmt: skip
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_STAND_INS = 3  # wrong options that other lines lend
_MOST_WRONG = 32
_LEAST_TOKENS, _SPARE = 32, 8  # of an answer; beyond its longest option


@dataclass(frozen=True)
class OwnTask:
    """How answers of one task of a file are judged; a `Task` as far as a run needs one.

    Attributes:
        name: of the task.
        title: in words.
    """

    name: str
    title: str
    source: str = ""

    def right(self, query: Query, text: str) -> bool:
        """Whether the first line names a right answer before any wrong option."""
        wrong = query.about["wrong"]
        assert isinstance(wrong, Sequence)
        return any(names_first(text, [answer, *wrong]) for answer in query.answers)


@dataclass(frozen=True)
class Context:
    """A context of a file and all that is asked about it."""

    text: str
    queries: tuple[Query, ...]


@dataclass(frozen=True)
class OwnFile:
    """A file of questions.

    Attributes:
        name: of the file.
        sha256: of its bytes.
        contexts: by task, in the order of the file.
    """

    name: str
    sha256: str
    contexts: Mapping[str, tuple[Context, ...]]

    def task(self, name: str) -> OwnTask:
        """One of its tasks."""
        return OwnTask(name, f"questions of {self.name}")

    def items(self, task: str, most: int | None, n_queries: int) -> int:
        """How many items a task makes where all fit."""
        return sum(-(-len(c.queries) // n_queries) for c in self.contexts[task][:most])

    def pack(self, task: str, most: int | None) -> bytes:
        """Contexts of a task, for the child that has the tokenizer."""
        return json.dumps([asdict(c) for c in self.contexts[task][:most]]).encode()


def unpack_contexts(data: bytes) -> list[Context]:
    """What `OwnFile.pack` packed."""
    return [Context(c["text"], tuple(map(query_of, c["queries"]))) for c in json.loads(data)]


def query_of(data: Mapping[str, Any]) -> Query:
    """A question out of JSON."""
    lists = {name: tuple(data[name]) for name in ("answers", "options")}
    return Query(**{**data, **lists})


def read_own(path: Path, taken: Sequence[str]) -> OwnFile:
    """Read a file of questions.

    Args:
        path: UTF-8, a JSON object a line; empty lines are skipped.
        taken: names that its tasks must not have.

    Raises:
        NybbleError: unreadable, no question, or a line that is none; says which.
    """
    read, data = _FILE.read(path)
    lines = [_read(line, where, taken) for where, line in read]
    others: dict[str, list[str]] = {}
    for line in lines:
        others.setdefault(line.task, []).append(line.answers[0])
    found: dict[str, dict[str, list[Query]]] = {}
    for line in lines:
        asked = found.setdefault(line.task, {}).setdefault(line.context, [])
        asked.append(line.query(others[line.task]))
    contexts = {
        task: tuple(Context(text, tuple(queries)) for text, queries in by_text.items())
        for task, by_text in found.items()
    }
    return OwnFile(path.name, hashlib.sha256(data).hexdigest(), contexts)


def own_items(
    task: str, contexts: Sequence[Context], length: int, n_queries: int,
    count: Callable[[str], int],
) -> list[Item]:  # fmt: skip
    """Items that fit a length; those that do not are left out, and numbers stay what they are.

    Args:
        task: their name.
        contexts: with their questions.
        length: most tokens of a context, its longest question, lead and answer together.
        n_queries: most questions asked of a context at once; more make another item of it.
        count: tokens of a text, by the tokenizer of the model that is asked.
    """
    found = []
    index = 0
    for context in contexts:
        n = count(context.text)
        for at in range(0, len(context.queries), n_queries):
            queries = tuple(_sized(q, count) for q in context.queries[at : at + n_queries])
            if n + around(queries, count) <= length:
                found.append(Item(task, length, index, context.text, queries))
            index += 1
    return found


def _sized(query: Query, count: Callable[[str], int]) -> Query:
    """With room for its answer: as the longest option, with a little to spare."""
    most = max(_LEAST_TOKENS, count(max(query.options, key=len)) + _SPARE)
    return replace(query, most=most)


@dataclass(frozen=True)
class _Line:
    where: str
    task: str
    context: str
    question: str
    answers: tuple[str, ...]
    wrong: tuple[str, ...]
    lead: str

    def query(self, others: Sequence[str]) -> Query:
        """The question; `others` are answers of its task, which may stand in as wrong ones."""
        right = {a.casefold() for a in self.answers}
        wrong = self.wrong or self._stand_ins([o for o in others if o.casefold() not in right])
        depth = self.context.find(self.answers[0]) / len(self.context)
        return Query(
            self.question, self.lead, self.answers,
            tuple(f" {option}" for option in (self.answers[0], *wrong)),
            depth if depth >= 0 else UNKNOWN, about={"wrong": list(wrong)},
        )  # fmt: skip

    def _stand_ins(self, others: Sequence[str]) -> tuple[str, ...]:
        known = list({o.casefold(): o for o in others}.values())
        if not known:
            raise NybbleError("a question has nothing to choose from", seen=self.where,
                              allowed="wrong options, or lines of its task with other answers",
                              hint=_LINE)  # fmt: skip
        chance = random.Random(f"{self.context}/{self.question}")
        return tuple(chance.sample(known, min(_STAND_INS, len(known))))


def _read(data: dict[str, Any], where: str, taken: Sequence[str]) -> _Line:
    task = data.get("task", DEFAULT_TASK)
    if not isinstance(task, str) or not _NAME.fullmatch(task) or task in taken:
        raise NybbleError("task is not a name for a task of your own", seen=f"{where}: {task!r}",
                          allowed="1 to 40 of a-z, 0-9 and -; not "
                          + ", ".join(taken))  # fmt: skip
    answers = ([data["answer"]] if "answer" in data else []) + _list(data, "answers", where)
    if not answers:
        raise NybbleError("a question without an answer", seen=where, hint=_LINE)
    right = tuple(_text(a, "answer", where).strip() for a in answers)
    wrong = tuple(_text(w, "wrong", where).strip() for w in _list(data, "wrong", where))
    folded = {w.casefold() for w in wrong}
    if (
        len(wrong) > _MOST_WRONG
        or len(folded) < len(wrong)
        or folded & {a.casefold() for a in right}
    ):
        raise NybbleError("wrong options are up to 32, all different, and none of them right",
                          seen=f"{where}: {', '.join(wrong)[:80]}")  # fmt: skip
    return _Line(
        where, task, _text(data.get("context"), "context", where, numbers=False),
        _text(data.get("question"), "question", where).strip(), right, wrong,
        _text(data.get("lead", LEAD), "lead", where).rstrip(),
    )  # fmt: skip


def _list(data: Mapping[str, Any], name: str, where: str) -> list[Any]:
    found = data.get(name, [])
    if not isinstance(found, list):
        raise NybbleError(f"{name} is not a list", seen=f"{where}: {found!r}"[:120],
                          hint=f'"{name}": ["...", "..."]')  # fmt: skip
    return found


def _text(value: object, name: str, where: str, *, numbers: bool = True) -> str:
    if numbers and isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        seen = "missing" if value is None else repr(value)[:60]
        raise NybbleError(f"{name} is not a text", seen=f"{where}: {seen}", hint=_LINE)
    # A lone surrogate is JSON, but no text that a tokenizer takes.
    return value.encode("utf-8", "replace").decode()
