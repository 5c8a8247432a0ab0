"""Items of one task, made in the child that has the tokenizer, and handed over in texts and ids."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

from nybble.engines.child import Frame
from nybble.scoring.pieces import Tokenizing
from nybble.scoring.tasks.base import Query
from nybble.scoring.tasks.frames import Asked, Framer, unpack
from nybble.scoring.tasks.make import make_items
from nybble.scoring.tasks.own import own_items, query_of, unpack_contexts
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


def make(model: Tokenizing, header: dict[str, Any], own: bytes = b"") -> Frame:
    """Answer of a child; `read` makes MadeItems of it.

    Args:
        model: the tokenizer.
        header: task, length, items, queries, seed, template.
        own: contexts of the user's, as `OwnFile.pack` packs them; items are made of the seed else.

    Raises:
        NybbleError: the length is too short for the task or the frame.
    """
    framer = Framer(model, header["template"])
    name, length, n_queries = header["task"], header["length"] - framer.tokens, header["queries"]
    if own:
        items = own_items(name, unpack_contexts(own), length, n_queries, framer.count)
    else:
        items = make_items(TASKS[name], length, header["items"], n_queries, header["seed"],
                           framer.count)  # fmt: skip
    found, payload = [], []
    for item in items:
        lengths, ids = framer.asked(item).pack()
        found.append(
            {
                "index": item.index,
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
    for made in reply.header["items"]:
        ids = reply.payload[at : at + made["bytes"]]
        at += made["bytes"]
        queries = tuple(map(query_of, made["queries"]))
        asked = unpack(made["lengths"], ids)
        found.append(MadeItem(task, length, made["index"], made["context"], queries, asked))
    return found
