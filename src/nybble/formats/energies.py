"""Energies of a model's keys and queries, channel by channel: all that the fold needs.

Sums of squares in float64, so texts can be added in any order and from any engine. NumPy only: a
model can be calibrated on a machine that has llama.cpp and no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nybble.errors import EngineError

Array = npt.NDArray[np.float64]

SKIP = 8  # first tokens of every text, whose outsized keys belong to no statistic
LEAST_TOKENS = 256


@dataclass(frozen=True)
class LayerEnergies:
    """Mean squares of one layer that owns keys.

    Attributes:
        keys: mean of k_i^2 over tokens, float64 [kv_heads, D].
        queries: mean over tokens of q_i^2, summed over the query heads that read a KV head, of
            this layer and of layers that read its keys; float64 [kv_heads, D].
    """

    keys: Array
    queries: Array


@dataclass(frozen=True)
class Energies:
    """Energies of a model, by layer that owns keys.

    Attributes:
        layers: by layer index; channels in the order of the engine that saw them.
        interleaved: whether that order has RoPE's pairs side by side (llama-architecture GGUFs
            under llama.cpp), not D/2 apart.
        tokens: tokens counted.
        text: SHA-256 of all token ids given.
        engine: "llama.cpp" or "transformers".
    """

    layers: Mapping[int, LayerEnergies]
    interleaved: bool
    tokens: int
    text: str
    engine: str


class EnergySums:
    """Running sums of all layers."""

    def __init__(self) -> None:
        self._keys: dict[int, Array] = {}
        self._queries: dict[int, Array] = {}
        self._tokens: dict[int, int] = {}

    def add_keys(self, layer: int, keys: npt.NDArray[np.floating]) -> None:
        """Add keys [kv_heads, n, D] of the layer that owns them."""
        total = np.square(keys, dtype=np.float64).sum(1)
        self._keys[layer] = self._keys.get(layer, 0) + total
        self._tokens[layer] = self._tokens.get(layer, 0) + keys.shape[1]

    def add_queries(self, owner: int, queries: npt.NDArray[np.floating], kv_heads: int) -> None:
        """Add queries [heads, n, D] that read the keys of layer `owner`."""
        heads, n, dim = queries.shape
        groups = queries.reshape(kv_heads, heads // kv_heads * n, dim)
        total = np.square(groups, dtype=np.float64).sum(1)
        self._queries[owner] = self._queries.get(owner, 0) + total

    def means(self) -> dict[int, LayerEnergies]:
        """Mean squares of every layer.

        Raises:
            EngineError: nothing was added, or keys or queries that are not finite.
        """
        if not self._keys or set(self._keys) != set(self._queries):
            raise EngineError(
                "the engine showed no keys and queries to calibrate on",
                seen=f"keys of {len(self._keys)} layers, queries of {len(self._queries)}",
            )
        found = {}
        for layer in sorted(self._keys):
            n = self._tokens[layer]
            energies = LayerEnergies(self._keys[layer] / n, self._queries[layer] / n)
            if not (np.isfinite(energies.keys).all() and np.isfinite(energies.queries).all()):
                raise EngineError(
                    "the model gives keys or queries that are not finite", seen=f"layer {layer}",
                    hint="check the weights; --weights f32 tells overflow from damage",
                )  # fmt: skip
            found[layer] = energies
        return found


def texts_to_read(texts: Sequence[npt.NDArray[np.int32]]) -> list[npt.NDArray[np.int32]]:
    """Texts that have more than the tokens that are skipped.

    Raises:
        EngineError: they are too short in all.
    """
    kept = [text for text in texts if len(text) > SKIP]
    total = sum(map(len, kept))
    if total < LEAST_TOKENS:
        raise EngineError(
            "too little text to calibrate on", seen=f"{total:,} tokens",
            allowed=f"{LEAST_TOKENS} or more", hint="longer --text",
        )  # fmt: skip
    return kept


def text_hash(texts: Sequence[npt.NDArray[np.int32]]) -> str:
    """SHA-256 of all token ids."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(np.ascontiguousarray(text, dtype="<i4").tobytes())
    return digest.hexdigest()


def pack(energies: Energies) -> tuple[dict[str, Any], bytes]:
    """A message that carries energies: shapes in the header, float64 values behind."""
    layers = sorted(energies.layers.items())
    header = {
        "layers": [[i, *layer.keys.shape] for i, layer in layers],
        "interleaved": energies.interleaved,
        "tokens": energies.tokens,
        "text": energies.text,
        "engine": energies.engine,
    }
    parts = [x.astype("<f8").tobytes() for _, layer in layers for x in (layer.keys, layer.queries)]
    return header, b"".join(parts)


def unpack(header: Mapping[str, Any], payload: bytes) -> Energies:
    """The inverse of `pack`."""
    values = np.frombuffer(payload, dtype="<f8").astype(np.float64)
    layers, start = {}, 0
    for index, kv_heads, dim in header["layers"]:
        size = kv_heads * dim
        keys, queries = values[start : start + 2 * size].reshape(2, kv_heads, dim)
        layers[int(index)] = LayerEnergies(keys, queries)
        start += 2 * size
    kept = ("interleaved", "tokens", "text", "engine")
    return Energies(layers, **{name: header[name] for name in kept})
