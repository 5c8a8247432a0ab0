"""Arguments of lm-eval's model `nybble`; these need no lm-eval."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tiny_torch import config_of  # noqa: E402

from nybble.engines.transformers import lm_eval as launcher  # noqa: E402
from nybble.engines.transformers import lm_eval_arguments as arguments  # noqa: E402
from nybble.errors import MissingExtraError, NybbleError  # noqa: E402
from nybble.formats import parse  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models") / "llama"
    model = transformers.AutoModelForCausalLM.from_config(config_of("llama"))
    model.save_pretrained(made)
    (made / "tokenizer.json").write_text("{}")
    return made


@pytest.fixture
def read(folder: Path) -> Callable[..., arguments.Arguments]:
    def call(**given: Any) -> arguments.Arguments:
        own = dict(pretrained=str(folder), kv="f16/f16", calibration=None, tokenizer=None,
                   device="cpu", dtype="auto")  # fmt: skip
        options = {k: v for k, v in given.items() if k not in own}
        return arguments.read(**own | {k: v for k, v in given.items() if k in own}, options=options)

    return call


Read = Callable[..., arguments.Arguments]


class TestRead:
    def test_defaults(self, read: Read, folder: Path) -> None:
        found = read()
        assert (found.setting, found.tokenizer) == (parse("f16/f16"), folder)
        assert (found.device, found.dtype, found.calibration) == ("cpu", torch.float32, None)

    def test_given(self, read: Read, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.json").write_text("{}")
        found = read(kv="q4_0+first4", dtype="bfloat16", tokenizer=str(tmp_path), max_length=64)
        assert str(found.setting) == "q4_0/q4_0+first4"
        assert (found.dtype, found.tokenizer) == (torch.bfloat16, tmp_path)

    def test_default_device_without_gpu(self, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert [read(device=d).device for d in (None, "cuda:0", "cpu")] == ["cpu"] * 3

    def test_gpu(self, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert read(device="cuda:0").device == "cuda:0"
        assert read(device=None).dtype == torch.bfloat16

    def test_calibration_is_read_where_needed(self, read: Read) -> None:
        assert read(kv="nyb4", calibration="c.safetensors").calibration == Path("c.safetensors")
        assert read(kv="q4_0", calibration="c.safetensors").calibration is None

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"kv": "q4_1x/f16"}, ("unknown KV type", "q4_1x", "q4_1")),
            ({"kv": "q4_0+firt4"}, ("unknown part of a KV setting", "+first4")),
            ({"kv": 8}, ("unknown KV type", "8")),
            ({"kv": "q4_0+mean"}, ("needs a calibration", "q4_0/q4_0+mean", "calibration=FILE",
                                   "nybble calibrate")),
            ({"kv_type": "q4_0"}, ("unknown model argument", "kv_type=q4_0", "kv")),
            ({"trust_remote_code": True}, ("unknown model argument", "trust_remote_code=True")),
            ({"peft": "lora"}, ("unknown model argument", "pretrained, kv, calibration")),
            ({"dtype": "int8"}, ("unknown dtype", "int8", "auto, float32, bfloat16, float16")),
            ({"pretrained": ""}, ("no model is named", "pretrained=MODEL")),
            ({"pretrained": "/no/such/model"}, ("no such model", "/no/such/model")),
            ({"tokenizer": "/no/such/folder"}, ("no such tokenizer folder", "/no/such/folder")),
        ],
    )  # fmt: skip
    def test_refused(self, read: Read, given: dict[str, Any], words: tuple[str, ...]) -> None:
        with pytest.raises(NybbleError) as info:
            read(**given)
        for word in words:
            assert word in str(info.value)

    def test_several_processes(self, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(NybbleError, match="one process"):
            read()

    def test_gguf_needs_a_tokenizer(self, read: Read, tiny_model: Path, folder: Path) -> None:
        with pytest.raises(NybbleError, match="GGUF needs its model's own tokenizer") as info:
            read(pretrained=str(tiny_model))
        assert "tokenizer=FOLDER" in str(info.value)
        assert read(pretrained=str(tiny_model), tokenizer=str(folder)).tokenizer == folder

    def test_tokenizer_folder_without_one(self, read: Read, tmp_path: Path) -> None:
        with pytest.raises(NybbleError, match="no tokenizer"):
            read(tokenizer=str(tmp_path))

    def test_tokenizer_of_the_hub_cache(
        self, read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
        made = tmp_path / "models--some--words" / "snapshots" / "abc"
        made.mkdir(parents=True)
        (made / "tokenizer.json").write_text("{}")
        assert read(tokenizer="some/words").tokenizer == made
        with pytest.raises(NybbleError, match="does not download"):
            read(tokenizer="other/words")


class TestNetwork:
    @pytest.mark.parametrize("shut", [True, False])
    def test_left_as_it_was(self, monkeypatch: pytest.MonkeyPatch, shut: bool) -> None:
        import huggingface_hub

        from nybble.engines.transformers import packages

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", shut)
        monkeypatch.setenv("TRANSFORMERS_OFFLINE", "0")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        with arguments.network_shut_for_now():
            packages.transformers()
            assert huggingface_hub.is_offline_mode()
        assert huggingface_hub.is_offline_mode() is shut
        assert os.environ["TRANSFORMERS_OFFLINE"] == "0" and "HF_HUB_OFFLINE" not in os.environ


class TestMissing:
    @pytest.mark.parametrize("name", ["lm_eval", "accelerate", "torch"])
    def test_packages(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
    ) -> None:
        monkeypatch.setattr(launcher, "find_spec",
                            lambda n: None if n == name else object())  # fmt: skip
        with pytest.raises(MissingExtraError, match=f"missing: {name}") as info:
            launcher.register()
        assert info.value.hint == 'pip install -c constraints.txt -e ".[lm-eval]"'
        assert launcher.main() == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: lm-evaluation-harness is not installed")

    @pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="it is there")
    def test_module(self) -> None:
        with pytest.raises(MissingExtraError, match="lm-evaluation-harness is not installed"):
            importlib.import_module("nybble.engines.transformers.lm_eval_model")


def test_target_exists() -> None:
    """The name that lm-eval loads, read without lm-eval."""
    module, name = launcher.TARGET.split(":")
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).read_text()
    assert f'@register_model("nybble")\nclass {name}(' in source


def test_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "lm-eval.md").read_text(encoding="utf-8")
    assert [name for name in (*arguments.OWN, *arguments.PASSED) if f"`{name}`" not in page] == []
    assert launcher.INSTALL in page
