"""Decode attention for one token: this runtime against 16-bit kernels and transformers' caches.

    python bench/decode.py                                  a choice of cases, about five minutes
    python bench/decode.py --contexts 2K,32K --shapes 8x128 --batches 1,16 --groups 1,4,8
    python bench/decode.py --full                           everything that fits in memory

In one run: the fastest bf16 attention there is (SDPA's backends, FlashAttention and FlashInfer if
installed), float32 on a CPU, transformers' QuantizedCache (with optimum-quanto, hqq: whichever is
installed; fp8 always), a packed layer for each KV type, and latents where the shape has them.
Caches are cold, ways take turns, ratios have 95 % intervals (decode_measure.py). Writes
bench/results/decode-cpu.json or decode-cuda.json and the tables of docs/runtime-numbers.md.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

import runtime_page
from common import save, table
from decode_measure import Bench, Way, median, refused, speedup
from decode_packed import Data, Shape, make, packed_ways, watched
from decode_ways import old_ways, plain_way
from nybble.environment import package_version
from nybble.errors import NybbleError

SHAPES = {str(s): s for s in (Shape(1, 256), Shape(8, 128), Shape(8, 64), Shape(4, 512, True))}
CONTEXTS, BATCHES, GROUPS = (2048, 8192, 32768, 131072), (1, 4, 16, 64), (1, 4, 8)
TYPES = ("f16", "q8_0", "q4_0", "nyb4")
LATENT = ("q8_0", "q4_0")
LIMITS = {"f16": 0.02, "q8_0": 0.05}  # error of an output whose type is believed; else _WRONG
_WRONG = 0.5
_COPIED = {"cpu": 256 << 20, "cuda": 2 << 30}
_MOST = {"cpu": 6.0, "cuda": 3.0}  # seconds that one way may take in a case
# Memory of a case in units of its bf16 tensors: these, a copy in the making, four packed layers;
# on a GPU also what FlashAttention and FlashInfer want in their own order.
_HELD = {"cpu": 4.5, "cuda": 7.0}
_OLD_BYTES = {"cpu": 256 << 20, "cuda": 4 << 30}  # keys and values that old caches are tried with


@dataclass(frozen=True)
class Case:
    """One shape at one load.

    Attributes:
        shape: of the layer.
        group: query heads of a KV head.
        batch: sequences.
        context: tokens of each.
        old: whether transformers' own caches take part; they are what takes the time.
    """

    shape: Shape
    group: int
    batch: int
    context: int
    old: bool = True

    def __str__(self) -> str:
        return f"{self.shape} G{self.group} batch {self.batch} {self.context // 1024}K"

    @property
    def plain_bytes(self) -> int:
        """Keys and values at 16 bits."""
        return 4 * self.batch * self.context * self.shape.kv_heads * self.shape.dim


def chosen(device: str) -> list[Case]:
    """The cases of a run without arguments."""
    small, wide, flat, latent = SHAPES.values()
    k32 = 32768
    if device == "cuda":
        found = [
            *(Case(wide, 8, 16, c) for c in CONTEXTS), *(Case(wide, 8, b, k32) for b in (1, 4, 64)),
            *(Case(wide, g, 16, k32) for g in (1, 4)), Case(small, 4, 16, k32),
            Case(flat, 8, 16, k32), *(Case(latent, 8, b, k32) for b in (1, 4, 16)),
        ]  # fmt: skip
    else:
        found = [
            *(Case(shape, 4, 1, c) for shape in (small, wide) for c in CONTEXTS),
            *(Case(wide, g, 1, k32) for g in (1, 8)), Case(flat, 4, 1, k32),
            *(Case(wide, 4, b, c) for b, c in ((4, 8192), (16, 2048), (64, 2048))),
            *(Case(latent, 8, 1, c) for c in (8192, k32)),
        ]  # fmt: skip
    return [replace(c, old=c.context == k32 and c.group != 1 and c.shape != flat) for c in found]


def grid(args: argparse.Namespace) -> list[Case]:
    """The cases that the arguments ask for."""
    named = (args.shapes, args.groups, args.batches, args.contexts)
    if not args.full and not any(named):
        return chosen(args.device)
    one = {False: ([1], [32768]), True: (list(BATCHES), list(CONTEXTS))}[args.full]
    shapes = args.shapes or list(SHAPES.values())
    found = []
    for shape in shapes:
        # The latent shape is Gemma 4 31B's, 32 query heads for 4 KV heads.
        groups = args.groups or ([8] if shape.latent else list(GROUPS) if args.full else [4])
        found += [
            Case(shape, *rest)
            for rest in itertools.product(groups, args.batches or one[0], args.contexts or one[1])
        ]
    return found


def free_bytes(device: torch.device) -> int:
    """Memory that can be had."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


class Runner:
    """Runs cases on one device.

    Args:
        args: of the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._device = torch.device(args.device)
        self._args = args
        kind = self._device.type
        self._bench = Bench(self._device, args.flush)
        self._copy = self._bench.copying(args.copied or _COPIED[kind])
        self._cpu = kind == "cpu"

    def run(self, case: Case) -> dict[str, Any]:
        """One case; a dictionary with `skipped` where it does not fit."""
        about: dict[str, Any] = {
            "shape": str(case.shape), "group": case.group, "batch": case.batch,
            "context": case.context, "plain_bytes": case.plain_bytes,
        }  # fmt: skip
        free = free_bytes(self._device)
        least = case.plain_bytes * _HELD[self._device.type]
        if least > 0.8 * free:
            return {**about, "skipped": f"needs {least / 2**30:.1f} GiB of {free / 2**30:.1f} free"}
        data = make(case.shape, case.context, case.batch, case.group, self._device)
        left_out: dict[str, str] = {}
        ways = self._ways(data, case, left_out)
        errors, kernels = self._check(ways, left_out)
        ways = [way for way in ways if way.name not in left_out]
        # What compiles or allocates at its first calls has done so by now, copy included.
        self._copy.call()
        times = self._bench.turns(
            [self._copy, *ways], self._args.runs, self._args.most or _MOST[self._device.type]
        )
        copied = self._copy.moved / median(times["copy"])
        found = {}
        for way in ways:
            found[way.name] = {
                **entry(way, times[way.name], copied), "error": errors.get(way.name),
                "kernel": kernels.get(way.name, way.about.get("kernel")),
                "faster_than": {
                    base: speedup(times[base], times[way.name])
                    for base in bases(way.name) if base in times and base != way.name
                },
            }  # fmt: skip
        return {**about, "copy_bytes_per_s": copied, "ways": found, "left_out": left_out}

    def _ways(self, data: Data, case: Case, left_out: dict[str, str]) -> list[Way]:
        plain, tensors = plain_way(data, self._bench, "bf16", torch.bfloat16, left_out)
        ways = [plain]
        wanted = case.old and not self._args.no_old
        old = wanted and case.plain_bytes <= _OLD_BYTES[self._device.type]
        if old:
            ways += old_ways(data, plain, tensors, left_out)
        elif wanted:
            left_out["transformers' caches"] = "left out at this size: seconds for a step"
        del tensors
        if self._cpu and 2 * case.plain_bytes < 0.5 * free_bytes(self._device):
            ways.append(plain_way(data, self._bench, "f32", torch.float32, left_out)[0])
        elif self._cpu:
            left_out["f32"] = "does not fit in memory"
        settings = [(name, False) for name in self._args.types]
        if case.shape.latent:
            settings += [(name, True) for name in LATENT if name in self._args.types]
        for name, latent in settings:
            try:
                ways += packed_ways(data, f"{name}/{name}", latent, old and name == "q4_0")
            except (NybbleError, RuntimeError) as error:
                left_out[f"latent {name}" if latent else name] = refused(error)
        return ways

    def _check(
        self, ways: Sequence[Way], left_out: dict[str, str]
    ) -> tuple[dict[str, float], dict[str, str]]:
        """Run every way once; leave out what gives another result, and see which kernel ran."""
        expected: torch.Tensor | None = None
        errors, kernels = {}, {}
        for way in sorted(ways, key=lambda way: way.name != "f32"):  # the exact one first
            with way.context():
                got, by_reference = watched(way.call)
            way.after()
            got = got.float()
            expected = got if expected is None else expected
            errors[way.name] = off = float((got - expected).norm() / expected.norm())
            if not off < LIMITS.get(way.name, _WRONG):
                left_out[way.name] = f"wrong result: off by {off:.2g}"
            if "stored_bytes" in way.about or way.name in ("q4_0 step", "latent q4_0 step"):
                kernels[way.name] = "reference" if by_reference else self._kernel()
        return errors, kernels

    def _kernel(self) -> str:
        from nybble.runtime.dispatch import kernel

        return kernel(self._device).split(" (")[0]


def bases(name: str) -> Iterator[str]:
    """What a way is held against."""
    if name.endswith(" step"):
        yield from ("dynamic step", "quanto 4 step", "hqq 4 step", "fp8 step")
        return
    yield from ("bf16", "f32")
    if name.startswith("latent "):
        yield name.removeprefix("latent ")


def entry(way: Way, times: np.ndarray, copied: float) -> dict[str, Any]:
    """What a result keeps of a way's times."""
    seconds = median(times)
    rate = None if way.moved is None else way.moved / seconds
    low, high = np.nanquantile(times, [0.25, 0.75])
    return {
        "seconds": seconds, "quartiles": [float(low), float(high)],
        "runs": int((~np.isnan(times)).sum()), "moved_bytes": way.moved,
        "bytes_per_s": rate, "share_of_copy": None if rate is None else rate / copied, **way.about,
    }  # fmt: skip


def lines(cases: Sequence[dict[str, Any]]) -> str:
    """One table of all cases: milliseconds, and how many times faster than bf16."""
    names = list(dict.fromkeys(name for case in cases for name in case.get("ways", ())))
    rows = []
    for case in cases:
        label = f"{case['shape']} G{case['group']} B{case['batch']} {case['context'] // 1024}K"
        if "skipped" in case:
            rows.append([label, case["skipped"], *[""] * len(names)])
            continue
        row = [label, f"{case['copy_bytes_per_s'] / 1e9:.0f}"]
        for name in names:
            way = case["ways"].get(name)
            row.append("" if way is None else cell(way))
        rows.append(row)
    return table(["case", "copy GB/s", *(f"{name} ms" for name in names)], rows)


def cell(way: dict[str, Any]) -> str:
    """Time, ratio to bf16 and share of the copy bandwidth."""
    ratio = way["faster_than"].get("bf16")
    text = f"{way['seconds'] * 1e3:.3g}"
    if ratio:
        text += f" ({ratio['value']:.2f}x, {way['share_of_copy']:.0%})"
    return text


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def several(read: Any) -> Any:
        return lambda text: [read(part) for part in text.split(",")]

    def tokens(text: str) -> int:
        return int(text[:-1]) * 1024 if text[-1:] in "kK" else int(text)

    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default)
    parser.add_argument("--full", action="store_true", help="every case that fits")
    parser.add_argument("--contexts", type=several(tokens), metavar="2K,32K")
    parser.add_argument("--batches", type=several(int), metavar="1,16")
    parser.add_argument("--groups", type=several(int), metavar="1,4,8", help="queries a KV head")
    parser.add_argument("--shapes", type=several(SHAPES.__getitem__), metavar=",".join(SHAPES))
    parser.add_argument("--types", type=several(str), default=list(TYPES), help="KV types")
    parser.add_argument("--runs", type=int, help="of each way: 20 on a CPU, 100 on a GPU")
    parser.add_argument("--most", type=float, help="seconds that one way may take in a case")
    parser.add_argument("--flush", type=int, help="bytes that push everything out of the caches")
    parser.add_argument("--copied", type=int, help="bytes of the copy that bandwidth is told by")
    parser.add_argument("--no-old", action="store_true", help="without transformers' caches")
    parser.add_argument("--no-save", action="store_true", help="only print")
    args = parser.parse_args(given)
    args.runs = args.runs or (100 if args.device == "cuda" else 20)
    return args


@torch.inference_mode()
def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run all cases; progress goes to stderr."""
    busy = psutil.getloadavg()[0]
    runner = Runner(args)
    cases = grid(args)
    found = []
    for i, case in enumerate(cases):
        print(f"{i + 1}/{len(cases)} {case}", file=sys.stderr, flush=True)
        found.append(runner.run(case))
    device = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    names = ("torch", "transformers", "triton", "flash-attn", "flashinfer-python",
             "optimum-quanto", "hqq")  # fmt: skip
    return {
        "device": device, "threads": torch.get_num_threads(), "runs": args.runs,
        "load_before": busy,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "flush_bytes": runner._bench.flush_bytes,  # noqa: SLF001
        "libraries": {name: package_version(name) for name in names},
        "cases": found,
    }  # fmt: skip


def main(given: Sequence[str] | None = None) -> Path | None:
    """Measure, write the result and print the table."""
    args = arguments(given)
    result = measure(args)
    path = None
    if not args.no_save:
        path = save(f"decode-{args.device}", result)
        runtime_page.write()
    print(lines(result["cases"]))
    return path


if __name__ == "__main__":
    main()
