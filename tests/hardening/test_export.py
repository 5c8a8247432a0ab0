"""Exported models against the torch model they were made of, in llama.cpp and in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")
pytest.importorskip("transformers")
pytest.importorskip("xllamacpp")

from gguf.quants import quantize  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402
from trained_models import (  # noqa: E402
    FAMILIES,
    HIDDEN,
    VOCAB,
    kld,
    llama_cpp_logits,
    parameters,
    stored,
    torch_logits,
    torch_model,
    values_of,
    write_base,
)
from transformers import AutoModelForCausalLM  # noqa: E402

from nybble.errors import ModelFileError, NybbleError  # noqa: E402
from nybble.hardening.export import export_gguf  # noqa: E402
from nybble.hardening.export_folder import export_folder  # noqa: E402
from nybble.models.folder import INDEX  # noqa: E402
from nybble.models.gguf_header import read_header  # noqa: E402

TOKENS = [1, *range(5, 40)]
K_PROJ, DOWN = "model.layers.1.self_attn.k_proj.weight", "model.layers.0.mlp.down_proj.weight"
K_GGUF, DOWN_GGUF = "blk.1.attn_k.weight", "blk.0.ffn_down.weight"
RECORD = {"nybble.hardened.train": "kv, 100 steps \u2713"}


def export(base: Path, tensors: dict[str, Any], kinds: Any = "keep", **record: str) -> Path:
    target = base.with_name("trained.gguf")
    export_gguf(base, target, tensors, kinds, record, lambda done: None)
    return target


def random_values(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def write_small(path: Path, tensors: dict[str, tuple[int, ...]], split: int = 1) -> Path:
    """A GGUF that holds a few tensors in F32 and calls itself F16."""
    w = gguf.GGUFWriter(path, "llama")
    w.add_block_count(1)
    w.add_head_count(1)
    w.add_file_type(1)
    w.add_uint16("split.count", split)
    for name, shape in tensors.items():
        w.add_tensor(name, random_values(*shape))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base.gguf", "llama")


class TestLogits:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_llama_cpp_computes_what_torch_does(self, tmp_path: Path, family: str) -> None:
        model = torch_model(family)
        base = write_base(tmp_path / "base.gguf", family)
        wanted = torch_logits(model, TOKENS)
        # f16 keys and values cost less than 1e-5 here, one matrix in the wrong order 0.8.
        assert kld(wanted, llama_cpp_logits(base, TOKENS)) > 1
        assert kld(wanted, llama_cpp_logits(export(base, parameters(model), "f32"), TOKENS)) < 5e-5

    def test_keys_alone_as_when_little_is_trained(self, tmp_path: Path) -> None:
        model = torch_model("gemma3")
        base = write_base(tmp_path / "base.gguf", "gemma3")
        whole = export(base, parameters(model), "f32")
        base = whole.rename(tmp_path / "whole.gguf")
        with torch.no_grad():
            for layer in model.model.layers:
                layer.self_attn.k_proj.weight.normal_(0, 0.2)
                layer.self_attn.k_norm.weight.normal_(0, 0.3)
        changed = {n: v for n, v in parameters(model).items() if ".k_" in n}
        assert len(changed) == 4
        wanted = torch_logits(model, TOKENS)
        assert kld(wanted, llama_cpp_logits(base, TOKENS)) > 1e-2
        assert kld(wanted, llama_cpp_logits(export(base, changed), TOKENS)) < 5e-5


class TestFile:
    def test_all_else_is_as_it_was(self, base: Path) -> None:
        before = stored(base)
        target = export(base, {K_PROJ: random_values(64, HIDDEN)}, "q8_0", **RECORD)
        after = stored(target)
        assert list(after) == list(before)  # the order too
        assert {n for n in before if before[n] != after[n]} == {K_GGUF}
        old, new = read_header(base), read_header(target)
        added = {**RECORD, "general.quantization_version": 2}
        assert dict(new.metadata) == {**old.metadata, **added}
        shapes = {t.name: t.shape for t in new.tensors}
        assert shapes == {t.name: t.shape for t in old.tensors}

    @pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0"])
    def test_types_asked_for(self, base: Path, kind: str) -> None:
        values = random_values(HIDDEN, 96)
        type_name, data = stored(export(base, {DOWN: values}, {DOWN: kind.lower()}))[DOWN_GGUF]
        wanted = quantize(values, gguf.GGMLQuantizationType[kind]).tobytes()
        assert (type_name, data) == (kind, wanted)

    @pytest.mark.parametrize(
        ("before", "after"),
        [("BF16", "BF16"), ("Q4_0", "Q4_0"), ("Q4_1", "Q4_1"), ("Q5_0", "Q5_0"), ("Q5_1", "Q5_1"),
         ("Q8_0", "Q8_0"), ("F16", "F16"), ("F32", "F32"), ("MXFP4", "F16")],
    )  # fmt: skip
    def test_keep(self, tmp_path: Path, before: str, after: str) -> None:
        base = write_base(tmp_path / "base.gguf", "llama", kinds={DOWN_GGUF: before})
        values = random_values(HIDDEN, 96)
        target = export(base, {DOWN: values})
        assert stored(target)[DOWN_GGUF][0] == after
        # A step of the coarsest type, q4_0, is at most an eighth of a block's largest value.
        assert np.abs(values_of(target)[DOWN_GGUF] - values).max() < np.abs(values).max() / 8

    def test_vectors_and_routers_stay_floats(self, tmp_path: Path) -> None:
        base = write_base(tmp_path / "base.gguf", "qwen3moe")
        target = export(base, parameters(torch_model("qwen3moe")), "q4_0")
        types = {name: type_name for name, (type_name, _) in stored(target).items()}
        floats = {n for n, t in types.items() if t == "F32"}
        assert floats == {n for n in types if "norm" in n or "ffn_gate_inp" in n}
        assert set(types.values()) == {"F32", "Q4_0"}

    def test_a_wider_alignment(self, tmp_path: Path) -> None:
        base = write_base(tmp_path / "base.gguf", "llama", alignment=256)
        before = stored(base)
        target = export(base, {K_PROJ: random_values(64, HIDDEN)}, "q4_0")
        assert read_header(target).alignment == 256
        assert {n for n, v in stored(target).items() if v != before[n]} == {K_GGUF}
        assert llama_cpp_logits(target, TOKENS).shape == (len(TOKENS), VOCAB)

    @pytest.mark.parametrize(
        ("was", "kind", "now"), [("F16", "q4_0", 2), ("F16", "q8_0", 7), ("F32", "keep", 0)]
    )
    def test_file_type_follows_most_weights(
        self, tmp_path: Path, was: str, kind: str, now: int
    ) -> None:
        base = write_base(tmp_path / "base.gguf", "llama", was, file_type=0 if was == "F32" else 1)
        target = export(base, parameters(torch_model("llama")), kind)
        assert read_header(target).metadata["general.file_type"] == now

    def test_embeddings_do_not_count(self, tmp_path: Path) -> None:
        tensors = {"token_embd.weight": (100, 64), "blk.0.ffn_up.weight": (8, 64)}
        base = write_small(tmp_path / "base.gguf", tensors)
        given = {"model.layers.0.mlp.up_proj.weight": random_values(8, 64)}
        target = export(base, given, "q4_0")
        assert read_header(target).metadata["general.file_type"] == 2

    def test_file_type_of_a_mixture_stays(self, tmp_path: Path) -> None:
        base = write_base(tmp_path / "base.gguf", "llama", "Q8_0", file_type=15)  # Q4_K_M
        target = export(base, {K_PROJ: random_values(64, HIDDEN)}, "f16")
        assert read_header(target).metadata["general.file_type"] == 15

    def test_progress(self, base: Path, tmp_path: Path) -> None:
        seen: list[float] = []
        export_gguf(base, tmp_path / "t.gguf", {}, "keep", {}, seen.append)
        assert seen == sorted(seen) and seen[-1] == 1.0 and len(seen) > 5
        assert stored(tmp_path / "t.gguf") == stored(base)


class TestTied:
    EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

    def test_one_matrix_for_both(self, tmp_path: Path) -> None:
        base = write_base(tmp_path / "base.gguf", "gemma3")
        values = random_values(VOCAB, HIDDEN)
        target = export(base, {self.EMBEDDING: values, self.HEAD: values.copy()})
        assert np.array_equal(values_of(target)["token_embd.weight"], values)
        with pytest.raises(NybbleError, match="two parameters"):
            export(base, {self.EMBEDDING: values, self.HEAD: values + 1})

    def test_rows_of_no_token_are_cut_off(self, tmp_path: Path) -> None:
        base = write_base(tmp_path / "base.gguf", "gemma3")
        values = random_values(VOCAB + 9, HIDDEN)
        target = export(base, {self.EMBEDDING: values}, "q8_0")
        assert np.abs(values_of(target)["token_embd.weight"] - values[:VOCAB]).max() < 0.03


class TestRefusals:
    @pytest.mark.parametrize(
        ("tensors", "kinds", "words"),
        [
            ({"model.layers.9.self_attn.k_proj.weight": (64, 64)}, "keep", "no tensor"),
            ({K_PROJ: (64, 63)}, "keep", "another shape"),
            ({K_PROJ: (63, 64)}, "keep", "another shape"),
            ({K_PROJ: (64,)}, "keep", "another shape"),
            ({K_PROJ: ()}, "keep", "another shape"),
            ({K_PROJ: (64, 64)}, "q4_k", "q8_0"),
            ({K_PROJ: (64, 64)}, {K_PROJ: ""}, "unknown type"),
        ],
    )
    def test_what_does_not_fit(self, base: Path, tensors: Any, kinds: Any, words: str) -> None:
        given = {name: random_values(*shape) for name, shape in tensors.items()}
        with pytest.raises(NybbleError, match=words):
            export(base, given, kinds)

    @pytest.mark.parametrize(
        ("value", "kind"),
        [(np.nan, "f32"), (np.inf, "f32"), (-np.inf, "q4_0"), (np.nan, "q8_0"), (70_000.0, "f16")],
    )
    def test_values_that_cannot_be_stored(self, base: Path, value: float, kind: str) -> None:
        values = random_values(64, HIDDEN)
        values[50, 3] = value
        with pytest.raises(NybbleError, match=K_PROJ.replace(".", r"\.")):
            export(base, {K_PROJ: values}, kind)

    def test_rows_that_are_no_blocks(self, tmp_path: Path) -> None:
        path = write_small(tmp_path / "odd.gguf", {"blk.0.ffn_up.weight": (8, 40)})
        given = {"model.layers.0.mlp.up_proj.weight": random_values(8, 40)}
        with pytest.raises(NybbleError, match="multiples of 32"):
            export(path, given, "q4_0")
        assert stored(export(path, given, "f16"))["blk.0.ffn_up.weight"][0] == "F16"

    def test_a_key_that_is_there(self, base: Path) -> None:
        with pytest.raises(NybbleError, match=r"general\.name"):
            export(base, {}, "keep", **{"general.name": "mine"})

    def test_records_of_two_hardenings(self, base: Path) -> None:
        """Under keys of its own the second stands beside the first; under the same it does not."""
        first = {"nybble.hardened": "fold", "nybble.hardened.tokens": "2048"}
        second = {"nybble.hardened.2": "train", "nybble.hardened.2.tokens": "9"}
        folded = export(base, {}, "keep", **first).rename(base.with_name("folded.gguf"))
        values = {K_PROJ: random_values(64, HIDDEN)}
        target = export(folded, values, "keep", **second)
        before = read_header(folded).metadata
        assert read_header(target).metadata == {**before, **second}
        assert {k: v for k, v in before.items() if k in first} == first
        assert llama_cpp_logits(target, TOKENS).shape == (len(TOKENS), VOCAB)
        with pytest.raises(NybbleError, match=r"folded.gguf: nybble\.hardened\.tokens"):
            export(folded, values, "keep", **{"nybble.hardened.tokens": "1"})

    def test_a_split_file(self, tmp_path: Path) -> None:
        path = write_small(tmp_path / "part.gguf", {}, split=2)
        with pytest.raises(NybbleError, match="llama-gguf-split --merge"):
            export(path, {})

    def test_a_damaged_base(self, base: Path, tmp_path: Path) -> None:
        cut = tmp_path / "cut.gguf"
        cut.write_bytes(base.read_bytes()[:-5000])
        with pytest.raises(ModelFileError, match="cut short"):
            export(cut, {})

    def test_a_target_that_cannot_be_written(self, base: Path, tmp_path: Path) -> None:
        with pytest.raises(NybbleError, match="cannot write"):
            export_gguf(base, tmp_path / "none" / "t.gguf", {}, "keep", {}, lambda done: None)


class TestFolder:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        """A llama in bf16, in several shards."""
        folder = tmp_path / "source"
        torch_model("llama").to(torch.bfloat16).save_pretrained(folder, max_shard_size="60KB")
        assert len(list(folder.glob("*.safetensors"))) > 3
        (folder / "tokenizer.json").write_text("{}")
        (folder / "pytorch_model.bin").write_bytes(b"old weights")
        (folder / "consolidated.safetensors").write_bytes(b"old weights")
        (folder / "original").mkdir()
        return folder

    def export(
        self, source: Path, tensors: dict[str, Any], dtype: str = "keep",
        record: dict[str, str] = RECORD,
    ) -> Path:  # fmt: skip
        target = source.with_name("target")
        seen: list[float] = []
        export_folder(source, target, tensors, dtype, record, seen.append)
        assert seen == sorted(seen) and seen[-1] == 1.0
        return target

    @pytest.mark.parametrize("dtype", ["keep", "f32", "f16", "bf16"])
    def test_transformers_reads_what_was_trained(self, source: Path, dtype: str) -> None:
        values = random_values(64, HIDDEN)
        target = self.export(source, {K_PROJ: values}, dtype)
        before = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).state_dict()
        after = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).state_dict()
        assert {n for n in before if not torch.equal(before[n], after[n])} == {K_PROJ}
        wanted = {"f32": torch.float32, "f16": torch.float16}.get(dtype, torch.bfloat16)
        assert torch.equal(after[K_PROJ], torch.from_numpy(values).to(wanted).float())

    def test_the_files(self, source: Path) -> None:
        target = self.export(source, {K_PROJ: random_values(64, HIDDEN)}, "f32")
        index = json.loads((source / INDEX).read_text())
        touched = index["weight_map"][K_PROJ]
        left_out = {"pytorch_model.bin", "consolidated.safetensors", "original"}
        assert {p.name for p in target.iterdir()} == {p.name for p in source.iterdir()} - left_out
        for path in source.iterdir():
            if path.name not in {*left_out, touched, INDEX}:
                assert (target / path.name).read_bytes() == path.read_bytes(), path.name
        with safe_open(target / touched, "pt") as file:
            assert file.metadata() == {"format": "pt", **RECORD}
        # 64 x 64 numbers take two bytes more each.
        index["metadata"]["total_size"] += 2 * 64 * HIDDEN
        assert json.loads((target / INDEX).read_text()) == index

    def test_names_under_another_prefix_and_experts_one_by_one(self, tmp_path: Path) -> None:
        source = tmp_path / "source"
        source.mkdir()
        (source / "config.json").write_text("{}")
        start = "language_model.model.layers.0."
        tower = "vision_tower.layers.0.self_attn.k_proj.weight"
        shapes = {start + "self_attn.k_proj.weight": (4, 2), tower: (4, 2)}
        for e in range(2):
            for m, shape in (("gate", (3, 2)), ("up", (3, 2)), ("down", (2, 3))):
                shapes[f"{start}mlp.experts.{e}.{m}_proj.weight"] = shape
        old = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        save_file(old, source / "model.safetensors")
        start = "model.language_model.layers.0."
        k, gate_up, down = random_values(4, 2), random_values(2, 6, 2), random_values(2, 2, 3)
        target = self.export(
            source,
            {start + "self_attn.k_proj.weight": k, start + "mlp.experts.gate_up_proj": gate_up,
             start + "mlp.experts.down_proj": down},
        )  # fmt: skip
        with safe_open(target / "model.safetensors", "numpy") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}
        start = "language_model.model.layers.0."
        assert np.array_equal(found[start + "self_attn.k_proj.weight"], k)
        assert not found[tower].any()
        for e in range(2):
            expert = f"{start}mlp.experts.{e}."
            assert np.array_equal(found[expert + "gate_proj.weight"], gate_up[e, :3])
            assert np.array_equal(found[expert + "up_proj.weight"], gate_up[e, 3:])
            assert np.array_equal(found[expert + "down_proj.weight"], down[e])

    @pytest.mark.parametrize(
        ("name", "shape", "dtype", "words"),
        [
            ("model.layers.7.mlp.up_proj.weight", (96, 64), "keep", "no tensor"),
            ("model.layers.0.mlp.experts.gate_up_proj", (4, 6, 2), "keep", "no tensor"),
            (K_PROJ, (64, 65), "keep", "another shape"),
            (K_PROJ, (64, 64), "q4_0", "unknown type"),
        ],
    )
    def test_what_does_not_fit(
        self, source: Path, name: str, shape: tuple[int, ...], dtype: str, words: str
    ) -> None:
        with pytest.raises(NybbleError, match=words):
            self.export(source, {name: random_values(*shape)}, dtype)

    @pytest.mark.parametrize(("value", "dtype"), [(np.nan, "f32"), (np.inf, "bf16"), (7e4, "f16")])
    def test_values_that_cannot_be_stored(self, source: Path, value: float, dtype: str) -> None:
        values = random_values(64, HIDDEN)
        values[1, 1] = value
        with pytest.raises(NybbleError, match=K_PROJ.replace(".", r"\.")):
            self.export(source, {K_PROJ: values}, dtype)

    def test_a_second_time(self, source: Path) -> None:
        target = self.export(source, {K_PROJ: random_values(64, HIDDEN)})
        again = target.rename(target.with_name("again"))
        # Also where the tensors that change now are in another shard than those of the first time.
        for name, shape in ((K_PROJ, (64, HIDDEN)), ("lm_head.weight", (VOCAB, HIDDEN))):
            with pytest.raises(NybbleError, match=r"nybble\.hardened\.train"):
                self.export(again, {name: random_values(*shape)})

    def test_records_of_two_hardenings(self, source: Path) -> None:
        first = self.export(source, {K_PROJ: random_values(64, HIDDEN)})
        folded = first.rename(source.with_name("folded"))
        second = {"nybble.hardened.2": "train"}
        head = "lm_head.weight"
        values = {K_PROJ: random_values(64, HIDDEN), head: random_values(VOCAB, HIDDEN)}
        target = self.export(folded, values, record=second)
        index = json.loads((target / INDEX).read_text())["weight_map"]
        assert index[K_PROJ] != index[head]
        for name, wanted in ((K_PROJ, {**RECORD, **second}), (head, second)):
            with safe_open(target / index[name], "pt") as file:
                assert file.metadata() == {"format": "pt", **wanted}

    def test_a_damaged_shard(self, source: Path) -> None:
        path = sorted(source.glob("model-*.safetensors"))[0]
        path.write_bytes(path.read_bytes()[:-3])
        with pytest.raises(ModelFileError, match="ends after the end"):
            self.export(source, {})
