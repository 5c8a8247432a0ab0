"""What each layer keeps of a token: the numbers every size follows from.

A geometry knows no engine and no KV type. It counts elements; bytes are `planning`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

Kind = Literal["global", "sliding", "latent", "recurrent", "shared", "none"]


@dataclass(frozen=True)
class State:
    """What a recurrent or linear-attention layer keeps of a sequence, however long it is.

    Attributes:
        conv: elements of the short convolution's past inputs, (kernel - 1) * channels.
        recurrent: elements of the recurrent state.
    """

    conv: int
    recurrent: int


@dataclass(frozen=True)
class Layer:
    """One layer of the decoder and its part of the cache.

    Attributes:
        kind: "global" keeps every token, "sliding" the last `window`, "latent" one compressed
            vector a token (MLA), "recurrent" a state of fixed size, "shared" reads the cache of
            layer `source`, "none" has no cache and no attention.
        heads: query heads.
        kv_heads: KV heads; 1 for "latent", 0 where nothing is kept.
        k_dim: elements of a head's key. Of a latent layer: the latent and the key's RoPE part.
        v_dim: elements of a head's value; 0 for a latent layer, whose values are in the latent.
        window: tokens a sliding layer attends to, the current one included; None for the others.
        source: the layer whose cache a shared layer reads.
        k_is_v: K and V come from one projection, though engines store both (Gemma 4).
        rope_dim: of a latent layer, the part of k_dim that carries RoPE and stays unquantized in
            some engines; 0 for the others.
        state: of a recurrent layer.
        sinks: learned attention sinks, a number for each head and no cache.
    """

    kind: Kind
    heads: int = 0
    kv_heads: int = 0
    k_dim: int = 0
    v_dim: int = 0
    window: int | None = None
    source: int | None = None
    k_is_v: bool = False
    rope_dim: int = 0
    state: State | None = None
    sinks: bool = False

    @property
    def k_width(self) -> int:
        """Elements of K that one token adds, all KV heads."""
        return 0 if self.kind == "shared" else self.kv_heads * self.k_dim

    @property
    def v_width(self) -> int:
        """Elements of V that one token adds, all KV heads."""
        return 0 if self.kind == "shared" else self.kv_heads * self.v_dim


@dataclass(frozen=True)
class Weights:
    """What the weights take, and what of them a token reads.

    Attributes:
        n_bytes: bytes of all tensors as they are stored, text part of the model.
        n_params: elements of all of them.
        read_bytes: bytes that decoding one token of one sequence reads: all but the input
            embedding (unless it is the output matrix too) and the experts not chosen.
        active_params: elements that take part in one token's matrix products.
        source: "tensors" where the file's own tensor sizes were summed, "published" for a number
            of the model's maker, "config" where shapes were derived from config.json.
        types: bytes by type of tensor.
        lookup_bytes: bytes of the tables of which a token reads one row (input embedding, also
            when it is the output matrix too; per-layer embeddings). llama.cpp keeps them in the
            host's memory.
        tied: whether the output matrix is the input embedding.
    """

    n_bytes: int
    n_params: int
    read_bytes: int
    active_params: int
    source: Literal["tensors", "published", "config"]
    types: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    lookup_bytes: int = 0
    tied: bool = False


@dataclass(frozen=True)
class Geometry:
    """A model as a planner sees it.

    Attributes:
        name: for people.
        architecture: the GGUF's general.architecture or config.json's model_type (text part).
        layers: one entry for each layer of the decoder, in order. Prediction blocks beyond the
            trunk (MTP) are not among them.
        hidden: width of the residual stream.
        intermediate: width of the widest feed-forward block one token passes, experts summed.
        vocabulary: entries.
        context_length: tokens the model was made for.
        weights: None where only the shape of the cache is known.
        notes: what was resolved by a default, and what is left out, for `--explain`.
        experts_used: routed experts that a token meets in a layer; 0 for a dense model.
        experts: routed experts of a layer; 0 for a dense model.
    """

    name: str
    architecture: str
    layers: tuple[Layer, ...]
    hidden: int
    intermediate: int
    vocabulary: int
    context_length: int
    weights: Weights | None = None
    notes: tuple[str, ...] = ()
    experts_used: int = 0
    experts: int = 0

    @property
    def family(self) -> str:
        """`architecture` as both kinds of file would spell it: gemma4_text and gemma4, gpt-oss."""
        return self.architecture.removesuffix("_text").replace("_", "").replace("-", "")

    def of_kind(self, *kinds: Kind) -> tuple[Layer, ...]:
        """The layers of these kinds, in order."""
        return tuple(layer for layer in self.layers if layer.kind in kinds)
