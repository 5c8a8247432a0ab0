"""A context's cache from its file, or computed and put into one."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nybble.environment import cache_dir
from nybble.errors import EngineError
from nybble.models.content_hash import file_sha256
from nybble.rag.answers import PrefixUse, Server
from nybble.rag.client import Hearer
from nybble.rag.prefix import PrefixKey, PrefixRecord, PrefixStore, tokens_digest

_FEW = 0.1  # share of a context that may have been there, for its time to count as a prefill's
LEAST = 64  # tokens; fewer are computed as soon as read


class Slots(Protocol):
    """What is asked of a llama.cpp server."""

    @property
    def template(self) -> str:
        """What frames a prompt."""

    @property
    def build(self) -> str:
        """Of the engine."""

    @property
    def weights(self) -> str:
        """Path of its model."""

    def compute(self, ids: list[int], hearer: Hearer) -> tuple[float, int]:
        """Put cells of these tokens into the slot; seconds, tokens that were there already."""

    def save(self, name: str) -> None:
        """Save the slot."""

    def restore(self, name: str) -> int:
        """Read the slot; tokens."""


@dataclass(frozen=True)
class Kept:
    """What became of a context's cache, and what a user should know of it."""

    use: PrefixUse
    notes: tuple[str, ...] = ()


def keep(
    store: PrefixStore, slots: Slots, server: Server, ids: Sequence[int], scope: str,
    hearer: Hearer,
) -> Kept:  # fmt: skip
    """Have the context's cache in the server's slot: from its file, else computed and saved.

    Args:
        store: of files.
        slots: the server.
        server: where it is, with the model's file and the KV setting.
        ids: tokens of the context.
        scope: documents that it is asked over; "" for none in particular.
        hearer: told how far it is computed.

    Raises:
        TooLongError: the context does not fit.
    """
    path = server.weights or Path(slots.weights)
    if len(ids) < LEAST:
        return Kept(PrefixUse("off", len(ids), why=f"a context of {len(ids)} tokens is computed "
                              "as soon as read"))  # fmt: skip
    if not slots.weights and server.weights is None or not path.is_file():
        return Kept(PrefixUse("off", len(ids), why="the server's model is not on this disk"))
    frame = hashlib.sha256(slots.template.encode()).hexdigest()
    key = PrefixKey(file_sha256(path, cache_dir()), slots.build, server.setting, frame,
                    tokens_digest(ids))  # fmt: skip
    begun = time.monotonic()
    record, why = store.look(key, ids, scope)
    if record is not None:
        refused = _restored(store, slots, record)
        if not refused:
            return Kept(PrefixUse("read", len(ids), 0, time.monotonic() - begun, record.prefill,
                                  record.file_bytes, record.cache_bytes))  # fmt: skip
        why = f"the server refused the file that was kept ({refused})"
    return _made(store, slots, key, list(ids), scope, why, hearer)


def _restored(store: PrefixStore, slots: Slots, record: PrefixRecord) -> str:
    """Why the server did not take a file, which is removed then; "" where it did."""
    try:
        n = slots.restore(store.file(record.key))
    except EngineError as error:
        store.remove(record.key)
        return error.seen or error.what
    if n != record.n_tokens:
        store.remove(record.key)
        return f"it read {n:,} of {record.n_tokens:,} tokens"
    store.touch(record.key)
    return ""


def _made(
    store: PrefixStore, slots: Slots, key: PrefixKey, ids: list[int], scope: str, why: str,
    hearer: Hearer,
) -> Kept:  # fmt: skip
    seconds, had = slots.compute(ids, hearer)
    prefill = seconds if had < _FEW * len(ids) else None
    part = f"{secrets.token_hex(8)}.part"
    try:
        slots.save(part)
        record = store.add(part, key, ids, scope, prefill)
    except (EngineError, OSError, ValueError) as error:
        (store.folder / part).unlink(missing_ok=True)
        said = error.what if isinstance(error, EngineError) else str(error)
        off = PrefixUse("off", len(ids), 0, seconds, prefill, why=f"it could not be saved: {said}")
        return Kept(off)
    # From the file this time too: where a model with sliding layers goes on a few tokens before the
    # end, the first answer and all later ones come from the same cells, to the bit.
    if refused := _restored(store, slots, record):
        why = f"the server refuses the file that it has just saved ({refused})"
        return Kept(PrefixUse("off", len(ids), 0, seconds, prefill, why=why))
    return Kept(PrefixUse("made", len(ids), 0, seconds, prefill, record.file_bytes,
                          record.cache_bytes, why))  # fmt: skip
