"""Which layers of a config.json keep what, as the model's class in transformers decides it.

Source: `__post_init__` of the configuration classes and `get_layer_types_and_kwargs` of
`cache_utils.py`, transformers 5.23.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType

from nybble.models.config_families import Family
from nybble.models.config_fields import MAX_LAYERS, Fields
from nybble.models.geometry import Kind, Layer, State

# Names of layer types. Source: ALLOWED_ATTN_LAYER_TYPES and _LEGACY_LAYER_TYPE_REMAP of
# `configuration_utils.py`. A layer of chunks slides in the cache, as wide as a chunk.
_FULL, _SLIDING, _CHUNKED, _LINEAR = (
    "full_attention", "sliding_attention", "chunked_attention", "linear_attention",
)  # fmt: skip
_KINDS: Mapping[str, Kind] = MappingProxyType({
    _FULL: "global", _SLIDING: "sliding", _CHUNKED: "sliding", _LINEAR: "recurrent",
})  # fmt: skip
_LEGACY = MappingProxyType({"attention": _FULL, "mamba": _LINEAR})
_SHARED = "num_kv_shared_layers"


@dataclass(frozen=True)
class Heads:
    """Query heads, KV heads and head size (elements) of a layer."""

    query: int
    kv: int
    dim: int


def layers_of(fields: Fields, family: Family) -> tuple[Layer, ...]:
    """The layers of a model, in order.

    Raises:
        ModelFileError: a field is wrong or two contradict each other; it names the field.
    """
    kinds = _types(fields, family)
    if family.latent:
        return (_latent(fields),) * len(kinds)
    windows = {_SLIDING: "sliding_window", _CHUNKED: "attention_chunk_size"}
    window = {kind: _window(fields, name) for kind, name in windows.items() if kind in kinds}
    heads = _heads(fields, family, kinds)
    state = _state(fields) if _LINEAR in kinds else None
    owners = len(kinds) - _shared(fields, kinds)
    k_eq_v = fields.flag("attention_k_eq_v")
    made: list[Layer] = []
    for i, kind in enumerate(kinds):
        if kind == _LINEAR:
            made.append(Layer("recurrent", state=state))
            continue
        layer = Layer(
            _KINDS[kind], heads[i].query, heads[i].kv, heads[i].dim, heads[i].dim,
            window=window.get(kind), k_is_v=k_eq_v and kind == _FULL, sinks=family.sinks,
        )  # fmt: skip
        if i >= owners:
            source = owners - 1 - kinds[:owners][::-1].index(kind)
            layer = replace(layer, kind="shared", window=None, source=source, k_is_v=False)
        made.append(layer)
    if not any(layer.k_width for layer in made):
        raise fields.wrong("layer_types", "a layer of attention or more")
    return tuple(made)


def _types(fields: Fields, family: Family) -> list[str]:
    """The type of each layer: those that config.json lists, else by the class's rule."""
    n = fields.integer("num_hidden_layers")
    listed = fields.values.get("layer_types")
    if listed is None:
        found = _by_rule(fields, family, n)
    else:
        found = _listed(fields, family, n, listed)
        # A class without layer types ignores the list when it attends.
        if not fields.has("layer_types") and found != _by_rule(fields, family, n):
            raise fields.wrong("layer_types", f"none: all layers of {fields.kind} are alike")
    if family.gemma == "4":
        found[-1] = _FULL  # whatever it is said to be
    return found


def _listed(fields: Fields, family: Family, n: int, listed: object) -> list[str]:
    if not isinstance(listed, list) or len(listed) > MAX_LAYERS:
        raise fields.wrong("layer_types", f"a list with an entry for each of {n} layers", listed)
    if len(listed) != n:
        raise fields.wrong("layer_types", f"{n} entries, as num_hidden_layers says",
                           length=len(listed))  # fmt: skip
    allowed = [_FULL, _LINEAR if family.linear else _SLIDING]
    allowed += [_CHUNKED] if family.rule == "chunks" else []
    found: list[str] = []
    for i, entry in enumerate(listed):
        kind = _LEGACY.get(entry, entry) if isinstance(entry, str) else entry
        if not isinstance(kind, str) or kind not in allowed:
            raise fields.wrong(f"layer_types[{i}]", ", ".join(allowed), entry)
        found.append(kind)
    return found


def _by_rule(fields: Fields, family: Family, n: int) -> list[str]:
    if family.rule == "window":
        off = fields.has("use_sliding_window") and not fields.flag("use_sliding_window")
        window = None if off else fields.optional("sliding_window")
        return [_FULL if window is None else _SLIDING] * n
    if family.rule == "upper":
        on = fields.flag("use_sliding_window") and fields.optional("sliding_window") is not None
        first = fields.integer("max_window_layers", 0) if on else n
        return [_SLIDING if i >= first else _FULL for i in range(n)]
    if family.rule == "chunks":
        every = fields.integer("no_rope_layer_interval")
        # One number a layer: whether it has RoPE.
        rope = fields.numbers("no_rope_layers") or tuple((i + 1) % every != 0 for i in range(n))
        if len(rope) != n:
            raise fields.wrong("no_rope_layers", f"{n} entries, as num_hidden_layers says",
                               length=len(rope))  # fmt: skip
        return [_CHUNKED if yes else _FULL for yes in rope]
    if family.rule in ("period", "interval"):
        every = family.period
        if family.period_key in fields.values:
            every = fields.check(family.period_key, fields.values[family.period_key])
        other = _LINEAR if family.rule == "interval" else _SLIDING
        return [other if (i + 1) % every else _FULL for i in range(n)]
    return [_FULL] * n


def _window(fields: Fields, name: str) -> int:
    """Tokens that a sliding layer attends to."""
    off = fields.has("use_sliding_window") and not fields.flag("use_sliding_window")
    if off and name == "sliding_window":
        raise fields.wrong("use_sliding_window", "true: layer_types lists sliding layers")
    window = fields.optional(name)
    if window is None:
        raise fields.wrong(name, "a number of tokens: layer_types lists sliding layers")
    return window


def _heads(fields: Fields, family: Family, kinds: list[str]) -> list[Heads]:
    """Heads of each layer."""
    query, hidden = fields.integer("num_attention_heads"), fields.integer("hidden_size")
    kv = fields.optional("num_key_value_heads") or query
    if fields.facts["hidden_is_whole_heads"] and hidden % query:
        raise fields.wrong("hidden_size", f"a multiple of the {query} num_attention_heads")
    dim = None if family.head_dim == "hidden" else fields.optional("head_dim")
    dim = dim or hidden // query
    if not dim:
        raise fields.wrong("num_attention_heads", f"up to hidden_size, {hidden:,}")
    found = [Heads(query, kv, dim)] * len(kinds)
    per_layer = fields.values.get("per_layer_config")
    if per_layer is not None:
        found = _per_layer(fields, found, per_layer)
    elif family.gemma == "4":
        wide_dim = fields.values.get("global_head_dim", 512)
        wide = Heads(query, kv, fields.check("global_head_dim", wide_dim))
        fewer = fields.values.get("num_global_key_value_heads")
        if fewer is not None and fields.flag("attention_k_eq_v"):
            wide = replace(wide, kv=fields.check("num_global_key_value_heads", fewer))
        found = [wide if k == _FULL else h for k, h in zip(kinds, found, strict=True)]
    for heads in found:
        if heads.query % heads.kv:
            raise fields.wrong("num_key_value_heads",
                               f"a divisor of the {heads.query} num_attention_heads",
                               heads.kv)  # fmt: skip
    return found


def _per_layer(fields: Fields, found: list[Heads], given: object) -> list[Heads]:
    """Heads where config.json lists the layers that are different, as transformers 5 saves it."""
    if not isinstance(given, Mapping) or len(given) > MAX_LAYERS:
        raise fields.wrong("per_layer_config", "an object with entries for layers", given)
    found = list(found)
    for key, changed in given.items():
        name = f"per_layer_config.{str(key)[:20]}"
        number = int(key) if str(key).isascii() and str(key).isdigit() and len(key) < 5 else -1
        if not 0 <= number < len(found) or not isinstance(changed, Mapping):
            raise fields.wrong(name, f"an object, for a layer from 0 to {len(found) - 1}", changed)
        other = [k for k in changed if k not in ("head_dim", "num_key_value_heads")]
        if other:
            raise fields.wrong(name, "head_dim, num_key_value_heads", other[0])
        old = found[number]
        kv = fields.check("num_key_value_heads", changed.get("num_key_value_heads", old.kv),
                          label=f"{name}.num_key_value_heads")  # fmt: skip
        dim = fields.check("head_dim", changed.get("head_dim", old.dim), label=f"{name}.head_dim")
        found[number] = Heads(old.query, kv, dim)
    return found


def _shared(fields: Fields, kinds: list[str]) -> int:
    """Layers at the end that read the cache of an earlier one."""
    if not fields.has(_SHARED):
        return 0
    n = fields.integer(_SHARED, 0)
    if n >= len(kinds):
        raise fields.wrong(_SHARED, f"up to {len(kinds) - 1}, one less than num_hidden_layers")
    without = set(kinds) - set(kinds[: len(kinds) - n])
    if without:
        raise fields.wrong(_SHARED, f"fewer: no layer before them is of {min(without)}")
    return n


def _latent(fields: Fields) -> Layer:
    """A layer of multi-head latent attention: the latent, and the part of the key with RoPE."""
    rope = fields.integer("qk_rope_head_dim")
    heads = fields.integer("num_attention_heads")
    return Layer("latent", heads, 1, fields.integer("kv_lora_rank") + rope, 0, rope_dim=rope)


def _state(fields: Fields) -> State:
    """What Gated DeltaNet keeps: the convolution's past inputs and a matrix for each value head.

    Source: Qwen3NextGatedDeltaNet; the convolution is over queries, keys and values.
    """
    n_keys, n_values = (fields.integer(f"linear_num_{x}_heads") for x in ("key", "value"))
    key, value = (fields.integer(f"linear_{x}_head_dim") for x in ("key", "value"))
    if n_values % n_keys:
        raise fields.wrong("linear_num_value_heads",
                           f"a multiple of the {n_keys} linear_num_key_heads")  # fmt: skip
    channels = 2 * n_keys * key + n_values * value
    kernel = fields.integer("linear_conv_kernel_dim")
    return State(channels * (kernel - 1), prod((n_values, key, value)))
