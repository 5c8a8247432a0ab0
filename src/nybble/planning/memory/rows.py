"""Bytes of cache rows: what all engines' memory models share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal

from nybble.errors import NybbleError
from nybble.formats.kvtype import KVType
from nybble.formats.setting import KVSetting
from nybble.models.geometry import Geometry, Layer
from nybble.planning.memory.base import Part, Use


def up(value: int, step: int) -> int:
    """The next multiple of `step` from `value` on."""
    return -(-value // step) * step


def side_bytes(kind: KVType, tokens: int, heads: int, dim: int) -> int:
    """Bytes of one side of one layer: `heads` vectors of `dim` elements for each token."""
    return heads * kind.bytes_stored(tokens, dim) if dim else 0


def kv_part(
    layers: Iterable[Layer], setting: KVSetting, cells: int, what: str, use: Use = "cache"
) -> list[Part]:
    """K and V of layers that all hold `cells` tokens, one part for each side.

    Args:
        layers: layers with K and V of their own.
        setting: types of both sides.
        cells: tokens that each layer holds, all sequences together.
        what: for people, for example "global layers".
        use: what the parts are for.
    """
    counted = Counter((layer.kv_heads, layer.k_dim, layer.v_dim) for layer in layers)
    parts = []
    for side, kind in (("K", setting.k_type), ("V", setting.v_type)):
        total, terms = 0, []
        for (heads, k_dim, v_dim), n in counted.items():
            dim = k_dim if side == "K" else v_dim
            if dim:
                total += n * side_bytes(kind, cells, heads, dim)
                bits = f"{kind.bits_at(dim):g} bits"
                terms.append(f"{n} layers x {heads} heads x {dim} elements x {bits}")
        if total:
            formula = f"{cells:,} tokens x ({' + '.join(terms)}) / 8"
            parts.append(Part(use, f"{side} of {what} ({kind.name})", total, formula))
    return parts


def latent_part(layers: tuple[Layer, ...], latent: KVType, rope: KVType, cells: int) -> list[Part]:
    """The latents of MLA layers, whose values are read out of them too.

    Args:
        layers: latent layers.
        latent: type of the latent.
        rope: type of the key's RoPE part.
        cells: tokens that each layer holds, all sequences together.
    """
    total, terms = 0, []
    for (k_dim, rope_dim), n in Counter((x.k_dim, x.rope_dim) for x in layers).items():
        dim = k_dim - rope_dim
        total += n * (side_bytes(latent, cells, 1, dim) + side_bytes(rope, cells, 1, rope_dim))
        terms.append(
            f"{n} layers x ({dim} of latent x {latent.bits_at(dim):g} bits + {rope_dim} of RoPE "
            f"key x {rope.bits_at(rope_dim or 1):g} bits)"
        )
    if not total:
        return []
    formula = f"{cells:,} tokens x ({' + '.join(terms)}) / 8"
    return [Part("cache", f"latents ({latent.name})", total, formula)]


def state_part(
    layers: Iterable[Layer],
    sequences: int,
    conv_bytes: int,
    recurrent_bytes: int,
    *,
    estimated: bool = False,
) -> list[Part]:
    """The states of recurrent layers.

    Args:
        layers: recurrent layers.
        sequences: sequences whose states are held.
        conv_bytes: bytes an element of the convolution's past inputs.
        recurrent_bytes: bytes an element of the recurrent state.
        estimated: whether the engine keeps a little more or less.
    """
    states = [layer.state for layer in layers if layer.state]
    if not states:
        return []
    conv, recurrent = (sum(getattr(s, name) for s in states) for name in ("conv", "recurrent"))
    total = sequences * (conv * conv_bytes + recurrent * recurrent_bytes)
    formula = (
        f"{sequences} sequences x {len(states)} layers: {conv:,} elements of convolution x "
        f"{conv_bytes} B + {recurrent:,} of state x {recurrent_bytes} B"
    )
    return [Part("state", "recurrent state", total, formula, estimated)]


def weights_part(geometry: Geometry) -> list[Part]:
    """The weights, as they are stored; nothing where they are not known."""
    weights = geometry.weights
    if weights is None:
        return []
    formula = f"{weights.n_params / 1e9:.2f} G parameters"
    formula += {
        "tensors": ", summed over the file's tensors",
        "published": ", size as published",
        "config": ", shapes derived from config.json",
    }[weights.source]
    return [Part("weights", "weights", weights.n_bytes, formula, weights.source != "tensors")]


def activations_part(geometry: Geometry, rows: int, cards: int, scores: int = 0) -> Part:
    """A rule of thumb for what one pass holds at once: residual, Q, K, V, feed-forward, 16 bits.

    Args:
        geometry: of the model.
        rows: tokens of the pass.
        cards: cards that hold this much each.
        scores: bytes of attention scores where attention is not fused.
    """
    n_bytes = 2 * rows * (6 * geometry.hidden + 3 * geometry.intermediate) + scores
    formula = (
        f"{rows:,} tokens x (6 x {geometry.hidden:,} hidden + 3 x {geometry.intermediate:,} "
        "feed-forward) x 2 B"
    )
    formula += f" + {scores:,} B of scores" if scores else ""
    formula += f" on each of {cards} cards" if cards > 1 else ""
    return Part("compute", "activations", n_bytes * cards, formula, estimated=True)


def refuse_kinds(geometry: Geometry, engine: str, kinds: Iterable[str], why: str) -> None:
    """Refuse a model with layers of these kinds.

    Raises:
        NybbleError: it has one.
    """
    found = sorted({layer.kind for layer in geometry.layers} & set(kinds))
    if found:
        raise NybbleError(
            f"{engine} does not run this model with this cache: {why}",
            seen=f"{geometry.architecture} with {' and '.join(found)} layers",
            allowed="another engine or another KV type",
            hint="nybble plan MODEL --engine llama.cpp",
        )


def one_of(
    setting: KVSetting, engine: str, allowed: Iterable[str], hint: str | None = None
) -> None:
    """Refuse a setting that an engine has no flag for.

    Raises:
        NybbleError: not one of `allowed`.
    """
    names = list(allowed)
    if str(setting) not in names:
        raise NybbleError(
            f"{engine} has no such KV setting", seen=str(setting), allowed=names, hint=hint
        )


def fits_heads(
    geometry: Geometry, setting: KVSetting, block: int, engine: str, what: Literal["K", "KV"] = "KV"
) -> None:
    """Refuse head sizes that the engine's blocks do not divide.

    Raises:
        NybbleError: a layer's head size is no multiple of `block`.
    """
    sizes = {
        dim
        for layer in geometry.layers
        for dim in ((layer.k_dim, layer.v_dim) if what == "KV" else (layer.k_dim,))
        if dim % block
    }
    if sizes and setting.quantized:
        raise NybbleError(
            f"{engine} quantizes blocks of {block} elements, which do not divide this model's "
            "head size",
            seen=f"{setting} with head size {', '.join(map(str, sorted(sizes)))}",
            allowed="f16/f16",
        )
