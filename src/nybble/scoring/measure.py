"""The main job: what KV settings cost on one model, or on two side by side."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nybble.errors import NybbleError
from nybble.formats import unique
from nybble.models.summary import summarise
from nybble.results.records import Measurement, Row, to_json
from nybble.results.store import RunStore, check_folder, write_text
from nybble.scoring import prepare as prep
from nybble.scoring.cells import first_scored, wanted_series
from nybble.scoring.choose import choose_backend
from nybble.scoring.job import RESULTS, Job
from nybble.scoring.request import REFERENCE, MeasureRequest, Progress
from nybble.scoring.text import sources
from nybble.scoring.verdict import load_thresholds


@dataclass(frozen=True)
class Result:
    """A measurement and the folder it is in."""

    measurement: Measurement
    folder: Path

    @property
    def failed(self) -> list[Row]:
        """Rows without numbers, each with its error."""
        return [r for r in self.measurement.rows if r.status == "failed"]


@dataclass(frozen=True)
class PlannedCell:
    """One line of a dry run.

    Attributes:
        setting: the KV setting.
        role: candidate, floor, identity or cross.
        context: tokens of context.
        chunks: most chunks to score (texts may turn out shorter).
        bits: stored bits an element.
        bytes_per_token: bytes one more token adds.
        cache_bytes: bytes of the cache at this context.
        seconds: rough time for this row on this machine, good to a factor of two.
    """

    setting: str
    role: str
    context: int
    chunks: int
    bits: float
    bytes_per_token: float
    cache_bytes: int
    seconds: float


def measure(request: MeasureRequest, progress: Progress | None = None) -> Result:
    """Measure KV settings against the 16-bit reference on the same weights.

    The same request again continues where it stopped: finished cells are read, not scored.

    Args:
        request: model, settings, text and protocol.
        progress: told how far the run is; silent without one.

    Returns:
        The measurement; also written to its folder as summary.json, cell by cell in rows/.

    Raises:
        NybbleError: something in the request, the model or the text cannot be used.
        EngineError: the engine cannot run the reference.
    """
    check_folder(request.out or RESULTS)
    with Job(request, progress) as job, RunStore(job.folder) as store:
        job.score(store)
        measurement = job.collect(store)
        write_text(store.folder / "summary.json", to_json(measurement))
        return Result(measurement, store.folder)


def plan_cells(request: MeasureRequest) -> list[PlannedCell]:
    """What `measure` would do: cells, bytes and rough time, from the header alone.

    Raises:
        NybbleError: whatever `measure` would refuse before it starts.
    """
    load_thresholds(request.thresholds)
    path = prep.locate(request.model)
    paths = [path, *([request.against] if request.against else [])]
    total = sum(source.wanted for source in sources(request))
    backend = choose_backend(request, paths)
    if backend.simulated or request.urls:
        raise NybbleError(
            "--dry-run plans runs in llama.cpp only", seen=f"--engine {backend.name}",
            hint="leave --dry-run out: sizes come first, and what is done is kept",
        )  # fmt: skip
    backend.check(paths)
    series = wanted_series(request)
    settings = unique([REFERENCE, *(s.lane.setting for s in series)])
    sizes = prep.cache_sizes(path, settings, request.contexts, request.timeout)
    summary = summarise(path)
    speed = matrix_speed()
    found: list[PlannedCell] = []
    for context in request.contexts:
        for s in series:
            chunks = {"identity": 1, "floor": (total + 1) // 2}.get(s.role, total)
            size = sizes[s.lane.setting]
            # Two FLOPs per weight and token; the output matrix only counts where scored.
            tokens = context + first_scored(context, request.score_from)
            seconds = chunks * tokens * summary.n_params / speed
            found.append(
                PlannedCell(
                    str(s.lane.setting), s.role, context, chunks, size.bits[context],
                    size.per_token, size.total[context], seconds,
                )
            )  # fmt: skip
    return found


def matrix_speed() -> float:
    """FLOP/s of a float32 matrix product here, halved: what llama.cpp reaches of NumPy's."""
    n = 1024
    a = np.ones((n, n), dtype=np.float32)
    best = min(_timed(a) for _ in range(3))
    return n**3 * 2 / best / 2


def _timed(a: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> float:
    start = time.perf_counter()
    a @ a
    return time.perf_counter() - start
