"""How long a result base of 10,000 cells and 10 million token rows takes to index and to ask.

    python bench/base.py [--runs 500] [--folder FOLDER]

The runs are drawn (tests/run_folders.py), not measured: 25 of them with rows and summaries as
`nybble measure` writes them, each copied under 20 names of models. A query is the whole command in
a fresh process, index and files in the page cache; the quickest of five, since others use the
machine: its load average stands beside it, and processor time, which knows no waiting.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import save

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from run_folders import write_run  # noqa: E402

DRAWN = 25
SETTINGS = {"q8_0/q8_0": 8e-4, "q8_0/q5_1": 2e-3, "q8_0/q4_0": 7e-3, "q5_1/q5_1": 5e-3,
            "q5_0/q5_0": 8e-3, "q5_1/q4_0": 0.02, "q4_1/q4_1": 0.08, "q4_0/q4_0": 0.12}  # fmt: skip
CONTEXTS, CATEGORIES, TOKENS = (1024, 4096), ("code", "chat", "tools", "prose", "scripts"), 228
QUERIES = {
    "table of all candidates": (),
    "GROUP BY over all token rows": (
        "select weights, setting, context, category, avg(kld), quantile_cont(kld, 0.999), "
        "avg((top = top_ref)::int), count(*) from tokens group by all order by all",
    ),
    "mean of all token rows by setting": ("select setting, avg(kld) from tokens group by all",),
    "cells by SQL": ("select model, setting, mean_kld from cells where role = 'candidate' "
                     "order by mean_kld limit 20",),
    "imported, of which there are none": ("from imported",),
}  # fmt: skip


def make(folder: Path, runs: int) -> None:
    """Draw `DRAWN` runs, and copy them until there are as many as asked.

    A copy is 500,000 rows behind what it copies, and Parquet compresses 122,880 at a time.
    """
    drawn = min(DRAWN, runs)
    for i in range(runs):
        run, name, file = folder / f"run-{i:04d}", f"Model {i}", f"model-{i}.gguf"
        if i < drawn:
            write_run(run, model=name, file=file, settings=SETTINGS, contexts=CONTEXTS,
                      categories=CATEGORIES, tokens=TOKENS, seed=i)  # fmt: skip
            continue
        of = folder / f"run-{i % drawn:04d}"
        shutil.copytree(of, run)
        record = json.loads((of / "summary.json").read_text(encoding="utf-8"))
        record["models"][0] |= {"name": name, "file": file, "sha256": f"{i:064x}"}
        (run / "summary.json").write_text(json.dumps(record), encoding="utf-8")


def command(base: Path, *words: str) -> tuple[float, float, str]:
    """Seconds and processor seconds of `nybble results query`, and what it printed."""
    begun, used = time.perf_counter(), os.times()
    done = subprocess.run(
        [sys.executable, "-m", "nybble", "results", "query", *words, "--base", str(base), "-q"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    seconds, after = time.perf_counter() - begun, os.times()
    if done.returncode:
        raise SystemExit(done.stderr)
    cpu = after.children_user + after.children_system - used.children_user - used.children_system
    return seconds, cpu, done.stdout


def measure(base: Path) -> dict[str, object]:
    """Index, then every query five times."""
    first, first_cpu, _ = command(base, "from imported")
    cells, rows = (int(command(base, f"select count(*) from {view}", "--csv")[2].split()[1])
                   for view in ("cells", "tokens"))  # fmt: skip
    found: dict[str, object] = {"cells": cells, "token_rows": rows}
    found["first_index"] = {"s": round(first, 1), "cpu_s": round(first_cpu, 1)}
    for name, words in QUERIES.items():
        tries = [command(base, *words)[:2] for _ in range(5)]
        found[name] = {
            "s": round(min(t[0] for t in tries), 2), "cpu_s": round(min(t[1] for t in tries), 2),
            "all_s": [round(t[0], 2) for t in tries],
            "all_cpu_s": [round(t[1], 2) for t in tries],
        }  # fmt: skip
    os.utime(base / "run-0000" / "summary.json")
    changed, changed_cpu, _ = command(base, "from imported")
    found["one_changed_run"] = {"s": round(changed, 2), "cpu_s": round(changed_cpu, 2)}
    index = Path(os.environ["NYBBLE_CACHE"]) / "bases"
    size = sum(p.stat().st_size for p in index.rglob("*") if p.is_file())
    return {**found, "index_mib": round(size / 2**20)}


def main() -> None:
    """Make the base, measure, save bench/results/base.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--folder", type=Path, help="keep the base here, or find it here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["NYBBLE_CACHE"] = str(Path(scratch) / "cache")
        base = args.folder or Path(scratch) / "base"
        if not (base / f"run-{args.runs - 1:04d}" / "summary.json").exists():
            make(base, args.runs)
        numbers = {
            "load_average_before": round(os.getloadavg()[0], 1),
            "runs": args.runs,
            "row_files": sum(1 for _ in base.glob("*/rows/*.parquet")),
            **measure(base),
        }
    print(json.dumps(numbers, indent=1))
    if args.runs == 500:
        save("base", numbers)


if __name__ == "__main__":
    main()
