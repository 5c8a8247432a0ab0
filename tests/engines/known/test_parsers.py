"""Every option of every launch is one the engine's own parser knows, with a value it takes.

parsers/ENGINE-VERSION.json were recorded by bench/engine_parsers.py: vLLM, SGLang and LMDeploy by
importing the parsers of their wheels, llama.cpp from its arg.cpp, TensorRT-LLM by hand.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from nybble.engines.known.base import KEY, ConfigFile, Deployment, Hardware, Launch
from nybble.engines.known.registry import engine
from nybble.errors import NybbleError
from nybble.formats.setting import parse
from nybble.models.geometry import Geometry, Layer

PARSERS = Path(__file__).parent / "parsers"
SCRIPT = Path(__file__).parents[3] / "bench/engine_parsers.py"
RECORDED = {"vllm": ("0.32.0", "0.33.0"), "sglang": ("0.5.23",), "lmdeploy": ("0.18.0",),
            "tensorrt-llm": ("1.3.0rc",), "llama.cpp": ("b11549",)}  # fmt: skip
# Words before the options: programs, subcommands and the model as an argument of its own.
PROGRAMS = (("vllm", "serve", "MODEL"), ("python3", "-m", "vllm.entrypoints.openai.api_server"),
            ("python3", "-m", "sglang.launch_server"), ("trtllm-serve", "MODEL"),
            ("lmdeploy", "serve", "api_server", "MODEL"), ("llama-server",))  # fmt: skip
CARDS = {"RTX 3090": Hardware("nvidia", 86, "RTX 3090"), "4090": Hardware("nvidia", 89, "4090"),
         "H100": Hardware("nvidia", 90, "H100"), "B200": Hardware("nvidia", 100, "B200"),
         "RTX 5090": Hardware("nvidia", 120, "RTX 5090"), "MI300X": Hardware("amd", None, "MI300X"),
         "B580": Hardware("intel", None, "B580"), "CPU": Hardware("cpu", None, "CPU"),
         "unknown": Hardware()}  # fmt: skip
FULL = Layer("global", 32, 8, 128, 128)
LLAMA = Geometry("llama", "llama", (FULL,) * 32, 4096, 14336, 128256, 131072)
LATENT = Geometry("ds", "deepseek_v3", (Layer("latent", 128, 1, 576, 0, rope_dim=64),) * 8,
                  7168, 18432, 129280, 163840)  # fmt: skip


def options(name: str, version: str) -> dict[str, dict[str, Any]]:
    record = json.loads((PARSERS / f"{name}-{version}.json").read_text("utf-8"))
    assert (record["engine"], record["version"]) == (name, version)
    found: dict[str, dict[str, Any]] = record["options"]
    return found


def check(arguments: tuple[str, ...], known: dict[str, dict[str, Any]]) -> None:
    rest = list(arguments)
    while rest:
        name = rest.pop(0)
        assert name in known, f"{name} is no option of this engine"
        values = list(itertools.takewhile(lambda x: not x.startswith("-"), rest))
        rest = rest[len(values) :]
        takes = known[name]["takes"]
        assert len(values) == {"none": 0, "one": 1}.get(takes, len(values)), (name, values)
        assert values or takes in ("none", "optional", "many"), name
        if "choices" in known[name]:
            assert set(values) <= set(known[name]["choices"]), (name, values)


def without_program(command: tuple[str, ...], model: str) -> tuple[str, ...]:
    plain = tuple("MODEL" if word == model else word for word in command)
    for program in PROGRAMS:
        if plain[: len(program)] == program:
            return plain[len(program) :]
    raise AssertionError(f"unknown program: {command[:3]}")


def launches(name: str) -> list[tuple[Deployment, Launch]]:
    """Every launch of an engine over settings, cards, keys and names that it does not refuse."""
    known, found = engine(name), []
    kvs = dict.fromkeys(c.kv for c in known.choices if c.kv)
    settings = [f"{k}/{v}" for k in kvs for v in kvs] if known.sides else list(kvs)
    weights = ("gguf",) if name == "llama.cpp" else ("safetensors", "gguf")
    for kv, hardware, kind in itertools.product(settings, CARDS.values(), weights):
        for geometry, extra in itertools.product((LLAMA, LATENT), (False, True)):
            more: dict[str, Any] = {}
            if extra:
                more = {"cards": 2, "sequences": 4, "keyed": name != "tensorrt-llm", "name": "m",
                        "host": "0.0.0.0", "quantization": "compressed-tensors"}  # fmt: skip
            if name == "tensorrt-llm" and "nvfp4" in kv:
                more["quantization"] = "modelopt"
            asked = Deployment("/models/m.gguf" if kind == "gguf" else "org/m", geometry, kind,
                               parse(kv), 8192, hardware=hardware, **more)  # fmt: skip
            try:
                known.refuse(asked)
            except NybbleError:
                continue
            found.append((asked, known.launch(asked)))
    assert len(found) > 15
    return found


@pytest.mark.parametrize("name", RECORDED)
def test_every_option_is_known(name: str) -> None:
    parsers = [options(name, version) for version in RECORDED[name]]
    for asked, launch in launches(name):
        commands = [without_program(launch.command, asked.model)]
        if launch.image_command is not None:
            commands.append(launch.image_command)
        for command, known in itertools.product(commands, parsers):
            check(command, known)


@pytest.mark.parametrize("name", RECORDED)
def test_no_secret_is_in_a_launch_and_a_key_is_always_passed_on(name: str) -> None:
    for asked, launch in launches(name):
        carried = [*launch.command, *launch.env.values()]
        assert (f"${KEY}" in carried) == asked.keyed
        if name in ("vllm", "llama.cpp"):  # they take it from the environment
            assert f"${KEY}" not in launch.command


FLAGS = [("vllm", "--kv-cache-dtype"), ("sglang", "--kv-cache-dtype"), ("llama.cpp", "-ctk")]


@pytest.mark.parametrize(("name", "flag"), FLAGS)
def test_every_value_of_the_cache_flag_is_one_of_the_parsers(name: str, flag: str) -> None:
    spelled = set(options(name, RECORDED[name][-1])[flag]["choices"])
    named = {c.name for c in engine(name).choices if c.until is None}
    assert named == spelled


def test_lmdeploys_policies_are_all_there() -> None:
    spelled = set(options("lmdeploy", "0.18.0")["--quant-policy"]["choices"])
    names = {x for x in spelled if not x.isdigit()} - {"fp8_e4m3"}  # an alias of fp8
    assert {c.name for c in engine("lmdeploy").choices} == names


def test_tensorrt_llm_reads_every_key_of_its_file() -> None:
    record = json.loads((PARSERS / "tensorrt-llm-1.3.0rc.json").read_text("utf-8"))["config"]
    for _, launch in launches("tensorrt-llm"):
        (file,) = launch.files
        assert isinstance(file, ConfigFile)
        assert launch.command[launch.command.index("--config") + 1] == file.name
        config = yaml.safe_load(file.text)
        assert set(config) <= set(record["top"])
        assert set(config["kv_cache_config"]) <= set(record["kv_cache_config"])


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("engine_parsers", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_recorded_of_argparse(script: ModuleType) -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--a", "-a", choices=[1, 2])
    parser.add_argument("--flag", action="store_true")
    parser.add_argument("--keys", nargs="*")
    parser.add_argument("--open", metavar=["x", "y"])  # type: ignore[arg-type]
    assert script.from_argparse(parser) == {
        "": {"takes": "optional"}, "--a": {"takes": "one", "choices": ["1", "2"]},
        "-a": {"takes": "one", "choices": ["1", "2"]}, "--flag": {"takes": "none"},
        "--keys": {"takes": "many"}, "--open": {"takes": "one", "choices": ["x", "y"]},
    }  # fmt: skip


ARG_CPP = """
const std::vector<ggml_type> kv_cache_types = { GGML_TYPE_F16, GGML_TYPE_Q8_0, };
    add_opt(common_arg(
        {"-ctk", "--cache-type-k"}, "TYPE",
        string_format("KV cache data type\\nallowed: %s", get_all_kv_cache_types().c_str()),
        [](common_params & params, const std::string & value) { params.x = value; }
    ).set_env("LLAMA_ARG_CACHE_TYPE_K"));
    add_opt(common_arg(
        {"--jinja"}, {"--no-jinja"}, "use jinja",
        [](common_params & params, bool value) { params.y = value; }
    ).set_examples({LLAMA_EXAMPLE_SERVER, LLAMA_EXAMPLE_CLI}));
    add_opt(common_arg(
        { "-fit", "--fit" }, "[on|off]", "fit",
        [](common_params & params, const std::string & value) { }
    ));
    add_opt(common_arg({"--metrics"}, "metrics", [](common_params & params) { }
    ).set_examples({LLAMA_EXAMPLE_SERVER}));
    add_opt(common_arg({"--color"}, "colour", [](common_params & params) { }
    ).set_examples({LLAMA_EXAMPLE_CLI}));
"""


def test_what_is_recorded_of_llama_cpp(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "common/arg.cpp").write_text(ARG_CPP, "utf-8")
    types, fit = ({"takes": "one", "choices": x} for x in (["f16", "q8_0"], ["on", "off"]))
    assert script.llama_cpp(tmp_path) == {
        "-ctk": types, "--cache-type-k": types, "--jinja": {"takes": "none"},
        "--no-jinja": {"takes": "none"}, "-fit": fit, "--fit": fit, "--metrics": {"takes": "none"},
    }  # fmt: skip


def test_a_wrong_call_prints_the_usage(script: ModuleType, capsys: Any) -> None:
    assert script.main(["nothing"]) == 2
    assert "engine_parsers.py vllm" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vllm", "sglang", "lmdeploy"])
def test_an_installed_engine_has_the_recorded_options(name: str) -> None:
    """Of this environment, or of another: NYBBLE_VLLM_PYTHON=/venv/bin/python pytest -m slow."""
    python = os.environ.get(f"NYBBLE_{name.upper()}_PYTHON", "")
    if not python and importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    run = subprocess.run([python or sys.executable, str(SCRIPT), name], capture_output=True,
                         text=True, timeout=200, check=False)  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    live = json.loads(run.stdout[run.stdout.index("{") :])
    for asked, launch in launches(name):
        check(without_program(launch.command, asked.model), live["options"])
    if live["version"] in RECORDED[name]:
        assert live["options"] == options(name, live["version"])
