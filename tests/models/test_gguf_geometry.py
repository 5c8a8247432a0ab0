"""The geometry of GGUF headers, architecture by architecture, from metadata made by hand.

That llama.cpp allocates the same is tests/planning/test_memory_llamacpp.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nybble.errors import ModelFileError
from nybble.models.geometry import Geometry, Layer, State
from nybble.models.gguf_geometry import geometry_of_gguf, geometry_of_headers
from nybble.models.gguf_rules import GLOBAL, KNOWN, LATENT, RECURRENT, REFUSED, SLIDING
from nybble.models.gguf_types import GGUFHeader, TensorInfo

F32, Q8_0, Q4_0 = "F32", "Q8_0", "Q4_0"
BITS = {F32: 32, Q8_0: 8.5, Q4_0: 4.5}


def tensor(name: str, shape: tuple[int, ...], kind: str) -> TensorInfo:
    return TensorInfo(name, shape, kind, int(prod(shape) * BITS[kind] / 8), 0)


def made(metadata: Mapping[str, Any], tensors: tuple[TensorInfo, ...]) -> GGUFHeader:
    return GGUFHeader(3, metadata, tensors, 32, 0, 0, 0)


def header(arch: str, tensors: Iterable[TensorInfo] = (), **keys: Any) -> GGUFHeader:
    """A header; two underscores in a key are a dot, None takes a key away."""
    found: dict[str, Any] = {
        "general.architecture": arch, f"{arch}.block_count": 4, f"{arch}.embedding_length": 256,
        f"{arch}.context_length": 8192, f"{arch}.attention.head_count": 8,
        f"{arch}.vocab_size": 1000,
    }  # fmt: skip
    found |= {f"{arch}.{name.replace('__', '.')}": value for name, value in keys.items()}
    listed = tuple(tensors) or (tensor("token_embd.weight", (256, 1000), F32),)
    return made({k: v for k, v in found.items() if v is not None}, listed)


def read(arch: str, tensors: Iterable[TensorInfo] = (), **keys: Any) -> Geometry:
    return geometry_of_headers([header(arch, tensors, **keys)], Path("made.gguf"))


def kinds(model: Geometry) -> str:
    """First letters of the layers' kinds."""
    return "".join(layer.kind[0] for layer in model.layers)


def window(model: Geometry) -> set[int | None]:
    return {layer.window for layer in model.of_kind("sliding")}


def test_llama() -> None:
    model = read("llama", attention__head_count_kv=2)
    assert model.layers == (Layer("global", 8, 2, 32, 32),) * 4
    assert (model.hidden, model.vocabulary, model.context_length) == (256, 1000, 8192)
    assert (model.name, model.architecture, model.experts_used) == ("made.gguf", "llama", 0)


def test_heads_default_to_multi_head_attention() -> None:
    assert read("llama").layers[0].kv_heads == 8


def test_qwen3_has_a_head_size_of_its_own() -> None:
    model = read("qwen3", attention__head_count_kv=2, attention__key_length=128,
                 attention__value_length=128)  # fmt: skip
    assert model.layers[0].k_width == 256


def test_gemma2_slides_every_other_layer() -> None:
    assert kinds(read("gemma2", attention__sliding_window=512)) == "sgsg"
    # llama.cpp's own window where the file has none.
    assert window(read("gemma2")) == {4096}


def test_gemma3() -> None:
    model = read("gemma3", block_count=12, attention__sliding_window=1024)
    assert kinds(model) == "sssssg" * 2
    assert window(model) == {1024}
    # A file without a window is of a model without sliding layers.
    assert kinds(read("gemma3")) == "gggg"


def test_gemma3n_shares_after_20_layers() -> None:
    pattern = tuple((i + 1) % 5 != 0 for i in range(30))
    model = read("gemma3n", block_count=30, attention__sliding_window=512,
                 attention__sliding_window_pattern=pattern)  # fmt: skip
    assert [layer.kind for layer in model.layers[:20]] == (["sliding"] * 4 + ["global"]) * 4
    assert {layer.source for layer in model.layers[20:]} == {18, 19}
    assert model.layers[24] == Layer("shared", 8, 8, 32, 32, source=19)
    assert model.layers[24].k_width == 0


def test_gemma4() -> None:
    pattern = (True, True, False) * 2
    tensors = [tensor(f"blk.{i}.attn_v.weight", (256, 128), Q8_0) for i in (0, 1, 3, 4)]
    model = read(
        "gemma4", tensors, block_count=6, attention__head_count_kv=(4, 4, 1, 4, 4, 1),
        attention__key_length=512, attention__value_length=512, attention__key_length_swa=256,
        attention__value_length_swa=256, attention__sliding_window=1024,
        attention__sliding_window_pattern=pattern,
    )  # fmt: skip
    assert model.layers[0] == Layer("sliding", 8, 4, 256, 256, window=1024)
    assert model.layers[2] == Layer("global", 8, 1, 512, 512, k_is_v=True)
    shared = read("gemma4", tensors, block_count=6, attention__shared_kv_layers=3,
                  attention__sliding_window=1024,
                  attention__sliding_window_pattern=pattern)  # fmt: skip
    assert kinds(shared) == "ssgsss"
    assert [layer.source for layer in shared.layers[3:]] == [1, 1, 2]


def test_gpt_oss_has_sinks() -> None:
    tensors = [tensor(f"blk.{i}.attn_sinks.weight", (8,), F32) for i in range(4)]
    model = read("gpt-oss", tensors, attention__sliding_window=128)
    assert kinds(model) == "sgsg"
    assert all(layer.sinks for layer in model.layers)


def test_a_window_that_llama_cpp_ignores_is_said() -> None:
    model = read("qwen2", attention__sliding_window=4096)
    assert kinds(model) == "gggg"
    assert any("ignores" in note for note in model.notes)


GDN = {"ssm__conv_kernel": 4, "ssm__inner_size": 512, "ssm__state_size": 16,
       "ssm__group_count": 2}  # fmt: skip
STATE = State(3 * (512 + 2 * 2 * 16), 16 * 512)


def test_qwen3next() -> None:
    model = read("qwen3next", block_count=8, **GDN)
    assert kinds(model) == "rrrg" * 2
    assert model.layers[0] == Layer("recurrent", state=STATE)
    assert kinds(read("qwen3next", full_attention_interval=2, **GDN)) == "rgrg"
    listed = read("qwen3next", attention__recurrent_layers=(1, 0, 0, 1), **GDN)
    assert kinds(listed) == "rggr"


def test_falcon_h1_has_both_in_every_layer() -> None:
    model = read("falcon-h1", attention__head_count_kv=2, **GDN)
    assert model.layers == (Layer("global", 8, 2, 32, 32, state=STATE),) * 4


def test_nemotron_h_tells_three_kinds_of_layer() -> None:
    model = read("nemotron_h", attention__head_count_kv=(0, 0, 2, 0),
                 feed_forward_length=(0, 1024, 0, 1024), **GDN)  # fmt: skip
    assert [layer.kind for layer in model.layers] == ["recurrent", "none", "global", "none"]


def test_jamba_has_no_groups() -> None:
    model = read("jamba", attention__head_count_kv=(0, 0, 2, 0), **GDN)
    assert kinds(model) == "rrgr"
    assert model.layers[0].state == State(3 * 512, 16 * 512)


def test_lfm2_keeps_inputs_of_short_convolutions() -> None:
    model = read("lfm2", attention__head_count_kv=(0, 0, 2, 0), shortconv__l_cache=3)
    assert model.layers[0].state == State(256 * 2, 0)


def test_deepseek2() -> None:
    mla = {"attention__head_count_kv": 1, "attention__key_length": 576,
           "attention__value_length": 512, "attention__key_length_mla": 192,
           "attention__value_length_mla": 128, "rope__dimension_count": 64}  # fmt: skip
    model = read("deepseek2", **mla)
    assert model.layers == (Layer("latent", 8, 1, 576, 0, rope_dim=64),) * 4
    # Files of before MLA keep keys and values unpacked.
    old = read("deepseek2", attention__key_length=192, attention__value_length=128)
    assert old.layers[0] == Layer("global", 8, 8, 192, 128)


def test_prediction_blocks_are_left_out() -> None:
    tensors = [tensor(f"blk.{i}.attn_q.weight", (256, 256), Q8_0) for i in range(5)]
    model = read("glm4moe", tensors, block_count=5, nextn_predict_layers=1)
    assert len(model.layers) == 4
    assert model.weights is not None
    assert model.weights.n_params == 4 * 256 * 256
    assert any("MTP" in note for note in model.notes)


def test_weights_are_summed_over_tensors() -> None:
    shapes = {"ffn_up_exps": (256, 64, 8), "ffn_down_exps": (64, 256, 8)}
    experts = [
        tensor(f"blk.{i}.{name}.weight", shape, Q4_0)
        for i in range(4)
        for name, shape in shapes.items()
    ]
    tensors = [tensor("token_embd.weight", (256, 1000), F32),
               tensor("output.weight", (256, 1000), F32), *experts]  # fmt: skip
    model = read("qwen3moe", tensors, expert_used_count=2, expert_count=8)
    weights = model.weights
    assert weights is not None
    one = 256 * 64 * 8 * 18 // 32
    assert weights.n_bytes == 2 * 256 * 1000 * 4 + 8 * one
    assert weights.lookup_bytes == 256 * 1000 * 4
    assert weights.read_bytes == 256 * 1000 * 4 + 8 * one * 2 // 8
    assert weights.active_params == 256 * 1000 + 8 * 256 * 64 * 2
    assert dict(weights.types) == {"F32": 2 * 256 * 1000 * 4, "Q4_0": 8 * one}
    assert (model.intermediate, model.experts_used) == (2 * 64, 2)


def test_a_tied_embedding_is_read() -> None:
    weights = read("gemma", [tensor("token_embd.weight", (256, 1000), F32)]).weights
    assert weights is not None
    assert weights.read_bytes == weights.n_bytes == weights.lookup_bytes == 256 * 1000 * 4


def test_one_rule_for_each_architecture() -> None:
    tables = [set(GLOBAL), set(SLIDING), set(REFUSED)]
    for i, one in enumerate(tables):
        assert not any(one & other for other in tables[i + 1 :])
    assert not (set(RECURRENT) | set(LATENT)) & set(REFUSED)
    assert set(KNOWN) == set(GLOBAL) | set(SLIDING) | set(RECURRENT) | set(LATENT)


@pytest.mark.parametrize(
    ("arch", "keys", "said"),
    [
        ("llamma", {}, "for example llama"),
        ("mamba", {}, "no KV cache"),
        ("deepseek32", {}, "indexer"),
        ("bert", {}, "encoder"),
        ("llama", {"attention__causal": False}, "causal"),
        ("llama", {"pooling_type": 1}, "pooled"),
        ("llama", {"block_count": None}, "missing"),
        ("llama", {"block_count": 0}, "block_count"),
        ("llama", {"block_count": 1 << 30}, "block_count"),
        ("llama", {"block_count": "many"}, "block_count"),
        ("llama", {"attention__head_count": None}, "missing"),
        ("llama", {"attention__head_count": (8, 8)}, "one size for each of 4"),
        ("llama", {"attention__head_count": 0}, "key_length"),
        ("llama", {"attention__head_count_kv": (1, 1, 1, -1)}, "one size for each"),
        ("llama", {"attention__head_count_kv": 0}, "without attention heads"),
        ("llama", {"embedding_length": None}, "missing"),
        ("llama", {"context_length": 0}, "context_length"),
        ("llama", {"vocab_size": None}, "tokens"),
        ("gemma3n", {"attention__sliding_window": None}, "sliding_window"),
        ("gemma4", {"attention__sliding_window": 512}, "sliding_window_pattern"),
        ("gemma4", {"attention__sliding_window": 512, "attention__sliding_window_pattern": 6},
         "a list with an entry for each block"),
        ("gemma4", {"attention__sliding_window": 512, "attention__shared_kv_layers": 3,
                    "attention__sliding_window_pattern": (True, True, True, False)}, "up to 2"),
        ("gpt-oss", {"attention__sliding_window": 0}, "1 or more"),
        ("glm4moe", {"nextn_predict_layers": 4}, "below the 4 blocks"),
        ("qwen3next", {}, "inner_size"),
        ("qwen3next", {"full_attention_interval": 0, **GDN}, "1 or more"),
    ],
)  # fmt: skip
def test_refusals(arch: str, keys: Mapping[str, Any], said: str) -> None:
    with pytest.raises(ModelFileError) as raised:
        read(arch, **keys)
    assert said in str(raised.value)


def test_no_architecture() -> None:
    with pytest.raises(ModelFileError, match=r"general\.architecture"):
        geometry_of_headers([made({}, ())], Path("made.gguf"))


def test_no_tensors() -> None:
    with pytest.raises(ModelFileError) as raised:
        geometry_of_headers([made(header("llama").metadata, ())], Path("made.gguf"))
    assert "vocabulary" in str(raised.value)


def test_of_a_file(tiny_model: Path) -> None:
    model = geometry_of_gguf(tiny_model)
    assert model.layers == (Layer("global", 2, 1, 64, 64),) * 2
    assert model.weights is not None
    assert 0 < model.weights.n_bytes < tiny_model.stat().st_size


NAMES = (
    "block_count", "embedding_length", "context_length", "attention.head_count", "vocab_size",
    "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "attention.key_length_swa", "attention.value_length_swa", "attention.key_length_mla",
    "attention.value_length_mla", "attention.sliding_window", "attention.sliding_window_pattern",
    "attention.shared_kv_layers", "attention.recurrent_layers", "full_attention_interval",
    "ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "ssm.group_count", "kda.head_dim",
    "shortconv.l_cache", "nextn_predict_layers", "feed_forward_length", "expert_used_count",
    "rope.dimension_count", "attention.causal", "pooling_type",
)  # fmt: skip
SIZES = st.one_of(st.integers(0, 9), st.integers(-1, 1 << 40))
VALUES = st.one_of(
    SIZES, st.booleans(), st.floats(), st.text(max_size=4), st.none(),
    st.lists(SIZES, max_size=6).map(tuple), st.lists(st.booleans(), max_size=6).map(tuple),
    st.lists(st.integers(0, 3), min_size=4, max_size=4).map(tuple),
)  # fmt: skip
BLOCKS = st.one_of(st.integers(0, 6).map(lambda i: f"blk.{i}."), st.just("blk.x."), st.just(""))
TENSORS = st.builds(
    lambda block, name, shape, kind: tensor(f"{block}{name}", shape, kind),
    BLOCKS,
    st.sampled_from(("attn_v.weight", "ffn_down.weight", "ffn_down_exps.weight", "attn_sinks",
                     "token_embd.weight", "output.weight", "ffn_up_exps.bias", "blk.", "")),
    st.lists(st.integers(1, 512), min_size=1, max_size=4).map(tuple),
    st.sampled_from((F32, Q8_0, Q4_0)),
)  # fmt: skip


@settings(max_examples=400, deadline=2000)
@given(
    arch=st.sampled_from((*KNOWN, "gemma4", "qwen3next", "nemotron_h", "unknown")),
    keys=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=8),
    tensors=st.lists(TENSORS, max_size=6),
)
def test_any_metadata_is_a_geometry_or_an_error(
    arch: str, keys: dict[str, Any], tensors: list[TensorInfo]
) -> None:
    """Whatever a file says: a sound geometry or a ModelFileError, never another exception."""
    try:
        model = read(arch, tensors, **keys)
    except ModelFileError as error:
        assert len(str(error)) < 20_000
        return
    n = len(model.layers)
    assert 1 <= n <= 4096
    assert any(layer.k_width for layer in model.layers)
    assert min(model.hidden, model.vocabulary, model.context_length) >= 1
    for i, layer in enumerate(model.layers):
        assert layer.k_width >= 0
        assert layer.v_width >= 0
        assert (layer.kind == "sliding") == (layer.window is not None)
        if layer.kind == "shared":
            assert layer.source is not None
            assert 0 <= layer.source < i
        if layer.kind == "recurrent":
            assert layer.state is not None
            assert min(layer.state.conv, layer.state.recurrent) >= 0
