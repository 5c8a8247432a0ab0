"""End to end on real models: tokens a second and peak memory, for nybble.Cache and transformers'.

    python bench/generate.py                        the demo model, prompts of 1K and 32K tokens
    python bench/generate.py --model FOLDER         a model with full attention only, so that
                                                    QuantizedCache takes part
    python bench/generate.py --prompts 1K --caches dynamic,q4_0/q4_0

Every run is a process of its own (generate_child.py), one at a time, all caches of a prompt in
turns, about 25 minutes in all. Writes bench/results/generate.json and the tables of
docs/runtime-numbers.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

import runtime_page
from common import save, topics_text
from nybble.cli.generate_text import ModelText
from nybble.environment import cache_dir, package_version
from nybble.models.checkpoint import resolve
from nybble.models.demo import demo_model
from runtime_tables import generate_lines

CACHES = ("dynamic", "q8_0/q8_0", "q4_0/q4_0")
OLD = ("quanto 4", "hqq 4")
CHUNK, NEW = 512, 32
BOUND = 0.10  # peak over weights plus bytes_stored (issue 7)
_SHORT = 2048  # prompts up to here are run in several rounds
_CHILD = Path(__file__).with_name("generate_child.py")


def token_ids(model: Path, most: int) -> np.ndarray:
    """The first tokens of English reference prose, int64."""
    text = ModelText(resolve(model))
    try:
        ids = text.prompt(topics_text(8 * most))
    finally:
        text.close()
    if len(ids) < most:
        raise SystemExit(f"the text has {len(ids):,} tokens only, {most:,} are wanted")
    return np.array(ids[:most], dtype=np.int64)


def plan(
    args: argparse.Namespace, model: Path, longest: int | None
) -> Iterator[tuple[int, str, str]]:
    """Tokens, cache and dtype of every run of a model, in order."""
    full = model != args.demo
    caches = args.caches or [*CACHES, *(OLD if full else ())]
    for wanted in args.prompts:
        tokens = min(wanted, (longest or wanted) - args.new)
        if tokens < wanted - args.new:
            print(f"{model.name}: {wanted:,} tokens are more than it was made for", file=sys.stderr)
            continue
        for _ in range(args.rounds if wanted <= _SHORT else 1):
            for cache in caches:
                yield tokens, cache, args.dtype
            if args.device == "cpu" and wanted <= _SHORT and not args.caches:
                yield tokens, "dynamic", "bfloat16"


def child(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One run; a dictionary with `failed` where it came to nothing."""
    path = folder / "request.json"
    path.write_text(json.dumps(request), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(_CHILD), str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        return {"failed": said[-1][:300]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All runs of all models."""
    busy = psutil.getloadavg()[0]
    runs = []
    for model in [args.demo, *args.model]:
        checkpoint = resolve(model)
        name = model.stem if model.is_file() else checkpoint.name
        with tempfile.TemporaryDirectory() as text:
            folder = Path(text)
            todo = list(plan(args, model, checkpoint.context_length))
            if not todo:
                continue
            ids = token_ids(model, max(tokens for tokens, _, _ in todo))
            for tokens, cache, dtype in todo:
                np.save(folder / "tokens.npy", ids[:tokens])
                request = {
                    "model": str(model), "tokens": str(folder / "tokens.npy"), "cache": cache,
                    "dtype": dtype, "device": args.device, "chunk": CHUNK, "new": args.new,
                }  # fmt: skip
                print(f"{name}, {tokens:,} tokens, {cache} {dtype}", file=sys.stderr, flush=True)
                found = child(request, folder)
                runs.append({"model": name, "cache": cache, "dtype": dtype,
                             "prompt": tokens, **found})  # fmt: skip
    names = ("torch", "transformers", "optimum-quanto", "hqq")
    return {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "threads": torch.get_num_threads(), "bound": BOUND, "runs": runs,
        "load_before": busy,
        "libraries": {name: package_version(name) for name in names},
    }  # fmt: skip


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def tokens(text: str) -> list[int]:
        return [int(p[:-1]) * 1024 if p[-1:] in "kK" else int(p) for p in text.split(",")]

    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--model", type=Path, action="append", default=[], help="one more folder")
    parser.add_argument("--prompts", type=tokens, default=[1024, 32768], metavar="1K,32K")
    parser.add_argument("--caches", type=lambda text: text.split(","), metavar="dynamic,q4_0/q4_0")
    parser.add_argument("--new", type=int, default=NEW, help="tokens of the answer")
    parser.add_argument("--rounds", type=int, default=3, help="of short prompts")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default)
    parser.add_argument("--dtype", help="of the weights: float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--no-save", action="store_true", help="only print")
    args = parser.parse_args(given)
    args.dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    args.demo = demo_model(cache_dir())
    return args


def main(given: Sequence[str] | None = None) -> None:
    """Measure, write the result and print the table."""
    args = arguments(given)
    result = measure(args)
    if not args.no_save:
        save("generate", result)
        runtime_page.write()
    print(generate_lines(result["runs"]))


if __name__ == "__main__":
    main()
