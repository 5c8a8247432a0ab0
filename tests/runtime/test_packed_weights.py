"""Quantized weights under a packed cache: torchao's, which run on a CPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from generate_models import folder

from nybble.cli.generate import generate
from nybble.errors import NybbleError
from nybble.models.checkpoint import resolve
from nybble.models.folder import quantization

pytest.importorskip("torchao")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with 8-bit weights, as transformers saves them."""
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import AutoModelForCausalLM, TorchAoConfig

    source = folder(template=None)
    path = tmp_path_factory.mktemp("packed") / "tiny-int8"
    int8 = TorchAoConfig(Int8WeightOnlyConfig(version=2))
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, quantization_config=int8
    )
    model.save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (source / name).is_file():
            shutil.copy(source / name, path / name)
    return path


def run(*args: object) -> str:
    result = CliRunner().invoke(
        generate, [*map(str, args), "--prompt", "hello", "--max-new-tokens", "5", "--quiet"],
        catch_exceptions=False,
    )  # fmt: skip
    assert result.exit_code == 0
    return result.output


def test_generate_takes_them_and_measure_does_not(packed: Path) -> None:
    assert quantization(json.loads((packed / "config.json").read_text())) == "torchao"
    assert run(packed, "--kv", "q8_0/q4_0", "--threads", "1")
    with pytest.raises(NybbleError, match="would hide what"):
        resolve(packed)


def test_statistics_are_not_taken_from_them(packed: Path) -> None:
    with pytest.raises(NybbleError, match="unquantized weights"):
        run(packed)


def test_what_is_unpacked_at_once_is_refused(packed: Path, tmp_path: Path) -> None:
    path = shutil.copytree(packed, tmp_path / "w4a16")
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors"}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(NybbleError, match="unpacks compressed-tensors"):
        run(path, "--kv", "q8_0/q4_0")
