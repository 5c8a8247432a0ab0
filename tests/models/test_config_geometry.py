"""The geometry of a config.json is what transformers' own classes make of it."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from config_cases import TEXT, WRAPPERS, as_json, drawn, kept, seen, small
from transformers import AutoModel, AutoModelForCausalLM, DynamicCache
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from nybble.errors import ModelFileError
from nybble.models.config_families import FAMILIES
from nybble.models.config_fields import facts
from nybble.models.config_geometry import geometry_of_config, geometry_of_folder, geometry_of_remote
from nybble.models.geometry import Geometry, State, Weights
from nybble.models.gguf_types import TensorInfo
from nybble.models.remote import RemoteFolder
from nybble.models.safetensors_header import SafetensorsHeader

SEEDS = range(8)


def weights(geometry: Geometry) -> Weights:
    assert geometry.weights is not None
    return geometry.weights


def meta_model(kind: str, values: dict[str, Any]) -> Any:
    config = CONFIG_MAPPING[kind](**values)
    with torch.device("meta"):
        try:
            return AutoModelForCausalLM.from_config(config)
        except ValueError:  # the text part of a multimodal model, without its output matrix
            return AutoModel.from_config(config)


def header(shapes: dict[str, tuple[int, ...]], dtype: str = "BF16") -> SafetensorsHeader:
    """A header of tensors of one dtype, two bytes an element unless it is U8."""
    size = 1 if dtype == "U8" else 2
    made, offset = [], 0
    for name, shape in shapes.items():
        n_bytes = torch.Size(shape).numel() * size
        made.append(TensorInfo(name, shape, dtype, n_bytes, offset))
        offset += n_bytes
    return SafetensorsHeader(tuple(made), {}, 8, offset + 8)


def shapes_of(model: Any, prefix: str = "") -> dict[str, tuple[int, ...]]:
    tied = getattr(model.config, "tie_word_embeddings", False)
    return {prefix + n: tuple(p.shape) for n, p in model.named_parameters()
            if not (tied and n == "lm_head.weight")}  # fmt: skip


def test_every_text_model_has_a_family() -> None:
    assert set(FAMILIES) == set(TEXT)


def test_the_defaults_file_is_of_the_installed_transformers() -> None:
    if facts()["transformers"] != transformers.__version__:
        pytest.skip(f"transformers {transformers.__version__} is installed")
    script = runpy.run_path(str(Path(__file__).parents[2] / "bench" / "config_defaults.py"))
    assert script["render"]() == script["PATH"].read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", TEXT)
def test_defaults(kind: str) -> None:
    config = CONFIG_MAPPING[kind]()
    if kind == "deepseek_v2":  # its default has no number of experts a token meets
        with pytest.raises(ModelFileError, match="num_experts_per_tok"):
            geometry_of_config({"model_type": kind}, kind)
        made = geometry_of_config({"model_type": kind, "num_experts_per_tok": 6}, kind)
    else:
        made = geometry_of_config({"model_type": kind}, kind)
    assert kept(made) == seen(config)
    assert (made.hidden, made.vocabulary) == (config.hidden_size, config.vocab_size)
    assert made.context_length == config.max_position_embeddings
    assert any(f"for {kind}" in note for note in made.notes)


@pytest.mark.parametrize("kind", TEXT)
@pytest.mark.parametrize("seed", SEEDS)
def test_random_sizes(kind: str, seed: int) -> None:
    values = drawn(kind, seed)
    config = CONFIG_MAPPING[kind](**values)
    made = geometry_of_config(as_json(kind, values), kind)
    assert kept(made) == seen(config)
    assert all(x.heads == config.num_attention_heads for x in made.layers if x.kind != "recurrent")


@pytest.mark.parametrize("kind", TEXT)
@pytest.mark.parametrize("seed", SEEDS)
def test_flavours_of_one_config_agree(kind: str, seed: int) -> None:
    """Short, as its maker wrote it; and whole, as transformers saves it, with layer_types."""
    values = drawn(kind, seed)
    short = geometry_of_config(as_json(kind, values), kind)
    saved = json.loads(json.dumps(CONFIG_MAPPING[kind](**values).to_dict(), default=str))
    whole = geometry_of_config(saved, kind)
    assert whole.layers == short.layers
    assert weights(whole).n_params == weights(short).n_params


def test_flavours_of_gemma3() -> None:
    base = {"model_type": "gemma3_text", "num_hidden_layers": 8, "sliding_window": 512}
    plain = geometry_of_config(base, "x").layers
    pattern = geometry_of_config(base | {"sliding_window_pattern": 6}, "x").layers
    types = ["sliding_attention"] * 5 + ["full_attention"] + ["sliding_attention"] * 2
    assert plain == pattern == geometry_of_config(base | {"layer_types": types}, "x").layers
    other = geometry_of_config(base | {"sliding_window_pattern": 4}, "x").layers
    assert [x.kind for x in other].count("global") == 2


@pytest.mark.parametrize("kind", TEXT)
@pytest.mark.parametrize("seed", range(4))
def test_parameters_are_counted(kind: str, seed: int) -> None:
    values = drawn(kind, seed)
    model = meta_model(kind, values)
    made = weights(geometry_of_config(as_json(kind, values), kind))
    n = sum(p.numel() for p in model.parameters())
    if not hasattr(model, "lm_head") and not values.get("tie_word_embeddings", False):
        tied = facts()["text"][kind]["fields"].get("tie_word_embeddings", ("", False))[1]
        n += 0 if tied and "tie_word_embeddings" not in values else 64 * 199
    assert made.n_params == n
    assert made.n_bytes == 2 * n
    assert made.source == "config"


@pytest.mark.parametrize("kind", TEXT)
@pytest.mark.parametrize("seed", range(3))
def test_headers_say_the_same_as_shapes(kind: str, seed: int) -> None:
    values = drawn(kind, seed)
    model = meta_model(kind, values)
    if not hasattr(model, "lm_head"):
        values["tie_word_embeddings"] = True
    config = as_json(kind, values)
    derived = geometry_of_config(config, "x")
    read = geometry_of_config(config, "x", {"model.safetensors": header(shapes_of(model))})
    a, b = weights(derived), weights(read)
    assert (b.n_bytes, b.n_params, b.lookup_bytes) == (a.n_bytes, a.n_params, a.lookup_bytes)
    assert b.read_bytes == pytest.approx(a.read_bytes, abs=2)
    assert b.active_params == pytest.approx(a.active_params, abs=64)
    assert b.source == "tensors" and dict(b.types) == {"BF16": b.n_bytes}
    assert read.layers == derived.layers


@pytest.mark.parametrize("kind", WRAPPERS)
def test_multimodal_models(kind: str) -> None:
    facts_of = facts()["wrappers"][kind]
    default = CONFIG_MAPPING[kind]().get_text_config(decoder=True)
    try:
        made = geometry_of_config({"model_type": kind}, kind)
        assert kept(made) == seen(default)
        assert made.architecture == default.model_type == facts_of["text"]
    except ModelFileError as error:
        raise AssertionError(error) from error
    text = small(facts_of["text"])
    inner = as_json(facts_of["text"], text)
    config = CONFIG_MAPPING[kind](text_config={"model_type": facts_of["text"], **text})
    made = geometry_of_config({"model_type": kind, "text_config": inner}, kind)
    assert kept(made) == seen(config.get_text_config(decoder=True))


def test_a_wrapper_may_name_another_text_model() -> None:
    inner = as_json("ministral3", small("ministral3", sliding_window=None))
    made = geometry_of_config({"model_type": "mistral3", "text_config": inner}, "x")
    assert made.architecture == "ministral3" and made.layers[0].kind == "global"
    kimi = as_json("kimi_k2", small("deepseek_v3"))
    made = geometry_of_config({"model_type": "kimi_k25", "text_config": kimi}, "x")
    assert made.architecture == "deepseek_v3" and made.layers[0].rope_dim == 8


def test_vision_weights_and_prediction_blocks_are_left_out() -> None:
    inner = small("gemma3_text")
    text = shapes_of(meta_model("gemma3_text", inner))
    named = {n.replace("model.", "language_model.model.", 1): s for n, s in text.items()}
    vision = {"vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight": (7, 5),
              "multi_modal_projector.mm_input_projection_weight": (3, 5)}  # fmt: skip
    config = {"model_type": "gemma3", "text_config": as_json("gemma3_text", inner)}
    made = geometry_of_config(config, "x", {"a": header(named | vision)})
    alone = geometry_of_config(as_json("gemma3_text", inner), "x", {"a": header(text)})
    assert weights(made) == weights(alone)
    assert any("100 bytes of vision" in note for note in made.notes)
    values = small("deepseek_v3")
    trunk = shapes_of(meta_model("deepseek_v3", values))
    more = {"model.layers.6.eh_proj.weight": (10, 10)}
    made = geometry_of_config(as_json("deepseek_v3", values), "x", {"a": header(trunk | more)})
    assert weights(made).n_bytes == 2 * sum(torch.Size(s).numel() for s in trunk.values())
    assert any("200 bytes of prediction blocks" in note for note in made.notes)


def test_packed_weights_keep_their_bytes_and_count_by_shapes() -> None:
    values = small("llama")
    shapes = shapes_of(meta_model("llama", values))
    packed = {n.replace(".weight", ".qweight"): (s[0], s[1] // 2)
              for n, s in shapes.items() if "_proj" in n}  # fmt: skip
    rest = {n: s for n, s in shapes.items() if "_proj" not in n}
    headers = {"a": header(rest), "b": header(packed, "U8")}
    config = as_json("llama", values) | {"quantization_config": {"quant_method": "awq", "bits": 4}}
    made = weights(geometry_of_config(config, "x", headers))
    assert made.n_params == sum(torch.Size(s).numel() for s in shapes.values())
    assert made.types["U8"] == sum(torch.Size(s).numel() for s in packed.values())
    assert made.n_bytes == sum(h.file_size - 8 for h in headers.values())


@pytest.mark.parametrize(("quantization", "bits"), [
    ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 4.125),
    ({"quant_method": "exl3", "bits": 3.25, "head_bits": 6}, 3.25),
    ({"quant_method": "awq", "w_bit": 4, "q_group_size": 128}, 4),
    ({"quant_method": "fp8"}, 8),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4.25),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 4.5),
    ({"quant_method": "compressed-tensors", "config_groups": {
        "group_0": {"weights": {"num_bits": 4, "group_size": 32}}}}, 4.5),
])  # fmt: skip
def test_bits_of_a_quantization(quantization: dict[str, Any], bits: float) -> None:
    config = as_json("llama", small("llama"))
    plain = weights(geometry_of_config(config, "x"))
    made = weights(geometry_of_config(config | {"quantization_config": quantization}, "x"))
    matrices = 6 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 96)
    assert plain.n_bytes - made.n_bytes == pytest.approx(matrices * (16 - bits) / 8, abs=1)
    kept_back = quantization | {"ignore": ["re:.*self_attn.*", "lm_head"]}
    some = weights(geometry_of_config(config | {"quantization_config": kept_back}, "x"))
    assert made.n_bytes < some.n_bytes < plain.n_bytes


def test_a_dtype_is_counted() -> None:
    config = as_json("llama", small("llama"))
    half = weights(geometry_of_config(config, "x"))
    full = weights(geometry_of_config(config | {"torch_dtype": "float32"}, "x"))
    assert full.n_bytes == 2 * half.n_bytes and full.n_params == half.n_params


@pytest.mark.parametrize("kind", ["llama", "gemma4_text", "gemma3n_text", "qwen3_next",
                                  "qwen3_5_text", "gpt_oss", "deepseek_v3"])  # fmt: skip
def test_the_cache_of_a_real_model(kind: str) -> None:
    more: dict[str, Any] = {"sliding_window": 8}
    if kind in ("gemma4_text", "gemma3n_text"):
        more |= {"num_hidden_layers": 12, "num_kv_shared_layers": 3}
    values = {k: v for k, v in small(kind).items()}
    values |= {k: v for k, v in more.items() if k in values}
    if kind == "deepseek_v3":
        values["num_key_value_heads"] = 4
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**values)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    cache = DynamicCache(config=config)
    with torch.no_grad():
        model(torch.arange(5)[None] + 3, past_key_values=cache)
    made = geometry_of_config(as_json(kind, values), kind)
    for layer, stored in zip(made.layers, cache.layers, strict=True):
        if layer.kind == "recurrent":
            assert isinstance(layer.state, State)
            kernel = values.get("linear_conv_kernel_dim", 4)
            conv, recurrent = stored.conv_states, stored.recurrent_states
            assert conv[0].shape[1] * (kernel - 1) == layer.state.conv
            assert recurrent[0].numel() == layer.state.recurrent
        elif layer.kind == "shared":
            assert layer.source is not None and made.layers[layer.source].kind != "shared"
        elif layer.kind == "latent":
            sizes = stored.keys.shape[-1] + stored.values.shape[-1]
            assert sizes == layer.k_dim and stored.keys.shape[1] == 1
        else:
            assert stored.keys.shape[1:] == (layer.kv_heads, 5, layer.k_dim)
            assert stored.values.shape[1:] == (layer.kv_heads, 5, layer.v_dim)


def test_folders_with_and_without_weights(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = tmp_path / "a model"
    folder.mkdir()
    values = small("qwen3")
    (folder / "config.json").write_text(json.dumps(as_json("qwen3", values)))
    bare = geometry_of_folder(folder)
    assert (bare.name, weights(bare).source) == ("a model", "config")
    config = CONFIG_MAPPING["qwen3"](**values)
    state = AutoModelForCausalLM.from_config(config).state_dict()
    whole = {k: v.contiguous().to(torch.bfloat16) for k, v in state.items()}
    save_file(whole, folder / "model.safetensors")
    one = geometry_of_folder(folder)
    assert weights(one).source == "tensors"
    assert weights(one).n_bytes == weights(bare).n_bytes
    (folder / "model.safetensors").unlink()
    half = sorted(whole)[: len(whole) // 2]
    parts = {k: "a.safetensors" if k in half else "b.safetensors" for k in whole}
    for part in ("a.safetensors", "b.safetensors"):
        save_file({k: v for k, v in whole.items() if parts[k] == part}, folder / part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    assert geometry_of_folder(folder) == one
    save_file(whole, folder / "b.safetensors")
    with pytest.raises(ModelFileError, match="repeats a tensor"):
        geometry_of_folder(folder)
    save_file({"x": torch.zeros(1)}, folder / "b.safetensors")
    with pytest.raises(ModelFileError, match="lack a tensor"):
        geometry_of_folder(folder)
    (folder / "b.safetensors").unlink()
    with pytest.raises(ModelFileError, match="some are missing"):
        geometry_of_folder(folder)
    (folder / "a.safetensors").unlink()
    assert geometry_of_folder(folder) == bare


def test_a_remote_folder() -> None:
    values = small("llama")
    shapes = shapes_of(meta_model("llama", values))
    headers = {"model.safetensors": header(shapes)}
    url = "https://huggingface.co/org/model/resolve/main"
    folder = RemoteFolder(url, as_json("llama", values), headers)
    made = geometry_of_remote(folder)
    assert made.name == "org/model" and weights(made).source == "tensors"
    renamed = replace(made, name="x")
    assert renamed == geometry_of_config(folder.config, "x", folder.headers)
