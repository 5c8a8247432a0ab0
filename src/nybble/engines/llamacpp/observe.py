"""Energies of queries and keys as llama.cpp's own graph hands them to its cache.

Architectures name and nest what they do to queries and keys differently (norms before or after
RoPE, fused projections, "Qcur" or "Qcur_pos"), and on a GPU the last of those nodes may be fused
away. Two operations are the same in all of them, so these are what is read:

- SET_ROWS into `cache_k_l<N>` stores the keys of layer N: the rows that it wrote are read back.
- FLASH_ATTN_EXT reads a cache and the queries: the queries are its first source. Its second is a
  view of the cache it reads, whose name tells which layer owns it, also where a layer has no keys
  of its own (Gemma 4 E2B and E4B).

Both are seen after RoPE. RoPE turns the channels of a pair into each other, so a pair's energy is
the same before and after; that of a single channel is not. Architectures that scale queries
ahead of attention (Gemma 3 by 1 / sqrt(D)) show them scaled: one constant per layer, which cancels
in a scale that is normalized per layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt

from nybble.engines.llamacpp.ffi import ffi, library
from nybble.engines.llamacpp.model import Model
from nybble.engines.llamacpp.tensor import check_layout, read
from nybble.errors import EngineError
from nybble.formats import make
from nybble.formats.energies import SKIP, Energies, EnergySums, text_hash, texts_to_read

_CACHE = re.compile(rb"\bcache_k_l(\d+)")


class Watcher:
    """Gathers keys and queries while a graph runs; `callback` is what llama.cpp calls."""

    def __init__(self) -> None:
        self.sums = EnergySums()
        self.callback = ffi.callback("ggml_eval_callback", self._on_node)
        self._error: BaseException | None = None
        self._written: dict[int, npt.NDArray[Any]] = {}  # by layer: keys [n, kv_heads * D]
        self._seen: set[int] = set()  # tokens of the queries and keys of this micro-batch
        self._first = 0  # position of its first token

    def start_text(self) -> None:
        """The next micro-batch begins at position 0."""
        self._first = 0

    def end_batch(self, n: int) -> None:
        """A micro-batch of `n` tokens is done.

        Raises:
            EngineError: not every key and query of it was seen.
        """
        if self._error is not None:  # an exception must not travel through C
            raise self._error
        seen = [f"{m} of {n} tokens" for m in sorted(self._seen - {n})]
        seen += [f"no flash attention over the keys of layer {i}" for i in sorted(self._written)]
        if seen:
            raise EngineError(
                "this architecture attends in a way that nybble cannot observe",
                seen=", ".join(seen[:3]),
                hint="--engine transformers, if it knows the model",
            )
        self._first += n
        self._seen.clear()

    def _on_node(self, tensor: Any, ask: bool, user: Any) -> bool:
        if self._error is not None:
            return False
        try:
            op = ffi.string(library().ggml_op_desc(tensor))
            if op == b"SET_ROWS":
                owner, take = _owner(tensor), self._take_keys
            elif op == b"FLASH_ATTN_EXT":
                owner, take = _owner(tensor.src[1]), self._take_queries
            else:
                return False
            if owner is None:  # values, or attention over what is no cache
                return False
            if not ask:
                take(owner, tensor)
        except BaseException as error:
            self._error = error
            return False
        return True

    def _take_keys(self, owner: int, tensor: Any) -> None:
        # What SET_ROWS was given may never have been written: GPUs store straight from RoPE.
        places = read(tensor.src[1]).ravel()
        first = int(places.min())
        stored = read(tensor, slice(first, int(places.max()) + 1))[0, 0]
        self._written[owner] = stored[places - first]
        self._seen.add(len(places))

    def _take_queries(self, owner: int, tensor: Any) -> None:
        queries = read(tensor.src[0])[0]
        kv_heads, dim = tensor.src[1].ne[2], tensor.src[1].ne[0]
        skip = max(0, SKIP - self._first)
        self._seen.add(queries.shape[1])
        self.sums.add_queries(owner, queries[:, skip:], kv_heads)
        # Layers that share a cache read it after its owner did, in the same graph.
        if owner in self._written:
            keys = self._written.pop(owner).reshape(-1, kv_heads, dim).swapaxes(0, 1)
            self.sums.add_keys(owner, keys[:, skip:])


def _owner(tensor: Any) -> int | None:
    # Views and copies to another device keep the name of what they show, with additions.
    found = _CACHE.search(ffi.string(tensor.name))
    return int(found[1]) if found else None


def observe(
    model: Model,
    texts: Sequence[npt.NDArray[np.int32]],
    threads: int,
    on_tokens: Callable[[int], None] = lambda tokens: None,
) -> Energies:
    """Run texts through a model and take the energies of its keys and queries.

    Args:
        model: a loaded model.
        texts: token ids [n] of each text, with BOS if the model wants one; those of SKIP tokens
            or less are left out.
        threads: CPU threads.
        on_tokens: told the tokens done, every 512 or at a text's end.

    Raises:
        EngineError: too little text, an architecture that cannot be observed, or keys or queries
            that are not finite.
    """
    check_layout()
    kept = texts_to_read(texts)
    watcher = Watcher()
    lane = model.context(
        make("f16", "f16"), max(map(len, kept)), rows=1, threads=threads, on_node=watcher.callback
    )
    with closing(lane) as context:
        for text in kept:
            context.clear()
            watcher.start_text()
            for n in context.prefill(text.tolist(), 0):
                watcher.end_batch(n)
                on_tokens(n)
    return Energies(
        layers=watcher.sums.means(),
        interleaved=model.interleaved,
        tokens=sum(map(len, kept)) - SKIP * len(kept),
        text=text_hash(texts),
        engine="llama.cpp",
    )
