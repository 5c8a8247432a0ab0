"""Learning rates: a peak for every group, and one shape for all."""

from __future__ import annotations

import math
from typing import Any

from nybble.errors import NybbleError
from nybble.hardening.train.request import TrainRequest


def with_peaks(groups: list[dict[str, Any]], request: TrainRequest) -> list[dict[str, Any]]:
    """A student's optimizer groups, with the peaks asked for in place of its own.

    Raises:
        NybbleError: a rate for a group that is not trained.
    """
    names = [group["name"] for group in groups]
    asked = dict(request.lr)
    for name in asked:
        if name not in names:
            raise NybbleError(
                "--lr names a group that is not trained", seen=name, allowed=names,
                hint="--scope says what is trained",
            )  # fmt: skip
    return [
        {"params": list(g["params"]), "lr": asked.get(g["name"], g["lr"]), "name": g["name"]}
        for g in groups
    ]


def share_of_peak(request: TrainRequest, step: int) -> float:
    """The rate of step 0, 1, ...: a linear rise, then half a cosine towards 0."""
    rise = round(request.warmup * request.steps)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / (request.steps - rise)))
