"""What each reader makes of the recorded answers; who recognises whom."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from played_servers import CASES, RECORDED, Played, answers, log, name, playing

from nybble.engines.known.registry import engine as known_engine
from nybble.engines.readback import registry
from nybble.engines.readback.base import Http
from nybble.engines.readback.tabbyapi import cache_mode

# Fields of the reading with the log; `without` those that differ where there is no log.
EXPECTED: dict[str, dict[str, Any]] = {
    "llama.cpp/q8_0_q4_0": {
        "k": "q8_0", "v": "q4_0", "echo": False, "rotation": (64, 64), "tokens": 1024,
        "context": 512, "sequences": 2, "model": "tiny",
        "without": {"k": None, "v": None, "rotation": None, "tokens": None},
    },
    "vllm/int4": {
        "version": "0.32.0", "k": "int4_per_token_head", "v": "int4_per_token_head", "echo": True,
        "tokens": 93184, "n_bytes": 2**30, "skipped": "", "context": 1024, "sequences": 4,
        "model": "smollm2", "rotation": None, "without": {"sequences": None},
    },
    "vllm/auto": {
        "k": "auto", "v": "auto", "echo": True, "tokens": 46592, "n_bytes": 2**30,
        "without": {"sequences": None},
    },
    "sglang/fp8": {
        "version": "0.5.23", "k": "fp8_e4m3", "v": "fp8_e4m3", "echo": False, "tokens": 400000,
        "n_bytes": round(27.466 * 2**30), "context": 40960, "sequences": 256,
        "model": "Qwen/Qwen3-8B", "without": {"echo": True},
    },
    "sglang/auto": {
        "k": "bf16", "v": "bf16", "echo": False,
        "without": {"k": "auto", "v": "auto", "echo": True},
    },
    "ollama/q8_0": {
        "version": "0.33.0", "k": "q8_0", "v": "q8_0", "echo": False, "rotation": (128, 64),
        "tokens": 16384, "n_bytes": 952 * 2**20, "context": 8192, "sequences": 2,
        "model": "llama3.2:3b",
        "without": {"k": None, "v": None, "rotation": None, "tokens": None, "n_bytes": None,
                    "sequences": None},
    },
    "exllamav3/q4": {
        "k": "q4", "v": "q4", "echo": True, "tokens": 16384, "context": 8192, "sequences": 4,
        "model": "Qwen3-8B-exl3", "without": {},
    },
    "lmdeploy/pytorch_int4": {
        "k": "int4", "v": "int4", "echo": False, "tokens": 9000 * 64, "context": 8192,
        "sequences": 16, "model": "Qwen/Qwen3-8B",
        "without": {"k": None, "v": None, "context": None, "sequences": None},
    },
    "lmdeploy/turbomind": {
        "k": "int8", "v": "int8", "echo": True, "tokens": None, "context": 8192, "sequences": 32,
        "without": {"k": None, "v": None, "echo": False, "context": None, "sequences": None},
    },
    "tensorrt-llm/fp8": {
        "version": "1.2.1", "k": "fp8", "v": "fp8", "echo": True, "tokens": 262144,
        "n_bytes": 18 * 2**30, "bytes_per_token": 73728.0, "context": 40960, "sequences": 64,
        "model": "Qwen3-8B",
        "without": {"k": None, "v": None, "echo": False, "tokens": None, "n_bytes": None,
                    "bytes_per_token": None, "context": None, "sequences": None},
    },
    "mlx-lm/folder": {"k": None, "v": None, "model": "/models/llama", "without": {}},
    "mlx-lm/no_cache_folder": {"k": None, "v": None, "model": None, "without": {}},
}  # fmt: skip

# Bytes a token by arithmetic, and how near the told ones must be.
BYTES_PER_TOKEN = {
    "llama.cpp/q8_0_q4_0": (2 * 64 * (34 / 32 + 18 / 32), 0.06),  # tiny: MiB of two decimals
    "vllm/auto": (30 * 3 * 64 * 2 * 2, 0.005),
    "vllm/int4": (11523, 0.001),
    "sglang/fp8": (36 * 8 * 128 * 2, 0.001),
    "sglang/auto": (36 * 8 * 128 * 2 * 2, 0.001),
    "ollama/q8_0": (28 * 8 * 128 * 2 * 34 / 32, 1e-9),
    "tensorrt-llm/fp8": (36 * 8 * 128 * 2, 1e-9),
}


def test_every_case_is_expected_and_every_reader_has_one() -> None:
    assert {name(case) for case in CASES} == set(EXPECTED)
    assert {case.parent.name for case in CASES} == set(registry._PLACES)


def test_readme_has_every_file() -> None:
    told = re.findall(r"^\| `([^`]+)` \|", (RECORDED / "README.md").read_text(), re.M)
    globbed = {path for pattern in told for path in RECORDED.glob(pattern)}
    files = {path for path in RECORDED.glob("*/*/*") if path.is_file()}
    assert files <= globbed


def test_recorded(case: Path) -> None:
    expected = dict(EXPECTED[name(case)])
    without = expected.pop("without")
    reader = registry.reader(case.parent.name)
    reading = reader.read(Played(answers(case)), log(case))
    assert reading.engine == case.parent.name
    assert {field: getattr(reading, field) for field in expected} == expected
    assert reading.sources
    silent = reader.read(Played(answers(case)), None)
    assert {field: getattr(silent, field) for field in expected | without} == expected | without


def test_bytes_per_token(case: Path) -> None:
    reading = registry.reader(case.parent.name).read(Played(answers(case)), log(case))
    if name(case) not in BYTES_PER_TOKEN:
        assert reading.bytes_per_token is None
        return
    want, near = BYTES_PER_TOKEN[name(case)]
    assert reading.bytes_per_token == pytest.approx(want, rel=near)


def test_types_are_the_engines_own_names(case: Path) -> None:
    """Verification compares them with the names of engines.known."""
    reading = registry.reader(case.parent.name).read(Played(answers(case)), log(case))
    names = {choice.name for choice in known_engine(case.parent.name).choices}
    if name(case) != "exllamav3/q4":  # which is the one that no engine knows
        assert {reading.k, reading.v} <= names | {None}


def test_exactly_one_reader_recognises(case: Path) -> None:
    http = Played(answers(case))
    found = [engine for engine in registry._PLACES if registry.reader(engine).recognise(http)]
    assert found == [case.parent.name]


def test_recognised_over_a_socket(case: Path) -> None:
    with playing(answers(case)) as url:
        http = Http(url, timeout=5)
        found = registry.recognised(http)
        assert found is not None and found.engine == case.parent.name
        reading = found.read(http, log(case))
        http.close()
    assert reading == found.read(Played(answers(case)), log(case))


@pytest.mark.parametrize("which", ["vllm/int4", "lmdeploy/pytorch_int4"])
def test_recognised_without_the_key(which: str) -> None:
    """/v1 asks for a key, what else tells it does not."""
    with playing(answers(RECORDED / which), key="secret") as url:
        http = Http(url, timeout=5)
        found = registry.recognised(http)
        http.close()
    assert found is not None and found.engine == which.partition("/")[0]
    assert http.refused == {401}


def test_nobody_is_recognised_where_nobody_answers() -> None:
    assert registry.recognised(Played({})) is None
    assert registry.recognised(Played({"/": b"hello", "/health": b'{"status": "ok"}'})) is None
    http = Http("http://127.0.0.1:1", timeout=2)
    assert registry.recognised(http) is None
    http.close()


def test_nothing_that_is_handed_out_once_is_asked_of_tensorrt_llm() -> None:
    http = Played(answers(RECORDED / "tensorrt-llm/fp8"))
    found = registry.recognised(http)
    assert found is not None
    found.read(http, None)
    assert not {"GET /metrics", "POST /kv_cache_events", "GET /perf_metrics"} & set(http.asked)


def test_only_get_is_sent(case: Path) -> None:
    http = Played(answers(case))
    found = registry.recognised(http)
    assert found is not None
    found.read(http, log(case))
    assert all(line.startswith("GET ") for line in http.asked)


@pytest.mark.parametrize(
    ("mode", "k", "v"),
    [("FP16", "FP16", "FP16"), ("Q4", "4", "4"), ("Q6", "6", "6"), ("Q8", "8", "8"),
     ("8,4", "8", "4"), ("2 , 8", "2", "8"), ("q4", "q4", "q4"), ("9,4", "9,4", "9,4"),
     (None, None, None)],
)  # fmt: skip
def test_cache_mode(mode: str | None, k: str | None, v: str | None) -> None:
    found_k, found_v, notes = cache_mode(mode)
    assert (found_k, found_v) == (k, v)
    assert any("FP16" in note and "none that" in note for note in notes) == (mode in ("q4", "9,4"))
