"""What a run of generation asks of an engine: a model, a child that makes prompts, one to answer.

llama.cpp is first: its caches are those that servers use. What it cannot store is generated with
`nybble.Cache` in transformers (torch_worker.py), which really holds packed bytes too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from nybble.engines.child import EngineProcess
from nybble.environment import cache_dir
from nybble.formats import KVSetting
from nybble.models.checkpoint import resolve
from nybble.results.records import ModelRecord
from nybble.scoring.backend import LlamaCpp, opened
from nybble.scoring.measure import choose_backend
from nybble.scoring.prepare import PreparedModel
from nybble.scoring.request import MeasureRequest, Progress
from nybble.scoring.tasks.backend import TorchTasks
from nybble.scoring.worker import MAX_PARALLEL

WORKER = "nybble.scoring.generation.worker"
TORCH_WORKER = "nybble.scoring.generation.torch_worker"


class Backend(Protocol):
    """One engine's way to generate."""

    name: str
    at_once: int  # most lanes that work beside each other
    protocol: dict[str, Any]  # what the record says of how this engine holds its cache

    def check(self, path: Path) -> list[str]:
        """Refuse what headers tell; return warnings."""

    def prepare(self, path: Path, progress: Progress) -> PreparedModel:
        """Make a model ready."""

    def prompter(self, model: PreparedModel) -> tuple[EngineProcess, dict[str, Any]]:
        """A child that answers "prompts", and what that request must name besides."""

    def open(self, model: PreparedModel) -> EngineProcess:
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


def _vocabulary(model: PreparedModel, timeout: float) -> tuple[EngineProcess, dict[str, str]]:
    """A child that has a GGUF's vocabulary, and what it says of its engine."""
    child = EngineProcess(WORKER, timeout=timeout)
    try:
        header = {"op": "open", "paths": [str(model.scored_file)], "vocabulary": True}
        return child, child.request(header).header["info"]
    except BaseException:
        child.close()
        raise


class LlamaGeneration:
    """llama.cpp itself, on a float copy of quantized weights.

    Args:
        request: the measurement whose options hold.
        backend: its engine.
    """

    name = "llama.cpp"
    at_once = MAX_PARALLEL
    protocol = {"engine": "llama.cpp", "flash_attention": "on"}

    def __init__(self, request: MeasureRequest, backend: LlamaCpp) -> None:
        self._request, self._backend = request, backend
        self._info: dict[str, str] = {}

    def check(self, path: Path) -> list[str]:
        """From the file's header alone."""
        return self._backend.check([path])

    def prepare(self, path: Path, progress: Progress) -> PreparedModel:
        """Hash the file and make its float copy if it needs one."""
        return self._backend.prepare("a", path, progress)

    def prompter(self, model: PreparedModel) -> tuple[EngineProcess, dict[str, Any]]:
        """llama.cpp with the vocabulary alone."""
        child, self._info = _vocabulary(model, self._request.timeout)
        return child, {}

    def open(self, model: PreparedModel) -> EngineProcess:
        """Weights loaded once."""
        return opened(
            EngineProcess(WORKER, timeout=self._request.timeout),
            {
                "op": "open",
                "paths": [str(model.scored_file)],
                "threads": self._request.cpu_threads,
            },
        )

    def identity(self, setting: KVSetting) -> Any:
        """The build of llama.cpp."""
        return self._backend.identity(setting, "a")

    def record(self, model: PreparedModel) -> ModelRecord:
        """As its file says."""
        return model.record

    def versions(self) -> dict[str, str]:
        """As the engine says."""
        return self._info


class TorchGeneration(TorchTasks):
    """nybble.Cache in transformers: packed pages, read in place; lanes one after the other."""

    at_once = 1
    protocol = {"engine": "nybble.Cache in transformers"}

    def prompter(self, model: PreparedModel) -> tuple[EngineProcess, dict[str, Any]]:
        """llama.cpp's vocabulary for a GGUF, the folder's own tokenizer.json else."""
        if resolve(model.source).kind == "gguf":
            child, self._info = _vocabulary(model, self._request.timeout)
            return child, {}
        child = EngineProcess(TORCH_WORKER, timeout=self._request.timeout)
        return child, {"path": str(model.source)}

    def open(self, model: PreparedModel, progress: Progress | None = None) -> EngineProcess:
        """Weights loaded once."""
        child = EngineProcess(TORCH_WORKER, timeout=self._request.timeout)
        header = {
            "op": "open",
            "path": str(model.source),
            "cache": str(cache_dir()),
            "device": self._request.device,
            "threads": self._request.cpu_threads,
            "fingerprint": model.sha256,
            "calibration": str(self._calibration) if self._calibration else None,
        }
        try:
            self._info = child.request(header).header["info"]
        except BaseException:
            child.close()
            raise
        return child
