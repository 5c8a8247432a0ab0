"""Attention that reads packed layers, registered with transformers as "nybble_packed".

    nybble.attach(model)
    model.generate(**inputs, past_key_values=nybble.Cache(model.config, kv="q4_0/q4_0"))

Each strand of a layer is read by the fastest kernel that can; without a cache the same code reads
plain tensors. Causality and windows come from positions; a mask is made only for padding and for
models that change what a query sees.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from nybble.errors import NybbleError
from nybble.runtime.cache import NAME
from nybble.runtime.dispatch import segment
from nybble.runtime.handle import Packed
from nybble.runtime.reference import Partial, Rows, attend, join
from nybble.runtime.strand import Strand

# Tensors that models pass along and that change no score.
_HARMLESS = {"position_ids", "cache_position", "cu_seq_lens_q", "cu_seq_lens_k"}


def attach(model: PreTrainedModel) -> PreTrainedModel:
    """Let a model's attention read packed caches in place.

    Args:
        model: a loaded causal language model of transformers.

    Returns:
        The same model.

    Raises:
        NybbleError: its attention does not go through transformers' AttentionInterface.
    """
    try:
        model.set_attn_implementation(NAME)
    except ValueError as error:
        raise NybbleError(
            "this model's attention cannot be exchanged",
            seen=type(model).__name__,
            allowed="models that use transformers' AttentionInterface",
            hint="leave out nybble.attach: the cache works, and is unpacked at every step",
        ) from error
    return model


def mask(**given: Any) -> torch.Tensor | None:
    """The mask function: None where positions say all, else transformers' own boolean mask."""
    if given.get("allow_is_bidirectional_skip"):  # an encoder's; attention sees is_causal
        whole: torch.Tensor | None = sdpa_mask(**given)
        return whole
    padding = given.get("attention_mask")
    length, offset = given["kv_length"], given["kv_offset"]
    window = getattr(given.get("config"), "sliding_window", None)
    if given.get("allow_is_causal_skip", True) and given.get("local_size") in (None, window):
        # A mask may be longer than the keys (static caches) or shorter (nothing is padded there).
        seen = None if padding is None else padding[:, offset : offset + length]
        if seen is None or bool(seen.all()):
            return None
    made: torch.Tensor | None = sdpa_mask(**{**given, "allow_is_causal_skip": False})
    return made


@torch.compiler.disable  # type: ignore[untyped-decorator]
def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor | Packed,
    value: torch.Tensor | Packed,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    sliding_window: int | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function.

    Args:
        module: of the layer.
        query: [B, heads, n, D].
        key: what the cache's `update` gave, or keys [B, kv_heads, m, D].
        value: likewise.
        attention_mask: bool or added to scores, [B, 1 or heads, n, m]; None for causal.
        scaling: of the scores; D^-1/2 by default.
        dropout: must be 0 where a cache is read.
        softcap: scores become softcap * tanh(score / softcap).
        s_aux: scores of sinks, [heads].
        sliding_window: tokens a query looks back; a packed layer knows its own.
        **rest: refused where it would change a score.

    Returns:
        [B, n, heads, D_v], and None for the weights.

    Raises:
        NybbleError: an argument that is not known here, or another model's cache.
    """
    for name, given in rest.items():
        if isinstance(given, torch.Tensor) and name not in _HARMLESS:
            raise NybbleError(
                "this model's attention needs something that nybble does not know",
                seen=f"{type(module).__name__} passes {name}",
                allowed="scaling, windows, soft caps and sinks",
            )
    if dropout:
        raise NybbleError("attention over a packed cache has no dropout", seen=dropout,
                          allowed="model.eval()")  # fmt: skip
    batch, heads, n, dim = query.shape
    if isinstance(key, Packed):
        layer = key.layer
        layer.claim(module)
        strands, kv_heads, length = layer.strands, layer.shape[0], layer.length
        reach = key.shape[2]
    else:
        kv_heads, length = key.shape[1], key.shape[2]
        strands, reach = [], length
    q = query.float() * (dim**-0.5 if scaling is None else scaling)
    q = q.reshape(batch, kv_heads, heads // kv_heads * n, dim)
    columns = _Columns.of(attention_mask, query, kv_heads, length - reach)
    parts = [
        _strand(strand, q, columns, length - n, n, softcap) for strand in strands if strand.count
    ]
    if isinstance(key, torch.Tensor) and isinstance(value, torch.Tensor):
        parts = [_plain(q, key, value, columns, n, softcap, sliding_window, module)]
    sinks = None
    if s_aux is not None:
        sinks = s_aux.float().view(kv_heads, -1, 1).expand(-1, -1, n).reshape(kv_heads, -1)
    out = join(parts, sinks).to(query.dtype)
    # [B, kv_heads, group * n, D] -> [B, n, heads, D]
    return out.view(batch, heads, n, -1).transpose(1, 2).contiguous(), None


class _Columns:
    """A mask's columns by position, ready to be cut for a strand.

    Attributes:
        seen: bool [B, n, m], or None.
        added: float32 [B, kv_heads or 1, rows, m] to add to scores, or None.
        first: position of the first column.
    """

    def __init__(self, seen: torch.Tensor | None, added: torch.Tensor | None, first: int) -> None:
        self.seen, self.added, self.first = seen, added, first

    @classmethod
    def of(
        cls, given: torch.Tensor | None, query: torch.Tensor, kv_heads: int, first: int
    ) -> _Columns:
        if given is None:
            return cls(None, None, first)
        batch, heads, n, _ = query.shape
        if given.dtype == torch.bool and given.shape[1] == 1:
            return cls(given[:, 0].expand(batch, -1, -1), None, first)
        if given.dtype == torch.bool:
            given = torch.where(given, 0.0, -torch.inf)
        rows = given.float().expand(batch, heads, n, -1)
        return cls(None, rows.reshape(batch, kv_heads, heads // kv_heads * n, -1), first)

    @property
    def none(self) -> bool:
        return self.seen is None and self.added is None

    def cut(self, start: int, count: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Of `count` tokens from a position on; those in front of the first column are unseen."""
        a = start - self.first
        seen, added = self.seen, self.added
        if seen is not None:
            seen = torch.nn.functional.pad(seen[..., max(a, 0) : a + count], (max(-a, 0), 0))
        if added is not None:
            added = torch.nn.functional.pad(
                added[..., max(a, 0) : a + count], (max(-a, 0), 0), value=-torch.inf
            )
        return seen, added


def _strand(
    strand: Strand, q: torch.Tensor, columns: _Columns, position: int, n: int,
    softcap: float | None,
) -> Partial:  # fmt: skip
    start, stop = strand.visible(position, n)
    if not columns.none:
        # The mask says what is seen, which may be tokens ahead; only the split into recent and
        # older tokens stays ours.
        if strand.recent is None:
            stop = torch.full_like(stop, strand.count)
        if strand.own_window is None:
            start = torch.zeros_like(start)
    seen, added = columns.cut(strand.start, strand.count)
    turned, bias = strand.query_in(q)
    rows = Rows(turned, bias, start, stop, seen, added, softcap)
    part = segment(strand, rows)
    acc = strand.v.sum_out(part.acc, part.l[..., None])
    return replace(part, acc=acc)


def _plain(
    q: torch.Tensor, key: torch.Tensor, value: torch.Tensor, columns: _Columns, n: int,
    softcap: float | None, window: int | None, module: torch.nn.Module,
) -> Partial:  # fmt: skip
    """Keys and values that are in no packed cache."""
    count = key.shape[2]
    stop = torch.arange(count - n, count) + 1
    start = (stop - window).clamp(min=0) if window else torch.zeros_like(stop)
    if not columns.none or not getattr(module, "is_causal", True):
        start, stop = torch.zeros_like(start), torch.full_like(stop, count)
    seen, added = columns.cut(0, count)

    def read(a: int, b: int) -> tuple[torch.Tensor, torch.Tensor]:
        return key[:, :, a:b].float(), value[:, :, a:b].float()

    return attend(Rows(q, None, start, stop, seen, added, softcap), read, value.shape[-1])


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, mask)
