"""Attention that reads K and V through the codecs of a KV setting, one setting a batch row.

Registered with transformers' AttentionInterface, so every model that uses it can be scored:
the hook gets queries, keys and values after RoPE and norms, whatever the architecture. Rows of
the batch are lanes; all lanes see the same tokens, so the weights are read once for all.

A key that a lane's read rule leaves raw (Reads) is read raw by that query and as stored by later
ones. Sinks are a column of scores without a value; scores are capped where a model asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from nybble.errors import EngineError
from nybble.formats.codec import SideStore, Through
from nybble.formats.kvtype import KVType
from nybble.formats.reads import Reads

NAME = "nybble"
_QUERIES = 256  # of the explicit path at a time: [heads, 256, context] scores

# Tensors that models pass along and that change no score.
_HARMLESS = {"position_ids", "cache_position", "cu_seq_lens_q", "cu_seq_lens_k"}

# Called with (attention module, queries, keys, values) of every layer, before anything else.
Watcher = Callable[[torch.nn.Module, torch.Tensor, torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True)
class Lanes:
    """The stores of every lane: stores[i][j] = (K, V), or None for a lane left as it is.

    j counts the layers that own keys (TorchModel.layers), as `reading`'s slot says.
    """

    stores: Sequence[Sequence[tuple[SideStore, SideStore]] | None]


@dataclass(frozen=True)
class _State:
    lanes: Lanes | None = None
    watch: Watcher | None = None
    slot: Callable[[torch.nn.Module], int] | None = None
    windows: dict[int, int | None] | None = None
    through: Through = KVType.roundtrip


_STATE: ContextVar[_State | None] = ContextVar("nybble_attention", default=None)


@contextmanager
def reading(
    lanes: Lanes | None = None,
    watch: Watcher | None = None,
    slot: Callable[[torch.nn.Module], int] | None = None,
    windows: dict[int, int | None] | None = None,
    through: Through = KVType.roundtrip,
) -> Iterator[None]:
    """Within it, attention reads through `lanes` and shows `watch` what it gets.

    Args:
        lanes: one entry for every row of the batch.
        watch: sees queries, keys and values of every layer.
        slot: tells which of a lane's stores an attention module reads; its layer's by default.
        windows: filled with the window each layer's class slides, by layer index.
        through: how values pass a KV type, where they need gradients.
    """
    token = _STATE.set(_State(lanes, watch, slot, windows, through))
    try:
        yield
    finally:
        _STATE.reset(token)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function; query [B, heads, n, D], key and value [B, kv_heads, m, D].

    Raises:
        EngineError: the model hands over something that would change scores and is not known
            here, such as a position bias or a choice of keys.
    """
    state = _STATE.get() or _State()
    for name, given in rest.items():
        if isinstance(given, torch.Tensor) and name not in _HARMLESS:
            raise EngineError(
                "this model's attention needs something that nybble does not know",
                seen=f"{type(module).__name__} passes {name}",
                allowed="scaling, windows, soft caps and sinks",
            )
    if state.watch is not None:
        state.watch(module, query, key, value)
    if state.windows is not None:
        # Mistral's modules do not hold their window, Exaone 4's hold one in full layers too: what
        # is passed is right, and what is held counts only where nothing is passed.
        window = rest.get("sliding_window", getattr(module, "sliding_window", None))
        state.windows[int(module.layer_idx)] = int(window) if window else None  # type: ignore[arg-type]
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    call = _Call(attention_mask, scaling, softcap, s_aux)
    if state.lanes is None:
        return call.plain(query, key, value).transpose(1, 2).contiguous(), None
    slot = state.slot(module) if state.slot else int(module.layer_idx)  # type: ignore[arg-type]
    stores = state.lanes.stores
    if len(stores) != len(query):
        raise ValueError(f"{len(stores)} lanes for a batch of {len(query)}")
    keys, values, queries = key.clone(), value.clone(), query.clone()
    windowed: dict[int, tuple[list[Reads], list[Reads]]] = {}
    with torch.autocast(query.device.type, enabled=False):  # bf16 rotations would not be exact
        for i, lane in enumerate(stores):
            if lane is None:
                continue
            k, v = lane[slot]
            keys[i] = k.roundtrip(key[i], state.through).to(key.dtype)
            values[i] = v.roundtrip(value[i], state.through).to(value.dtype)
            queries[i] = k.round_queries(query[i], key.shape[1], state.through).to(query.dtype)
            reads = (_head_reads(k, key.shape[1]), _head_reads(v, value.shape[1]))
            if any(r.rule != "all" for side in reads for r in side):
                windowed[i] = reads
    out = call.plain(queries, keys, values)
    for i, reads in windowed.items():
        one = slice(i, i + 1)
        raw = (key[one], value[one])
        out[one] = call.explicit(i, queries[one], keys[one], values[one], raw, reads)
    return out.transpose(1, 2).contiguous(), None


def _head_reads(store: SideStore, heads: int) -> list[Reads]:
    """The read rule of each KV head: a head with a type of its own has that type's."""
    found = [store.reads] * heads
    for head, codec in store.codecs:
        if head is not None:
            found[head] = codec.reads
    return found


@dataclass(frozen=True)
class _Call:
    """One call's mask and scoring rule."""

    mask: torch.Tensor | None
    scaling: float
    softcap: float | None
    sinks: torch.Tensor | None

    def plain(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Every query reads the same keys."""
        if self.softcap is None and self.sinks is None:
            group = query.shape[1] // key.shape[1]
            # On CUDA, with grouped heads, a mask or more than 256 channels leave only the kernel
            # that writes all scores to memory.
            if group > 1 and (self.mask is not None or max(key.shape[-1], value.shape[-1]) > 256):
                key, value = (x.repeat_interleave(group, 1) for x in (key, value))
            causal = self.mask is None and query.shape[2] > 1
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask=self.mask, scale=self.scaling, is_causal=causal,
                enable_gqa=query.shape[1] != key.shape[1],
            )  # fmt: skip
        parts = [
            self.explicit(i, query[i : i + 1], key[i : i + 1], value[i : i + 1], None, None)
            for i in range(len(query))
        ]
        return torch.cat(parts)

    def explicit(
        self,
        row: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        raw: tuple[torch.Tensor, torch.Tensor] | None,
        reads: tuple[list[Reads], list[Reads]] | None,
    ) -> torch.Tensor:
        """One lane, scores spelled out; `raw` keys are read where a head's rule says so."""
        heads, n = query.shape[1], query.shape[2]
        kv_heads, m = key.shape[1], key.shape[2]
        q = query[0].reshape(kv_heads, heads // kv_heads, n, -1).float() * self.scaling
        k, v = key[0].float(), value[0].float()
        positions = torch.arange(m - n, m, device=query.device)
        columns = torch.arange(m, device=query.device)
        out = torch.empty(kv_heads, heads // kv_heads, n, v.shape[-1], device=query.device)
        for start in range(0, n, _QUERIES):
            part = slice(start, start + _QUERIES)
            scores = torch.einsum("hgnd,hmd->hgnm", q[:, :, part], k)
            raw_v = None
            if raw is not None and reads is not None:
                raw_k, raw_v = (
                    columns
                    >= torch.stack([r.first_raw(positions[part]) for r in side])[:, None, :, None]
                    for side in reads
                )
                both = torch.einsum("hgnd,hmd->hgnm", q[:, :, part], raw[0][0].float())
                scores = torch.where(raw_k, both, scores)
            weights = self._weights(scores, row, positions[part], columns)
            if raw_v is None or raw is None:
                out[:, :, part] = torch.einsum("hgnm,hmd->hgnd", weights, v)
                continue
            stored = weights.masked_fill(raw_v, 0.0)
            out[:, :, part] = torch.einsum("hgnm,hmd->hgnd", stored, v)
            near = weights.masked_fill(~raw_v, 0.0)
            out[:, :, part] += torch.einsum("hgnm,hmd->hgnd", near, raw[1][0].float())
        return out.flatten(0, 1)[None].to(query.dtype)

    def _weights(
        self,
        scores: torch.Tensor,
        row: int,
        positions: torch.Tensor,
        columns: torch.Tensor,
    ) -> torch.Tensor:
        """Softmax over the keys a query may see; scores [kv_heads, group, n, m]."""
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        unseen = torch.finfo(scores.dtype).min  # infinity would be NaN where nothing is seen
        if self.mask is None:
            scores = scores.masked_fill(columns > positions[:, None], unseen)
        else:
            mask = self.mask[row if len(self.mask) > 1 else 0]
            start = int(positions[0]) - (scores.shape[-1] - mask.shape[-2])
            mask = mask[:, start : start + scores.shape[2], : scores.shape[-1]]
            if mask.dtype == torch.bool:
                scores = scores.masked_fill(~mask, unseen)
            else:
                scores = scores + mask
        if self.sinks is not None:
            sinks = self.sinks.float().view(scores.shape[0], -1, 1, 1)
            scores = torch.cat([scores, sinks.expand(*scores.shape[:-1], 1)], -1)
            return torch.softmax(scores, -1)[..., :-1]
        return torch.softmax(scores, -1)
