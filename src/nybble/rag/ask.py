"""`ask`: a question over an index, answered by a server, with sources that are checked."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from nybble.errors import NybbleError, nearest
from nybble.rag import citations
from nybble.rag.answers import Answer, Event, Options, Packed, Server, Timings
from nybble.rag.client import Answering, Reply, TooLongError
from nybble.rag.last import Last, read_last
from nybble.rag.llamacpp import LlamaCppAnswers, props
from nybble.rag.openai_server import OpenAIServer
from nybble.rag.pack import pack
from nybble.rag.passages import Hit, Passage
from nybble.rag.prompt import Prompt, prompt

LONGEST = 20_000  # characters of a question
_USUAL = 256  # tokens kept for a question, so that most find the same room and the same context
_SPARE = 16  # tokens: what tokenizing parts apart may cost
_FRAME = "<source-0123456789ab>\n\n</source-0123456789ab>\n\n"
_SHRINK = 0.7  # of the room, where a server does not say by how much it was too much


class Row(Protocol):
    """A document of an index."""

    @property
    def path(self) -> str:
        """Of the document."""


class Searched(Protocol):
    """What is asked of an index; `rag.index.Index` is one."""

    path: Path

    def search(self, query: str, k: int = 10, mode: str = "hybrid") -> list[Hit]:
        """The best passages, best first."""

    def passages(self, ids: Sequence[int]) -> list[Passage]:
        """Those with these ids that are still there."""

    def passages_of(self, document: str) -> list[Passage]:
        """All of a document, in order."""

    def documents(self) -> Sequence[Row]:
        """The documents."""


@dataclass
class _Asked:
    """A question while it is answered."""

    question: str
    options: Options
    on_event: Callable[[Event], None]
    notes: list[str]

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.on_event(Event("note", text))

    def text(self, piece: str) -> None:
        self.on_event(Event("text", piece))

    def read(self, done: int, total: int) -> None:
        self.on_event(Event("reading", done=done, total=total))


def ask(
    index: Searched,
    question: str,
    server: Server,
    options: Options = Options(),  # noqa: B008  (frozen)
    on_event: Callable[[Event], None] = lambda _: None,
) -> Answer:
    """Answer a question from an index.

    Passages are retrieved, packed into the server's context, shown to its model, and what it
    cites and quotes is checked. Where the server says that it was too much, less is packed and it
    is asked once more.

    Args:
        index: that is searched.
        question: of the user.
        server: that answers.
        options: how to ask.
        on_event: called with what happens, in this thread; what it raises ends the answer.

    Raises:
        NybbleError: no question, nothing found or nothing fits, a document that is not there, the
            context of the last question has changed, or the server refuses.
        CutOffError: the server went away in mid-answer; it has what had come.
        MissingExtraError: a package of the extra `rag` is not installed.
    """
    begun = time.monotonic()
    question = question.strip()
    if not 0 < len(question) <= LONGEST:
        raise NybbleError("not a question", seen=f"{len(question):,} characters",
                          allowed=f"1 to {LONGEST:,}", hint='nybble rag ask "..."')  # fmt: skip
    asked = _Asked(question, options, on_event, [])
    answering = connect(server, options)
    try:
        for text in answering.notes:
            asked.note(text)
        found = time.monotonic()
        asked.options, passages = _passages(index, asked)
        retrieved = time.monotonic()
        packed, reply, seconds = _answered(answering, asked, passages)
    finally:
        answering.close()
    checked = citations.check(reply.text, packed.sources)
    for text in (*reply.notes, *_told(reply, options), *checked.warnings):
        asked.note(text)
    if options.prefix:
        _remember(index, asked, packed, passages)
    timings = Timings(retrieved - found, seconds, reply.first, time.monotonic() - begun,
                      reply.generate)  # fmt: skip
    answer = Answer(question, reply.text, packed.sources, checked.citations, packed, reply.usage,
                    timings, reply.prefix, tuple(asked.notes), reply.finish)  # fmt: skip
    on_event(Event("done", answer=answer))
    return answer


def connect(server: Server, options: Options = Options()) -> Answering:  # noqa: B008
    """Reach a server: llama.cpp's by what it tells at /props, any other by the OpenAI API.

    Raises:
        NybbleError: nobody answers there, or it refuses.
    """
    told = props(server, options.timeout)
    if told is not None:
        return LlamaCppAnswers(server, options, told)
    return OpenAIServer(server, options)


def _answered(
    answering: Answering, asked: _Asked, passages: Sequence[Passage]
) -> tuple[Packed, Reply, float]:
    """Packed, asked, and once more with less where that was too much; seconds of packing."""
    options, seconds = _reserved(answering, asked), 0.0
    room, frame = _room(answering, asked, options), answering.count(_FRAME)
    for last in (False, True):
        begun = time.monotonic()
        packed = pack(passages, room, answering.count, frame)
        made = prompt(packed.sources, asked.question, plain=answering.plain)
        seconds += time.monotonic() - begun
        asked.on_event(Event("sources", packed=packed))
        if packed.used < packed.found:
            asked.note(f"{packed.told()}; the others do not fit into a context of "
                       f"{answering.context:,}")  # fmt: skip
        try:
            return packed, answering.answer(made, options, asked), seconds
        except TooLongError as error:
            if last:
                raise
            less = int(packed.tokens * _SHRINK)
            if error.over is not None:
                less = min(packed.tokens - 1, packed.tokens - error.over - _SPARE)
            room = less
            asked.note(f"the server says that this exceeds its context: {max(0, less):,} tokens "
                       f"of sources are packed instead of {packed.tokens:,}")  # fmt: skip
    raise AssertionError


def _reserved(answering: Answering, asked: _Asked) -> Options:
    """The options with an answer that leaves most of a small context to the sources."""
    options = asked.options
    most = max(16, answering.context // 4)
    if options.answer_tokens <= most:
        return options
    asked.note(f"an answer is cut at {most:,} tokens, a quarter of the context")
    return replace(options, answer_tokens=most)


def _room(answering: Answering, asked: _Asked, options: Options) -> int:
    """Tokens for the sources: the context without answer, template, rules and question."""
    bare: Prompt = prompt((), asked.question, plain=answering.plain)
    question = answering.count(bare.question)
    # A context too small to be generous keeps what this question needs.
    kept = max(question, min(_USUAL, answering.context // 16))
    frames = answering.overhead() + answering.count(bare.lead)
    return answering.context - options.answer_tokens - kept - frames - _SPARE


def _passages(index: Searched, asked: _Asked) -> tuple[Options, list[Passage]]:
    """What to answer from, best first, and the options as they are then."""
    options = asked.options
    if options.same:
        last = read_last(index.path)
        found = _still_there(index, last.passages, "the last question")
        return replace(options, same=False, over=last.over), found
    if options.passages:
        return options, _still_there(index, options.passages, "this question")
    if options.over:
        named = tuple(dict.fromkeys(_document(index, name) for name in options.over))
        whole = [p for name in named for p in index.passages_of(name)]
        return replace(options, over=named), whole
    found = [hit.passage for hit in index.search(asked.question, options.k, options.mode)]
    return options, found


def _still_there(index: Searched, ids: Sequence[int], of: str) -> list[Passage]:
    found = index.passages(list(ids))
    if len(found) < len(ids):
        raise NybbleError(
            f"documents have changed since the context of {of} was packed",
            seen=f"{len(ids) - len(found)} of {len(ids)} passages are gone",
            hint="ask without --same, so that it is packed anew",
        )  # fmt: skip
    return found


def _document(index: Searched, name: str) -> str:
    """A document's path by its path, or by the end of it where only one ends so."""
    paths = [row.path for row in index.documents()]
    if name in paths:
        return name
    ends = [path for path in paths if path.endswith("/" + name.lstrip("./"))]
    if len(ends) == 1:
        return ends[0]
    near = ends[:5] or [n for n in [nearest(name, paths)] if n]
    raise NybbleError(
        "several documents are called so" if ends else "there is no such document in the index",
        seen=name, allowed=near or None, hint="--over PATH, as nybble rag search shows it",
    )  # fmt: skip


def _told(reply: Reply, options: Options) -> list[str]:
    said = []
    if reply.finish == "length":
        said.append("the answer was cut at its longest (--answer-tokens)")
    if reply.prefix is None and (options.same or options.over or options.passages):
        said.append("no file of this context is kept: on this server, its own prefix cache "
                    "decides how soon the next question starts")  # fmt: skip
    return said


def _remember(
    index: Searched, asked: _Asked, packed: Packed, passages: Sequence[Passage]
) -> None:  # fmt: skip
    """Write down what was packed, in the order it was offered."""
    used = {i for source in packed.sources for i in source.passages}
    ids = tuple(p.id for p in passages if p.id in used)
    try:
        Last(asked.question, ids, asked.options.over).write(index.path)
    except OSError as error:
        asked.note(f"--same will not know this question: {error.strerror or error}")
