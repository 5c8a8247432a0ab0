"""From an item's texts to token ids: one context, and what follows it question by question.

The context and what follows are tokenized apart, at the empty line between them, so that every
question and every cache has the same ids before it. An option's ids are those of lead and option
tokenized together, less what all options and the bare lead have in common: where a tokenizer
merges the lead's end with the option's start, the last part of the lead belongs to the options.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nybble.errors import EngineError, NybbleError
from nybble.scoring.corpora.render import conversation
from nybble.scoring.pieces import Tokenizing
from nybble.scoring.tasks.base import Item, Query

Ids = tuple[int, ...]

_GAP = "\n\n"  # between context and question
_CONTEXT, _QUESTION = "nybble2b9f0c71context", "nybble2b9f0c71question"  # stand-ins for the texts


@dataclass(frozen=True)
class AskedQuery:
    """A question in token ids.

    Attributes:
        stem: what follows the context, up to where the options begin to differ.
        rest: what the stem lacks of question and lead; mostly nothing.
        options: continuations of the stem, the right one first.
        most: tokens an answer may take.
    """

    stem: Ids
    rest: Ids
    options: tuple[Ids, ...]
    most: int


@dataclass(frozen=True, eq=False)
class Asked:
    """An item in token ids.

    Attributes:
        context: int32, BOS and frame included.
        queries: in the item's order.
    """

    context: npt.NDArray[np.int32]
    queries: tuple[AskedQuery, ...]

    @property
    def cells(self) -> int:
        """Tokens that a cache must hold: all answers go on side by side, for equally long."""
        stems = sum(len(q.stem) + len(q.rest) for q in self.queries)
        answers = len(self.queries) * max(q.most for q in self.queries)
        options = max(sum(map(len, q.options)) for q in self.queries)
        return len(self.context) + stems + max(answers, options)

    @property
    def sequences(self) -> int:
        """Sequences that a cache must hold: the context, every question, one's options."""
        return 1 + len(self.queries) + max(len(q.options) for q in self.queries)

    @property
    def work(self) -> int:
        """Tokens to decode, roughly: the unit of progress."""
        parts = (len(q.stem) + sum(map(len, q.options)) + q.most for q in self.queries)
        return len(self.context) + sum(parts)

    def pack(self) -> tuple[list[Any], bytes]:
        """Lengths, for a frame's header, and all ids (<i4), for its payload."""
        lengths: list[Any] = [len(self.context)]
        lengths += [
            [len(q.stem), len(q.rest), [len(o) for o in q.options], q.most] for q in self.queries
        ]
        ids = [i for q in self.queries for part in (q.stem, q.rest, *q.options) for i in part]
        return lengths, np.concatenate([self.context, ids]).astype("<i4").tobytes()

    def sha256(self) -> str:
        """Hash of all of it."""
        lengths, ids = self.pack()
        return hashlib.sha256(json.dumps(lengths).encode() + ids).hexdigest()


def unpack(lengths: Sequence[Any], payload: bytes) -> Asked:
    """What `Asked.pack` packed."""
    every = np.frombuffer(payload, dtype="<i4").astype(np.int32)
    at = int(lengths[0])
    context = every[:at]

    def take(n: int) -> Ids:
        nonlocal at
        at += n
        return tuple(every[at - n : at].tolist())

    queries = []
    for stem, rest, options, most in lengths[1:]:
        queries.append(AskedQuery(take(stem), take(rest), tuple(map(take, options)), most))
    return Asked(context, tuple(queries))


class Framer:
    """Puts items into the model's own chat template, or leaves them plain text.

    With a template the user's turn is the context, an empty line and the question, and the
    assistant's turn begins with the lead; a model that would think first is kept from it. Without
    one it is context, question and lead with empty lines between.

    Args:
        model: the tokenizer.
        template: Jinja source as found in the model file, not trusted; None for plain text.

    Raises:
        NybbleError: the template is broken or hostile, or leaves the texts out.
    """

    def __init__(self, model: Tokenizing, template: str | None) -> None:
        self._model = model
        self._framed = template is not None
        head, self._gap, tail = "", _GAP, _GAP
        if template is not None:
            head, self._gap, tail = _taken_apart(template, model)
        self._head = self._ids(head, special=True)
        vocabulary = model.vocabulary
        if vocabulary.add_bos and self._head[:1] != (vocabulary.bos,):
            self._head = (vocabulary.bos, *self._head)
        self._tail_text = tail
        self._tail = self._ids(tail, special=True)
        # Tokens that the frame adds to those of the texts.
        self.tokens = len(self._head) + len(self._tail) + len(self._ids(self._gap))

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._model.tokenize(text, special=False))

    def asked(self, item: Item) -> Asked:
        """The ids of an item."""
        body = self._model.tokenize(item.context, special=False)
        context = np.concatenate([np.array(self._head, dtype=np.int32), body])
        return Asked(context, tuple(map(self._query, item.queries)))

    def _query(self, query: Query) -> AskedQuery:
        before, text = self._ids(self._gap + query.text), query.lead
        if self._framed:
            before = (*before, *self._tail)
        else:
            before, text = (), f"{self._gap}{query.text}{self._tail_text}{query.lead}"
        lead = self._ids(text)
        options = [self._ids(text + o) for o in query.options]
        shared = len(os.path.commonprefix([lead, *options]))
        stem = (*before, *lead[:shared])
        if not stem or min(map(len, options)) == shared:
            raise EngineError(
                "the tokenizer leaves nothing of an answer to choose from",
                seen=f"{query.lead!r} and {query.options[0]!r}",
            )
        return AskedQuery(stem, lead[shared:], tuple(o[shared:] for o in options), query.most)

    def _ids(self, text: str, *, special: bool = False) -> Ids:
        if not text:
            return ()
        ids: npt.NDArray[np.int32] = self._model.tokenize(text, special=special)
        return tuple(ids.tolist())


def _taken_apart(template: str, model: Tokenizing) -> tuple[str, str, str]:
    """The template's text before the context, between context and question, and after it."""
    asked = [{"role": "user", "content": f"{_CONTEXT}{_GAP}{_QUESTION}"}]
    vocabulary = model.vocabulary
    text = conversation(asked, template, bos=vocabulary.bos_text, eos=vocabulary.eos_text)
    head, found, rest = text.partition(_CONTEXT)
    gap, found_too, tail = rest.partition(_QUESTION)
    if not (found and found_too) or _CONTEXT in rest or _QUESTION in tail:
        raise NybbleError(
            "the chat template of the model does not print a question once, as it is",
            seen=text[:200],
            hint="--framing raw",
        )
    return head, gap, tail
