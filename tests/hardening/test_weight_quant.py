"""Weights that are trained as quantized ones against what llama.cpp and gguf-py store."""

from __future__ import annotations

import importlib.util
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

torch = pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")
pytest.importorskip("transformers")
pytest.importorskip("torchao")

from cffi import FFI  # noqa: E402
from gguf.quants import dequantize, quantize  # noqa: E402
from trained_models import (  # noqa: E402
    HIDDEN,
    parameters,
    torch_logits,
    torch_model,
    values_of,
    write_base,
)
from transformers import AutoModelForCausalLM, Gemma3Config  # noqa: E402

from nybble.engines.llamacpp.ffi import _shared_object  # noqa: E402
from nybble.engines.transformers.model import FloatHead  # noqa: E402
from nybble.errors import MissingExtraError, NybbleError  # noqa: E402
from nybble.hardening.export import export_gguf  # noqa: E402
from nybble.hardening.names import Names  # noqa: E402
from nybble.hardening.train import weights  # noqa: E402
from nybble.hardening.train.weights import (  # noqa: E402
    StoredWeights,
    fake_quantize_weights,
    off_boundaries,
    real_weights,
)
from nybble.models.gguf_header import read_header  # noqa: E402

KINDS = ("q4_0", "q8_0")
TOKENS = list(range(5, 30))
each_kind = pytest.mark.parametrize("kind", KINDS)


def type_of(kind: str) -> Any:
    return gguf.GGMLQuantizationType[kind.upper()]


def as_stored(values: np.ndarray, kind: str) -> np.ndarray:
    """What gguf-py writes and reads back."""
    with np.errstate(all="ignore"):
        return dequantize(quantize(values, type_of(kind)), type_of(kind))


def fake(values: np.ndarray, kind: str) -> np.ndarray:
    with torch.inference_mode():
        return StoredWeights(kind)(torch.from_numpy(values)).numpy()


def matrices(family: str) -> list[str]:
    layers = [f"model.layers.{i}." for i in range(2)]
    inside = [f"self_attn.{m}_proj.weight" for m in "qkvo"]
    inside += [f"mlp.{m}_proj.weight" for m in ("gate", "up", "down")]
    return [layer + name for layer in layers for name in inside]


rng = np.random.default_rng(5)
EDGES = {
    "plain": rng.normal(size=(7, 96)),
    "zeros": np.zeros((2, 64)),
    "both extremes": np.tile([1.0, -1.0], (3, 32)),
    "halves of a step": np.tile(np.arange(-16, 16) / 16, (2, 2)),
    "tiny": rng.normal(size=(4, 64)) * 1e-7,
    "large": rng.normal(size=(4, 64)) * 1e4,
    "one alone": np.eye(32)[:3],
}


class TestCodec:
    @each_kind
    @pytest.mark.parametrize("values", EDGES.values(), ids=EDGES)
    def test_edges(self, values: np.ndarray, kind: str) -> None:
        values = values.astype(np.float32)
        assert np.array_equal(fake(values, kind), as_stored(values, kind))

    @each_kind
    @given(
        values=arrays(
            np.float32,
            st.tuples(st.integers(1, 3), st.sampled_from([32, 96])),
            elements=st.floats(-100, 100, width=32),
        )
    )
    @settings(max_examples=60, deadline=None)
    def test_any_values(self, kind: str, values: np.ndarray) -> None:
        assert np.array_equal(fake(values, kind), as_stored(values, kind))

    @pytest.mark.skipif(
        platform.machine().lower() not in ("x86_64", "amd64"), reason="fused multiply-adds differ"
    )
    @pytest.mark.parametrize("kind", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"])
    def test_gguf_py_writes_what_llama_quantize_does(self, kind: str) -> None:
        ffi: Any = FFI()
        ffi.cdef("""size_t ggml_quantize_chunk(int type, const float *from, void *to,
            int64_t start, int64_t rows, int64_t n_per_row, const float *imatrix);""")
        lib = ffi.dlopen(str(_shared_object()))
        values = np.random.default_rng(8).normal(size=(500, 128)).astype(np.float32)
        wanted = quantize(values, type_of(kind))
        made = np.empty_like(wanted)
        n = lib.ggml_quantize_chunk(
            int(type_of(kind)), ffi.from_buffer("float[]", values), ffi.from_buffer(made),
            0, *values.shape, ffi.NULL,
        )  # fmt: skip
        assert n == wanted.nbytes
        assert np.array_equal(made, wanted)

    def test_torchaos_own_grid_is_another(self) -> None:
        from torchao.quantization.qat import IntxFakeQuantizeConfig, IntxFakeQuantizer

        values = EDGES["plain"].astype(np.float32)
        config = IntxFakeQuantizeConfig(torch.int4, group_size=32, is_symmetric=True)
        theirs = IntxFakeQuantizer(config)(torch.from_numpy(values)).numpy()
        assert (theirs != as_stored(values, "q4_0")).mean() > 0.5

    @each_kind
    def test_bf16_weights_are_stored_from_their_values(self, kind: str) -> None:
        values = torch.from_numpy(EDGES["plain"]).to(torch.bfloat16)
        made = StoredWeights(kind)(values)
        assert made.dtype == torch.bfloat16
        wanted = torch.from_numpy(as_stored(values.float().numpy(), kind)).to(torch.bfloat16)
        assert torch.equal(made, wanted)

    def test_under_autocast(self) -> None:
        values = EDGES["plain"].astype(np.float32)
        with torch.autocast("cpu", torch.bfloat16):
            made = fake(values, "q4_0")
        assert np.array_equal(made, as_stored(values, "q4_0"))


class TestGradient:
    def gradient(self, values: np.ndarray, given: np.ndarray, kind: str) -> np.ndarray:
        weight = torch.tensor(values, requires_grad=True)
        StoredWeights(kind)(weight).backward(torch.from_numpy(given))
        assert weight.grad is not None
        return weight.grad.numpy()

    @each_kind
    def test_straight_through_but_for_the_largest(self, kind: str) -> None:
        values, given = (rng.normal(size=(5, 64)).astype(np.float32) for _ in range(2))
        made = self.gradient(values, given, kind).reshape(-1, 32)
        blocks, given = values.reshape(-1, 32), given.reshape(-1, 32)
        largest = np.abs(blocks).argmax(-1)
        others = np.arange(32) != largest[:, None]
        assert np.array_equal(made[others], given[others])
        # The largest value m sets the scale: every stored value x^ moves by (x^ - x) / m with it.
        stored = as_stored(blocks, kind)
        rows = np.arange(len(blocks))
        of_scale = (given * (stored - blocks)).sum(-1) / blocks[rows, largest]
        np.testing.assert_allclose(
            made[rows, largest], given[rows, largest] + of_scale, rtol=1e-4, atol=1e-6
        )

    @each_kind
    def test_a_block_made_larger(self, kind: str) -> None:
        # Twice the block stores twice the values, exactly. So along x the derivative of g . x^ is
        # g . x^ itself: sum_i x_i grad_i = sum_i g_i x^_i, which a plain pass-through misses.
        values, given = (rng.normal(size=(1, 32)).astype(np.float32) for _ in range(2))
        stored = fake(values, kind)
        assert np.array_equal(fake(2 * values, kind), 2 * stored)
        made = float((values * self.gradient(values, given, kind)).sum())
        assert made == pytest.approx(float((given * stored).sum()), rel=1e-5)
        assert abs(float((values * given).sum()) - float((given * stored).sum())) > 1e-3

    @each_kind
    def test_of_zeros(self, kind: str) -> None:
        given = rng.normal(size=(2, 32)).astype(np.float32)
        assert np.array_equal(self.gradient(np.zeros((2, 32), np.float32), given, kind), given)

    def test_switched_off(self) -> None:
        quantizer = StoredWeights("q4_0")
        quantizer.enabled = False
        weight = torch.randn(2, 32)
        assert quantizer(weight) is weight


class TestBoundaries:
    """Weights of a file that was quantized to finer steps before."""

    def test_half_of_a_q5_0_file_lies_between_two_values_of_q4_0(self) -> None:
        rng = np.random.default_rng(0)
        given = dequantize(quantize(rng.normal(size=(64, 256)).astype(np.float32), type_of("q5_0")),
                           type_of("q5_0"))  # fmt: skip
        weight = torch.from_numpy(given.copy())
        step = np.abs(given.reshape(-1, 32)).max(-1, keepdims=True) / 8
        places = given.reshape(-1, 32) / step
        on = np.abs(places % 1 - 0.5) < 1e-3
        assert 0.4 < on.mean() < 0.6

        off_boundaries(weight, "q4_0")
        moved = weight.numpy().reshape(-1, 32)
        on &= np.abs(places) < 7.4  # beyond, one side is cut off
        changed = moved != given.reshape(-1, 32)
        assert not changed[(np.abs(places) < 7.4) & ~on].any() and changed[on].mean() > 0.999
        assert np.abs(moved - given.reshape(-1, 32)).max() <= (step / 4).max() * 1.001
        # They fall to both sides, and what is stored does not hang on the last bit any more.
        up = fake(weight.numpy(), "q4_0").reshape(-1, 32) > given.reshape(-1, 32)
        assert 0.45 < up[on].mean() < 0.55
        least = 2e-5 * step * np.sign(rng.normal(size=moved.shape)) * (np.abs(places) < 7.9)
        same = fake((moved + least).reshape(64, 256), "q4_0") == fake(weight.numpy(), "q4_0")
        assert same.mean() > 0.999

        again = torch.from_numpy(given.copy())
        off_boundaries(again, "q4_0")
        assert torch.equal(weight, again)

    @each_kind
    def test_other_weights_stay(self, kind: str) -> None:
        given = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
        weight = given.clone()
        off_boundaries(weight, kind)
        assert (weight != given).float().mean() < 0.01
        for empty in (torch.zeros(4, 32), torch.ones(4, 32)):
            weight = empty.clone()
            off_boundaries(weight, kind)
            assert torch.equal(weight, empty)


class TestModel:
    @each_kind
    @pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3"])
    def test_it_computes_with_what_will_be_stored(self, family: str, kind: str) -> None:
        model, wanted = torch_model(family), torch_model(family)
        before = parameters(model)
        assert fake_quantize_weights(model, kind) == matrices(family)
        assert list(parameters(model)) == list(before)  # names and order: optimizers keep them
        with torch.no_grad():
            for name, values in wanted.named_parameters():
                if name in matrices(family):
                    values.copy_(torch.from_numpy(as_stored(values.numpy(), kind)))
        made = torch_logits(model, TOKENS)
        assert np.array_equal(made, torch_logits(wanted, TOKENS))
        assert not np.array_equal(made, torch_logits(torch_model(family), TOKENS))
        for name, values in real_weights(model).items():
            assert np.array_equal(values.numpy(), before[name])

    @pytest.mark.parametrize("family", ["llama", "gemma3"])
    def test_a_trained_file_holds_the_values_of_training(self, tmp_path: Path, family: str) -> None:
        model = torch_model(family)
        changed = fake_quantize_weights(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        start = parameters(model)
        for _ in range(3):
            logits = model(input_ids=torch.tensor([TOKENS])).logits
            logits.logsumexp(-1).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        trained = parameters(model)
        assert all(not np.array_equal(start[name], trained[name]) for name in start)
        base, target = write_base(tmp_path / "b.gguf", family), tmp_path / "t.gguf"
        kinds = {name: "q4_0" if name in changed else "f32" for name in trained}
        export_gguf(base, target, trained, kinds, {}, lambda done: None)
        names, read = Names(read_header(target)), values_of(target)
        modules = dict(model.named_modules())
        for name in changed:
            layer = modules[name.removesuffix(".weight")]
            with torch.inference_mode():
                used = layer.weight_fake_quantizer(layer.weight).numpy()
            assert np.array_equal(names.load(name, read.__getitem__), used)

    def test_with_a_tied_head(self) -> None:
        model = torch_model("gemma3")
        model.set_output_embeddings(FloatHead(model.get_output_embeddings()))
        wanted = torch_model("gemma3")
        names = fake_quantize_weights(model, head=True)
        assert set(names) == {"model.embed_tokens.weight", *matrices("gemma3")}
        embedding = real_weights(model)["model.embed_tokens.weight"]
        assert embedding.data_ptr() == model.lm_head.parametrizations.weight.original.data_ptr()
        with torch.no_grad():
            for name, values in wanted.named_parameters():
                if name in names:
                    values.copy_(torch.from_numpy(as_stored(values.numpy(), "q4_0")))
        assert np.array_equal(torch_logits(model, TOKENS), torch_logits(wanted, TOKENS))
        model(input_ids=torch.tensor([TOKENS])).logits.square().mean().backward()
        assert all(p.grad is not None and p.grad.any() for p in model.parameters())

    def test_a_head_of_its_own(self) -> None:
        names = fake_quantize_weights(torch_model("llama"), head=True)
        assert set(names) == {"model.embed_tokens.weight", "lm_head.weight", *matrices("llama")}

    def test_only_the_part_that_reads_text(self) -> None:
        text = dict(num_hidden_layers=2, hidden_size=HIDDEN, num_attention_heads=2,
                    num_key_value_heads=1, head_dim=32, intermediate_size=64, vocab_size=300,
                    layer_types=["sliding_attention", "full_attention"])  # fmt: skip
        vision = dict(num_hidden_layers=2, hidden_size=32, intermediate_size=32,
                      num_attention_heads=1, image_size=28, patch_size=14)  # fmt: skip
        config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        before = list(dict(model.named_parameters()))
        assert any("vision_tower" in name and "q_proj" in name for name in before)
        names = fake_quantize_weights(model)
        assert len(names) == 14 and all(n.startswith("model.language_model.") for n in names)
        assert list(dict(model.named_parameters())) == before


class TestRefusals:
    @pytest.mark.parametrize("kind", ["q4_1", "f16", "", "nyb4"])
    def test_other_types(self, kind: str) -> None:
        with pytest.raises(NybbleError, match="q4_0, q8_0"):
            fake_quantize_weights(torch_model("llama"), kind)

    def test_experts(self) -> None:
        with pytest.raises(NybbleError, match="experts"):
            fake_quantize_weights(torch_model("qwen3moe"))

    def test_rows_that_are_no_blocks(self) -> None:
        model = torch_model("llama", intermediate_size=40)
        with pytest.raises(NybbleError, match="mlp.down_proj: 40 inputs"):
            fake_quantize_weights(model)
        assert not real_weights(model)  # nothing was changed on the way

    def test_a_layer_with_more_in_it(self) -> None:
        class Adapted(torch.nn.Linear):
            pass

        model = torch_model("llama")
        model.model.layers[1].mlp.up_proj = Adapted(HIDDEN, 96, bias=False)
        with pytest.raises(NybbleError, match=r"layers.1.mlp.up_proj: Adapted"):
            fake_quantize_weights(model)

    def test_no_such_layers(self) -> None:
        with pytest.raises(NybbleError, match="no attention and MLP"):
            fake_quantize_weights(torch.nn.Sequential(torch.nn.Linear(32, 32)))

    def test_without_torchao(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torchao.quantization.qat", None)
        spec = importlib.util.spec_from_file_location("weights_again", weights.__file__)
        assert spec and spec.loader
        with pytest.raises(MissingExtraError, match=r"\[train\]"):
            spec.loader.exec_module(importlib.util.module_from_spec(spec))
