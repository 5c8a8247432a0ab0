"""What a run would do, from the model's header alone."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from nybble.errors import NybbleError
from nybble.formats import unique
from nybble.models.summary import summarise
from nybble.scoring.generation.cells import applies, wanted_lanes
from nybble.scoring.generation.generate import check
from nybble.scoring.generation.request import GenerateRequest
from nybble.scoring.prepare import cache_sizes

_BYTES = {"f16": 2, "f32": 4}  # of a weight in a float copy


@dataclass(frozen=True)
class PlannedLane:
    """One line of a dry run.

    Attributes:
        setting: the KV setting.
        role: reference, identity, floor or candidate.
        prompts: that it answers (texts may give fewer).
        tokens: most tokens it generates.
        cache_bytes: of its cache.
        seconds: rough time, good to a factor of two.
    """

    setting: str
    role: str
    prompts: int
    tokens: int
    cache_bytes: int
    seconds: float


def plan_lanes(request: GenerateRequest) -> list[PlannedLane]:
    """Lanes, bytes and rough time.

    Raises:
        NybbleError: whatever `generate` would refuse before it starts.
    """
    path, backend = check(request)
    if backend.name != "llama.cpp":
        raise NybbleError(
            "--dry-run plans runs in llama.cpp only", seen=f"--engine {backend.name}",
            hint="leave --dry-run out: what is done is kept",
        )  # fmt: skip
    summary = summarise(path)
    lanes = wanted_lanes(request.settings)
    sizes = cache_sizes(path, unique(x.setting for x in lanes), [request.context], request.timeout)
    copied = request.weights != "as-shipped" and set(summary.weight_types) - {"F32", "F16"}
    weights = summary.n_params * _BYTES[request.weights] if copied else summary.size_bytes
    # Every token reads all weights once. Lanes share the memory's bandwidth, so their times add
    # up; a prompt is read in blocks, about as fast as a tenth of its tokens are generated.
    token = weights / _bandwidth()
    found = []
    for lane in lanes:
        prompts = sum(applies(lane, i) for i in range(request.prompts))
        tokens = prompts * request.limit
        seconds = token * (tokens + 0.2 * prompts * request.prompt_tokens)
        size = sizes[lane.setting].total[request.context]
        found.append(PlannedLane(str(lane.setting), lane.role, prompts, tokens, size, seconds))
    return found


def _bandwidth() -> float:
    """Bytes a second that one core reads, halved: what a product with the weights reaches."""
    data = np.ones(1 << 24, dtype=np.float32)  # 64 MiB: larger than caches
    best = min(_timed(data) for _ in range(3))
    return data.nbytes / best / 2


def _timed(data: np.ndarray[tuple[int], np.dtype[np.float32]]) -> float:
    start = time.perf_counter()
    data.max()
    return time.perf_counter() - start
