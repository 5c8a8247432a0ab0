"""Which KV setting a server of llama.cpp runs, told by its log-probabilities.

The same tokens are decoded here, one step each, under every setting that it could be, and the
setting whose log-probabilities are nearest to the server's is the one in effect: another setting
moves them by far more than another machine does. Runs in a child process, `python -m` this module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nybble.engines.child import EngineProcess, Frame
from nybble.engines.llamacpp.model import Context, Model
from nybble.engines.worker import BaseWorker, serve
from nybble.errors import NybbleError
from nybble.formats import KVSetting, parse

WORKER = "nybble.engines.llamacpp.fingerprint"
# What a server may run instead of what it was asked for; the asked one comes on top.
USUAL = ("f16/f16", "q8_0/q8_0", "q8_0/q4_0", "q5_1/q5_1", "q4_0/q4_0", "q4_0/q4_0-norot",
         "q8_0/q8_0-norot")  # fmt: skip
_APART = 4  # tokens
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
        ids: the prompt and all generated tokens but the last; the prompt fits into a micro-batch.
        told: for each generated token, (token, log-probability) of the likeliest next tokens.
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
    found: dict[str, list[list[float]]] = {}
    with closing(Model(Path(request["path"]))) as model:
        if max(ids) >= model.vocabulary.n_tokens or min(ids) < 0:
            raise NybbleError("the server's tokens are not this model's", seen=max(ids),
                              allowed=f"below {model.vocabulary.n_tokens}")  # fmt: skip
        for name in request["settings"]:
            tell(name)
            context = model.context(parse(name), len(ids) + 8, rows=1, threads=request["threads"])
            with closing(context):
                steps = [
                    [float(row[t]) if t < len(row) else -math.inf for t in tokens]
                    for row, tokens in zip(_rows(context, ids, len(wanted)), wanted, strict=True)
                ]
                found[name] = steps
    return {"found": found}


def _rows(context: Context, ids: list[int], n: int) -> Iterator[npt.NDArray[np.float64]]:
    """Log-probabilities behind the prompt and each token after it, in the server's own batches.

    Batches of another size round otherwise, and errors of quantized weights and caches amplify
    that. A model with sliding layers has its last four prompt tokens in a batch of their own, for
    a checkpoint before them (b11549, tools/server/server-context.cpp, checkpoint_offsets).
    """
    prompt = len(ids) - (n - 1)
    sliding = any(sub.kind == "sliding" for sub in context.applied.subcaches)
    start = prompt - _APART if sliding and prompt > _APART else 0
    for _ in context.prefill(ids[:start], 0):
        pass
    yield _normalised(context.last(ids[start:prompt], start))
    for at in range(prompt, len(ids)):
        yield _normalised(context.last([ids[at]], at))


def _normalised(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    row = logits.astype(np.float64)
    row -= row.max()
    return row - math.log(np.exp(row).sum())


class _Worker(BaseWorker):
    def do_match(self, request: Frame) -> Frame:
        return Frame(_answer(request.header, lambda name: self.event(stage=name)))


if __name__ == "__main__":
    serve(_Worker)
