"""One layer of the packed cache, as transformers' `Cache` drives it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from weakref import ref

import torch
from transformers.cache_utils import CacheLayerMixin

from nybble.errors import NybbleError
from nybble.formats.calibration import Calibration
from nybble.formats.codec import Layer, layer_stores
from nybble.formats.setting import KVSetting, make
from nybble.runtime.guard import Guard
from nybble.runtime.handle import Packed
from nybble.runtime.latent import Latent
from nybble.runtime.pages import Pages
from nybble.runtime.side import Side, raw_side, side_of
from nybble.runtime.strand import Strand


@dataclass(frozen=True)
class LayerPlan:
    """What a layer is made from before its first token.

    Attributes:
        setting: the KV setting.
        index: of the layer.
        count: layers of the model.
        window: tokens a query looks back, or None for all.
        calibration: statistics, where the setting needs them.
        gguf: whether K's channels are stored in the order of llama-architecture GGUFs.
        latent: w and the frequencies of a layer whose keys follow from its values, or None.
        max_length: tokens the sequence may have, or None for no limit.
    """

    setting: KVSetting
    index: int
    count: int
    window: int | None = None
    calibration: Calibration | None = None
    gguf: bool = False
    latent: tuple[torch.Tensor, torch.Tensor] | None = None
    max_length: int | None = None


class PackedLayer(CacheLayerMixin):
    """Packed keys and values of one layer.

    Args:
        plan: see `LayerPlan`.
        packed: tells whether the model's attention reads packed layers (`attention.attach`).
        guard: refuses what must not be stored.
    """

    is_compileable = False
    is_croppable = True
    supports_early_init = True

    def __init__(self, plan: LayerPlan, packed: Callable[[], bool], guard: Guard) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.plan = plan
        self.is_sliding = plan.window is not None
        self.record_past = False
        self.strands: list[Strand] = []
        self.length = 0
        self._expected = 0
        self._packed = packed
        self._guard = guard
        self._readers: dict[int, Any] = {}

    # What transformers calls.

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Build codecs and empty strands for the shape of the first keys."""
        plan, device = self.plan, key_states.device
        self.dtype, self.device = key_states.dtype, device
        batch, heads = key_states.shape[:2]
        self.shape = (heads, key_states.shape[-1], value_states.shape[-1])
        shape = Layer(plan.index, plan.count, *self.shape)
        latent = None
        if plan.latent is not None:
            latent = Latent(*(x.to(device) for x in plan.latent))
        k, v = _sides(plan, shape, device)
        codecs = [side.codec for side in (k, v) if side is not None]
        first = max(codec.first for codec in codecs)
        recent = max(codec.reads.tokens for codec in codecs)
        raw_k = None if k is None else raw_side("K", shape.k_dim)
        raw_v = raw_side("V", shape.v_dim)

        def strand(k: Side | None, v: Side, start: int, window: int | None) -> Strand:
            k_pages = None if k is None else Pages(k.layout, heads, batch, device, start)
            pages = Pages(v.layout, heads, batch, device, start)
            return Strand(k, v, k_pages, pages, latent, window)

        self.first, self.recent = first, recent
        self.body = strand(k, v, first, plan.window)
        self.strands = [self.body]
        if first:
            self.strands.insert(0, strand(raw_k, raw_v, 0, plan.window))
        if recent:
            newest = strand(raw_k, raw_v, first, min(recent, plan.window or recent))
            newest.is_recent = True
            self.body.recent = newest
            self.strands.append(newest)
        self.is_initialized = True
        self.reserve(self._expected if plan.max_length is None else plan.max_length)

    def reserve(self, tokens: int) -> None:
        """Allocate pages for so many more tokens, in one piece; those behind a window come later.

        Args:
            tokens: more than there are now.
        """
        if not self.is_initialized:
            self._expected = tokens
        elif self.plan.window is None:
            for pages in self.body.pages:
                pages.reserve(tokens - max(0, self.first - self.length))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new tokens once and for good, and give what attention reads.

        Args:
            key_states: keys after RoPE, [B, heads, n, D].
            value_states: values, [B, heads, n, D_v].
            *args: unused.
            **kwargs: unused.

        Returns:
            Handles where attention reads packed layers, else keys and values as stored, both
            [B, heads, tokens in reach, D].

        Raises:
            NybbleError: NaN or Inf in them, another model's shape, or no room left.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._guard.admit(self, key_states, value_states)
        n, window = key_states.shape[2], self.plan.window
        if window is not None and not self.record_past:
            for pages in self.body.pages:
                pages.settle(n)
            self._forget(self.length + 1 - window)
        if self.plan.latent is not None and self.body.latent is not None:
            self.body.latent.admit(key_states, value_states, self.length, self.plan.index)
        self._store(key_states, value_states)
        self.length += n
        reach = self.length - max(0, self.length - n + 1 - (window or self.length))
        if self._packed():
            batch, heads = key_states.shape[:2]
            k_dim, v_dim = self.shape[1:]
            packed: Any = (
                Packed(self, (batch, heads, reach, k_dim), self.dtype, self.device),
                Packed(self, (batch, heads, reach, v_dim), self.dtype, self.device),
            )
            return packed  # type: ignore[no-any-return]
        keys, values = self.states(self.length - reach)
        return keys.to(self.dtype), values.to(self.dtype)

    def _store(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        n, at = keys.shape[2], self.length
        early = max(0, min(n, self.first - at))
        if early:
            self.strands[0].append(keys[:, :, :early], values[:, :, :early])
        keys, values = keys[:, :, early:], values[:, :, early:]
        # Quantized when they come, from what the model made, also if they are kept raw for a while:
        # the second time would be from 16 bits, and a crop could not bring them back.
        self.body.append(keys, values)
        if self.recent:
            newest = self.strands[-1]
            for pages in newest.pages:
                pages.drop(at + 1 - self.recent - pages.start)
            newest.append(keys, values)

    def _forget(self, before: int) -> None:
        """Drop tokens in front of a position."""
        for strand in self.strands:
            for pages in strand.pages:
                pages.drop(before - pages.start)

    def states(self, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values from a position on, as the newest query reads them, float32."""
        parts = []
        newest = self.length - self.recent if self.recent else self.length
        if self.recent:
            newest = max(newest, self.strands[-1].start)
        for strand in self.strands:
            begin, end = strand.start, strand.stop
            if strand.is_recent:
                begin = max(begin, newest)
            elif strand is self.body:
                end = min(end, newest)
            a, b = max(begin, start) - strand.start, end - strand.start
            if b > a:
                parts.append(strand.states(a, b))
        keys, values = zip(*parts, strict=True)
        return torch.cat(keys, 2), torch.cat(values, 2)

    @property
    def batch_size(self) -> int:
        """Rows of the batch; -1 before the first token."""
        return self.body.v_pages.batch if self.strands else -1

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return self.length

    def get_max_length(self) -> int:
        """Most tokens it takes; the window of a sliding layer, -1 for no limit."""
        if self.plan.window is not None:
            return self.plan.window
        return -1 if self.plan.max_length is None else self.plan.max_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns a mask has, and the position of the first."""
        offset = 0
        if self.plan.window is not None:
            offset = max(0, self.length + 1 - self.plan.window)
        return self.length + query_length - offset, offset

    def activate_past_recording(self) -> None:
        """Keep tokens behind the window until `crop`, so that it can go back."""
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest tokens.

        Args:
            tokens_to_remove: how many, as a negative number (transformers' convention).

        Raises:
            NybbleError: a positive number, more than there are, or a sliding layer that has
                given up the tokens it would have to go back to.
        """
        n = -tokens_to_remove
        if n < 0 or n > self.length:
            raise NybbleError(
                "crop takes the number of tokens to remove, as a negative number",
                seen=tokens_to_remove,
                allowed=f"-{self.length} to 0",
            )
        if not self.is_initialized:
            return
        window = self.plan.window
        begin = self.length - n + 1 - (window or self.length)
        if window is not None and n and self.strands_start > max(0, begin):
            raise NybbleError(
                f"layer {self.plan.index} slides and has given up tokens behind its window",
                seen=f"crop({tokens_to_remove}) at {self.length} tokens, window {window}",
                allowed="crop after cache.activate_past_recording()",
            )
        self.length -= n
        for strand in self.strands:
            for pages in strand.pages:
                pages.crop(max(0, pages.stop - self.length))
        if window is not None:
            self._forget(self.length + 1 - window)

    @property
    def strands_start(self) -> int:
        """Position of the first token that is still held."""
        held = [strand.start for strand in self.strands if strand.count]
        return min(held, default=self.length)

    def reset(self) -> None:
        """Forget everything, the model included."""
        self.strands, self.length, self.is_initialized = [], 0, False
        self._readers = {}

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Make every row continue another one (beam search)."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row; a single row is shared and not copied."""
        for strand in self.strands:
            for pages in strand.pages:
                pages.repeat(repeats)
        self._shift(lambda s: s.repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows, in this order."""
        for strand in self.strands:
            for pages in strand.pages:
                pages.select(indices)
        self._shift(lambda s: s[indices.to(s.device)])

    def _shift(self, change: Any) -> None:
        latent = self.body.latent if self.strands else None
        if latent is not None and latent.shift is not None:
            latent.shift = change(latent.shift)

    def offload(self) -> None:
        """Not offered: a packed cache is small, and its pages are read in place."""
        raise NybbleError(
            "a packed cache is not moved to the CPU", seen="offloading=True",
            allowed="pages on the model's device",
        )  # fmt: skip

    # What the cache and attention call.

    def fork(self) -> PackedLayer:
        """A layer that continues from here by itself; pages are shared until written to."""
        other = PackedLayer(self.plan, self._packed, self._guard)
        if self.is_initialized:
            for name in ("dtype", "device", "shape", "first", "recent"):
                setattr(other, name, getattr(self, name))
            other.strands = [strand.fork() for strand in self.strands]
            other.body = other.strands[1 if self.first else 0]
            if self.recent:
                other.body.recent = other.strands[-1]
            other.length, other.is_initialized = self.length, True
        return other

    def claim(self, module: torch.nn.Module) -> None:
        """Remember who reads this layer, and refuse anybody else.

        Raises:
            NybbleError: another model's module reads it.
        """
        index = int(module.layer_idx)  # type: ignore[arg-type]
        known = self._readers.get(index)
        if known is None or known() is None:
            self._readers[index] = ref(module)
        elif known() is not module:
            raise NybbleError(
                "two models read one cache",
                seen=f"layer {index} of a second {type(module).__name__}",
                allowed="one nybble.Cache for each model",
            )

    def storages(self) -> Iterator[tuple[int, int]]:
        """Address and bytes of every allocation."""
        for strand in self.strands:
            yield from strand.storages()


def _sides(plan: LayerPlan, shape: Layer, device: torch.device) -> tuple[Side | None, Side]:
    """Codecs of a layer; no keys where they follow from the values."""
    setting = plan.setting
    if plan.latent is not None:
        # A latent is a value, and as precise as the setting wants its keys.
        at = tuple(replace(at, v=at.k) for at in setting.around.at)
        setting = make(setting.k, setting.k, setting.rotation, replace(setting.around, at=at))
    k, v = layer_stores(
        setting, shape, calibration=plan.calibration, gguf=plan.gguf, decode=True, device=device
    )
    values = side_of(v, "V", shape.v_dim, setting)
    if plan.latent is not None:
        return None, values
    return side_of(k, "K", shape.k_dim, setting), values
