"""Energies of a model's keys and queries, taken in a child process."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nybble.engines.child import EngineProcess
from nybble.formats.energies import Energies, unpack
from nybble.scoring.request import MeasureRequest, Progress

WORKER = "nybble.hardening.worker"


def observe_llamacpp(
    path: Path,
    texts: Sequence[npt.NDArray[np.int32]],
    threads: int,
    timeout: float,
    progress: Progress,
) -> Energies:
    """Run texts through a GGUF under llama.cpp and take the energies of its keys and queries.

    Args:
        path: a GGUF.
        texts: token ids [n] of each text, with BOS if the model wants one.
        threads: CPU threads.
        timeout: seconds of silence after which the engine counts as hung; it speaks when the
            model is loaded and every 512 tokens.
        progress: told the tokens done.

    Raises:
        EngineCrashError: the engine died or hung.
        EngineError: llama.cpp refuses the model, too little text, or keys or queries that are
            not finite.
    """
    header = {"op": "observe", "path": str(path), "threads": threads}
    progress.stage("loading the weights")
    with closing(EngineProcess(WORKER, timeout=timeout)) as child:
        return _ask(child, header, path.name, texts, progress)


def observe_transformers(
    request: MeasureRequest,
    path: Path,
    texts: Sequence[npt.NDArray[np.int32]],
    progress: Progress,
) -> Energies:
    """The same by transformers, from a folder, a hub id or a GGUF.

    Raises:
        MissingExtraError: transformers is not installed.
        EngineError: see `observe_llamacpp`.
    """
    from nybble.scoring.torch_backend import Transformers  # needs an optional extra

    backend = Transformers(request)
    try:
        backend.check([path])
        child = backend.start([backend.prepare("a", path, progress)], progress)
        return _ask(child, {"op": "observe"}, path.name, texts, progress)
    finally:
        backend.close()


def _ask(
    child: EngineProcess,
    header: dict[str, Any],
    name: str,
    texts: Sequence[npt.NDArray[np.int32]],
    progress: Progress,
) -> Energies:
    payload = b"".join(np.ascontiguousarray(text, dtype="<i4").tobytes() for text in texts)

    def on_event(event: dict[str, Any]) -> None:
        if event.get("step") == "observe":
            progress.begin(f"keys and queries of {name}", sum(map(len, texts)))
        elif event.get("step") == "read":
            progress.advance(event["done"])

    frame = child.request({**header, "lengths": [len(t) for t in texts]}, payload, on_event)
    return unpack(frame.header, frame.payload)
