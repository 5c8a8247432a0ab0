"""What a run of generation asks of an engine: a model, a child that makes prompts, one to answer.

llama.cpp is first: its caches are those that servers use. What it cannot store is generated with
`nybble.Cache` in transformers (torch_worker.py), which really holds packed bytes too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from nybble.engines.child import EngineProcess
from nybble.scoring.backend import LlamaCpp
from nybble.scoring.choose import choose_backend
from nybble.scoring.prepare import PreparedModel
from nybble.scoring.request import MeasureRequest, Progress
from nybble.scoring.tasks.backend import LlamaTasks, Prepared, TorchTasks
from nybble.scoring.worker import MAX_PARALLEL

WORKERS = ("nybble.scoring.generation.worker", "nybble.scoring.generation.torch_worker")


class Backend(Prepared, Protocol):
    """One engine's way to generate."""

    at_once: int  # most lanes that work beside each other

    def open(self, model: PreparedModel, progress: Progress) -> EngineProcess:
        """A child with the weights, that answers "lanes", "generate" and "score"."""


def choose(request: MeasureRequest, path: Path) -> Backend:
    """The engine asked for; "auto" is llama.cpp where it reads the model and has all types.

    Raises:
        NybbleError: llama.cpp is asked for a model that is no GGUF.
    """
    found = choose_backend(request, [path])
    if isinstance(found, LlamaCpp):
        return LlamaGeneration(request, found)
    return TorchGeneration(request, found)


class LlamaGeneration(LlamaTasks):
    """llama.cpp itself, on a float copy of quantized weights."""

    workers = WORKERS
    at_once = MAX_PARALLEL
    protocol = {"engine": "llama.cpp", "flash_attention": "on"}


class TorchGeneration(TorchTasks):
    """nybble.Cache in transformers: packed pages, read in place; lanes one after the other."""

    workers = WORKERS
    at_once = 1
    protocol = {"engine": "nybble.Cache in transformers"}

    def _complete(self, child: EngineProcess, model: PreparedModel) -> None:
        """Nothing: answers are compared as ids."""
