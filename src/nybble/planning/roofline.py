"""What a step of a model reads and computes: bytes and floating-point operations.

The counts are those of the arithmetic itself (Kaplan et al. 2020, arXiv:2001.08361, section 2.1:
two operations for each weight and token), with each layer's own cache: a sliding layer reads no
more than its window, a latent layer its latent, a recurrent one its state.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from nybble.errors import NybbleError
from nybble.formats.registry import kv_type
from nybble.formats.setting import KVSetting, make
from nybble.models.geometry import Geometry, Layer, Weights
from nybble.planning.interval import positive

SIXTEEN = make("f16", "f16")
_STATE_BYTES = 4  # recurrent states are held in FP32 by llama.cpp, vLLM and transformers


@dataclass(frozen=True)
class Experts:
    """The routed experts of a mixture, which decide what a batch reads of the weights.

    Attributes:
        total: experts of a layer.
        chosen: experts that one token passes.
        n_bytes: bytes of all routed experts of all layers; None where it is not known, and what
            one token leaves unread is counted as theirs.

    Raises:
        NybbleError: no experts, or more chosen than there are.
    """

    total: int
    chosen: int
    n_bytes: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.chosen <= self.total:
            raise NybbleError(
                "a token passes at least one and at most all experts",
                seen=f"{self.chosen} of {self.total}",
                allowed=f"1 to {max(self.total, 1)}",
            )


def experts_of(geometry: Geometry) -> Experts | None:
    """The experts of a mixture whose numbers are known; None for all other models."""
    total, chosen = geometry.experts, geometry.experts_used
    return Experts(total, chosen) if 0 < chosen <= total else None


@dataclass(frozen=True)
class Work:
    """What one step moves and computes.

    Attributes:
        weights: bytes of weights read.
        cache: bytes of cache and recurrent state read (and written, for the state).
        linear: operations of the products with weights.
        attention: operations of attention and recurrent states.
    """

    weights: float
    cache: float
    linear: float
    attention: float


def weights_of(geometry: Geometry) -> Weights:
    """The model's weights.

    Raises:
        NybbleError: only the shape of its cache is known.
    """
    if geometry.weights is None:
        raise NybbleError(
            "speed needs the size of the weights, and only the shape of the cache is known",
            seen=geometry.name,
            allowed="a GGUF, a folder with safetensors, or a model of the catalogue",
        )
    return geometry.weights


def token_bytes(geometry: Geometry, setting: KVSetting, index: int) -> float:
    """Bytes that one cached token takes in one layer, K and V, scales included.

    Tokens and windows that a setting keeps raw (`+first`, `+recent`) are not counted apart.
    """
    layer = geometry.layers[index]
    if layer.kind == "shared":
        return 0.0 if layer.source is None else token_bytes(geometry, setting, layer.source)
    sides = (layer.k_dim, layer.v_dim)
    types = setting.at_layer(index, len(geometry.layers))
    if setting.around.latent and layer.k_is_v and layer.kind == "global":
        return layer.kv_heads * _side(types[-1][1], "V", layer.v_dim)  # read for K and V both
    if all(head is None for head, _, _ in types):
        return layer.kv_heads * _row(*types[-1][1:], *sides)
    found: list[tuple[str, str]] = [("f16", "f16")] * layer.kv_heads
    for head, k, v in types:
        for h in range(layer.kv_heads) if head is None else [head]:
            if h < layer.kv_heads:
                found[h] = (k, v)
    return sum(_row(k, v, *sides) for k, v in found)


@functools.lru_cache(maxsize=1024)
def _row(k: str, v: str, k_dim: int, v_dim: int) -> float:
    """Bytes of one KV head's key and value of one token."""
    return _side(k, "K", k_dim) + _side(v, "V", v_dim)


def _side(name: str, side: str, dim: int) -> float:
    return kv_type(name).of_side(side).bits_at(dim) * dim / 8 if dim else 0.0


def seen_tokens(geometry: Geometry, layer: Layer, context: float) -> float:
    """Tokens of a context that one query of this layer meets."""
    if layer.kind == "shared" and layer.source is not None:
        return seen_tokens(geometry, geometry.layers[layer.source], context)
    if layer.kind in ("recurrent", "none"):
        return 0.0
    return context if layer.window is None else min(context, layer.window)


def cache_bytes(geometry: Geometry, setting: KVSetting, context: float) -> float:
    """Bytes that one decoded token of one sequence reads of its cache.

    A shared layer reads the cache of its source once more. A recurrent state is read and written.
    """
    total = 0.0
    for i, layer in enumerate(geometry.layers):
        seen = seen_tokens(geometry, layer, context)
        total += seen * token_bytes(geometry, setting, i) if seen else 0.0
        if layer.state is not None:
            total += 2 * _STATE_BYTES * (layer.state.conv + layer.state.recurrent)
    return total


def weight_bytes(
    geometry: Geometry, tokens: float, experts: Experts | None = None, power: float = 1.0
) -> float:
    """Bytes of weights that a step over `tokens` tokens of any sequences reads.

    Without experts they are read once, whatever the batch. With `chosen` of `total` experts drawn
    independently for each token, an expert is left out by all with (1 - chosen/total) ** tokens;
    of the routed bytes R, R * (1 - that) is expected to be read. Tokens that have a topic in
    common count as tokens ** power.
    """
    tokens = max(tokens, 1.0) ** power
    weights = weights_of(geometry)
    if experts is None:
        return float(weights.read_bytes)
    left = 1 - experts.chosen / experts.total
    if experts.n_bytes is not None:
        unread = experts.n_bytes * left
    else:
        unread = max(float(weights.n_bytes - weights.read_bytes), 0.0)
    return weights.read_bytes + unread * (1 - math.pow(left, tokens - 1))


def attention_flops(geometry: Geometry, tokens: float, depth: float) -> float:
    """Operations of attention for `tokens` new tokens behind `depth` cached ones.

    Two products, Q with K and the weights with V: 2 * heads * (k_dim + v_dim) for each pair of a
    query and a key it sees; a causal query at position p sees p, itself included. A latent layer
    works in the latent: its values are the latent without the RoPE part. A recurrent state is
    decayed, updated and read: 6 for each of its elements and token.
    """
    total = 0.0
    for layer in geometry.layers:
        pairs = _pairs(geometry, layer, tokens, depth)
        # A shared layer has queries of its own, as wide as the cache that it reads.
        read = layer if layer.source is None else geometry.layers[layer.source]
        values = read.k_dim - read.rope_dim if read.kind == "latent" else read.v_dim
        total += 2 * layer.heads * (read.k_dim + values) * pairs
        if layer.state is not None:
            total += 6 * layer.state.recurrent * tokens
    return total


def _pairs(geometry: Geometry, layer: Layer, tokens: float, depth: float) -> float:
    """Sum over the new tokens of the keys each one sees."""
    if layer.kind == "shared" and layer.source is not None:
        return _pairs(geometry, geometry.layers[layer.source], tokens, depth)
    if layer.kind in ("recurrent", "none"):
        return 0.0
    window = layer.window
    if window is None:
        return tokens * depth + tokens * (tokens + 1) / 2
    growing = min(max(window - depth, 0), tokens)  # tokens whose window is not full yet
    return growing * depth + growing * (growing + 1) / 2 + (tokens - growing) * window


def decode_work(
    geometry: Geometry,
    setting: KVSetting,
    context: int,
    sequences: int = 1,
    experts: Experts | None = None,
    power: float = 1.0,
) -> Work:
    """What one step reads and computes that adds a token to each of `sequences` sequences.

    Args:
        geometry: the model, weights included.
        setting: of the cache.
        context: tokens already in each sequence's cache.
        sequences: decoded together.
        experts: of a mixture.
        power: see `weight_bytes`.

    Raises:
        NybbleError: no weights, or counts below 1 (0 for the context).
    """
    positive("the context", context, "tokens", zero=True)
    positive("the number of sequences", sequences)
    weights = weights_of(geometry)
    return Work(
        weights=weight_bytes(geometry, sequences, experts, power),
        cache=sequences * cache_bytes(geometry, setting, context),
        linear=2.0 * weights.active_params * sequences,
        attention=sequences * attention_flops(geometry, 1, context),
    )


def prefill_work(
    geometry: Geometry,
    setting: KVSetting,
    tokens: int,
    depth: int,
    micro_batch: int,
    experts: Experts | None = None,
) -> Work:
    """What reading `tokens` tokens of a prompt takes, `depth` tokens being in the cache.

    Each micro-batch reads the weights once and the cache before it once. The output matrix
    (hidden * vocabulary) is applied to the last token only.

    Raises:
        NybbleError: no weights, or counts below 1 (0 for the depth).
    """
    positive("the prompt", tokens, "tokens")
    positive("the depth", depth, "tokens", zero=True)
    positive("the micro-batch", micro_batch, "tokens")
    weights = weights_of(geometry)
    batches = -(-tokens // micro_batch)
    each = tokens / batches
    middle = depth + (tokens - each) / 2
    output = min(geometry.hidden * geometry.vocabulary, weights.active_params)
    return Work(
        weights=batches * weight_bytes(geometry, each, experts),
        cache=batches * cache_bytes(geometry, setting, middle),
        linear=2.0 * ((weights.active_params - output) * tokens + output),
        attention=attention_flops(geometry, tokens, depth),
    )
