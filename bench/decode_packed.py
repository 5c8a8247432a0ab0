"""Packed layers for bench/decode, filled without a model.

Keys and values are random and repeat every BLOCK tokens, so they are quantized once and their
bytes are copied; a kernel reads every byte of every page all the same. Keys of the latent shape
are RoPE(w * V) with frequencies whose periods divide BLOCK, so they repeat as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from decode_measure import Way
from nybble.formats.calibration import Calibration, LayerCalibration, LayerMoments
from nybble.formats.setting import parse
from nybble.runtime.attention import packed_attention
from nybble.runtime.guard import Guard
from nybble.runtime.handle import Packed
from nybble.runtime.latent import Latent
from nybble.runtime.layer import LayerPlan, PackedLayer

BLOCK = 1024
_FIRST = 8  # tokens that go through `update`, all rows of the batch


@dataclass(frozen=True)
class Shape:
    """An attention layer.

    Attributes:
        kv_heads: KV heads.
        dim: size of a head.
        latent: whether keys follow from values (Gemma 4's global layers).
    """

    kv_heads: int
    dim: int
    latent: bool = False

    def __str__(self) -> str:
        return f"{self.kv_heads}x{self.dim}"


@dataclass(frozen=True)
class Data:
    """What all ways of a case attend to.

    Attributes:
        shape: of the layer.
        context: tokens held.
        batch: sequences, all alike.
        q: queries of one token, [B, heads, 1, D].
        k: keys of one block and sequence, [1, kv_heads, block, D].
        v: values, likewise.
        rebuild: w and the frequencies of a latent shape, or None.
    """

    shape: Shape
    context: int
    batch: int
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    rebuild: tuple[torch.Tensor, torch.Tensor] | None

    @property
    def scaling(self) -> float:
        """Of the scores."""
        return float(self.shape.dim**-0.5)

    @property
    def plain_bytes(self) -> int:
        """Bytes of keys and values at 16 bits."""
        return 4 * self.batch * self.shape.kv_heads * self.context * self.shape.dim

    def tensors(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of all tokens, [B, kv_heads, context, D], contiguous."""
        times = self.context // self.k.shape[2]
        k, v = (
            x.to(dtype).repeat(1, 1, times, 1).expand(self.batch, -1, -1, -1).contiguous()
            for x in (self.k, self.v)
        )
        return k, v

    def calibration(self) -> Calibration:
        """Statistics of these keys, for settings that need some."""
        heads, dim = self.shape.kv_heads, self.shape.dim
        k = self.k[0].double().cpu()
        nothing = torch.zeros(heads, dim, dtype=torch.float64)
        eye = torch.eye(dim, dtype=torch.float64).expand(heads, dim, dim)
        moments = LayerMoments(
            nothing, k.mT @ k / k.shape[1], eye, nothing, torch.ones(heads, dtype=torch.float64)
        )
        return Calibration({0: LayerCalibration.fit(moments)})


def make(shape: Shape, context: int, batch: int, group: int, device: torch.device) -> Data:
    """Random queries, keys and values of a case; context is a multiple of BLOCK or below it."""
    random = torch.Generator().manual_seed(0)
    block, dim, heads = min(BLOCK, context), shape.dim, shape.kv_heads
    if context % block:
        raise ValueError(f"{context} tokens are no multiple of {block}")
    # Channels differ in size as in a model, so that nyb4 has widths to give.
    size = torch.exp(torch.randn(heads, 1, dim, generator=random) * 0.7)
    size = size / size.square().mean(-1, keepdim=True).sqrt()
    v = torch.randn(1, heads, block, dim, generator=random)
    k = torch.randn(1, heads, block, dim, generator=random) * size
    rebuild = None
    if shape.latent:
        pairs = dim // 8  # 128 of 512 channels rotate
        steps = torch.arange(pairs, 0, -1).float()
        rebuild = (size[0, 0].contiguous(), 2 * math.pi / block * steps)
        k = Latent(*rebuild).keys(v, 0)
    q = torch.randn(batch, heads * group, 1, dim, generator=random)
    if rebuild is not None:
        rebuild = (rebuild[0].to(device), rebuild[1].to(device))
    dtype = torch.bfloat16
    return Data(
        shape, context, batch, q.to(device, dtype), k.to(device, dtype), v.to(device, dtype),
        rebuild,
    )  # fmt: skip


def fill(data: Data, setting: str, latent: bool) -> PackedLayer:
    """A packed layer that holds all tokens of a case."""
    parsed = parse(setting)
    plan = LayerPlan(
        parsed, 0, 1, calibration=data.calibration() if parsed.calibrated else None,
        latent=data.rebuild if latent else None,
    )  # fmt: skip
    layer = PackedLayer(plan, lambda: True, Guard())
    rows, block = data.batch, data.k.shape[2]
    first = min(_FIRST, block)
    k, v = (x.expand(rows, -1, -1, -1) for x in (data.k, data.v))
    layer.update(k[:, :, :first], v[:, :, :first])
    body = layer.body
    v_codes = body.v.store(data.v)
    k_codes = None if body.k is None else body.k.store(data.k)
    for at in range(0, data.context, block):
        begin = first if at == 0 else 0
        for pages, codes in ((body.v_pages, v_codes), (body.k_pages, k_codes)):
            if pages is not None and codes is not None:
                pages.append(*(x[:, :, begin:].expand(rows, -1, -1, -1) for x in codes))
    layer.length = data.context
    return layer


def read_bytes(layer: PackedLayer) -> int:
    """Bytes of the tokens that a step reads: codes and scales, no dead or empty rows."""
    return sum(
        strand.count * pages.heads * pages.batch * pages.layout.row_bytes
        for strand in layer.strands for pages in strand.pages
    )  # fmt: skip


def packed_ways(data: Data, setting: str, latent: bool, with_step: bool) -> list[Way]:
    """Attention over a packed layer, and a whole step: one token stored, then attention.

    Args:
        data: the case.
        setting: the KV setting.
        latent: whether values alone are stored.
        with_step: whether the step is wanted too.
    """
    layer = fill(data, setting, latent)
    name = f"latent {setting.split('/')[0]}" if latent else setting.split("/")[0]
    return ways_of(data, layer, name, with_step)


def ways_of(data: Data, layer: PackedLayer, name: str, with_step: bool) -> list[Way]:
    """See `packed_ways`."""
    module: Any = torch.nn.Module()
    module.layer_idx = 0
    batch, context, shape = data.batch, data.context, data.shape
    size = (batch, shape.kv_heads, context, shape.dim)
    handles: Any = [Packed(layer, size, data.q.dtype, data.q.device) for _ in range(2)]

    def attend() -> torch.Tensor:
        return packed_attention(module, data.q, *handles, None, scaling=data.scaling)[0]

    def step() -> torch.Tensor:
        new = (x[:, :, :1].expand(batch, -1, -1, -1) for x in (data.k, data.v))
        return packed_attention(module, data.q, *layer.update(*new), None, scaling=data.scaling)[0]

    stored = {"stored_bytes": sum(dict(layer.storages()).values())}
    ways = [Way(name, attend, read_bytes(layer), about=stored)]
    if with_step:
        ways.append(Way(f"{name} step", step, after=lambda: layer.crop(-1)))
    return ways


def watched(call: Callable[[], Any]) -> tuple[Any, bool]:
    """Run a packed way and tell whether the reference kernel read anything."""
    from nybble.runtime import dispatch

    seen = False
    plain = dispatch.attend

    def attend(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        seen = True
        return plain(*args, **kwargs)

    dispatch.attend = attend
    try:
        return call(), seen
    finally:
        dispatch.attend = plain
