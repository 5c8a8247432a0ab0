"""How bench/decode measures: cold caches, all ways in turns, ratios with intervals.

Every turn runs each way once, in an order drawn anew, so a busy machine hits all alike and a
ratio is taken within turns. Before each run a buffer larger than the last-level cache is written
and another one read, so that nothing of the last run is found and no dirty line is paid for.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

LEAST = 5  # runs of a way, however slow it is
DRAWS = 4_000
_SMALLEST_FLUSH = 128 << 20
_HOST_AHEAD = 1_000_000  # GPU cycles, half a millisecond, in which the host queues a whole call


@dataclass
class Way:
    """One way to attend for one token.

    Attributes:
        name: as results call it.
        call: one step; its result is the attention's output.
        moved: bytes that a step has to read, or None where that is not known.
        context: entered around a run, outside its time.
        after: brings the state back behind a run, outside its time.
        about: what else a result should say.
    """

    name: str
    call: Callable[[], Any]
    moved: int | None = None
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    after: Callable[[], None] = lambda: None
    about: dict[str, Any] = field(default_factory=dict)


def cache_bytes(device: torch.device) -> int:
    """Bytes of the last-level cache; 0 where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text()
    except OSError:
        return 0
    found = re.fullmatch(r"(\d+)([KM])", text.strip())
    return int(found[1]) << {"K": 10, "M": 20}[found[2]] if found else 0


class Bench:
    """A device's clock and its cold caches.

    Args:
        device: where the ways run.
        flush: bytes written before every run; four times the last-level cache by default.
    """

    def __init__(self, device: torch.device, flush: int | None = None) -> None:
        self.device = device
        size = max(_SMALLEST_FLUSH, 4 * cache_bytes(device)) if flush is None else flush
        self.flush_bytes = size
        self._written = torch.zeros(size // 4, dtype=torch.float32, device=device)
        self._read = torch.zeros(size // 4, dtype=torch.float32, device=device)

    def _cold(self) -> None:
        self._written.add_(1.0)
        self._read.sum()

    def run(self, way: Way) -> float:
        """Seconds of one run with cold caches."""
        with way.context():
            self._cold()
            if self.device.type == "cuda":
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                # What is timed is the GPU's work; the host's, if it is shorter, is hidden here.
                torch.cuda._sleep(_HOST_AHEAD)  # noqa: SLF001
                begin.record()
                way.call()
                end.record()
                end.synchronize()
                seconds = begin.elapsed_time(end) / 1e3
            else:
                start = time.perf_counter()
                way.call()
                seconds = time.perf_counter() - start
        way.after()
        return seconds

    def turns(self, ways: Sequence[Way], turns: int, most: float) -> dict[str, np.ndarray]:
        """Run all ways in turns.

        Args:
            ways: each has run before.
            turns: runs of each.
            most: seconds that one way may take in all; slower ones stop after LEAST runs or more.

        Returns:
            Seconds by name, float64 [turns], NaN where a way had stopped.
        """
        rng = np.random.default_rng(0)
        times = {way.name: np.full(turns, np.nan) for way in ways}
        used = dict.fromkeys(times, 0.0)
        for turn in range(turns):
            for i in rng.permutation(len(ways)):
                way = ways[i]
                if turn >= LEAST and used[way.name] > most:
                    continue
                times[way.name][turn] = seconds = self.run(way)
                used[way.name] += seconds
        return times

    def copying(self, size: int) -> Way:
        """Copying a buffer: what the memory gives; `moved` counts what is read and written."""
        source = torch.ones(size // 4, dtype=torch.float32, device=self.device)
        target = torch.zeros_like(source)
        return Way("copy", lambda: target.copy_(source), 2 * size)


def median(times: np.ndarray) -> float:
    """Median of the runs that were made."""
    return float(np.nanmedian(times))


def speedup(base: np.ndarray, way: np.ndarray, seed: int = 0) -> dict[str, float]:
    """How many times faster a way is than `base`, with a 95 % interval.

    Medians of the turns that both ran in; turns are drawn with replacement, both ways' together.

    Args:
        base: seconds of each turn, NaN for none.
        way: likewise.
        seed: of the drawing.

    Returns:
        value, low and high.
    """
    both = ~np.isnan(base) & ~np.isnan(way)
    a, b = base[both], way[both]
    drawn = np.random.default_rng(seed).integers(0, len(a), (DRAWS, len(a)))
    ratios = np.median(a[drawn], 1) / np.median(b[drawn], 1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return {"value": float(np.median(a) / np.median(b)), "low": float(low), "high": float(high)}


def refused(error: Exception) -> str:
    """An error's first line, short enough for a table."""
    return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0][:160]}"
