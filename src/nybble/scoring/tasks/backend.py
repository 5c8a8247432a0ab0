"""What a run of tasks asks of an engine: models, a child that makes items, one that is asked.

llama.cpp is first: its caches are those that servers use. What it cannot store is asked of
`nybble.Cache` in transformers (tasks/torch_worker.py), which really holds packed bytes too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from nybble.engines.child import EngineProcess, Frame
from nybble.environment import cache_dir
from nybble.errors import NybbleError
from nybble.formats import KVSetting, unique
from nybble.models.checkpoint import resolve
from nybble.results.records import ModelRecord
from nybble.scoring import prepare as prep
from nybble.scoring.backend import LlamaCpp, opened
from nybble.scoring.choose import choose_backend
from nybble.scoring.prepare import PreparedModel
from nybble.scoring.request import FLOOR, REFERENCE, MeasureRequest, Progress
from nybble.scoring.server_backend import Servers

# Modules of the children: over llama.cpp, over transformers.
WORKERS = ("nybble.scoring.tasks.worker", "nybble.scoring.tasks.torch_worker")


class Child(Protocol):
    """Who answers requests: an EngineProcess, or servers behind one interface."""

    @property
    def where(self) -> dict[str, Any]:
        """The step it is at, with its lane."""

    def request(
        self,
        header: dict[str, Any],
        payload: bytes = b"",
        on_event: Callable[[dict[str, Any]], None] | None = None,
    ) -> Frame:
        """Send a request and wait for its answer.

        Raises:
            EngineError: it cannot.
        """

    def close(self) -> None:
        """End it."""


class Prepared(Protocol):
    """What tasks and generation ask of an engine alike, before any weights are loaded."""

    name: str
    protocol: dict[str, Any]  # what the record says of how this engine holds its cache

    def check(self, path: Path) -> list[str]:
        """Refuse what headers tell; return warnings."""

    def prepare(self, path: Path, progress: Progress) -> PreparedModel:
        """Make a model ready."""

    def maker(self, model: PreparedModel) -> tuple[EngineProcess, dict[str, Any]]:
        """A child that makes prompts or items, and what its requests must name besides."""

    def identity(self, setting: KVSetting) -> Any:
        """Everything about the engine that decides a setting's numbers."""

    def record(self, model: PreparedModel) -> ModelRecord:
        """What the result says of the model."""

    def versions(self) -> dict[str, str]:
        """Versions, and the hardware's part in them under "features"."""


class Backend(Prepared, Protocol):
    """One engine's way to be asked."""

    def settings(self, folder: Path) -> list[KVSetting]:
        """Settings to ask, the 16-bit reference first; `folder` is the run's."""

    def open(self, model: PreparedModel, progress: Progress) -> Child:
        """Who has the weights, and answers "lanes" and "ask"."""


def choose(request: MeasureRequest, path: Path) -> Backend:
    """The engine asked for; "auto" is llama.cpp where it has all types.

    Raises:
        NybbleError: llama.cpp is asked for a model that is no GGUF.
    """
    found = choose_backend(request, [path])
    if isinstance(found, Servers):
        from nybble.scoring.tasks.servers import ServerTasks

        return ServerTasks(request, found)
    return LlamaTasks(request, found) if isinstance(found, LlamaCpp) else TorchTasks(request, found)


def wanted_settings(settings: Sequence[KVSetting]) -> list[KVSetting]:
    """The reference, the noise floor, and what is asked for."""
    return unique([REFERENCE, FLOOR, *settings])


def tokenizing(
    model: PreparedModel, timeout: float, workers: tuple[str, str] = WORKERS
) -> tuple[EngineProcess, dict[str, Any], dict[str, str]]:
    """A child that has the tokenizer, what its requests must name, and what it says of its engine.

    llama.cpp's vocabulary for a GGUF, the folder's own tokenizer.json else.
    """
    if resolve(model.source).kind != "gguf":
        return EngineProcess(workers[1], timeout=timeout), {"path": str(model.source)}, {}
    child = EngineProcess(workers[0], timeout=timeout)
    try:
        header = {"op": "open", "paths": [str(model.scored_file)], "vocabulary": True}
        return child, {}, child.request(header).header["info"]
    except BaseException:
        child.close()
        raise


class LlamaTasks:
    """llama.cpp itself, on a float copy of quantized weights.

    Args:
        request: the measurement whose options hold.
        backend: its engine.
    """

    name = "llama.cpp"
    workers = WORKERS
    protocol: dict[str, Any] = {
        "engine": "llama.cpp",
        "hot_cache": "the context is read in parts of up to 512 tokens, each after its own K and "
        "V are stored; questions and answers follow as sequences that share its cells",
        "flash_attention": "on",
    }

    def __init__(self, request: MeasureRequest, backend: LlamaCpp) -> None:
        self._request, self._backend = request, backend
        self._info: dict[str, str] = {}

    def check(self, path: Path) -> list[str]:
        """From the file's header alone."""
        return self._backend.check([path])

    def settings(self, folder: Path) -> list[KVSetting]:
        """The reference, the noise floor, and what is asked for."""
        return wanted_settings(self._request.settings)

    def prepare(self, path: Path, progress: Progress) -> PreparedModel:
        """Hash the file and make its float copy if it needs one."""
        return self._backend.prepare("a", path, progress)

    def maker(self, model: PreparedModel) -> tuple[EngineProcess, dict[str, Any]]:
        """llama.cpp with the vocabulary alone."""
        child, extra, self._info = tokenizing(model, self._request.timeout, self.workers)
        return child, extra

    def open(self, model: PreparedModel, progress: Progress) -> EngineProcess:
        """Weights loaded once."""
        progress.stage("loading the weights")
        child = EngineProcess(self.workers[0], timeout=self._request.timeout)
        threads = self._request.cpu_threads
        return opened(
            child, {"op": "open", "paths": [str(model.scored_file)], "threads": threads}
        )  # fmt: skip

    def identity(self, setting: KVSetting) -> Any:
        """The build of llama.cpp."""
        return self._backend.identity(setting, "a")

    def record(self, model: PreparedModel) -> ModelRecord:
        """As its file says."""
        return model.record

    def versions(self) -> dict[str, str]:
        """As the engine says."""
        return self._info


class TorchTasks:
    """nybble.Cache in transformers: packed pages, read in place.

    Args:
        request: the measurement whose options hold.
        backend: its engine, which checks and hashes models.
    """

    name = "transformers"
    workers = WORKERS
    protocol: dict[str, Any] = {
        "engine": "nybble.Cache in transformers",
        "hot_cache": "the context is read in parts of 512 tokens, each after its own K and V are "
        "packed; questions and answers go on in forks that share its pages",
    }

    def __init__(self, request: MeasureRequest, backend: Any) -> None:
        self._request, self._backend = request, backend
        self._info: dict[str, Any] = {}
        self._calibration: Path | None = None

    def check(self, path: Path) -> list[str]:
        """From headers alone."""
        warnings: list[str] = self._backend.check([path])
        return warnings

    def settings(self, folder: Path) -> list[KVSetting]:
        """The reference, the noise floor, and what is asked for."""
        return wanted_settings(self._request.settings)

    def prepare(self, path: Path, progress: Progress) -> PreparedModel:
        """Hash the weights, and calibrate where a setting needs it."""
        model: PreparedModel = self._backend.prepare("a", path, progress)
        if any(s.calibrated for s in self._request.settings):
            self._calibration = self._request.calibration or prep.calibration_path(
                model, cache_dir()
            )
            if not self._calibration.is_file():
                self._calibrate(model, self._calibration, progress)
        return model

    def _calibrate(self, model: PreparedModel, path: Path, progress: Progress) -> None:
        from nybble.scoring.calibrate import calibrate

        if self._request.calibration:
            raise NybbleError("there is no such calibration", seen=path,
                              hint="nybble calibrate MODEL")  # fmt: skip
        progress.note(f"a setting needs statistics of the model: taken once, into {path}")
        calibrate(model.source, out=path, device=self._request.device, progress=progress)

    def maker(self, model: PreparedModel) -> tuple[EngineProcess, dict[str, Any]]:
        """The model's own tokenizer."""
        child, extra, self._info = tokenizing(model, self._request.timeout, self.workers)
        return child, extra

    def open(self, model: PreparedModel, progress: Progress) -> EngineProcess:
        """Weights loaded once."""
        progress.stage("loading the weights")
        child = EngineProcess(self.workers[1], timeout=self._request.timeout)
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
            self._complete(child, model)
        except BaseException:
            child.close()
            raise
        return child

    def _complete(self, child: EngineProcess, model: PreparedModel) -> None:
        """Give the child the tokenizer's texts, which answers are read with."""
        if resolve(model.source).kind != "gguf":
            return
        maker, _, _ = tokenizing(model, self._request.timeout, self.workers)
        try:
            reply = maker.request({"op": "pieces"})
        finally:
            maker.close()
        child.request({"op": "pieces", **reply.header}, reply.payload)

    def identity(self, setting: KVSetting) -> Any:
        """Versions, device, the code of cache and codecs, and the calibration a setting uses."""
        calibration = None
        if setting.calibrated and self._calibration is not None:
            calibration = hashlib.sha256(self._calibration.read_bytes()).hexdigest()
        return {
            "engine": "nybble.Cache",
            "versions": [version(name) for name in ("torch", "transformers")],
            "device": self._request.device,
            "code": _code_hash(),
            "calibration": calibration,
        }

    def record(self, model: PreparedModel) -> ModelRecord:
        """With what weights were computed in."""
        weights = self._info.get("weights")
        return replace(
            model.record, scored_weights=f"{weights} in torch" if weights else "in torch"
        )

    def versions(self) -> dict[str, str]:
        """Of transformers and torch; the device under "features"."""
        return {"features": "", **{k: str(v) for k, v in self._info.items()}}


@lru_cache(maxsize=1)
def _code_hash() -> str:
    """Hash of the code that decides numbers, so that a mended codec is asked anew."""
    import nybble.formats as formats
    import nybble.runtime as runtime

    digest = hashlib.sha256()
    packages: Sequence[Any] = (formats, runtime)
    for package in packages:
        for file in sorted(Path(package.__path__[0]).glob("**/*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
