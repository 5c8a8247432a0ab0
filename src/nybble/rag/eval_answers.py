"""Every question asked of one KV setting's server, and what its answers are worth."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Protocol

from nybble.environment import VERSION
from nybble.errors import NybbleError
from nybble.rag import judge
from nybble.rag.answers import Answer, Event, Options, Server
from nybble.rag.eval_retrieval import Found, Searched
from nybble.rag.eval_store import AnswerStore, Kept
from nybble.rag.prompt import prompt
from nybble.rag.questions import Question
from nybble.results.rag import RagAnswer
from nybble.results.store import content_key
from nybble.scoring.request import Progress


class Ask(Protocol):
    """`rag.ask.ask`, or a double of it."""

    def __call__(
        self,
        index: Searched,
        question: str,
        server: Server,
        options: Options,
        on_event: Callable[[Event], None],
        /,
    ) -> Answer:
        """Answer a question."""


@dataclass(frozen=True)
class Lane:
    """A KV setting, and how to reach a server that runs it.

    Attributes:
        setting: for example "q4_0/q4_0".
        sixteen: whether its cache is in 16 bits.
        file: of the model, or the server's address.
        model: what tells this model from every other: the file's SHA-256, or address and name.
        engine: name and version.
        serve: starts the server, and ends it when the context is left.
        mark: what else differs from the reference; "hardened" or "".
        remote: whether it runs already, so that its setting is the user's word.
    """

    setting: str
    sixteen: bool
    file: str
    model: str
    engine: str
    serve: Callable[[], AbstractContextManager[Server]]
    mark: str = ""
    remote: bool = False

    @property
    def name(self) -> str:
        """Of its row."""
        return f"{self.setting} {self.mark}".rstrip()


@dataclass(frozen=True)
class Asked:
    """A question with its number in the set and what was retrieved for it."""

    number: int
    question: Question
    found: Found


@dataclass(frozen=True)
class LaneResult:
    """What a lane gave.

    Attributes:
        lane: asked.
        answers: in order of the questions.
        error: why it ended before the last; None where it did not.
        kept: how many of the answers were there before.
    """

    lane: Lane
    answers: list[RagAnswer]
    error: str | None
    kept: int


def answer_lane(
    index: Searched, lane: Lane, asked: Sequence[Asked], options: Options, store: AnswerStore,
    ask: Ask, progress: Progress,
) -> LaneResult:  # fmt: skip
    """Ask what has no answer in the store yet; the server is started only if there is any.

    A server that does not start or dies ends this lane, not the run.
    """
    progress.begin(f"{lane.name}: answering", len(asked))
    keys = [_key(lane, a, options) for a in asked]
    missing = [i for i, key in enumerate(keys) if store.get(key) is None]
    kept = len(asked) - len(missing)
    progress.advance(kept)
    if kept:
        progress.note(f"{lane.name}: {kept} answers are there already; --fresh asks again")
    error = _answer(index, lane, [(keys[i], asked[i]) for i in missing], options, store, ask,
                    progress) if missing else None  # fmt: skip
    answers = [
        _judged(lane, a, given)
        for a, key in zip(asked, keys, strict=True)
        if (given := store.get(key)) is not None
    ]
    return LaneResult(lane, answers, error, kept)


def _answer(
    index: Searched, lane: Lane, asked: Sequence[tuple[str, Asked]], options: Options,
    store: AnswerStore, ask: Ask, progress: Progress,
) -> str | None:  # fmt: skip
    """Ask and keep; why it ended early, or None."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(lane.serve())
        except NybbleError as error:
            return str(error)
        for key, one in asked:
            try:
                kept = _ask(index, one, server, options, ask)
            except NybbleError as error:
                return str(error)
            store.add(key, kept)  # what fails here, a full disk, ends the run
            progress.advance(1)
    return None


def _key(lane: Lane, asked: Asked, options: Options) -> str:
    """Everything that decides an answer."""
    return content_key({
        "question": asked.question.text,
        "passages": [_sha(h.passage.text) for h in asked.found.hits],
        "places": [[h.passage.document, h.passage.heading] for h in asked.found.hits],
        "setting": lane.setting, "model": lane.model, "engine": lane.engine,
        "answer_tokens": options.answer_tokens, "context": options.context, "nybble": VERSION,
        "rules": [_sha(prompt((), "", plain=plain).text) for plain in (False, True)],
    })  # fmt: skip


def _ask(index: Searched, asked: Asked, server: Server, options: Options, ask: Ask) -> Kept:
    found = asked.found
    ids = tuple(h.passage.id for h in found.hits)
    mine = Options(
        k=max(1, len(ids)), passages=ids, context=options.context,
        answer_tokens=options.answer_tokens, temperature=0.0, seed=options.seed, prefix=False,
        timeout=options.timeout,
    )  # fmt: skip
    answer = ask(index, asked.question.text, server, mine, lambda event: None)
    place = {passage: i for i, passage in enumerate(ids)}
    shown = tuple(tuple(place[p] for p in s.passages if p in place) for s in answer.sources)
    packed = _sha("\x1e".join(f"{s.number}\x1f{s.place}\x1f{s.text}" for s in answer.sources))
    return Kept(
        text=answer.text, cited=tuple(dict.fromkeys(c.number for c in answer.citations)),
        unknown=any(not c.exists for c in answer.citations), shown=shown,
        sources=tuple(s.place for s in answer.sources), packed=packed, finish=answer.finish,
        tokens=answer.usage.answer, seconds=answer.timings.total,
    )  # fmt: skip


def _judged(lane: Lane, asked: Asked, kept: Kept) -> RagAnswer:
    good = {
        number
        for number, positions in enumerate(kept.shown, 1)
        if asked.found.good.intersection(positions)
    }
    return RagAnswer(
        setting=lane.name, question=asked.number, text=kept.text,
        right=judge.right(kept.text, judge.accepted(asked.question)),
        cited=list(kept.cited), cites_source=bool(good.intersection(kept.cited)),
        cites_unknown=kept.unknown, packed=kept.packed, has_source=bool(good),
        sources=list(kept.sources), finish=kept.finish, tokens=kept.tokens, seconds=kept.seconds,
    )  # fmt: skip


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
