"""Which KV setting a server of llama.cpp runs, told by its log-probabilities.

The same tokens are decoded here, one step each, under every setting that it could be, and the
setting whose log-probabilities are nearest to the server's is the one in effect: another setting
moves them by far more than another machine does. Runs in a child process, `python -m` this module.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nybble.engines.child import EngineProcess, Frame
from nybble.engines.llamacpp.model import Model
from nybble.engines.worker import BaseWorker, serve
from nybble.errors import NybbleError
from nybble.formats import KVSetting, parse

WORKER = "nybble.engines.llamacpp.fingerprint"
# What a server may run instead of what it was asked for; the asked one comes on top.
USUAL = ("f16/f16", "q8_0/q8_0", "q8_0/q4_0", "q5_1/q5_1", "q4_0/q4_0", "q4_0/q4_0-norot",
         "q8_0/q8_0-norot")  # fmt: skip
CLEAR = 3.0  # times nearer than the second best, or nothing is said


@dataclass(frozen=True)
class Match:
    """How near a server is to each setting.

    Attributes:
        distances: mean absolute difference of log-probabilities (nat), nearest first.
    """

    distances: tuple[tuple[str, float], ...]

    @property
    def setting(self) -> str | None:
        """The setting in effect; None where two are too near each other to tell."""
        (name, near), (_, second) = self.distances[:2]
        return name if second > CLEAR * max(near, 1e-6) else None


def match(
    path: Path,
    ids: Sequence[int],
    told: Sequence[Sequence[tuple[int, float]]],
    settings: Sequence[KVSetting],
    *,
    threads: int,
    timeout: float = 1800.0,
) -> Match:
    """Hold a server's log-probabilities against every setting.

    Args:
        path: the GGUF that the server runs.
        ids: tokens; the last `len(told)` steps were decoded one by one.
        told: for each of those steps, (token, log-probability) of the likeliest next tokens.
        settings: two or more, llama.cpp's own.
        threads: CPU threads.
        timeout: seconds of silence after which the engine counts as hung.

    Raises:
        EngineError: llama.cpp refuses the model or a setting.
    """
    request = {
        "op": "match", "path": str(path), "ids": list(ids), "threads": threads,
        "settings": [str(s) for s in settings],
        "wanted": [[token for token, _ in step] for step in told],
    }  # fmt: skip
    with closing(EngineProcess(WORKER, timeout=timeout)) as child:
        answer = child.request(request).header["found"]
    found = []
    for setting in settings:
        gaps = [
            abs(own - theirs)
            for own_step, step in zip(answer[str(setting)], told, strict=True)
            for own, (_, theirs) in zip(own_step, step, strict=True)
        ]
        found.append((str(setting), float(np.mean(gaps)) if gaps else math.inf))
    return Match(tuple(sorted(found, key=lambda pair: pair[1])))


def _answer(request: dict[str, Any], tell: Any) -> dict[str, Any]:
    ids, wanted = request["ids"], request["wanted"]
    first = len(ids) - len(wanted)
    found: dict[str, list[list[float]]] = {}
    with closing(Model(Path(request["path"]))) as model:
        if max(ids) >= model.vocabulary.n_tokens or min(ids) < 0:
            raise NybbleError("the server's tokens are not this model's", seen=max(ids),
                              allowed=f"below {model.vocabulary.n_tokens}")  # fmt: skip
        for name in request["settings"]:
            tell(name)
            context = model.context(parse(name), len(ids) + 8, rows=1, threads=request["threads"])
            with closing(context):
                for _ in context.prefill(ids[:first], 0):
                    pass
                steps = []
                for i, tokens in enumerate(wanted):
                    row = context.score([ids[first + i]], first + i)[0].astype(np.float64)
                    row -= row.max() + math.log(np.exp(row - row.max()).sum())
                    steps.append([float(row[t]) if t < len(row) else -math.inf for t in tokens])
                found[name] = steps
    return {"found": found}


class _Worker(BaseWorker):
    def do_match(self, request: Frame) -> Frame:
        return Frame(_answer(request.header, lambda name: self.event(stage=name)))


if __name__ == "__main__":
    serve(_Worker)
