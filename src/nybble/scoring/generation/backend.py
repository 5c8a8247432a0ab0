"""What a run of generation asks of an engine: a model, a child that makes prompts, one to answer.

llama.cpp is first: its caches are those that servers use. What it cannot store is generated with
`nybble.Cache` in transformers (torch_worker.py), which really holds packed bytes too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from nybble.engines.child import EngineProcess
from nybble.formats import KVSetting
from nybble.results.records import ModelRecord
from nybble.scoring.backend import LlamaCpp
from nybble.scoring.measure import choose_backend
from nybble.scoring.prepare import PreparedModel
from nybble.scoring.request import MeasureRequest, Progress
from nybble.scoring.tasks.backend import LlamaTasks, TorchTasks
from nybble.scoring.worker import MAX_PARALLEL

WORKERS = ("nybble.scoring.generation.worker", "nybble.scoring.generation.torch_worker")


class Backend(Protocol):
    """One engine's way to generate."""

    name: str
    at_once: int  # most lanes that work beside each other
    protocol: dict[str, Any]  # what the record says of how this engine holds its cache

    def check(self, path: Path) -> list[str]:
        """Refuse what headers tell; return warnings."""

    def prepare(self, path: Path, progress: Progress) -> PreparedModel:
        """Make a model ready."""

    def maker(self, model: PreparedModel) -> tuple[EngineProcess, dict[str, Any]]:
        """A child that answers "prompts", and what that request must name besides."""

    def open(self, model: PreparedModel, progress: Progress) -> EngineProcess:
        """A child with the weights, that answers "lanes", "generate" and "score"."""

    def identity(self, setting: KVSetting) -> Any:
        """Everything about the engine that decides a setting's numbers."""

    def record(self, model: PreparedModel) -> ModelRecord:
        """What the result says of the model."""

    def versions(self) -> dict[str, str]:
        """Versions, and the hardware's part in them under "features"."""


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
