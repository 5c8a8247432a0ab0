"""How many elements the weights of a model have, from the fields of its config.json.

Source: the modules of transformers 5.23.0's modeling files; the tests count the parameters of the
classes themselves. Buffers, which are a few numbers a layer, are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import fields as fields_of

from nybble.models.config_families import Family
from nybble.models.config_fields import Fields
from nybble.models.geometry import Layer


@dataclass(frozen=True)
class Elements:
    """Elements of a model's weights, by what becomes of them.

    Attributes:
        attention: matrices of attention, or of what stands in its place.
        linear: the other matrices that every token passes.
        expert: matrices of all routed experts.
        expert_small: biases of all routed experts.
        kept: matrices that quantizers leave alone: routers, convolutions.
        small: norms, biases, sinks.
    """

    attention: int = 0
    linear: int = 0
    expert: int = 0
    expert_small: int = 0
    kept: int = 0
    small: int = 0

    def __add__(self, other: Elements) -> Elements:
        return Elements(*(getattr(self, f.name) + getattr(other, f.name) for f in fields_of(self)))

    @property
    def total(self) -> int:
        """All of them."""
        return sum(getattr(self, f.name) for f in fields_of(self))


@dataclass(frozen=True)
class Shapes:
    """The weights of a model.

    Attributes:
        blocks: of all its layers, and what stands between them.
        embedding: elements of the input embedding.
        tables: of the further tables of which a token reads one row.
        output: elements of an output matrix of its own; 0 where the embedding is it.
        experts, used: routed experts of a layer, and those a token meets; 0 for a dense model.
        intermediate: width of the widest feed-forward block one token passes, experts summed.
    """

    blocks: Elements
    embedding: int
    tables: int
    output: int
    experts: int
    used: int
    intermediate: int


def shapes_of(fields: Fields, family: Family, layers: Sequence[Layer]) -> Shapes:
    """Count the weights of a model.

    Raises:
        ModelFileError: a field is wrong; it names the field.
    """
    hidden, vocabulary = fields.integer("hidden_size"), fields.integer("vocab_size")
    experts, used = _experts(fields, family)
    sparse = _sparse(fields, family, len(layers)) if experts else (False,) * len(layers)
    if not any(sparse):
        experts = used = 0
    blocks = Elements(small=hidden)  # the last norm
    widest = 0
    for i, layer in enumerate(layers):
        blocks += _mixer(fields, family, layer, hidden) + Elements(small=family.norms * hidden)
        width = _dense_width(fields, family, i, layer)
        if sparse[i]:
            size, shared = fields.integer(family.expert_size), _shared_width(fields, family)
            biased = shared if fields.flag("mlp_bias") else 0
            blocks += _mixture(family, hidden, size, shared, experts)
            blocks += Elements(small=2 * biased + hidden if biased else 0)
            routed = used * size + shared
            if family.gemma != "4":  # where the dense block stays beside the experts
                widest = max(widest, routed)
                continue
            blocks += Elements(small=4 * hidden + experts)
            widest = max(widest, routed + width)
        bias = 2 * width + hidden if fields.flag("mlp_bias") else 0
        blocks += Elements(linear=3 * hidden * width, small=bias)
        widest = max(widest, width)
    more, tables = _gemma(fields, family, hidden, len(layers))
    embedding = hidden * vocabulary
    return Shapes(blocks + more, embedding, tables, 0 if fields.tied else embedding, experts, used,
                  widest)  # fmt: skip


def _experts(fields: Fields, family: Family) -> tuple[int, int]:
    """Routed experts of a layer, and how many of them a token meets."""
    if not family.experts:
        return 0, 0
    if family.gemma == "4" and not fields.flag("enable_moe_block"):
        return 0, 0
    experts = fields.integer(family.experts, 0 if family.dense == "step" else 1)
    if not experts:
        return 0, 0
    used = fields.integer(family.used)
    if used > experts:
        raise fields.wrong(family.used, f"up to the {experts} of {family.experts}")
    return experts, used


def _sparse(fields: Fields, family: Family, n: int) -> tuple[bool, ...]:
    """Which layers have experts."""
    if family.dense == "first":
        first = fields.optional("first_k_dense_replace", 0) or 0
        return tuple(i >= first for i in range(n))
    if family.dense == "step":
        step, dense = fields.integer("decoder_sparse_step"), fields.numbers("mlp_only_layers") or ()
        return tuple(i not in dense and (i + 1) % step == 0 for i in range(n))
    if family.dense == "listed":
        step, listed = fields.integer("interleave_moe_layer_step"), fields.numbers("moe_layers")
        if listed is None:
            return tuple((i + 1) % step == 0 for i in range(n))
        return tuple(i in listed for i in range(n))
    return (True,) * n


def _shared_width(fields: Fields, family: Family) -> int:
    """Width of the expert that every token passes."""
    if family.shared == "own":
        return fields.integer("shared_expert_intermediate_size", 0)
    if family.shared == "count":
        return fields.integer("n_shared_experts", 0) * fields.integer(family.expert_size)
    return fields.integer(family.expert_size) if family.shared == "one" else 0


def _dense_width(fields: Fields, family: Family, index: int, layer: Layer) -> int:
    """Width of a layer's feed-forward block, if it has one besides experts."""
    name = family.dense_size
    if not fields.has(name):  # all layers have experts
        return 0
    if family.gemma != "3n":
        width = fields.integer(name)
        double = layer.kind == "shared" and fields.flag("use_double_wide_mlp")
        return 2 * width if double else width
    given = fields.raw(name)  # one number, or one for each layer
    if not isinstance(given, list):
        return fields.check(name, given)
    n = fields.integer("num_hidden_layers")
    if len(given) != n:
        raise fields.wrong(name, f"one number, or {n} of them, as num_hidden_layers says")
    return fields.check(name, given[index], label=f"{name}[{index}]")


def _mixture(family: Family, hidden: int, size: int, shared: int, experts: int) -> Elements:
    """The experts of a layer and their router."""
    biased = family.sinks  # gpt-oss: every matrix of its experts and the router have biases
    return Elements(
        linear=3 * hidden * shared,
        expert=3 * hidden * size * experts,
        expert_small=(2 * size + hidden) * experts if biased else 0,
        kept=hidden * experts + (hidden if family.shared == "own" else 0),
        small=experts if biased else 0,
    )


def _mixer(fields: Fields, family: Family, layer: Layer, hidden: int) -> Elements:
    """The attention of a layer, or what stands in its place."""
    if layer.kind == "latent":
        return _latent(fields, layer, hidden)
    if layer.kind == "recurrent":
        return _delta(fields, hidden)
    own = layer.kind != "shared"
    query, keys = layer.heads * layer.k_dim, layer.kv_heads * layer.k_dim
    wide = 2 * query if family.gated else query
    sides = 0 if not own else 1 if layer.k_is_v else 2
    flag = family.bias == "qkv" or (bool(family.bias) and fields.flag("attention_bias"))
    bias = wide + sides * keys if flag else 0
    bias += hidden if flag and family.bias == "flag" else 0
    norms = 0
    if family.qk_norm == "all":
        norms = query + keys
    elif family.qk_norm == "head" or (family.qk_norm == "flag" and fields.flag("use_qk_norm")):
        norms = layer.k_dim * (2 if own else 1)
    return Elements(
        attention=hidden * (wide + sides * keys + query),
        small=bias + norms + (layer.heads if family.sinks else 0),
    )


def _latent(fields: Fields, layer: Layer, hidden: int) -> Elements:
    """Multi-head latent attention: `DeepseekV3Attention`."""
    rank, rope = fields.integer("kv_lora_rank"), fields.integer("qk_rope_head_dim")
    nope, value = fields.integer("qk_nope_head_dim"), fields.integer("v_head_dim")
    query = layer.heads * (nope + rope)
    low = fields.optional("q_lora_rank")
    matrices = hidden * query if low is None else low * (hidden + query)
    matrices += hidden * (rank + rope) + rank * layer.heads * (nope + value)
    matrices += layer.heads * value * hidden
    bias = (low or 0) + rank + rope + hidden if fields.flag("attention_bias") else 0
    return Elements(attention=matrices, small=bias + rank + (low or 0))


def _delta(fields: Fields, hidden: int) -> Elements:
    """Gated DeltaNet: `Qwen3NextGatedDeltaNet`."""
    heads = fields.integer("linear_num_value_heads")
    keys = fields.integer("linear_num_key_heads") * fields.integer("linear_key_head_dim")
    dim = fields.integer("linear_value_head_dim")
    values = heads * dim
    kernel = fields.integer("linear_conv_kernel_dim")
    return Elements(
        attention=hidden * (2 * keys + 2 * values + 2 * heads) + values * hidden,
        kept=(2 * keys + values) * kernel,
        small=2 * heads + dim,
    )


def _gemma(fields: Fields, family: Family, hidden: int, n: int) -> tuple[Elements, int]:
    """What Gemma 3n and 4 have besides: embeddings for each layer, AltUp and Laurel.

    Returns:
        The elements, and those of the table of which a token reads one row.
    """
    name = "hidden_size_per_layer_input"
    size = fields.integer(name, 0) if family.gemma and fields.has(name) else 0
    more, table = Elements(), 0
    if size:
        table = fields.integer("vocab_size_per_layer_input") * n * size
        more = Elements(linear=n * 3 * hidden * size, small=n * hidden + size)
    if family.gemma == "3n":
        inputs, rank = fields.integer("altup_num_inputs"), fields.integer("laurel_rank")
        each = Elements(
            linear=2 * hidden * rank,
            kept=inputs * inputs * (1 + inputs) + hidden * inputs,
            small=3 * hidden,
        )
        more += Elements(linear=2 * (inputs - 1) * hidden * hidden)
        for _ in range(n):
            more += each
    return more, table
