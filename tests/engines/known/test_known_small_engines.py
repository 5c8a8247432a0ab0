"""Ollama, ExLlamaV2, ExLlamaV3, mlx-lm and transformers: what is refused, said and launched."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from nybble.engines.known.base import KEY, Deployment, Engine, Hardware, Launch, release
from nybble.engines.known.registry import engine
from nybble.errors import NybbleError
from nybble.formats.setting import parse
from nybble.models.geometry import Geometry, Layer
from nybble.planning.memory.registry import memory_model

SMALL = ("ollama", "exllamav3", "exllamav2", "mlx-lm", "transformers")
WEIGHTS = {"ollama": "gguf", "exllamav3": "exl3", "exllamav2": "exl2", "mlx-lm": "mlx",
           "transformers": "safetensors"}  # fmt: skip
QUANTIZED = {"ollama": "q4_0/q4_0", "exllamav3": "exl3_5/exl3_4", "exllamav2": "exl2_q8/exl2_q4",
             "mlx-lm": "mlx_4/mlx_4", "transformers": "hqq_4/hqq_4"}  # fmt: skip
CARD = {"mlx-lm": Hardware("apple", None, "M4 Max")}
RTX_4090 = Hardware("nvidia", 89, "RTX 4090")
PARSERS = Path(__file__).parent / "parsers"


def model(*layers: Layer, architecture: str = "llama") -> Geometry:
    return Geometry(architecture, architecture, layers, 4096, 14336, 128256, 131072)


FULL = Layer("global", 32, 8, 128, 128)
LLAMA = model(*[FULL] * 32)
GEMMA = model(*[Layer("sliding", 32, 16, 256, 256, window=1024)] * 5,
              Layer("global", 32, 4, 512, 512), architecture="gemma4_text")  # fmt: skip
SINKS = model(dataclasses.replace(FULL, sinks=True), architecture="x")
LATENT = model(Layer("latent", 128, 1, 576, 0, rope_dim=64), architecture="deepseek_v3")


def asked(name: str, kv: str | None = None, **more: Any) -> Deployment:
    """A deployment that `name` takes, but for what a test changes."""
    fields: dict[str, Any] = {
        "model": "/models/m.gguf" if name == "ollama" else "/models/m",
        "geometry": LLAMA, "weights": WEIGHTS[name], "setting": parse(kv or QUANTIZED[name]),
        "context": 8000, "hardware": CARD.get(name, RTX_4090),
    }  # fmt: skip
    return Deployment(**fields | more)


def refused(name: str, match: str, kv: str | None = None, **more: Any) -> NybbleError:
    with pytest.raises(NybbleError, match=match) as caught:
        engine(name).refuse(asked(name, kv, **more))
    assert caught.value.seen and caught.value.allowed and caught.value.hint
    return caught.value


def launched(name: str, kv: str | None = None, **more: Any) -> Launch:
    deployment = asked(name, kv, **more)
    engine(name).refuse(deployment)
    return engine(name).launch(deployment)


def config(launch: Launch) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(launch.files[0].text)
    return loaded


@pytest.mark.parametrize("name", SMALL)
def test_data_is_whole_and_agrees_with_planning(name: str) -> None:
    known, planning = engine(name), memory_model(name)
    assert known.name == name
    assert known.version.split()[0] == planning.version.split()[0]
    assert known.sources and known.flags and known.limits and known.readback and known.sliding
    assert re.fullmatch(r"2026-\d\d-\d\d", known.read_on)
    for trap in known.traps:
        assert trap.source and not trap.what.endswith(".")
    for chosen in known.choices:
        assert chosen.source
        if chosen.since:
            release(chosen.since)
    for kv in _pairs(known):
        planning.check(LLAMA, parse(kv))
        known.refuse(asked(name, kv))
    for kv in planning.settings:
        assert known.choice(parse(kv))
    with pytest.raises(NybbleError, match="no such KV setting"):
        known.choice(parse("nyb4/nyb4"))


def _pairs(known: Engine) -> list[str]:
    names = [c.kv for c in known.choices if c.kv]
    if not known.sides:
        return names
    quantized = [n for n in names if n != "f16"]
    return ["f16/f16", *(f"{k}/{v}" for k in quantized for v in quantized)]


def test_exllamav3_takes_any_pair_but_no_half_quantized_one() -> None:
    known = engine("exllamav3")
    assert len(_pairs(known)) == 1 + 7 * 7
    for kv in ("f16/exl3_4", "exl3_4/f16"):
        with pytest.raises(NybbleError, match="both sides"):
            known.choice(parse(kv))
        with pytest.raises(NybbleError):
            memory_model("exllamav3").check(LLAMA, parse(kv))


@pytest.mark.parametrize("name", ["exllamav3", "exllamav2"])
@pytest.mark.parametrize("vendor", ["cpu", "apple", "intel"])
def test_exllama_runs_on_cuda_and_rocm_only(name: str, vendor: str) -> None:
    error = refused(name, "hardware", hardware=Hardware(vendor, None, vendor))
    assert error.allowed == "nvidia, amd"


def test_exllamav3_needs_turing_and_says_what_amd_is_worth() -> None:
    refused("exllamav3", "this card", hardware=Hardware("nvidia", 70, "V100"))
    for sm in (75, 86, 89, 90, 103, 121):
        engine("exllamav3").refuse(asked("exllamav3", hardware=Hardware("nvidia", sm)))
    amd = asked("exllamav3", hardware=Hardware("amd", None, "RX 7900 XTX"))
    engine("exllamav3").refuse(amd)
    assert any("RDNA" in said for said in engine("exllamav3").warnings(amd))
    assert engine("exllamav3").launch(amd).image == ""


def test_exllamav3_says_which_layers_stay_f16() -> None:
    known = engine("exllamav3")
    said = known.warnings(asked("exllamav3", geometry=GEMMA))
    assert any("5 of 6 layers are sliding" in text for text in said)
    assert not known.warnings(asked("exllamav3", "f16/f16", geometry=GEMMA))
    assert any("K bits" in t for t in known.warnings(asked("exllamav3", geometry=LATENT)))
    assert any("sinks" in t for t in known.warnings(asked("exllamav3", geometry=SINKS)))
    assert not known.warnings(asked("exllamav3"))


@pytest.mark.parametrize("kv", ["f16/f16", "exl3_8/exl3_8", "exl3_5/exl3_4", "exl3_2/exl3_7"])
def test_exllamav3_config_passes_tabbyapis_own_rule(kv: str) -> None:
    """Recorded: CACHE_TYPE and cache_size in theroyallab/tabbyAPI, common/config_models.py."""
    launch = launched("exllamav3", kv, sequences=3)
    made = config(launch)
    mode = made["model"]["cache_mode"]
    assert mode in ("FP16", "Q8", "Q6", "Q4") or re.fullmatch(r"[2-8]\s*,\s*[2-8]", mode)
    assert made["model"] == {
        "model_dir": "/models", "model_name": "m", "max_seq_len": 8000,
        "cache_size": 3 * 8192, "cache_mode": mode, "max_batch_size": 3,
    }  # fmt: skip
    assert made["model"]["cache_size"] % 256 == 0
    assert launch.command == ("python", "main.py", "--config", "config.yml")
    assert launch.image_command == launch.command[1:]
    assert launch.image == "ghcr.io/theroyallab/tabbyapi:latest"


def test_tabbyapi_keys_are_a_note_and_never_a_value() -> None:
    open_, keyed = launched("exllamav3"), launched("exllamav3", keyed=True, host="0.0.0.0")
    assert config(open_)["network"] == {"host": "127.0.0.1", "port": 8080, "disable_auth": True}
    assert config(keyed)["network"]["disable_auth"] is False
    assert any(f"${KEY}" in note and "api_tokens.yml" in note for note in keyed.notes)
    assert [file.name for file in keyed.files] == ["config.yml"]
    assert not keyed.env


@pytest.mark.parametrize(
    ("given", "folder", "name", "download"),
    [("/a/b/c", "/a/b", "c", False), ("./c", ".", "c", False), ("a/b/c", "a/b", "c", False),
     ("org/repo", "models", "repo", True), ("hf:org/repo", "models", "repo", True),
     ("gemma-exl3", "models", "gemma-exl3", False)],
)  # fmt: skip
def test_tabbyapi_finds_the_model(given: str, folder: str, name: str, download: bool) -> None:
    launch = launched("exllamav3", model=given)
    made = config(launch)["model"]
    assert (made["model_dir"], made["model_name"]) == (folder, name)
    assert any("hf download org/repo" in note for note in launch.notes) == download


@pytest.mark.parametrize(
    ("kv", "mode"),
    [("f16/f16", "FP16"), ("exl2_q8/exl2_q8", "Q8"), ("exl2_q6", "Q6"), ("exl2_q4", "Q4")],
)
def test_exllamav2_is_an_old_tabbyapi(kv: str, mode: str) -> None:
    launch = launched("exllamav2", kv)
    made = config(launch)["model"]
    assert (made["cache_mode"], made["backend"]) == (mode, "exllamav2")
    assert launch.image == ""  # latest has no such backend any more
    assert any("git checkout c8b9a8f~1" in note for note in launch.notes)
    assert any("2026-07-14" in said for said in engine("exllamav2").warnings(asked("exllamav2")))


def test_exllamav2_serves_one_at_a_time_on_old_cards() -> None:
    turing = Hardware("nvidia", 75, "RTX 2080 Ti")
    refused("exllamav2", "one request at a time", hardware=turing, sequences=2)
    engine("exllamav2").refuse(asked("exllamav2", hardware=turing))
    engine("exllamav2").refuse(asked("exllamav2", sequences=2))


@pytest.mark.parametrize("name", SMALL)
def test_weights_of_another_engine_are_refused(name: str) -> None:
    other = "exl3" if name != "exllamav3" else "gguf"
    refused(name, "load|GGUF", weights=other, quantization=None)


@pytest.mark.parametrize("name", ["exllamav3", "exllamav2"])
def test_weights_of_another_method_are_refused(name: str) -> None:
    refused(name, "weights", weights="safetensors", quantization="compressed-tensors")


@pytest.mark.parametrize("name", ["ollama", "mlx-lm", "transformers"])
def test_servers_without_keys_refuse_them(name: str) -> None:
    refused(name, "no API key", "f16/f16", keyed=True)
    with pytest.raises(NybbleError, match="no API key"):
        engine(name).launch(asked(name, "f16/f16", keyed=True))


@pytest.mark.parametrize(
    ("name", "geometry"),
    [("mlx-lm", GEMMA), ("mlx-lm", SINKS), ("mlx-lm", LATENT), ("transformers", GEMMA),
     ("transformers", LATENT)],
)  # fmt: skip
def test_quantized_caches_that_fail_at_the_first_request(name: str, geometry: Geometry) -> None:
    refused(name, "quantizes", geometry=geometry)
    engine(name).refuse(asked(name, "f16/f16", geometry=geometry))
    with pytest.raises(NybbleError):
        memory_model(name).check(geometry, parse(QUANTIZED[name]))


def test_ollama_environment() -> None:
    launch = launched("ollama", "q8_0/q8_0", sequences=4, host="0.0.0.0", port=11434)
    assert launch.env == {
        "OLLAMA_HOST": "0.0.0.0:11434", "OLLAMA_KV_CACHE_TYPE": "q8_0",
        "OLLAMA_CONTEXT_LENGTH": "8000", "OLLAMA_NUM_PARALLEL": "4", "OLLAMA_KEEP_ALIVE": "-1",
        "OLLAMA_FLASH_ATTENTION": "1",
    }  # fmt: skip
    assert launch.command == ("ollama", "serve")
    assert (launch.image, launch.image_command) == ("ollama/ollama:latest", ("serve",))
    assert launch.files[0].text == "FROM /models/m.gguf\nPARAMETER num_ctx 8000\n"
    assert any("ollama create m -f Modelfile" in note for note in launch.notes)
    assert any("-f /config/Modelfile" in note for note in launch.notes)
    assert "OLLAMA_FLASH_ATTENTION" not in launched("ollama", "f16/f16").env
    assert launched("ollama", host="::1").env["OLLAMA_HOST"] == "[::1]:8080"
    assert launched("ollama", cards=2).env["OLLAMA_SCHED_SPREAD"] == "1"
    amd = launched("ollama", hardware=Hardware("amd", None, "MI300X"))
    assert amd.image == "ollama/ollama:rocm"


def test_ollama_rotation_is_off_for_all_its_models() -> None:
    kv = "q4_0/q4_0-norot"
    memory_model("ollama").check(LLAMA, parse(kv))
    assert launched("ollama", kv).env["LLAMA_ATTN_ROT_DISABLE"] == "1"
    assert "LLAMA_ATTN_ROT_DISABLE" not in launched("ollama").env
    said = engine("ollama").warnings(asked("ollama", kv))
    assert any("ROT_DISABLE" in text for text in said)
    assert any("11 % too small" in text for text in said)
    assert any("6 %" in t for t in engine("ollama").warnings(asked("ollama", "q8_0/q8_0")))
    assert not engine("ollama").warnings(asked("ollama", "f16/f16"))


def test_ollama_has_one_type_for_both_sides() -> None:
    refused("ollama", "no such KV setting", "q8_0/q4_0")
    refused("ollama", "no such KV setting", "q5_1/q5_1")


@pytest.mark.parametrize(
    ("given", "source", "name"),
    [("hf:org/repo/m-Q4_0.gguf", "hf.co/org/repo:m-Q4_0.gguf", "m-Q4_0"),
     ("hf:org/repo", "hf.co/org/repo", "repo"),
     ("/a b/my model.gguf", "/a b/my model.gguf", "my-model")],
)  # fmt: skip
def test_ollama_modelfile(given: str, source: str, name: str) -> None:
    launch = launched("ollama", model=given)
    assert launch.files[0].text.startswith(f"FROM {source}\n")
    assert any(f"ollama create {name} -f" in note for note in launch.notes)


@pytest.mark.parametrize("given", ["https://x.org/m.gguf", "hf:org/repo/sub/m.gguf",
                                   "hf:org/repo@v1/m.gguf"])  # fmt: skip
def test_ollama_refuses_what_from_cannot_name(given: str) -> None:
    refused("ollama", "Ollama", model=given)


def _options(name: str) -> dict[str, Any]:
    path = PARSERS / f"{name}-{engine(name).version}.json"
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def _accepted(words: tuple[str, ...], options: dict[str, Any]) -> None:
    """Recorded: options of the engine's own parser (bench/engine_parsers_small.py)."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        assert word in options, word
        if options[word]["value"]:
            value = rest.pop(0)
            assert options[word]["choices"] is None or value in options[word]["choices"]


@pytest.mark.parametrize("kv", ["f16/f16", "mlx_8/mlx_8", "mlx_4/mlx_4"])
def test_mlx_lm_launch_passes_its_own_parser(kv: str) -> None:
    launch = launched("mlx-lm", kv, sequences=2, model="hf:org/repo")
    assert launch.command[:3] == ("mlx_lm.server", "--model", "org/repo")
    _accepted(launch.command[1:], _options("mlx-lm"))
    flags = dict(zip(launch.command[1::2], launch.command[2::2], strict=True))
    bits = {"f16/f16": None, "mlx_8/mlx_8": "8", "mlx_4/mlx_4": "4"}[kv]
    assert flags.get("--kv-bits") == bits
    assert flags.get("--quantized-kv-start") == (None if bits is None else "0")
    assert launch.image == "" and not launch.files


def test_mlx_lm_says_that_it_serves_one_at_a_time() -> None:
    known = engine("mlx-lm")
    assert any("one after another" in t for t in known.warnings(asked("mlx-lm", sequences=3)))
    assert any("no limit of context" in t for t in known.warnings(asked("mlx-lm", "f16/f16")))
    refused("mlx-lm", "one machine", cards=2)
    refused("mlx-lm", "hardware", hardware=Hardware("amd", None, "RX 7900 XTX"))


def test_transformers_serve_takes_16_bits_only() -> None:
    launch = launched("transformers", "f16/f16")
    assert launch.command[:3] == ("transformers", "serve", "/models/m")
    _accepted(launch.command[3:], _options("transformers"))
    assert not any("cache" in option for option in _options("transformers"))
    with pytest.raises(NybbleError, match="no option for the KV cache") as caught:
        launched("transformers", "quanto_4/quanto_4")
    assert "nybble measure /models/m --engine transformers" in (caught.value.hint or "")


def test_transformers_ggufs_are_named_by_repository() -> None:
    launch = launched("transformers", "f16/f16", weights="gguf", model="hf:org/repo/m.gguf")
    assert launch.command[2] == "org/repo:m.gguf"
    refused("transformers", "by its name in a repository", "f16/f16", weights="gguf")


def test_transformers_says_when_quantized_values_are_read() -> None:
    known = engine("transformers")
    assert any("first forward pass" in t for t in known.warnings(asked("transformers")))
    assert any("one request" in t for t in known.warnings(
        asked("transformers", "f16/f16", sequences=2)))  # fmt: skip
    assert not known.warnings(asked("transformers", "f16/f16"))
    refused("transformers", "hardware", hardware=Hardware("cpu", None, "a CPU"))
    cpu = asked("transformers", "quanto_4/quanto_4", hardware=Hardware("cpu"))
    known.refuse(cpu)
