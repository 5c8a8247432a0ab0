"""Names and values of a GGUF against what llama.cpp's converter writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

gguf = pytest.importorskip("gguf")

from nybble.errors import NybbleError  # noqa: E402
from nybble.hardening.names import FAMILIES, Names, plain_name  # noqa: E402
from nybble.models.gguf_header import GGUFHeader, read_header  # noqa: E402
from nybble.models.gguf_types import TensorInfo  # noqa: E402


def header(architecture: str, *tensors: str, **numbers: Any) -> GGUFHeader:
    keys = {"block_count": 3, "attention.head_count": 4, "attention.head_count_kv": 2, **numbers}
    metadata = {f"{architecture}.{k}": v for k, v in keys.items() if v is not None}
    infos = tuple(TensorInfo(name, (32,), "F32", 128, 0) for name in tensors)
    return GGUFHeader(
        version=3, metadata={"general.architecture": architecture, **metadata}, tensors=infos,
        alignment=32, infos_offset=0, data_offset=0, file_size=0,
    )  # fmt: skip


# Worked out by hand from conversion/{base,gemma,qwen,llama}.py and gguf-py's tensor_mapping.py.
PAIRS = {
    "llama": {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
        "model.layers.2.input_layernorm.weight": "blk.2.attn_norm.weight",
        "model.layers.2.post_attention_layernorm.weight": "blk.2.ffn_norm.weight",
        "model.layers.2.self_attn.q_proj.weight": "blk.2.attn_q.weight",
        "model.layers.2.self_attn.k_proj.weight": "blk.2.attn_k.weight",
        "model.layers.2.self_attn.v_proj.weight": "blk.2.attn_v.weight",
        "model.layers.2.self_attn.o_proj.weight": "blk.2.attn_output.weight",
        "model.layers.2.mlp.gate_proj.weight": "blk.2.ffn_gate.weight",
        "model.layers.2.mlp.up_proj.weight": "blk.2.ffn_up.weight",
        "model.layers.2.mlp.down_proj.weight": "blk.2.ffn_down.weight",
    },
    "qwen2": {"model.layers.0.self_attn.k_proj.bias": "blk.0.attn_k.bias"},
    "qwen3": {"model.layers.1.self_attn.q_norm.weight": "blk.1.attn_q_norm.weight",
              "model.layers.1.self_attn.k_norm.weight": "blk.1.attn_k_norm.weight"},
    "qwen3moe": {"model.layers.1.mlp.gate.weight": "blk.1.ffn_gate_inp.weight",
                 "model.layers.1.mlp.experts.down_proj": "blk.1.ffn_down_exps.weight"},
    "gemma3": {
        "model.layers.0.post_attention_layernorm.weight": "blk.0.post_attention_norm.weight",
        "model.layers.0.pre_feedforward_layernorm.weight": "blk.0.ffn_norm.weight",
        "model.layers.0.post_feedforward_layernorm.weight": "blk.0.post_ffw_norm.weight",
    },
    "gemma4": {
        "model.embed_tokens_per_layer.weight": "per_layer_token_embd.weight",
        "model.per_layer_model_projection.weight": "per_layer_model_proj.weight",
        "model.per_layer_projection_norm.weight": "per_layer_proj_norm.weight",
        "model.layers.0.layer_scalar": "blk.0.layer_output_scale.weight",
        "model.layers.0.per_layer_input_gate.weight": "blk.0.inp_gate.weight",
        "model.layers.0.per_layer_projection.weight": "blk.0.proj.weight",
        "model.layers.0.post_per_layer_input_norm.weight": "blk.0.post_norm.weight",
        "model.layers.0.router.proj.weight": "blk.0.ffn_gate_inp.weight",
        "model.layers.0.router.scale": "blk.0.ffn_gate_inp.scale",
        "model.layers.0.router.per_expert_scale": "blk.0.ffn_down_exps.scale",
        "model.layers.0.experts.gate_up_proj": "blk.0.ffn_gate_up_exps.weight",
        "model.layers.0.experts.down_proj": "blk.0.ffn_down_exps.weight",
        "model.layers.0.pre_feedforward_layernorm_2.weight": "blk.0.pre_ffw_norm_2.weight",
        "model.layers.0.post_feedforward_layernorm_1.weight": "blk.0.post_ffw_norm_1.weight",
        "model.layers.0.post_feedforward_layernorm_2.weight": "blk.0.post_ffw_norm_2.weight",
    },
}  # fmt: skip
EVERY = [(a, name, tensor) for a, pairs in PAIRS.items() for name, tensor in pairs.items()]


class TestNames:
    @pytest.mark.parametrize(("architecture", "name", "tensor"), EVERY)
    def test_both_directions(self, architecture: str, name: str, tensor: str) -> None:
        names = Names(header(architecture, tensor))
        assert [p.tensor for p in names.parts(name)] == [tensor]
        assert names.parameters() == {tensor: name}

    def test_all_families_have_one(self) -> None:
        assert set(PAIRS) == set(FAMILIES)

    @pytest.mark.parametrize(
        "name",
        ["model.language_model.layers.1.mlp.up_proj.weight",
         "language_model.model.layers.1.mlp.up_proj.weight"],
    )  # fmt: skip
    def test_of_a_multimodal_class(self, name: str) -> None:
        assert plain_name(name) == "model.layers.1.mlp.up_proj.weight"
        part = Names(header("gemma3", "blk.1.ffn_up.weight")).parts(name)[0]
        assert part.tensor == "blk.1.ffn_up.weight"

    def test_not_of_its_vision_tower(self) -> None:
        names = Names(header("gemma3", "blk.1.attn_q.weight"))
        with pytest.raises(NybbleError, match="vision_tower"):
            names.parts("model.vision_tower.encoder.layers.1.self_attn.q_proj.weight")

    def test_tied_head_is_the_embedding(self) -> None:
        tied = Names(header("gemma3", "token_embd.weight"))
        assert tied.parts("lm_head.weight")[0].tensor == "token_embd.weight"
        apart = Names(header("gemma3", "token_embd.weight", "output.weight"))
        assert apart.parts("lm_head.weight")[0].tensor == "output.weight"

    def test_absent_tensor_is_named(self) -> None:
        names = Names(header("llama", "blk.0.attn_q.weight"))
        with pytest.raises(NybbleError) as info:
            names.parts("model.layers.0.self_attn.k_proj.weight")
        assert "blk.0.attn_k.weight" in str(info.value) and info.value.hint

    def test_fused_qkv_has_its_hint(self) -> None:
        names = Names(header("qwen3", "blk.0.attn_qkv.weight"))
        with pytest.raises(NybbleError, match="--fuse-qkv"):
            names.parts("model.layers.0.self_attn.k_proj.weight")

    @pytest.mark.parametrize("name", ["", "model.layers.99.mlp.up_proj.weight", "blk.0\x1b[31m"])
    def test_no_parameter(self, name: str) -> None:
        with pytest.raises(NybbleError) as info:
            Names(header("llama", "blk.0.attn_q.weight")).parts(name)
        assert "\x1b" not in str(info.value)


class TestValues:
    def test_llama_rows_become_adjacent_pairs(self) -> None:
        # D = 4 in two heads: RoPE pairs (0, 2) and (1, 3) come to stand side by side.
        names = Names(header("llama", "blk.0.attn_q.weight", **{"attention.head_count": 2}))
        rows = np.arange(8, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
        name = "model.layers.0.self_attn.q_proj.weight"
        made = names.store(name, rows)["blk.0.attn_q.weight"]
        assert made[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
        assert np.array_equal(names.load(name, lambda _: made), rows)

    @pytest.mark.parametrize(("matrix", "heads"), [("q", 4), ("k", 2), ("v", 0), ("o", 0)])
    def test_only_q_and_k_of_a_llama(self, matrix: str, heads: int) -> None:
        tensor = "blk.0.attn_output.weight" if matrix == "o" else f"blk.0.attn_{matrix}.weight"
        for architecture in ("llama", "qwen3", "gemma3"):
            names = Names(header(architecture, tensor))
            part = names.parts(f"model.layers.0.self_attn.{matrix}_proj.weight")[0]
            assert part.heads == (heads if architecture == "llama" else 0)

    def test_kv_heads_default_to_all(self) -> None:
        names = Names(header("llama", "blk.0.attn_k.weight", **{"attention.head_count_kv": None}))
        assert names.parts("model.layers.0.self_attn.k_proj.weight")[0].heads == 4

    @pytest.mark.parametrize("architecture", ["gemma3", "gemma4", "qwen3"])
    def test_gemma3_alone_adds_one(self, architecture: str) -> None:
        names = Names(header(architecture, "blk.0.attn_k_norm.weight", "blk.0.ffn_up.weight"))
        values = np.array([-1.0, 0.0, 0.5], np.float32)
        made = names.store("model.layers.0.self_attn.k_norm.weight", values)
        shift = 1 if architecture == "gemma3" else 0
        assert made["blk.0.attn_k_norm.weight"].tolist() == (values + shift).tolist()
        matrix = names.store("model.layers.0.mlp.up_proj.weight", values)
        assert matrix["blk.0.ffn_up.weight"].tolist() == values.tolist()

    def test_halves_of_fused_experts(self) -> None:
        tensors = ("blk.0.ffn_gate_exps.weight", "blk.0.ffn_up_exps.weight")
        name = "model.layers.0.mlp.experts.gate_up_proj"
        names = Names(header("qwen3moe", *tensors))
        values = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
        made = names.store(name, values)
        assert made[tensors[0]][:, :, 0].tolist() == [[0, 3], [12, 15]]
        assert made[tensors[1]][:, :, 0].tolist() == [[6, 9], [18, 21]]
        assert np.array_equal(names.load(name, made.__getitem__), values)
        assert set(names.parameters().values()) == {name}

    @given(heads=st.integers(1, 5), pairs=st.integers(1, 6), seed=st.integers(0, 99))
    def test_there_and_back(self, heads: int, pairs: int, seed: int) -> None:
        names = Names(header("llama", "blk.0.attn_k.bias", **{"attention.head_count_kv": heads}))
        values = np.random.default_rng(seed).normal(size=2 * pairs * heads).astype(np.float32)
        name = "model.layers.0.self_attn.k_proj.bias"
        made = names.store(name, values)["blk.0.attn_k.bias"]
        assert sorted(made) == sorted(values)
        assert np.array_equal(names.load(name, lambda _: made), values)


class TestRefusals:
    def test_unknown_architecture(self) -> None:
        with pytest.raises(NybbleError) as info:
            Names(header("mamba\x1b[2J"))
        assert "qwen3moe" in str(info.value) and "\x1b" not in str(info.value)

    @pytest.mark.parametrize("value", [None, 0, -1, True, "3", 10**9, (1, 2)])
    def test_a_hostile_number(self, value: object) -> None:
        with pytest.raises(NybbleError, match="block_count"):
            Names(header("llama", block_count=value))

    def test_without_gguf(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import sys

        monkeypatch.setitem(sys.modules, "gguf", None)
        with pytest.raises(NybbleError, match=r"\[train\]"):
            Names(header("llama"))


@pytest.mark.slow
def test_every_tensor_of_the_demo_model(tmp_path: Path) -> None:
    """transformers' own reader undoes the conversion; done again it gives the file's values."""
    pytest.importorskip("transformers")
    safetensors = pytest.importorskip("safetensors")
    from gguf.quants import dequantize

    from nybble.engines.transformers.gguf_copy import float_folder
    from nybble.models.checkpoint import resolve
    from nybble.models.demo import demo_model

    path = demo_model(tmp_path)
    folder = float_folder(resolve(path), tmp_path)
    names = Names(read_header(path))
    left = {t.name: t for t in gguf.GGUFReader(path).tensors}
    with safetensors.safe_open(folder / "model.safetensors", "numpy") as file:
        for name in file.keys():
            for tensor, values in names.store(name, file.get_tensor(name)).items():
                info = left.pop(tensor)
                read = dequantize(info.data, info.tensor_type).reshape(values.shape)
                assert np.array_equal(read, values), tensor
                assert names.parameters()[tensor] == name
    assert not left
