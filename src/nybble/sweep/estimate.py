"""What a group holds in memory and roughly takes in time, from headers alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from nybble.errors import NybbleError
from nybble.formats import KVSetting
from nybble.models.found import Found, find
from nybble.planning.memory.base import Load
from nybble.planning.memory.registry import memory_model
from nybble.scoring.cells import first_scored, lanes_of, wanted_series
from nybble.scoring.measure import matrix_speed
from nybble.scoring.request import FILE_CHUNKS, REFERENCE
from nybble.sweep.executor import Needs
from nybble.sweep.grid import Group, Run

_PROCESSES = 400 << 20  # Python, NumPy and DuckDB of a worker and of its engine's process
_TORCH = 1200 << 20  # torch's own
_LOGIT_BLOCKS = 3  # references' blocks alive at once, and their exponentials
_ROWS = 64  # rows of a block of logits
_SLOWER = 3.0  # simulated caches in torch against llama.cpp on the same CPU, a rule of thumb


@dataclass(frozen=True)
class Estimate:
    """Before a group is run.

    Attributes:
        needs: what it holds; memory 0 where the model cannot be planned.
        seconds: good to a factor of two on the machine that estimates, where the shape is known.
        note: why memory or time is not known, else empty.
    """

    needs: Needs
    seconds: float
    note: str = ""


def estimate(group: Group, gpus: float) -> Estimate:
    """Memory as the plan counts it, lanes side by side over one float copy of the weights.

    Time is two FLOPs for each weight and token, at the speed of a matrix product here; lanes
    share it.
    """
    run = group.run
    request = run.request()
    lanes = [lane.setting for lane in lanes_of(wanted_series(request))]
    documents = run.documents or (FILE_CHUNKS if request.text or request.jsonl else 1)
    # The output matrix counts where it is scored only.
    tokens = group.context + group.context - first_scored(group.context, request.score_from)
    work = documents * tokens * len(lanes)
    try:
        found = _found(run.model)
        weights = found.geometry.weights
        if weights is None:
            raise NybbleError("the shape of its weights is not known", seen=run.model)
        torch = run.grid["engine"] == "transformers" or not all(s.llamacpp for s in lanes)
        memory = _torch(found, lanes, group) if torch else _llamacpp(found, lanes, group, run)
    except NybbleError as error:
        return Estimate(Needs(run.threads, gpus), float(work), f"{error.what}: {error.seen}")
    seconds = work * weights.active_params / _speed() * (_SLOWER if torch else 1.0)
    return Estimate(Needs(run.threads, gpus, memory), seconds)


def _llamacpp(found: Found, lanes: list[KVSetting], group: Group, run: Run) -> int:
    geometry, load = found.geometry, Load(context=group.context)
    model = memory_model("llama.cpp")
    weights = geometry.weights
    assert weights is not None
    scored = weights.n_bytes
    if run.grid["weights"] != "as-shipped":
        scored = max(scored, weights.n_params * (4 if run.grid["weights"] == "f32" else 2))
    caches = 0
    for setting in lanes:
        model.check(geometry, setting)
        caches += model.memory(geometry, setting, load).of("cache", "state", "scratch", "compute")
    return scored + caches + _logits(found) + _PROCESSES


def _torch(found: Found, lanes: list[KVSetting], group: Group) -> int:
    """Simulated caches are kept as floats, and one copy is made on the way."""
    geometry, weights = found.geometry, found.geometry.weights
    assert weights is not None
    plain = memory_model("transformers").memory(geometry, REFERENCE, Load(context=group.context))
    caches = 2 * len(lanes) * plain.of("cache", "state", "scratch")
    return weights.n_params * 4 + caches + plain.of("compute") + _logits(found) + _TORCH


def _logits(found: Found) -> int:
    return _LOGIT_BLOCKS * 2 * _ROWS * found.geometry.vocabulary * 4


@lru_cache(maxsize=256)
def _found(model: str) -> Found:
    return find(model)


@lru_cache(maxsize=1)
def _speed() -> float:
    return matrix_speed()
