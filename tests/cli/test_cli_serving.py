"""`nybble engines`, `config`, `serve` and `verify` as users meet them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from nybble.cli.main import main

NYBBLE = [sys.executable, "-m", "nybble"]


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = main(list(args))
    out, err = capsys.readouterr()
    return code, out, err


def test_the_matrix(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "engines", "--json")
    lines = {line["name"]: line for line in json.loads(out)}
    assert code == 0 and len(lines) == 11 and "q4_0" in lines["llama.cpp"]["types"].split()


def test_one_engine_on_one_card(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "engines", "vllm", "--model", "gemma-4-31b", "--gpu", "rtx-4090")
    assert code == 0 and "int4_per_token_head" in out and "no:" in out


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["engines", "vlm"], "unknown engine"),
        (["engines", "--gpu", "rtx-4090"], "held against one engine"),
        (["engines", "vllm", "--gpu", "rtx-9999"], "unknown card"),
        (["engines", "vllm", "--engine-version", "new"], "not a version"),
        (["config", "gemma-4-31b-qat", "--gpu", "rtx-4090", "--kv", "q9_0/q9_0"], "KV type"),
        (["config", "gemma-4-31b-qat", "--kv", "q4_0/q4_0", "--max-kld", "1"], "leave one out"),
        (["config", "gemma-4-31b-qat", "--host", "0.0.0.0"], "needs an API key"),
        (["config", "no-such-model"], "no such"),
        (["verify", "http://127.0.0.1:1"], "no server"),
        (["verify", "--", "true", "-m"], "names no port"),
        (["verify", "--", "no-such-program", "-m"], "neither an address nor a program"),
        (["verify", "--lgo", "x", "http://127.0.0.1:1"], "No such option"),
        (["verify", "nowhere"], "no server"),
    ],
)
def test_mistakes_are_answered(
    capsys: pytest.CaptureFixture[str], args: list[str], what: str
) -> None:
    code, out, err = run(capsys, *args)
    assert code == 1 and out == "" and what in err and "Traceback" not in err


def test_config_prints_a_script(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "config", "gemma-4-31b-qat", "--gpu", "rtx-4090", "--kv",
                       "q8_0/q4_0")  # fmt: skip
    assert code == 0 and out.startswith("#!/bin/sh\n")
    assert "--cache-type-k q8_0 --cache-type-v q4_0" in out


def test_config_writes_a_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    code, out, _ = run(capsys, "config", "gemma-4-31b-qat", "--gpu", "rtx-4090", "--kv",
                       "q4_0/q4_0", "-o", str(folder))  # fmt: skip
    assert code == 0 and {Path(x).name for x in out.split()} >= {"run.sh", "compose.yaml"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_prints_its_address_and_ends_on_a_signal(
    tiny_instruct: Path, number: signal.Signals
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    child = subprocess.Popen(
        [*NYBBLE, "serve", str(tiny_instruct), "--kv", "q8_0/q8_0", "--context", "512", "--port",
         str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None and child.stderr is not None
    url = child.stdout.readline().strip()
    assert url == f"http://127.0.0.1:{port}/v1"
    engine = _children(child.pid)
    assert httpx.get(f"{url}/models", timeout=30).status_code == 200
    child.send_signal(number)
    assert child.wait(60) == 0
    told = child.stderr.read()
    assert "in effect: q8_0/q8_0" in told and "Traceback" not in told
    by = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in engine):
        assert time.monotonic() < by, "the engine outlived its supervisor"
        time.sleep(0.05)


def test_a_supervisor_that_is_killed_leaves_no_engine(tiny_instruct: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    child = subprocess.Popen(
        [*NYBBLE, "serve", str(tiny_instruct), "--kv", "f16/f16", "--context", "512", "--port",
         str(port), "-q"], stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    child.stdout.readline()
    engine = _children(child.pid)
    assert engine
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    by = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in engine):
        assert time.monotonic() < by
        time.sleep(0.05)


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def test_serve_of_what_is_no_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(20))
    code, out, err = run(capsys, "serve", str(bad), "--kv", "f16/f16")
    assert code == 1 and out == "" and "Traceback" not in err
