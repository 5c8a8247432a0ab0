"""One side of one layer under a setting: everything between the projection and the bytes.

    x -> minus mean -> divided by e -> channels in the engine's order -> rotated -> stored

and back. A `Codec` is built once per layer and side; `roundtrip` is what the layer's readers get.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from nybble.errors import NybbleError
from nybble.formats.calibration import Calibration, LayerCalibration
from nybble.formats.kvtype import KVType
from nybble.formats.lazy import torch
from nybble.formats.reads import Reads
from nybble.formats.registry import kv_type
from nybble.formats.rotation import rotate, unrotate, width
from nybble.formats.search import Searched
from nybble.formats.setting import KVSetting, check_head_size

# model_types whose GGUFs hold K's channels interleaved: what calls LlamaModel.permute in
# llama.cpp's conversion/, by subclassing with undo_permute (llama, granite, mistral3) or itself
# (olmo, internlm).
GGUF_PERMUTED = {
    "llama", "mistral", "ministral3", "mixtral", "arcee", "smollm3", "iquestcoder", "internlm3",
    "olmo", "granite", "granitemoe", "granitemoeshared", "granitemoehybrid", "granite_swa",
    "granitemoe_swa", "bamba",
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """What a codec must know of a layer.

    Attributes:
        index: index of the layer that owns the keys.
        count: layers of the model.
        heads: KV heads.
        k_dim: size of a key.
        v_dim: size of a value.
    """

    index: int
    count: int
    heads: int
    k_dim: int
    v_dim: int


# Another way through a type than its roundtrip: the same values, but with a gradient
# (hardening/train/straight.py).
Through: TypeAlias = Callable[[KVType, "torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True)
class Codec:
    """Stores and reads one side of one layer.

    Attributes:
        kind: the type.
        reads: which keys a query still sees raw.
        rotation: channels that are mixed; 0 for none.
        random: whether the rotation has random signs.
        first: first tokens kept in f16.
        mean: taken off before, added after; float32 [heads, 1, D].
        scale: divided by before, multiplied with after; float32 [heads, 1, D].
        order: the engine's order of the channels, int64 [D].
        query: the type that queries are rounded to, or None.
    """

    kind: KVType
    reads: Reads
    rotation: int = 0
    random: bool = False
    first: int = 0
    mean: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    order: torch.Tensor | None = None
    query: KVType | None = None

    def round_query(self, x: torch.Tensor, through: Through = KVType.roundtrip) -> torch.Tensor:
        """What the engine makes of queries before they meet these keys.

        Args:
            x: queries of one KV head's group after RoPE, [group, n, D].
            through: see `roundtrip`.
        """
        if self.query is None:
            return x
        y = x.float() if self.order is None else x.float()[..., self.order]
        y = rotate(y, self.rotation, random=self.random)
        y = unrotate(through(self.query, y), self.rotation, random=self.random)
        return (y if self.order is None else y[..., self.order.argsort()]).to(x.dtype)

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        """What the type gets of tokens [..., heads, n, D]; float32."""
        y = x.float()
        if self.mean is not None:
            y = y - self.mean
        if self.scale is not None:
            y = y / self.scale
        if self.order is not None:
            y = y[..., self.order]
        return rotate(y, self.rotation, random=self.random)

    def leave(self, y: torch.Tensor, weight: torch.Tensor | float = 1.0) -> torch.Tensor:
        """The inverse of `enter`, of tokens or of their weighted sums.

        Args:
            y: float32 [..., heads, n, D].
            weight: the sum of the weights, [..., heads, n, 1].
        """
        y = unrotate(y, self.rotation, random=self.random)
        if self.order is not None:
            y = y[..., self.order.argsort()]
        if self.scale is not None:
            y = y * self.scale
        if self.mean is not None:
            y = y + self.mean * weight
        return y

    def roundtrip(self, x: torch.Tensor, through: Through = KVType.roundtrip) -> torch.Tensor:
        """What readers of the cache get.

        Args:
            x: keys after RoPE or values, [heads, n, D]; position 0 is the context's first token.
            through: how values pass the type.

        Returns:
            The same shape, float32.
        """
        y = self.leave(through(self.kind, self.enter(x)))
        if self.first:
            kept = x[:, : self.first].to(torch.float16).float()
            y = torch.cat([kept, y[:, self.first :]], 1)
        return y

    def bytes_stored(self, n: int, head_dim: int) -> int:
        """Bytes of one head for n tokens, protected ones included."""
        first = min(self.first, n)
        kept, coded, reads = first, n - first, self.reads
        if reads.rule == "recent":
            kept += min(reads.tokens, coded)
            coded = n - kept
        elif reads.rule == "residual":
            # The buffer that tokens wait in is there whether it is full or not.
            kept += min(reads.tokens, coded)
            coded -= coded % reads.tokens
        size = self.kind.bytes_stored(coded, head_dim) + kept * 2 * head_dim
        return size


@dataclass(frozen=True)
class SideStore:
    """Codecs of one side of a layer, head by head where a setting tells them apart."""

    codecs: tuple[tuple[int | None, Codec], ...]

    @property
    def reads(self) -> Reads:
        """The read rule; that of a setting's own type."""
        return self.codecs[0][1].reads

    def roundtrip(self, x: torch.Tensor, through: Through = KVType.roundtrip) -> torch.Tensor:
        """See `Codec.roundtrip`."""
        out: torch.Tensor | None = None
        for head, codec in self.codecs:
            if head is None or out is None:
                out = codec.roundtrip(x, through)
            else:
                out = out.clone()
                out[head] = codec.roundtrip(x, through)[head]
        assert out is not None
        return out

    def round_queries(
        self, x: torch.Tensor, heads: int, through: Through = KVType.roundtrip
    ) -> torch.Tensor:
        """See `Codec.round_query`; x [query heads, n, D], returned as it is if nothing rounds."""
        if all(codec.query is None for _, codec in self.codecs):
            return x
        by_head = [self.codecs[0][1]] * heads
        for head, codec in self.codecs[1:]:
            by_head[head or 0] = codec
        groups = x.reshape(heads, -1, *x.shape[1:])
        return torch.cat([c.round_query(q, through) for c, q in zip(by_head, groups, strict=True)])

    def bytes_stored(self, n: int, heads: int, head_dim: int) -> int:
        """Bytes of all heads of one layer for n tokens."""
        by_head = [self.codecs[0][1]] * heads
        for head, codec in self.codecs[1:]:
            by_head[head or 0] = codec
        return sum(c.bytes_stored(n, head_dim) for c in by_head)


def gguf_order(head_dim: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Channel order of K in llama-architecture GGUFs: pairs (i, i + D/2) side by side.

    Source: LlamaModel.permute of llama.cpp's convert_hf_to_gguf.
    """
    return torch.arange(head_dim, device=device).view(2, head_dim // 2).T.reshape(-1)


def layer_stores(
    setting: KVSetting,
    layer: Layer,
    *,
    calibration: Calibration | None = None,
    gguf: bool = False,
    decode: bool = False,
    device: torch.device | str = "cpu",
    sizing: bool = False,
) -> tuple[SideStore, SideStore]:
    """Codecs of K and V of one layer.

    Args:
        setting: the KV setting.
        layer: the layer's shape.
        calibration: statistics, where the setting needs them.
        gguf: whether llama.cpp would hold this model's K channels interleaved.
        decode: whether tokens come one by one (Reads.at_decode).
        device: where tensors go.
        sizing: only bytes are asked for, so no calibration is needed.

    Raises:
        NybbleError: a type that does not fit, a layer or head the model does not have, a latent
            cache, or no calibration where one is needed.
    """
    _check_layers(setting, layer)
    types = setting.at_layer(layer.index, layer.count)
    heads = [head for head, _, _ in types if head is not None and head >= layer.heads]
    if heads:
        raise NybbleError(
            f"layer {layer.index} has no such KV head",
            seen=f"head {heads[0]} in {setting}",
            allowed=f"0 to {layer.heads - 1}",
        )
    # A later rule for a whole layer hides what came before.
    last = max(i for i, (head, _, _) in enumerate(types) if head is None)
    found: tuple[list[tuple[int | None, Codec]], list[tuple[int | None, Codec]]] = ([], [])
    stats = calibration.layers.get(layer.index) if calibration else None
    if stats is not None and stats.mean.shape != (layer.heads, layer.k_dim):
        raise NybbleError(
            "this calibration is of another model",
            seen=f"layer {layer.index}: {' x '.join(map(str, stats.mean.shape))} channels of keys",
            allowed=f"{layer.heads} x {layer.k_dim}",
            hint="nybble calibrate MODEL",
        )
    for head, *names in types[last:]:
        for side, name, dim, codecs in zip(
            "KV", names, (layer.k_dim, layer.v_dim), found, strict=True
        ):
            codec = _codec(
                setting,
                kv_type(name).of_side(side),
                side,
                dim,
                stats,
                gguf,
                decode,
                device,
                sizing,
            )
            codecs.append((head, codec))
    return SideStore(tuple(found[0])), SideStore(tuple(found[1]))


def _check_layers(setting: KVSetting, layer: Layer) -> None:
    if setting.around.latent:  # a key is then made of a value, by weights that no codec has
        raise NybbleError(
            "a latent cache is the runtime's own: K and V are stored apart here",
            seen=str(setting), allowed=str(setting.apart),
            hint=f"--kv {setting.apart}, or nybble generate MODEL --kv {setting}",
        )  # fmt: skip
    check_head_size(setting, [layer.k_dim], [layer.v_dim])
    named = [*setting.around.skip, *(n for at in setting.around.at for n in at.layers)]
    outside = [n for n in named if not -layer.count <= n < layer.count]
    if outside:
        raise NybbleError(
            "the model has no such layer", seen=f"layer {outside[0]} in {setting}",
            allowed=f"0 to {layer.count - 1}, or -1 for the last",
        )  # fmt: skip


def _codec(
    setting: KVSetting,
    kind: KVType,
    side: str,
    dim: int,
    stats: LayerCalibration | None,
    gguf: bool,
    decode: bool,
    device: torch.device | str,
    sizing: bool,
) -> Codec:
    around = setting.around
    if not kind.quantized:
        return Codec(kind, Reads())
    keys = side == "K"
    needs = kind.calibrated or (keys and (around.mean or around.scale))
    if needs and stats is None and not sizing:
        raise NybbleError(
            "this KV setting needs a calibration of the model", seen=str(setting),
            hint="nybble calibrate MODEL",
        )  # fmt: skip
    first = kind.first if around.first is None else around.first
    rotation = around.rotate or (kind.rotation if setting.rotation else "none")
    reads = kind.reads
    if around.recent:
        reads = Reads("recent", around.recent)
    elif around.chunk:
        reads = Reads("chunk", around.chunk)
    mean = scale = None
    if stats is not None and keys:
        mean = stats.mean[:, None].to(device) if around.mean else None
        scale = stats.scale[:, None].to(device) if around.scale else None
    if stats is not None:
        kind = kind.bind(stats, side, device)
    if around.search:
        kind = Searched.of(kind)
    reads = reads.at_decode() if decode else reads
    order = gguf_order(dim, device) if gguf and keys and kind.ggml_id is not None else None
    # Rounding is what a kernel does that reads codes; around raw or moved keys it knows nothing.
    plain = around.first is None and not (around.mean or around.scale or around.rotate)
    plain = plain and reads.rule == "all" and keys and bool(kind.query)
    return Codec(
        kind, reads, width(rotation, dim, side),
        rotation == "random", first, mean, scale, order,
        kv_type(kind.query) if plain else None,
    )  # fmt: skip


def cache_bytes(
    stores: Sequence[tuple[SideStore, SideStore]], layers: Sequence[Layer], cells: Sequence[int]
) -> int:
    """Bytes of a whole cache; `cells` are the tokens each layer holds."""
    return sum(
        k.bytes_stored(n, layer.heads, layer.k_dim) + v.bytes_stored(n, layer.heads, layer.v_dim)
        for (k, v), layer, n in zip(stores, layers, cells, strict=True)
    )
