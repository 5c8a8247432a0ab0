"""The catalogue: every model resolves, and its numbers are those of the sources."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from nybble.errors import ModelFileError
from nybble.models import catalogue
from nybble.models.geometry import Geometry, Layer, Weights

FOLDER = Path(catalogue.__file__).parent
NAMES = catalogue.names()
SHAPES = runpy.run_path(str(Path(__file__).parents[1] / "planning" / "plan_shapes.py"))["BY_NAME"]


def entry(name: str) -> catalogue.Entry:
    found = catalogue.find(name)
    assert found is not None
    return found


def weights(geometry: Geometry) -> Weights:
    assert geometry.weights is not None
    return geometry.weights


@pytest.mark.parametrize("name", NAMES)
def test_every_entry(name: str) -> None:
    found = entry(name)
    assert found.id == name and found.source and "read 20" in found.source
    made = found.geometry()
    assert made.name == name and made.layers and made.context_length >= 8192
    assert any(found.source in note for note in made.notes)
    assert not any("by the defaults" in n and "head_dim" in n for n in made.notes)
    assert (weights(made).source == "published") == (found.usual is not None)
    for file in found.files:
        assert file.source and file.label == file.label.lower()
        scaled = weights(found.geometry(file.label))
        assert scaled == weights(found.geometry(file.name.upper()))
        assert scaled.source == "published" and scaled.n_bytes == file.n_bytes
        assert 4 < scaled.n_bytes * 8 / scaled.n_params < 9
        assert scaled.read_bytes <= scaled.n_bytes and scaled.lookup_bytes < scaled.n_bytes


@pytest.mark.parametrize("name", NAMES)
def test_transformers_reads_the_same_config(name: str) -> None:
    config = entry(name).read_config()
    kind = config.pop("model_type")
    config.pop("quantization_config", None)
    text = CONFIG_MAPPING[kind](**config).get_text_config(decoder=True)
    made = entry(name).geometry("safetensors")
    assert len(made.layers) == text.num_hidden_layers
    assert made.vocabulary == text.vocab_size and made.hidden == text.hidden_size
    assert made.context_length == text.max_position_embeddings


def test_names_are_unique_and_configs_are_used() -> None:
    names = [n.lower() for n in NAMES for n in (n, *entry(n).aliases)]
    assert len(names) == len(set(names))
    used = {entry(n).config for n in NAMES}
    assert used == {p.stem for p in (FOLDER / "configs").glob("*.json")}
    index = json.loads((FOLDER / "models.json").read_text())
    assert index["read"] and len(index["models"]) == len(NAMES)


@pytest.mark.parametrize(("name", "wanted"), [
    ("Gemma-4-31B-QAT", "gemma-4-31b-qat"), ("google/gemma-4-31b-it", "gemma-4-31b"),
    ("GOOGLE/GEMMA-4-E4B-IT", "gemma-4-e4b"), ("gemma-4-31B-it", "gemma-4-31b"),
    ("gemma_4_31b", "gemma-4-31b"), ("gpt-oss:20b", "gpt-oss-20b"), (" qwen3-8b ", "qwen3-8b"),
    ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
    ("google/gemma-4-31B-it-qat-q4_0-gguf", "gemma-4-31b-qat"),
])  # fmt: skip
def test_ways_to_name_a_model(name: str, wanted: str) -> None:
    assert entry(name).id == wanted


@pytest.mark.parametrize("name", ["", "gemma", "someone/gemma-4-31b-it", "gemma-4-31b/x", "x" * 99])
def test_what_is_no_name(name: str) -> None:
    assert catalogue.find(name) is None


def test_files() -> None:
    found = entry("gemma-4-31b-qat")
    usual = found.file()
    assert usual is not None and usual.name == "gemma-4-31B_q4_0-it.gguf"
    assert usual.n_bytes == 17_651_001_568
    assert found.file("safetensors") is None and entry("qwen3-8b").file() is None
    assert weights(found.geometry("safetensors")).n_bytes == pytest.approx(61.4e9, rel=0.001)
    with pytest.raises(ModelFileError, match=r"gemma-4-31b-qat") as info:
        found.geometry("q9_9")
    assert info.value.allowed == "q4_0, ud-q4_k_xl, safetensors" and info.value.hint


def plain(layers: tuple[Layer, ...]) -> list[Layer]:
    """Layers without what the shapes written by hand leave out."""
    return [
        Layer("shared", source=x.source)
        if x.kind == "shared"
        else replace(x, heads=0, k_is_v=False)
        for x in layers
    ]


@pytest.mark.parametrize(("name", "shape"), [
    ("llama-3.1-8b", "llama-3.1-8b"), ("gemma-3-27b", "gemma-3-27b"),
    ("gemma-4-31b", "gemma-4-31b"), ("gemma-4-31b-qat", "gemma-4-31b"),
    ("gemma-4-e4b-qat", "gemma-4-e4b"), ("gpt-oss-20b", "gpt-oss-20b"),
    ("qwen3-next-80b-a3b", "qwen3-next-80b"), ("deepseek-v3", "deepseek-v3"),
    ("qwen3.5-9b", "qwen3.5-like"),
])  # fmt: skip
def test_shapes_written_by_hand(name: str, shape: str) -> None:
    made, wanted = entry(name).geometry(), SHAPES[shape]
    assert plain(made.layers) == plain(wanted.layers)
    if shape != "qwen3.5-like":
        assert (made.hidden, made.vocabulary) == (wanted.hidden, wanted.vocabulary)


# Bits of an element: f16, q8_0, q4_0. Source of the bytes: reference/gemma4.md, section 1.4.
@pytest.mark.parametrize(("name", "each", "window_mib"), [
    ("gemma-4-31b-qat", (81_920, 43_520, 23_040), 800),
    ("gemma-4-26b-a4b-qat", (20_480, 10_880, 5_760), 200),
    ("gemma-4-12b-qat", (16_384, 8_704, 4_608), 320),
    ("gemma-4-e4b-qat", (16_384, 8_704, 4_608), 20),
    ("gemma-4-e2b-qat", (6_144, 3_264, 1_728), 6),
])  # fmt: skip
def test_cache_of_gemma4(name: str, each: tuple[int, ...], window_mib: int) -> None:
    made = entry(name).geometry()
    grows = sum(x.k_width + x.v_width for x in made.of_kind("global"))
    assert tuple(int(grows * bits / 8) for bits in (16, 8.5, 4.5)) == each
    fixed = sum((x.k_width + x.v_width) * (x.window or 0) * 2 for x in made.of_kind("sliding"))
    assert fixed == window_mib << 20


# Parameters as llama.cpp counts them in public logs (billions), and by makers' reports.
@pytest.mark.parametrize(("name", "params", "active"), [
    ("gemma-4-31b", 30.70, None), ("gemma-4-26b-a4b", 25.24, 3.8), ("gemma-3-27b", 27.01, None),
    ("gemma-3-12b", 11.77, None), ("gemma-3-4b", 3.88, None), ("gemma-3-1b", 1.0, None),
    ("qwen3-0.6b", 0.596, None), ("qwen3-1.7b", 1.72, None), ("qwen3-4b", 4.02, None),
    ("qwen3-8b", 8.19, None), ("qwen3-14b", 14.77, None), ("qwen3-32b", 32.76, None),
    ("qwen3-30b-a3b", 30.53, 3.0), ("qwen3-next-80b-a3b", 79.67, 3.6),
    ("qwen3.5-27b", 26.90, None), ("qwen3.6-35b-a3b", 34.66, 2.95), ("gpt-oss-20b", 20.91, 3.61),
    ("gpt-oss-120b", 116.83, 5.13), ("deepseek-v2-lite", 15.71, 2.45), ("deepseek-v2", 236, 21),
    ("deepseek-v3", 671, 37), ("llama-3.1-8b", 8.03, None), ("llama-3.1-70b", 70.55, None),
    ("llama-3.2-1b", 1.24, None), ("llama-3.2-3b", 3.21, None), ("kimi-k2.5", 1026, 32),
    ("mistral-small-3.1-24b", 23.57, None), ("mixtral-8x7b", 46.7, 12.8),
])  # fmt: skip
def test_parameters(name: str, params: float, active: float | None) -> None:
    found = weights(entry(name).geometry("safetensors"))
    assert found.n_params / 1e9 == pytest.approx(params, rel=0.004)
    if active:
        assert found.active_params / 1e9 == pytest.approx(active, rel=0.02)


def test_it_is_quick_and_needs_no_torch() -> None:
    code = (
        "import sys; from nybble.models import catalogue\n"
        "assert catalogue.find('gemma-4-31b-qat').geometry().weights\n"
        "heavy = {'torch', 'transformers', 'numpy', 'urllib.request'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    catalogue._entries.cache_clear()
    start = time.perf_counter()
    for name in NAMES:
        entry(name).geometry()
    assert time.perf_counter() - start < 2  # all of them; one takes a few milliseconds
