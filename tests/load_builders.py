"""Load tests with chosen times, without a server."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from nybble.results.loads import LoadBlock, LoadReport, LoadRequest, LoadRun, LoadShape
from nybble.serving.load.summary import Limits, numbers, ratio

SHAPE = LoadShape("chat", "100", "11", 1, 20, None, None, 0.0, 0, 1, 1)


def answer(index: int, **changes: Any) -> LoadRequest:
    """100 tokens in, 11 out; 0.1 s to the first, then 0.01 s each; one after the other."""
    gaps = changes.pop("gaps", (0.01,) * 10)
    first = changes.pop("first", 0.1)
    at = changes.pop("at", 0.2 * index)
    made = LoadRequest(index, 0, 100, 11, 100, 0, 11, at, at, first, tuple(gaps),
                       (first or 0.0) + sum(gaps))  # fmt: skip
    return dataclasses.replace(made, **changes)


def run_of(
    requests: Sequence[LoadRequest], name: str = "one", blocks: int = 1,
    limits: Limits | None = None, **changes: Any,
) -> LoadRun:  # fmt: skip
    """A run of these requests, each block as long as its last answer lasts."""
    made = []
    for b in range(blocks):
        ends = [r.sent + r.total for r in requests if r.block == b]
        made.append(LoadBlock(b, 0.0, max(ends, default=0.0), 0.1, 0.001))
    found = LoadRun(
        name, "http://127.0.0.1:1/v1", "m", "llamacpp", "2026-11-28T12:00:00+00:00", "mark",
        tuple(made), tuple(requests), numbers(requests, made, limits),
    )  # fmt: skip
    return dataclasses.replace(found, **changes)


def report_of(*runs: LoadRun, shape: LoadShape = SHAPE) -> LoadReport:
    """These runs, later ones divided by the first."""
    ratios = tuple(ratio(r, runs[0], in_turns=True) for r in runs[1:])
    return LoadReport(shape, runs, ratios, {"cpu": "x"}, {"nybble": "0"})


def in_blocks(
    blocks: int, each: int, slow: Callable[[int], float] = lambda block: 1.0, **changes: Any
) -> list[LoadRequest]:
    """Requests in blocks whose times are all `slow(block)` times the usual."""
    return [
        answer(b * each + i, block=b, at=0.2 * i * slow(b), first=0.1 * slow(b),
               gaps=(0.01 * slow(b),) * 10, **changes)
        for b in range(blocks) for i in range(each)
    ]  # fmt: skip
