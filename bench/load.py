"""The demo model under load with an f16 and with a q4_0 cache, in turns: bench/results/load.json.

    python bench/load.py [--requests 40] [--concurrency 4] [--prompt 512] [--output 64] [--dry]

Both servers are llama.cpp's own, of the installed xllamacpp, each in a child process with all
cores; only one of them works at a time. Weights are as shipped (Q4_K_M). A second, short run with
one request at a time gives the rates that `nybble plan --calibration` takes; they come from its
shortest and its longest third, and `check` compares their estimate with the third in between.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from common import save
from nybble.environment import cache_dir, package_version, usable_cpus
from nybble.formats.setting import parse
from nybble.models.demo import demo_model
from nybble.models.geometry import Geometry
from nybble.models.gguf_geometry import geometry_of_gguf
from nybble.planning.cards import Card
from nybble.planning.interval import Interval
from nybble.planning.measured_load import rates
from nybble.planning.throughput import decode, prefill
from nybble.report import load_table
from nybble.results.loads import LoadReport
from nybble.serving.load.lengths import Lengths
from nybble.serving.load.profile import BenchProfile
from nybble.serving.load.run import BenchRequest, bench

HERE = Card(name="this machine", vendor="cpu", memory_bytes=0)
KV = ("f16", "q4_0")
SERVER = """
import sys
import xllamacpp as x
model, kv, context, slots, threads = sys.argv[1:]
p = x.CommonParams()
p.model.path, p.n_ctx, p.n_parallel = model, int(context), int(slots)
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = int(threads)
p.cache_type_k = p.cache_type_v = getattr(x.ggml_type, f"GGML_TYPE_{kv.upper()}")
p.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
server = x.Server(p)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@contextmanager
def served(model: Path, kv: str, context: int, slots: int) -> Iterator[str]:
    """The address of a server, until the block ends."""
    words = [str(model), kv, str(context * slots), str(slots), str(usable_cpus())]
    child = subprocess.Popen(
        [sys.executable, "-c", SERVER, *words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert child.stdin and child.stdout
    try:
        yield child.stdout.readline().strip()
    finally:
        child.stdin.close()
        try:
            child.wait(timeout=20)
        except subprocess.TimeoutExpired:
            child.kill()


def check(report: LoadReport, index: int, geometry: Geometry) -> dict[str, Any]:
    """Rates of one run, and their estimate beside the requests they did not see."""
    run, setting = report.runs[index], parse(f"{KV[index]}/{KV[index]}")
    found = rates(report, run, geometry, setting)
    done = sorted(run.requests, key=lambda r: r.tokens_in or 0)
    middle = done[len(done) // 3 : -(len(done) // 3)]
    tokens = round(sum(r.tokens_in or 0 for r in middle) / len(middle))
    out = middle[0].tokens_out
    steps = median(sum(r.gaps) / (r.tokens_out - 1) for r in middle)
    reads = median((r.tokens_in or 0) / (r.first or 1.0) for r in middle)
    estimates = {
        "decode": decode(geometry, setting, HERE, tokens + out // 2, calibration=found).tokens,
        "prefill": prefill(geometry, setting, HERE, tokens, calibration=found).tokens,
    }
    rows = {}
    for what, measured in (("decode", 1 / steps), ("prefill", reads)):
        rows[what] = {"context": tokens, "measured": round(measured, 1),
                      "estimate": span(estimates[what])}  # fmt: skip
    pairs = (("weights", found.weights), ("cache", found.cache), ("prefill", found.prefill))
    made = {name: None if rate is None else span(rate) for name, rate in pairs}
    return {"setting": str(setting), "rates": made, **rows}


def span(value: Interval) -> list[float]:
    """Both ends, four digits."""
    return [float(f"{end:.4g}") for end in (value.low, value.high)]


def main() -> None:
    """Drive, print, save."""
    ask = argparse.ArgumentParser()
    ask.add_argument("--requests", type=int, default=40)
    ask.add_argument("--concurrency", type=int, default=4)
    ask.add_argument("--prompt", default="512")
    ask.add_argument("--output", default="64")
    ask.add_argument("--alone", type=int, default=24, help="requests one at a time")
    ask.add_argument("--dry", action="store_true", help="write no result file")
    given = ask.parse_args()
    model = demo_model(cache_dir())
    geometry = geometry_of_gguf(model)
    prompt, output = Lengths.parse(given.prompt), Lengths.parse(given.output)
    alone = Lengths("uniform", 128, max(1024, prompt.longest))
    context = 1.2 * alone.longest + output.longest + 64  # lengths are right to a few percent
    # A base model has no chat template, so the other API is asked.
    loaded = BenchProfile(prompt, output, given.concurrency, given.requests, api="completions")
    single = BenchProfile(alone, output, 1, given.alone, api="completions")
    with (
        served(model, KV[0], int(context), given.concurrency) as one,
        served(model, KV[1], int(context), given.concurrency) as two,
    ):
        report = bench(BenchRequest((one, two), loaded, names=KV))
        print(load_table.markdown(report))
        quiet = bench(BenchRequest((one, two), single, names=KV))
    rows = [check(quiet, i, geometry) for i in range(len(KV))]
    for row in rows:
        print(row)
    if given.dry:
        return
    record = report.as_dict()
    for run in record["runs"]:
        del run["requests"]  # thousands of times; --save of the command keeps them
    numbers = {"shape": record["shape"], "runs": record["runs"], "ratios": record["ratios"],
               "check": rows, "openai": package_version("openai")}  # fmt: skip
    print(save("load", numbers))


if __name__ == "__main__":
    main()
