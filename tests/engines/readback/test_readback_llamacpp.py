"""llama.cpp's reader against a recorded log, and against the server itself."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from played_servers import RECORDED, Played, answers, log

from nybble.engines.llamacpp.server import MODULE, READY, line, parameters
from nybble.engines.readback.base import Http
from nybble.engines.readback.llamacpp import LlamaCppReader, last_start

CASE = RECORDED / "llama.cpp" / "q8_0_q4_0"


def test_newest_start_is_told() -> None:
    text = log(CASE) or ""
    old = text.replace("K (q8_0)", "K (f16)").replace("V (q4_0)", "V (f16)")
    reading = LlamaCppReader().read(Played(answers(CASE)), old + text)
    assert (reading.k, reading.v) == ("q8_0", "q4_0")
    assert LlamaCppReader().read(Played(answers(CASE)), text + old).k == "f16"
    assert last_start(old + text).count("llama_kv_cache: size") == 1


def test_sizes_fit_the_cells() -> None:
    reading = LlamaCppReader().read(Played(answers(CASE)), log(CASE))
    assert reading.tokens == reading.context * reading.sequences  # type: ignore[operator]
    assert reading.n_bytes == pytest.approx(reading.bytes_per_token * 1024, abs=1)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_a_real_server(tiny_model: Path, tmp_path: Path) -> None:
    port = free_port()
    given = parameters(str(tiny_model), "q4_0", "q8_0", context=256, sequences=2,
                       host="127.0.0.1", port=port, name="tiny")  # fmt: skip
    out = tmp_path / "log"
    with out.open("w") as file:
        child = subprocess.Popen([sys.executable, "-m", MODULE], stdin=subprocess.PIPE,
                                 stdout=file, stderr=file, text=True)  # fmt: skip
    assert child.stdin is not None
    try:
        child.stdin.write(line(given) + "\n")
        child.stdin.flush()
        until = time.monotonic() + 60
        while READY not in out.read_text() and child.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        http = Http(f"http://127.0.0.1:{port}")
        assert LlamaCppReader().recognise(http)
        reading = LlamaCppReader().read(http, out.read_text())
        http.close()
    finally:
        child.stdin.close()
        child.wait(timeout=30)
    assert (reading.k, reading.v, reading.echo) == ("q4_0", "q8_0", False)
    assert (reading.context, reading.sequences, reading.tokens) == (256, 2, 512)
    assert reading.rotation == (64, 64) and reading.model == "tiny"
