"""The transformers engine for a measurement: any model it loads, any KV type, simulated exactly.

Nothing of torch is imported here; it lives in the child (scoring/torch_worker.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import nybble.engines.transformers as engine_package
import nybble.formats as formats_package
from nybble.engines.child import EngineProcess
from nybble.engines.transformers.packages import PACKAGES, need
from nybble.environment import cache_dir
from nybble.errors import NybbleError
from nybble.formats import KVSetting
from nybble.models.checkpoint import Checkpoint, resolve
from nybble.models.folder import vocabulary_hash
from nybble.models.summary import summarise
from nybble.results.records import ModelRecord
from nybble.scoring import prepare as prep
from nybble.scoring.backend import gguf_tokenizer
from nybble.scoring.calibration_text import calibration_chunks
from nybble.scoring.prepare import PreparedModel, Sizes, setting_size
from nybble.scoring.request import MOST_CONTEXT, MeasureRequest, Progress

TORCH_WORKER = "nybble.scoring.torch_worker"
_UNKNOWN = 1 << 20  # context length of a config that leaves it to the class


class Transformers:
    """Models in torch; every setting is a row of the batch.

    Args:
        request: the measurement.
    """

    name = "transformers"
    simulated = True
    protocol = {
        "engine": "transformers",
        "hot_cache": "K and V pass through the KV type's own bytes; each setting's read rule is "
        "modelled (docs/method.md)",
        "sliding_cache": "one window",
    }

    def __init__(self, request: MeasureRequest) -> None:
        self._request = request
        self._child: EngineProcess | None = None
        self._found: dict[Path, Checkpoint] = {}
        self._calibrations: dict[str, str] = {}
        self._info: dict[str, str] = {}
        self._shapes: dict[str, dict[str, Any]] = {}
        self.layers: dict[str, list[dict[str, int]]] = {}

    def check(self, paths: Sequence[Path]) -> list[str]:
        """Resolve the models; refuse what headers tell."""
        need(PACKAGES)
        found = [self._resolved(path) for path in paths]
        if self._request.weights == "as-shipped" and any(c.kind == "gguf" for c in found):
            raise NybbleError(
                "torch has no kernels for the weights of a GGUF, so it scores a float copy",
                seen="--weights as-shipped with --engine transformers",
                allowed="--weights f16 or f32, which are the same here",
            )
        for checkpoint in found:
            longest = checkpoint.context_length or _UNKNOWN
            prep.check_context(self._request.contexts, longest, checkpoint.name)
        # A vocabulary is tens of megabytes of JSON, and one model has nothing to compare it with.
        if len(found) > 1 and len({_vocabulary(c) for c in found}) > 1:
            raise NybbleError(
                "the two models have different vocabularies, so their logits cannot be compared",
                seen=" and ".join(c.name for c in found),
                allowed="two models of one kind (two GGUFs or two folders) with one tokenizer",
            )
        return []

    def _resolved(self, path: Path) -> Checkpoint:
        """What a path was found to be; its headers are read once."""
        if path not in self._found:
            self._found[path] = resolve(path)
        return self._found[path]

    def prepare(self, label: str, path: Path, progress: Progress) -> PreparedModel:
        """Hash the weights; a GGUF is converted when the child opens it."""
        checkpoint = self._resolved(path)
        progress.stage(f"hashing {checkpoint.name}")
        sha256 = checkpoint.fingerprint(cache_dir())
        template = prep.choose_template(
            checkpoint.chat_template, checkpoint.name, self._request.framing
        )
        record = ModelRecord(
            label=label,
            name=checkpoint.name,
            file=checkpoint.path.name or checkpoint.name,
            sha256=sha256,
            architecture=checkpoint.architecture,
            size_bytes=checkpoint.size_bytes,
            shipped_weights=_shipped(checkpoint),
            scored_weights="as shipped",  # `record` says in what and where
            context_length=checkpoint.context_length or 0,
            sliding_window=None,
            framing=prep.describe_framing(checkpoint.chat_template, template),
        )
        stem = checkpoint.path.stem if checkpoint.kind == "gguf" else checkpoint.name
        length = checkpoint.context_length or _UNKNOWN
        return PreparedModel(label, path, stem, sha256, checkpoint.path, length, template, record)

    def start(self, models: Sequence[PreparedModel], progress: Progress) -> EngineProcess:
        """The child with the models, and their calibrations where a setting needs one."""
        if self._child is None or not self._child.alive:
            progress.stage("loading the weights")
            self._child = self._start(models, progress)
        return self._child

    def _start(self, models: Sequence[PreparedModel], progress: Progress) -> EngineProcess:
        child = EngineProcess(TORCH_WORKER, timeout=self._request.timeout)
        try:
            reply = child.request(
                {
                    "op": "open",
                    "paths": [str(m.source) for m in models],
                    "fingerprints": [m.sha256 for m in models],
                    "cache": str(cache_dir()),
                    "device": self._request.device,
                    "threads": self._request.cpu_threads,
                }
            )
            self._info = reply.header["info"]
            self._shapes = dict(zip("ab", reply.header["models"], strict=False))
            self.layers = {label: shape["layers"] for label, shape in self._shapes.items()}
            if any(s.calibrated for s in self._request.settings):
                for i, model in enumerate(models):
                    self._calibrate(child, i, model, progress)
        except BaseException:
            child.close()
            raise
        return child

    def _calibrate(
        self, child: EngineProcess, index: int, model: PreparedModel, progress: Progress
    ) -> None:
        named = self._request.calibration if index == 0 else None
        path = named or prep.calibration_path(model, cache_dir())
        if not path.is_file():
            if named:
                raise NybbleError(
                    "there is no such calibration", seen=path, hint="nybble calibrate MODEL"
                )
            self.calibrate(child, index, model, path, None, progress)
        child.request({"op": "calibration", "model": index, "path": str(path)})
        self._calibrations[model.label] = hashlib.sha256(path.read_bytes()).hexdigest()

    def calibrate(
        self,
        child: EngineProcess,
        index: int,
        model: PreparedModel,
        target: Path,
        text: Sequence[Path] | None,
        progress: Progress,
    ) -> int:
        """Take statistics on the built-in text, or on files, and write them to `target`.

        Returns:
            Tokens read.
        """
        progress.stage(f"calibrating, into {target.name}")
        tokens = calibration_chunks(self, model, self._request, text)
        reply = child.request(
            {"op": "calibrate", "model": index, "target": str(target), "context": tokens.shape[1]},
            np.ascontiguousarray(tokens, dtype=np.int32).tobytes(),
        )
        progress.note(f"calibrated on {reply.header['tokens']:,} tokens: {target}")
        return int(reply.header["tokens"])

    def sizes(
        self, models: Sequence[PreparedModel], settings: Mapping[str, Sequence[KVSetting]],
        contexts: Sequence[int], progress: Progress,
    ) -> Sizes:  # fmt: skip
        """From the shapes the model class hands to attention, and the types' own bytes."""
        child = self.start(models, progress)
        # What a config claims must not decide how long the answer is.
        longest = max(min(m.context_length, MOST_CONTEXT) for m in models)
        reply = child.request(
            {
                "op": "sizes",
                "settings": [[m.label, list(map(str, settings[m.label]))] for m in models],
                "contexts": sorted({*contexts, longest}),
            }
        )
        entries = reply.header["sizes"]
        return {
            (m.label, s): setting_size([e for e in entries if e["label"] == m.label], str(s))
            for m in models
            for s in settings[m.label]
        }

    def open(self, models: Sequence[PreparedModel], progress: Progress) -> EngineProcess:
        """The child that `start` made; a new one once that is dead."""
        return self.start(models, progress)

    def identity(self, setting: KVSetting, label: str) -> Any:
        """Versions, device, the code of the codecs, and the calibration a setting uses."""
        return {
            "engine": "transformers",
            "versions": {k: v for k, v in self._info.items() if k != "features"},
            "codecs": _code_hash(),
            "calibration": self._calibrations.get(label) if setting.calibrated else None,
        }

    def tokenizer(self, model: PreparedModel) -> tuple[EngineProcess, dict[str, Any]]:
        """llama.cpp for a GGUF, the folder's own tokenizer.json else: one for all engines."""
        if self._resolved(model.source).kind == "gguf":
            child, _ = gguf_tokenizer(model.scored_file, self._request.timeout)
            return child, {}
        child = EngineProcess(TORCH_WORKER, timeout=self._request.timeout)
        return child, {"path": str(model.source)}

    def record(self, model: PreparedModel) -> ModelRecord:
        """With what the loaded model says of itself."""
        shape = self._shapes[model.label]
        return replace(
            model.record,
            scored_weights=f"{self._info['weights']} in torch on {self._info['device']}",
            context_length=model.record.context_length or shape["context"],
            sliding_window=shape["window"],
        )

    def versions(self) -> dict[str, str]:
        """Of transformers and torch; the device under "features"."""
        return {"features": "", **self._info}

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.close()
            self._child = None


def _shipped(checkpoint: Checkpoint) -> str:
    if checkpoint.kind == "gguf":
        return summarise(checkpoint.path).file_type or "GGUF"
    text = checkpoint.config.get("text_config")
    config = text if isinstance(text, dict) else checkpoint.config
    return str(config.get("dtype") or config.get("torch_dtype") or "safetensors")[:20]


def _vocabulary(checkpoint: Checkpoint) -> str:
    if checkpoint.kind == "gguf":
        return str(summarise(checkpoint.path).tokenizer_hash)
    return vocabulary_hash(checkpoint.path)


@lru_cache(maxsize=1)
def _code_hash() -> str:
    """Hash of the code that decides simulated numbers, so that a mended codec is scored anew."""
    digest = hashlib.sha256()
    for package in (formats_package, engine_package):
        for file in sorted(Path(package.__path__[0]).glob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
