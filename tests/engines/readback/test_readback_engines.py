"""Cases of single readers that no recording has; the lines as the engines' sources write them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from played_servers import RECORDED, Played, answers, log

from nybble.engines.readback.lmdeploy import LMDeployReader
from nybble.engines.readback.mlx_lm import MlxReader
from nybble.engines.readback.ollama import OllamaReader
from nybble.engines.readback.sglang import SGLangReader
from nybble.engines.readback.tensorrt_llm import TensorRTReader
from nybble.engines.readback.vllm import VLLMReader

_NAME = "vllm:cache_config_info"


def _metrics(*engines: dict[str, str]) -> Played:
    lines = (",".join(f'{k}="{v}"' for k, v in labels.items()) for labels in engines)
    text = "".join(f"{_NAME}{{{line}}} 1.0\n" for line in lines)
    return Played({"/metrics": text.encode()})


def test_vllm_skipped_layers() -> None:
    http = _metrics({"cache_dtype": "turboquant_4bit_nc",
                     "kv_cache_dtype_skip_layers": "['0', '1', '30', '31']"})  # fmt: skip
    assert VLLMReader().read(http, None).skipped == "0, 1, 30, 31"
    assert VLLMReader().read(_metrics({"cache_dtype": "fp8"}), None).skipped is None
    odd = _metrics({"kv_cache_dtype_skip_layers": "__import__('os')"})
    assert VLLMReader().read(odd, None).skipped == "__import__('os')"


def test_vllm_data_parallel_engines_add_up() -> None:
    one = {"cache_dtype": "fp8", "kv_cache_size_tokens": "16000", "num_gpu_blocks": "1000",
           "block_size": "16", "kv_cache_memory_bytes": "1600000000"}  # fmt: skip
    reading = VLLMReader().read(_metrics({**one, "engine": "0"}, {**one, "engine": "1"}), None)
    assert (reading.k, reading.tokens, reading.n_bytes) == ("fp8", 32000, 3_200_000_000)
    assert reading.bytes_per_token == 100_000
    mixed = VLLMReader().read(_metrics(one, {**one, "cache_dtype": "auto"}), None)
    assert mixed.k is None and not mixed.echo


def test_vllm_tells_no_bytes_a_token_of_layers_that_differ() -> None:
    """With windows the tokens are not blocks times their size."""
    http = _metrics({"kv_cache_size_tokens": "50000", "num_gpu_blocks": "1000",
                     "block_size": "16", "kv_cache_memory_bytes": "1600000000"})  # fmt: skip
    reading = VLLMReader().read(http, None)
    assert reading.n_bytes == 1_600_000_000 and reading.bytes_per_token is None


def test_vllm_of_a_gpu_by_its_log_alone() -> None:
    text = (
        "(EngineCore pid=1) INFO [core.py:133] Initializing a V1 LLM engine (v0.33.0) with config: "
        "model='m', dtype=torch.bfloat16, tensor_parallel_size={ranks}, pipeline_parallel_size=1, "
        "kv_cache_dtype=fp8, device_config=cuda\n"
        "INFO [cuda.py:507] Using FLASHINFER attention backend out of potential backends: "
        "['FLASHINFER', 'TRITON_ATTN'].\n"
        "INFO [gpu_worker.py:772] Available KV cache memory: 12.5 GiB\n"
        "INFO [kv_cache_utils.py:1147] GPU KV cache size: 363,520 tokens, Maximum concurrency for "
        "8,192 tokens per request: 44.38x\n"
    )
    reading = VLLMReader().read(Played({}), text.format(ranks=1))
    assert (reading.version, reading.k, reading.echo) == ("0.33.0", "fp8", True)
    assert (reading.tokens, reading.n_bytes) == (363_520, round(12.5 * 2**30))
    assert reading.notes[0] == "dtype=torch.bfloat16, kv_cache_dtype=fp8"
    assert any("FLASHINFER attention backend" in note for note in reading.notes)
    split = VLLMReader().read(Played({}), text.format(ranks=2))
    assert split.n_bytes is None and "2 ranks" in split.notes[-1]


def test_vllm_newest_start_of_a_log() -> None:
    old, new = (log(RECORDED / "vllm" / which) or "" for which in ("auto", "int4"))
    reading = VLLMReader().read(Played({}), old + new)
    assert (reading.k, reading.tokens) == ("int4_per_token_head", 93_184)
    assert VLLMReader().read(Played({}), new + old).k == "auto"


def _sglang(**changed: Any) -> dict[str, bytes]:
    bodies = answers(RECORDED / "sglang" / "fp8")
    info = json.loads(bodies["/server_info"])
    return {"/server_info": json.dumps({**info, **changed}).encode()}


def _pool(dtype: str, label: str = "", size: str = "K size: 1.00 GB, V size: 1.00 GB") -> str:
    return f"[2026-11-28 12:00:21 TP0] {label}KV Cache is allocated. dtype: {dtype}, " \
           f"#tokens: 1000, {size}\n"  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "dtype", "told", "noted"),
    [("auto", "torch.bfloat16", "bf16", False), ("auto", "torch.float16", "float16", False),
     ("bfloat16", "torch.bfloat16", "bfloat16", False),
     ("mxfp8", "torch.float8_e4m3fn", "mxfp8", False),
     ("fp4_mx_block16", "torch.float4_e2m1fn_x2", "fp4_mx_block16", False),
     ("fp8_e5m2", "torch.float8_e4m3fnuz", "fp8_e4m3", True),
     ("fp8_e4m3", "torch.bfloat16", "bf16", True), ("auto", "torch.int8", "int8", False)],
)  # fmt: skip
def test_sglang_pool_wins(asked: str, dtype: str, told: str, noted: bool) -> None:
    bodies = _sglang(internal_states=[], kv_cache_dtype=asked)
    reading = SGLangReader().read(Played(bodies), _pool(dtype))
    assert (reading.k, reading.v, reading.echo) == (told, told, False)
    assert any(asked in note and dtype in note and "pool's" in note for note in reading.notes) \
        == noted  # fmt: skip


def test_sglang_pools_of_windows_and_latents() -> None:
    bodies = _sglang(internal_states=[])
    both = _pool("torch.float8_e4m3fn", "Full ") + _pool("torch.float8_e4m3fn", "SWA ")
    reading = SGLangReader().read(Played(bodies), both)
    assert reading.n_bytes == 4 * 2**30 and reading.bytes_per_token is None
    latent = _pool("torch.float8_e4m3fn", size="KV size: 40.00 GB")
    reading = SGLangReader().read(Played(_sglang(internal_states=[])), latent)
    assert reading.n_bytes == 40 * 2**30


def test_sglang_several_ranks_tell_no_whole_size() -> None:
    reading = SGLangReader().read(Played(_sglang(tp_size=4)), None)
    assert reading.n_bytes is None and any("4 ranks" in note for note in reading.notes)


def test_sglang_older_path() -> None:
    bodies = {"/get_server_info": _sglang()["/server_info"]}
    assert SGLangReader().recognise(Played(bodies))
    assert SGLangReader().read(Played(bodies), None).sources == ("/get_server_info",)


def test_ollama_command_line_alone_is_an_echo() -> None:
    case = RECORDED / "ollama" / "q8_0"
    lines = [line for line in (log(case) or "").split("\n") if "llama_kv_cache" not in line]
    reading = OllamaReader().read(Played(answers(case)), "\n".join(lines))
    assert (reading.k, reading.v, reading.echo) == ("q8_0", "q8_0", True)
    assert (reading.context, reading.sequences) == (8192, 2)


def test_ollama_without_a_type_or_a_model() -> None:
    case = RECORDED / "ollama" / "q8_0"
    text = (log(case) or "").replace(" --cache-type-k q8_0 --cache-type-v q8_0", "")
    text = "\n".join(line for line in text.split("\n") if "llama_kv_cache" not in line)
    reading = OllamaReader().read(Played(answers(case)), text)
    assert reading.k is None and not reading.echo
    bodies = {**answers(case), "/api/ps": b'{"models": []}'}
    assert "no model is loaded" in OllamaReader().read(Played(bodies), None).notes[0]


def test_ollama_older_lines_of_rotation_are_not_read_as_none() -> None:
    case = RECORDED / "ollama" / "q8_0"
    text = (log(case) or "").replace("n_rot_k = 128", "attn_rot_k = 1").replace("n_rot_v", "x")
    reading = OllamaReader().read(Played(answers(case)), text)
    assert reading.k == "q8_0" and reading.rotation is None
    assert any("attn_rot_k" in note for note in reading.notes)
    off = OllamaReader().read(
        Played(answers(case)), text.replace("attn_rot_k = 1", "attn_rot_k = 0")
    )
    assert off.rotation == (0, 0)


@pytest.mark.parametrize(
    ("what", "instead"),
    [("8192 cells", "9" * 5000 + " cells"), ("476.00 MiB, V", "4.7.6 MiB, V"),
     ("8192 cells", "0 cells"), ("476.00 MiB, V", "9" * 400 + " MiB, V")],
)  # fmt: skip
def test_ollama_broken_lines_leave_the_command_line(what: str, instead: str) -> None:
    case = RECORDED / "ollama" / "q8_0"
    text = (log(case) or "").replace(what, instead)
    reading = OllamaReader().read(Played(answers(case)), text)
    assert (reading.k, reading.echo, reading.n_bytes) == ("q8_0", True, None)


def test_ollama_last_of_several_models() -> None:
    case = RECORDED / "ollama" / "q8_0"
    first = log(case) or ""
    reading = OllamaReader().read(Played(answers(case)), first + first.replace("q8_0", "q4_0"))
    assert reading.k == "q4_0"


@pytest.mark.parametrize(
    ("line", "told"),
    [("Using int8 KV cache.", "int8"), ("Using fp8_e4m3 KV cache.", "fp8"),
     ("Using fp8_e5m2 KV cache.", "fp8_e5m2"), ("Using TurboQuant KV cache.", "turbo_quant"),
     ("CacheConfig(max_batches=1, quant_policy=<QuantPolicy.NONE: 0>, x=1).", "none"),
     ("CacheConfig(max_batches=1, quant_policy=4)", "int4"), ("nothing", None)],
)  # fmt: skip
def test_lmdeploy_lines(line: str, told: str | None) -> None:
    reading = LMDeployReader().read(Played({}), f"2026 - lmdeploy - INFO - x.py:1 - {line}\n")
    assert (reading.k, reading.echo) == (told, False)


def test_tensorrt_tells_no_bytes_a_token_that_the_memory_does_not_bear_out() -> None:
    case = RECORDED / "tensorrt-llm" / "fp8"
    text = (log(case) or "").replace("kv size is 73728", "kv size is 147456")
    reading = TensorRTReader().read(Played(answers(case)), text)
    assert reading.n_bytes == 18 * 2**30 and reading.bytes_per_token is None


def test_mlx_failures_of_requests_are_noted() -> None:
    text = "Traceback\nNotImplementedError: RotatingKVCache Quantization NYI\n"
    assert "NYI" in MlxReader().read(Played({}), text).notes[0]
