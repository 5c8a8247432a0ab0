"""What a sweep costs beside its cells, and how much sooner two workers finish it.

    python bench/sweep.py [--small] [--documents 6] [--no-ray]

Eight equal groups (eight texts of one length, one context, three settings) of the demo model, one
thread a worker: by one worker of this machine and by two, by one Ray node with one CPU and by two
(several node processes here, tests/sweep/ray_nodes.py). Overhead is the time from the first task
to the last, less what the groups say they took, which leaves out opening the model. A copy of the
weights is made before the clock runs. --small is a try with a tiny random model; nothing is saved.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import save, topics_text

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "sweep")]

GROUPS = 8
SETTINGS = ["q8_0/q8_0", "q8_0/q4_0", "q4_0/q4_0"]
LEAST, MOST = 1.8, 5.0  # speed of two workers against one; overhead in percent


def write(folder: Path, model: str, context: int, documents: int) -> None:
    """sweep.toml with one category a group, and a smaller warm.toml that opens the model once."""
    size = 8 * context  # characters of a document; a token has four or so
    words = topics_text(GROUPS * documents * size)
    lines = [
        {"category": f"text{i % GROUPS}", "text": words[i * size : (i + 1) * size]}
        for i in range(GROUPS * documents)
    ]
    if len(lines[-1]["text"]) < size:
        raise SystemExit(f"--documents {documents} is more than the text has")
    for name, kept in (("sweep", lines), ("warm", lines[:1])):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, kept)), encoding="utf-8")
        (folder / f"{name}.toml").write_text(
            f'[run]\nthreads = 1\n[[grid]]\nmodel = {json.dumps(model)}\njsonl = "{name}.jsonl"\n'
            f"kv = {json.dumps(SETTINGS)}\ncontext = {context}\ndocuments = {documents}\n",
            encoding="utf-8",
        )


def sweep(folder: Path, *words: str, file: str = "sweep.toml") -> dict[str, Any]:
    """One whole command in a fresh place, and what it says of itself."""
    place = tempfile.mkdtemp(dir=folder)
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "nybble", "sweep", file, "--place", place, "--json", "-q", *words],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    wall = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(done.stderr)
    record = json.loads(done.stdout)
    return {
        "workers": record["workers"], "groups": record["groups"], "cells": record["cells"],
        "seconds": record["seconds"], "busy_seconds": record["busy_seconds"],
        "command_seconds": round(wall, 2),
    }  # fmt: skip


def compared(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    """Overhead of one worker, speed of two."""
    overhead = (one["seconds"] / one["busy_seconds"] - 1) * 100
    return {
        "one": one,
        "two": two,
        "overhead_percent": round(overhead, 2),
        "speedup": round(one["seconds"] / two["seconds"], 3),
        "speedup_of_the_command": round(one["command_seconds"] / two["command_seconds"], 3),
        "busy_of_two_over_one": round(two["busy_seconds"] / one["busy_seconds"], 3),
    }


@contextmanager
def cluster(cpus: int) -> Iterator[str]:
    """Nodes with one CPU each, beside a head without any."""
    from ray_nodes import nodes

    with nodes() as found:
        for _ in range(cpus):
            found.add()
        yield found.address


def on_ray(folder: Path, cpus: int) -> dict[str, Any]:
    """The sweep on a cluster of its own; its workers have opened no model before."""
    with cluster(cpus) as address:
        return sweep(folder, "--ray", address)


def main() -> None:
    """Measure, print, save bench/results/sweep.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a tiny model, nothing saved")
    parser.add_argument("--documents", type=int, default=6, help="of each of the eight texts")
    parser.add_argument("--no-ray", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sweep-") as scratch:
        folder = Path(scratch)
        os.environ.setdefault("NYBBLE_CACHE", str(folder / "cache"))
        model, context = "demo", 512
        if args.small:
            from conftest import write_tiny_model

            model = str(write_tiny_model(folder / "tiny.gguf", n_layer=4))
        write(folder, model, context, args.documents)
        sweep(folder, file="warm.toml")
        numbers: dict[str, Any] = {
            "model": Path(model).name, "context": context, "documents": args.documents,
            "settings": SETTINGS, "asked": {"speedup": LEAST, "overhead_percent": MOST},
            "this_machine": compared(sweep(folder, "--workers", "1"),
                                     sweep(folder, "--workers", "2")),
        }  # fmt: skip
        if not args.no_ray:
            numbers["ray"] = compared(on_ray(folder, 1), on_ray(folder, 2))
    print(json.dumps(numbers, indent=1))
    if not args.small:
        save("sweep", numbers)


if __name__ == "__main__":
    main()
