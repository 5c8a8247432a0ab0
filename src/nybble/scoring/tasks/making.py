"""Items of one task, made in the child that has the tokenizer, and handed over in texts and ids."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nybble.engines.child import Frame
from nybble.scoring.pieces import Tokenizing
from nybble.scoring.tasks.base import Query
from nybble.scoring.tasks.frames import Asked, Framer, unpack
from nybble.scoring.tasks.make import make_items
from nybble.scoring.tasks.registry import TASKS


@dataclass(frozen=True)
class MadeItem:
    """An item whose context stays behind: its ids are what is asked.

    Attributes:
        task: name.
        length: tokens asked for, frame included.
        index: number within task and length.
        context_sha256: of the context's text.
        queries: in words.
        asked: in ids.
    """

    task: str
    length: int
    index: int
    context_sha256: str
    queries: tuple[Query, ...]
    asked: Asked


def make(model: Tokenizing, header: dict[str, Any]) -> Frame:
    """Answer of a child; `read` makes MadeItems of it.

    Args:
        model: the tokenizer.
        header: task, length, items, queries, seed, template.

    Raises:
        NybbleError: the length is too short for the task or the frame.
    """
    framer = Framer(model, header["template"])
    items = make_items(
        TASKS[header["task"]], header["length"] - framer.tokens, header["items"],
        header["queries"], header["seed"], framer.count,
    )  # fmt: skip
    found, payload = [], []
    for item in items:
        lengths, ids = framer.asked(item).pack()
        found.append(
            {
                "context": hashlib.sha256(item.context.encode()).hexdigest(),
                "queries": [asdict(q) for q in item.queries],
                "lengths": lengths,
                "bytes": len(ids),
            }
        )
        payload.append(ids)
    return Frame({"items": found}, b"".join(payload))


def read(reply: Frame, task: str, length: int) -> list[MadeItem]:
    """The items of a child's answer."""
    found, at = [], 0
    for index, made in enumerate(reply.header["items"]):
        ids = reply.payload[at : at + made["bytes"]]
        at += made["bytes"]
        queries = tuple(map(_query, made["queries"]))
        asked = unpack(made["lengths"], ids)
        found.append(MadeItem(task, length, index, made["context"], queries, asked))
    return found


def _query(data: dict[str, Any]) -> Query:
    pairs: Sequence[str] = ("answers", "options")
    return Query(**{**data, **{name: tuple(data[name]) for name in pairs}})
