"""What a measurement asks of an engine, and llama.cpp's answer (torch_backend.py has the other)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from nybble.engines.child import EngineProcess
from nybble.engines.llamacpp.ffi import engine_identity
from nybble.errors import NybbleError
from nybble.formats import KVSetting
from nybble.models.summary import summarise
from nybble.results.records import ModelRecord
from nybble.scoring import prepare as prep
from nybble.scoring.prepare import WORKER, PreparedModel, Sizes
from nybble.scoring.request import MOST_CONTEXT, MeasureRequest, Progress


class Backend(Protocol):
    """One engine's way to prepare, open and size models. Requests to its child are the same."""

    name: str
    simulated: bool  # whether bytes are only computed, not really kept packed in a cache
    protocol: dict[str, Any]  # what the record says of how this engine reads its cache

    def check(self, paths: Sequence[Path]) -> list[str]:
        """Refuse what can be refused before any long work; return warnings."""

    def prepare(self, label: str, path: Path, progress: Progress) -> PreparedModel:
        """Make a model ready to score."""

    def sizes(
        self, models: Sequence[PreparedModel], settings: Mapping[str, Sequence[KVSetting]],
        contexts: Sequence[int], progress: Progress,
    ) -> Sizes:  # fmt: skip
        """Bytes of each model's settings (by label) at every context."""

    def open(self, models: Sequence[PreparedModel], progress: Progress) -> EngineProcess:
        """A child with the models loaded; the caller may close it."""

    def identity(self, setting: KVSetting, label: str) -> Any:
        """Everything about the engine that decides the numbers of a setting."""

    def tokenizer(self, model: PreparedModel) -> tuple[EngineProcess, dict[str, Any]]:
        """A child that cuts text into chunks, and what its requests must name."""

    def record(self, model: PreparedModel) -> ModelRecord:
        """What the result says of a model, once the engine has loaded it."""

    def versions(self) -> dict[str, str]:
        """Versions and features that belong into the record."""

    def close(self) -> None:
        """End what was started."""


@runtime_checkable
class Parts(Backend, Protocol):
    """An engine that can give every layer a setting of its own."""

    # By label of the model: index, count, heads, k_dim, v_dim, window (0 for none) of every layer
    # that owns keys.
    layers: dict[str, list[dict[str, int]]]

    def start(self, models: Sequence[PreparedModel], progress: Progress) -> EngineProcess:
        """The child, which stays the engine's."""


class LlamaCpp:
    """llama.cpp itself: real caches, on a float copy of quantized weights.

    Args:
        request: the measurement.
    """

    name = "llama.cpp"
    simulated = False
    protocol = {
        "engine": "llama.cpp",
        "hot_cache": "every position attends to stored, quantized K and V",
        "flash_attention": "on",
        "sliding_cache": "window-sized, as servers allocate it",
    }

    def __init__(self, request: MeasureRequest) -> None:
        self._request = request
        self._info: dict[str, str] = {}

    def check(self, paths: Sequence[Path]) -> list[str]:
        """From the files' headers alone."""
        foreign = [s for s in self._request.settings if not s.llamacpp]
        if foreign:
            raise NybbleError(
                "llama.cpp has no such KV cache",
                seen=", ".join(map(str, foreign)),
                allowed="its own types with nothing around them (nybble formats)",
                hint="--engine transformers simulates every type",
            )
        summaries = [summarise(p) for p in paths]
        if len({s.tokenizer_hash for s in summaries}) > 1:
            raise NybbleError(
                "the two models have different vocabularies, so their logits cannot be compared",
                seen=f"{paths[0].name} and {paths[1].name}",
                allowed="two models with the same tokenizer, for example a model and its QAT twin",
            )
        return list(dict.fromkeys(w for s in summaries for w in prep.check(s, self._request)))

    def prepare(self, label: str, path: Path, progress: Progress) -> PreparedModel:
        """Hash the file and make its float copy if it needs one."""
        return prep.prepare(label, path, self._request, progress)

    def sizes(
        self, models: Sequence[PreparedModel], settings: Mapping[str, Sequence[KVSetting]],
        contexts: Sequence[int], progress: Progress,
    ) -> Sizes:  # fmt: skip
        """Asked of llama.cpp's dry run."""
        found: Sizes = {}
        for model in models:
            # What a header claims must not decide how much memory the dry run takes.
            wanted = [*contexts, min(model.context_length, MOST_CONTEXT)]
            mine, timeout = settings[model.label], self._request.timeout
            sizes = prep.cache_sizes(model.scored_file, mine, wanted, timeout)
            found.update({(model.label, setting): size for setting, size in sizes.items()})
        return found

    def open(self, models: Sequence[PreparedModel], progress: Progress) -> EngineProcess:
        """Weights of all models, loaded once."""
        progress.stage("loading the weights")
        child = EngineProcess(WORKER, timeout=self._request.timeout)
        paths = [str(m.scored_file) for m in models]
        return opened(child, {"op": "open", "paths": paths, "threads": self._request.cpu_threads})

    def identity(self, setting: KVSetting, label: str) -> Any:
        """The build of llama.cpp."""
        return engine_identity()

    def tokenizer(self, model: PreparedModel) -> tuple[EngineProcess, dict[str, Any]]:
        """llama.cpp with the vocabulary alone."""
        child, info = gguf_tokenizer(model.scored_file, self._request.timeout)
        self._info = info
        return child, {}

    def record(self, model: PreparedModel) -> ModelRecord:
        """As its file says."""
        return model.record

    def versions(self) -> dict[str, str]:
        """As the engine says."""
        return self._info

    def close(self) -> None:
        """Nothing is held between calls."""


def opened(child: EngineProcess, header: dict[str, Any]) -> EngineProcess:
    """Send a child its first request; end it if that fails."""
    try:
        child.request(header)
    except BaseException:
        child.close()
        raise
    return child


def gguf_tokenizer(path: Path, timeout: float) -> tuple[EngineProcess, dict[str, str]]:
    """A child that has a GGUF's vocabulary, and what it says of its engine."""
    child = EngineProcess(WORKER, timeout=timeout)
    try:
        reply = child.request({"op": "open", "paths": [str(path)], "vocabulary": True})
    except BaseException:
        child.close()
        raise
    return child, reply.header["info"]
