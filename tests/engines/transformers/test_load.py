"""Model folders loaded into torch, and their tokenizers, on tiny random models."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from nybble.engines.transformers import packages  # noqa: E402
from nybble.engines.transformers.load import load, read_config  # noqa: E402
from nybble.engines.transformers.tokenizer import Tokenizer, tokenizer  # noqa: E402
from nybble.engines.vocabulary import Vocabulary  # noqa: E402
from nybble.errors import EngineError, MissingExtraError, NybbleError  # noqa: E402
from nybble.models.checkpoint import resolve  # noqa: E402

WORDS = ["<unk>", "<s>", "</s>", "<user>", "[keep]", "the", "cat", "<", "s", ">", "/", "user"]
SIZES: dict[str, Any] = dict(
    vocab_size=len(WORDS), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, head_dim=32, max_position_embeddings=512,
)  # fmt: skip
KINDS = {
    "llama": (transformers.LlamaConfig, {"tie_word_embeddings": False}),
    "tied": (transformers.LlamaConfig, {"tie_word_embeddings": True}),
    "gemma3": (transformers.Gemma3TextConfig, {"sliding_window": 16}),
    "gemma2": (transformers.Gemma2Config, {}),
}


def write_tokenizer(folder: Path, *, adds_bos: bool = True, **settings: Any) -> None:
    """Words and single signs; <s>, </s> and <user> are control tokens, [keep] is only added."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    made.add_special_tokens([AddedToken(w, special=True) for w in ("<s>", "</s>", "<user>")])
    made.add_tokens([AddedToken("[keep]", special=False)])
    if adds_bos:
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    made.enable_truncation(4)
    made.enable_padding(length=6)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for name, (config, changed) in KINDS.items():
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp("models") / name
        model = transformers.AutoModelForCausalLM.from_config(config(**{**SIZES, **changed}))
        model.save_pretrained(folder)
        write_tokenizer(folder, bos_token="<s>", eos_token={"content": "</s>"})
        folders[name] = folder
    return folders


@pytest.fixture
def folder(saved: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved["llama"], tmp_path / "model"))


def configure(folder: Path, name: str = "config.json", **changed: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def drop(folder: Path, *names: str, reshape: bool = False) -> None:
    """Take tensors out of the weights, or give them another shape."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in names:
        found = tensors.pop(name)
        if reshape:
            tensors[name] = found[:-1].clone()
    save_file(tensors, path, {"format": "pt"})


def refused(folder: Path, cache: Path, *words: str) -> EngineError:
    with pytest.raises(EngineError) as info:
        load(resolve(folder), cache, torch.float32, "cpu")
    for word in words:
        assert word in str(info.value)
    assert info.value.hint
    return info.value


class TestLoad:
    @pytest.mark.parametrize("kind", KINDS)
    def test_ready_to_score(self, saved: dict[str, Path], tmp_path: Path, kind: str) -> None:
        events: list[dict[str, Any]] = []
        model = load(resolve(saved[kind]), tmp_path, torch.float32, "cpu",
                     on_event=lambda **e: events.append(e))  # fmt: skip
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert model.config._attn_implementation == ("eager" if kind == "gemma2" else "sdpa")
        out = model(torch.tensor([[1, 5, 6]])).logits
        assert out.shape == (1, 3, len(WORDS)) and not out.requires_grad
        assert events == [{"step": "load", "path": str(saved[kind])}]
        tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        assert tied == (kind != "llama")

    def test_dtype_and_attention(self, saved: dict[str, Path], tmp_path: Path) -> None:
        model = load(resolve(saved["llama"]), tmp_path, torch.bfloat16, "cpu", "eager")
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert model.config._attn_implementation == "eager"

    def test_parts(self, saved: dict[str, Path], tmp_path: Path) -> None:
        whole = load(resolve(saved["llama"]), tmp_path, torch.float32, "cpu")
        folder = tmp_path / "parts"
        whole.save_pretrained(folder, max_shard_size="50KB")
        shutil.copy(saved["llama"] / "tokenizer.json", folder)
        found = resolve(folder)
        assert len(found.files) > 1
        parts = load(found, tmp_path, torch.float32, "cpu")
        ids = torch.tensor([[1, 5, 6, 7]])
        assert torch.equal(whole(ids).logits, parts(ids).logits)

    def test_silent(
        self, saved: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        load(resolve(saved["gemma3"]), tmp_path, torch.float32, "cpu")
        assert capfd.readouterr() == ("", "")

    def test_class_defaults(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        del config["max_position_embeddings"]
        (folder / "config.json").write_text(json.dumps(config))
        found = resolve(folder)
        assert found.context_length is None
        assert read_config(found, folder).max_position_embeddings == 2048  # LlamaConfig's

    def test_no_network_and_no_code(self, folder: Path, tmp_path: Path) -> None:
        # A model's own generate() lies in this file; transformers must not run it.
        (folder / "custom_generate").mkdir()
        (folder / "custom_generate" / "generate.py").write_text("raise SystemExit('ran')")
        configure(folder, "generation_config.json", cache_implementation="quantized")
        assert load(resolve(folder), tmp_path, torch.float32, "cpu")
        import huggingface_hub

        assert huggingface_hub.is_offline_mode()
        assert os.environ["HF_HUB_OFFLINE"] == os.environ["TRANSFORMERS_OFFLINE"] == "1"


class TestRefused:
    def test_missing_weights(self, folder: Path, tmp_path: Path) -> None:
        drop(folder, "model.layers.1.self_attn.v_proj.weight", "lm_head.weight")
        refused(folder, tmp_path, "2 missing, such as", "lm_head.weight")

    def test_misshapen_weights(self, folder: Path, tmp_path: Path) -> None:
        drop(folder, "model.layers.1.mlp.up_proj.weight", reshape=True)
        refused(folder, tmp_path, "1 misshapen", "model.layers.1.mlp.up_proj.weight")

    def test_another_config(self, folder: Path, tmp_path: Path) -> None:
        configure(folder, num_hidden_layers=3)
        refused(folder, tmp_path, "missing", "model.layers.2")

    def test_unknown_model_type(self, folder: Path, tmp_path: Path) -> None:
        configure(folder, model_type="lama")
        refused(folder, tmp_path, "does not know this kind of model", "'lama'", "llama")

    def test_not_causal(self, folder: Path, tmp_path: Path) -> None:
        configure(folder, model_type="clip", architectures=["CLIPModel"])
        refused(folder, tmp_path, "no causal language model", "'clip'")

    @pytest.mark.parametrize(
        "changed",
        [
            {"hidden_size": "many"},
            {"num_attention_heads": 0},
            {"vocab_size": -5},
            {"rope_parameters": {"rope_type": "\x1b[31m"}},
            {"hidden_act": "nonsense"},
            {"hidden_size": None},
        ],
    )
    def test_hostile_values(self, folder: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
        configure(folder, **changed)
        text = str(refused(folder, tmp_path))
        assert "\x1b" not in text and len(text.splitlines()) <= 4

    def test_damaged_generation_config(self, folder: Path, tmp_path: Path) -> None:
        (folder / "generation_config.json").write_text("{")
        try:
            load(resolve(folder), tmp_path, torch.float32, "cpu")
        except NybbleError as e:
            assert e.hint

    def test_no_such_device(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(EngineError, match="cannot load this model"):
            load(resolve(folder), tmp_path, torch.float32, "cuda:99")


class TestMissingPackages:
    @pytest.mark.parametrize("name", ["torch", "transformers", "tokenizers"])
    def test_named(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        find = importlib.util.find_spec
        monkeypatch.setattr(packages.importlib.util, "find_spec",
                            lambda n: None if n == name else find(n))  # fmt: skip
        for call in (lambda: load(resolve(folder), tmp_path, torch.float32, "cpu"),
                     lambda: tokenizer(resolve(folder))):  # fmt: skip
            with pytest.raises(MissingExtraError, match=f"missing: {name}") as info:
                call()
            assert info.value.hint == 'pip install -c constraints.txt -e ".[transformers]"'

    def test_modules_load_without_them(self) -> None:
        code = (
            "import sys\nfor n in ('torch', 'transformers', 'tokenizers', 'safetensors', 'gguf'):\n"
            "    sys.modules[n] = None\n"
            "import nybble.engines.transformers.load, nybble.engines.transformers.tokenizer\n"
            "import nybble.engines.transformers.gguf_copy\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class TestTokenizer:
    @pytest.fixture
    def made(self, folder: Path) -> Tokenizer:
        return tokenizer(resolve(folder))

    def ids(self, made: Tokenizer, text: str, *, special: bool) -> list[str]:
        found = made.tokenize(text, special=special)
        assert found.dtype == np.int32
        return [WORDS[i] for i in found]

    def test_vocabulary(self, made: Tokenizer) -> None:
        assert made.vocabulary == Vocabulary(len(WORDS), 1, 2, True, "<s>", "</s>")
        assert made.context_length == 512

    def test_control_tokens_in_text(self, made: Tokenizer) -> None:
        text = "the <s> cat [keep] </s>"
        assert self.ids(made, text, special=True) == ["the", "<s>", "cat", "[keep]", "</s>"]
        plain = ["the", "<", "s", ">", "cat", "[keep]", "<", "/", "s", ">"]
        assert self.ids(made, text, special=False) == plain
        assert self.ids(made, text, special=True)[1] == "<s>"  # nothing is remembered

    def test_no_bos_no_cut_no_padding(self, made: Tokenizer) -> None:
        assert self.ids(made, "cat " * 20, special=True) == ["cat"] * 20
        assert self.ids(made, "", special=False) == []
        assert self.ids(made, "cat \0 \ufffd", special=False) == ["cat", "<unk>", "<unk>"]

    @pytest.mark.parametrize(
        ("adds_bos", "settings", "expected"),
        [
            (True, {"bos_token": "<s>"}, (1, True, "<s>")),
            (False, {"bos_token": "<s>"}, (1, False, "<s>")),
            (False, {"bos_token": "<s>", "add_bos_token": True}, (1, True, "<s>")),
            (True, {"bos_token": "<s>", "add_bos_token": False}, (1, False, "<s>")),
            (False, {"bos_token": None, "add_bos_token": True}, (-1, False, "")),
            (False, {"bos_token": "gone"}, (-1, False, "")),
            (True, {"add_bos_token": "yes"}, (1, True, "<s>")),  # the id is config.json's
            (False, {"bos_token": {"content": ["<s>"]}}, (-1, False, "")),
        ],
    )
    def test_bos(self, folder: Path, adds_bos: bool, settings: dict[str, Any],
                 expected: tuple[int, bool, str]) -> None:  # fmt: skip
        write_tokenizer(folder, adds_bos=adds_bos, **settings)
        found = tokenizer(resolve(folder)).vocabulary
        assert (found.bos, found.add_bos, found.bos_text) == expected

    def test_several_ends(self, folder: Path) -> None:
        write_tokenizer(folder)
        configure(folder, eos_token_id=[2, 3])
        assert tokenizer(resolve(folder)).vocabulary.eos_text == "</s>"

    def test_more_tokens_than_logits(self, folder: Path) -> None:
        configure(folder, vocab_size=7)  # [keep] is 4, < is 7
        made = tokenizer(resolve(folder))
        assert made.vocabulary.n_tokens == 7
        assert self.ids(made, "the cat", special=False) == ["the", "cat"]
        with pytest.raises(EngineError, match="a token that the model does not have") as info:
            made.tokenize("the <", special=False)
        assert "'<', id 7" in str(info.value)

    @pytest.mark.parametrize("text", [b"{}", b"", b"[1", b"\xff", b'{"model": {"type": "BPE"}}'])
    def test_damaged(self, folder: Path, text: bytes) -> None:
        (folder / "tokenizer.json").write_bytes(text)
        with pytest.raises(EngineError, match="tokenizer.json cannot be read") as info:
            tokenizer(resolve(folder))
        assert info.value.hint

    def test_text_that_is_no_text(self, made: Tokenizer) -> None:
        with pytest.raises(EngineError, match="cannot encode"):
            made.tokenize("\ud800", special=False)

    def test_gguf(self, tiny_model: Path) -> None:
        with pytest.raises(EngineError, match="come from llama.cpp"):
            tokenizer(resolve(tiny_model))
