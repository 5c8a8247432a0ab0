"""What a config.json must not say: refused with the field's name, whatever JSON comes."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nybble.errors import ModelFileError
from nybble.models.config_fields import facts, known
from nybble.models.config_geometry import geometry_of_config, geometry_of_folder
from nybble.models.geometry import Geometry
from nybble.models.gguf_types import TensorInfo
from nybble.models.safetensors_header import SafetensorsHeader

BASE: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
                        "vocab_size": 100, "max_position_embeddings": 512}  # fmt: skip
DENSE = BASE | {"intermediate_size": 96, "num_key_value_heads": 2}
SLIDING, FULL = "sliding_attention", "full_attention"


def refused(config: dict[str, Any], *words: str) -> ModelFileError:
    """The error: what failed, what was seen, what would do, and the next step."""
    with pytest.raises(ModelFileError) as info:
        geometry_of_config(config, "a model")
    error = info.value
    assert error.what and error.seen and error.allowed and error.hint
    for word in words:
        assert word in str(error)
    assert str(error).isprintable() or "\x1b" not in str(error)
    return error


@pytest.mark.parametrize("kind", [None, 7, "", [], {"a": 1}])
def test_no_model_type(kind: object) -> None:
    refused({"model_type": kind}, "config.json does not say what model this is")
    refused({}, "model_type")


def test_unknown_models_are_named_not_guessed() -> None:
    error = refused({"model_type": "lama"}, "model_type 'lama'", "llama", "GGUF")
    assert error.allowed and "gemma4" in error.allowed and "or is it llama?" in str(error.hint)
    refused({"model_type": "\x1b[31mred"}, r"\x1b[31mred")
    refused({"model_type": "mistral3", "text_config": {"model_type": "mamba"}}, "mamba")
    refused({"model_type": "gemma3", "text_config": [1]}, "text_config", "an object")


SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
         "vocab_size", "max_position_embeddings", "intermediate_size", "head_dim")  # fmt: skip


@pytest.mark.parametrize("field", SIZES)
@pytest.mark.parametrize("value", ["64", 64.0, True, 0, -4, 1 << 40, [64], {}, float("nan")])
def test_sizes_are_whole_numbers_in_range(field: str, value: object) -> None:
    refused({"model_type": "llama", **DENSE, field: value}, field)


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_null_where_the_class_takes_none(field: str) -> None:
    refused({"model_type": "llama", **DENSE, field: None}, field, "None")


CONTRADICTIONS: list[tuple[str, dict[str, Any], str]] = [
    ("gemma3_text", {"layer_types": [FULL] * 5}, "layer_types"),
    ("gemma3_text", {"layer_types": [FULL] * 600}, "layer_types"),
    ("gemma3_text", {"layer_types": "full_attention"}, "layer_types"),
    ("gemma3_text", {"layer_types": [FULL, FULL, FULL, 4]}, "layer_types[3]"),
    ("gemma3_text", {"layer_types": [FULL, "linear_attention", FULL, FULL]}, "layer_types[1]"),
    ("gemma3_text", {"layer_types": [FULL, "chunked_attention", FULL, FULL]}, "layer_types[1]"),
    ("qwen3_next", {"layer_types": [FULL, SLIDING, FULL, FULL]}, "layer_types[1]"),
    ("qwen3_next", {"layer_types": ["linear_attention"] * 4}, "layer_types"),
    ("llama", {"layer_types": [FULL, SLIDING, FULL, SLIDING]}, "layer_types"),
    ("mistral", {"layer_types": [FULL, SLIDING, FULL, SLIDING]}, "layer_types"),
    ("gemma3_text", {"sliding_window": None}, "sliding_window"),
    ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern"),
    ("gemma3_text", {"sliding_window_pattern": None}, "sliding_window_pattern"),
    ("qwen3_next", {"full_attention_interval": 0}, "full_attention_interval"),
    ("qwen2", {"layer_types": [SLIDING] * 4}, "use_sliding_window"),
    ("qwen2", {"use_sliding_window": 1}, "use_sliding_window"),
    ("llama4_text", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
    ("llama4_text", {"no_rope_layers": [1, 0, 1, "x"]}, "no_rope_layers[3]"),
    ("llama", {"num_key_value_heads": 3}, "num_key_value_heads"),
    ("llama", {"num_key_value_heads": 8}, "num_key_value_heads"),
    ("llama", {"hidden_size": 66}, "hidden_size"),
    ("qwen2", {"hidden_size": 3}, "num_attention_heads"),
    ("gemma4_text", {"num_kv_shared_layers": 4}, "num_kv_shared_layers"),
    ("gemma4_text", {"num_kv_shared_layers": 1}, "num_kv_shared_layers"),
    ("gemma4_text", {"global_head_dim": None}, "global_head_dim"),
    ("gemma4_text", {"attention_k_eq_v": "yes"}, "attention_k_eq_v"),
    ("gemma4_text", {"attention_k_eq_v": True, "num_global_key_value_heads": 3},
     "num_key_value_heads"),
    ("gemma4_text", {"enable_moe_block": True}, "num_experts"),
    ("gemma4_text", {"per_layer_config": {"4": {"head_dim": 8}}}, "per_layer_config.4"),
    ("gemma4_text", {"per_layer_config": {"x": {}}}, "per_layer_config.x"),
    ("gemma4_text", {"per_layer_config": {"1": {"skip": ["mlp"]}}}, "per_layer_config.1"),
    ("gemma4_text", {"per_layer_config": {"1": {"head_dim": 0}}}, "per_layer_config.1.head_dim"),
    ("gemma4_text", {"per_layer_config": [1]}, "per_layer_config"),
    ("gemma3n_text", {}, "num_kv_shared_layers 15, by the default of gemma3n_text"),
    ("gemma3n_text", {"intermediate_size": [96] * 3, "num_kv_shared_layers": 0},
     "intermediate_size"),
    ("gemma3n_text", {"intermediate_size": [96, 96, 96, "a"], "num_kv_shared_layers": 0},
     "intermediate_size[3]"),
    ("mixtral", {"num_experts_per_tok": 9}, "num_experts_per_tok"),
    ("mixtral", {"num_local_experts": 8, "num_experts": 16}, "num_local_experts"),
    ("qwen3_moe", {"mlp_only_layers": {}}, "mlp_only_layers"),
    ("qwen3_5_text", {"linear_num_key_heads": 3, "linear_num_value_heads": 4},
     "linear_num_value_heads"),
    ("deepseek_v3", {"kv_lora_rank": None}, "kv_lora_rank"),
    ("deepseek_v2", {}, "num_experts_per_tok"),
    ("llama", {"dtype": "int3"}, "dtype"),
    ("llama", {"torch_dtype": 16}, "torch_dtype"),
    ("llama", {"tie_word_embeddings": "no"}, "tie_word_embeddings"),
    ("llama", {"quantization_config": "awq"}, "quantization_config"),
    ("llama", {"quantization_config": {"quant_method": "new"}}, "quantization_config"),
    ("llama", {"is_encoder_decoder": True}, "does not predict the next token"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "does not predict the next token"),
    ("gemma4_text", {"use_bidirectional_attention": "all"}, "does not predict the next token"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "changed", "field"), CONTRADICTIONS)
def test_fields_that_contradict_each_other(kind: str, changed: dict[str, Any], field: str) -> None:
    values = dict(BASE)
    if "intermediate_size" in facts()["text"][kind]["fields"]:
        values["intermediate_size"] = 96
    values["num_key_value_heads"] = 2
    refused({"model_type": kind, **values, **changed}, field)


def header(*tensors: tuple[str, tuple[int, ...]]) -> dict[str, SafetensorsHeader]:
    made = [TensorInfo(name, shape, "BF16", 2 * shape[0] * shape[-1], 0) for name, shape in tensors]
    return {"model.safetensors": SafetensorsHeader(tuple(made), {}, 8, 8)}


def test_weights_of_another_model() -> None:
    config = {"model_type": "llama", **DENSE}
    good = [(f"model.layers.{i}.self_attn.k_proj.weight", (32, 64)) for i in range(4)]
    odd = [("self_attn.k_proj.weight", (3, 3)), ("x.y.self_attn.k_proj.weight", (3, 3))]
    assert geometry_of_config(config, "x", header(*good, *odd)).weights is not None
    for tensors, words in (
        (good[:3], "none of layer 3"),
        ([*good, ("model.layers.4.mlp.up_proj.weight", (96, 64))], "model.layers.4"),
        ([*good[:3], ("model.layers.3.self_attn.k_proj.weight", (64, 64))], "64 rows"),
    ):
        with pytest.raises(ModelFileError, match="not those of config.json") as info:
            geometry_of_config(config, "x", header(*tensors))
        assert words in str(info.value) and info.value.hint


def test_a_damaged_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"config.json is missing"):
        geometry_of_folder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelFileError, match="not JSON"):
        geometry_of_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **DENSE}))
    index = tmp_path / "model.safetensors.index.json"
    for weight_map in ({}, [], {"a": "../out.safetensors"}, {"a": 1}, {"a": "x.bin"}):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(ModelFileError, match=r"index\.json"):
            geometry_of_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(ModelFileError, match="not a safetensors file"):
        geometry_of_folder(tmp_path)


NAMES = sorted({*(f for t in facts()["text"].values() for f in t["fields"]), "global_head_dim",
                "num_global_key_value_heads", "per_layer_config", "quantization_config", "dtype",
                "text_config", "sliding_window_pattern", "full_attention_interval",
                "num_experts", "is_encoder_decoder", "layer_types"})  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 12), st.integers(), st.floats(),
    st.sampled_from([FULL, SLIDING, "linear_attention", "vision", "all", "bfloat16", "llama"]),
    st.text(max_size=12),
)  # fmt: skip
JSON = st.recursive(
    SCALARS,
    lambda x: st.lists(x, max_size=6) | st.dictionaries(st.sampled_from(NAMES) | st.text(), x),
    max_leaves=12,
)


def answer(config: dict[str, Any]) -> Geometry | None:
    """A geometry that holds together, or a refusal."""
    try:
        made = geometry_of_config(config, "fuzzed")
    except ModelFileError as error:
        assert error.what and error.hint and error.seen
        return None
    assert 1 <= len(made.layers) <= 512
    for i, layer in enumerate(made.layers):
        assert layer.kind != "shared" or (layer.source is not None and layer.source < i)
        assert (layer.kind == "sliding") == (layer.window is not None)
        assert (layer.kind == "recurrent") == (layer.state is not None)
    w = made.weights
    assert w is not None and 0 < w.read_bytes <= w.n_bytes and 0 < w.active_params <= w.n_params
    assert 0 < w.lookup_bytes <= w.n_bytes and made.context_length > 0
    return made


@settings(max_examples=500, deadline=timedelta(seconds=1))
@given(st.sampled_from(known()), st.dictionaries(st.sampled_from(NAMES), JSON, max_size=6))
def test_any_json_is_answered(kind: str, values: dict[str, Any]) -> None:
    answer({"model_type": kind, **BASE, **values})
    answer({"model_type": kind, "text_config": {**BASE, **values}, **values})


@settings(max_examples=150, deadline=timedelta(seconds=1))
@given(st.dictionaries(st.text() | st.sampled_from(NAMES), JSON, max_size=8), JSON)
def test_any_object_is_answered(config: dict[str, Any], kind: object) -> None:
    answer({**config, "model_type": kind})
    answer(config)
