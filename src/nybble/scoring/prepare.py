"""From a path to a model ready to score: header checked, hashed, copied to float, sized."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import filelock

from nybble.engines.child import EngineProcess
from nybble.engines.llamacpp.floatcopy import copy_size
from nybble.environment import cache_dir
from nybble.errors import NybbleError
from nybble.formats import KVSetting, check_head_size
from nybble.models.demo import demo_model
from nybble.models.summary import ModelSummary, summarise
from nybble.results.records import ModelRecord
from nybble.results.store import content_key, write_text
from nybble.scoring.request import MeasureRequest, Progress

WORKER = "nybble.scoring.worker"
_FLOATS = {"F32", "F16"}  # ggml multiplies these with float activations; bf16 it does not


@dataclass(frozen=True)
class PreparedModel:
    """A model and the file its scores come from."""

    label: str
    summary: ModelSummary
    sha256: str
    scored_file: Path
    scored_weights: str
    template: str | None

    def record(self) -> ModelRecord:
        """The part that goes into the result."""
        s = self.summary
        shipped = Counter(s.weight_types)
        framed = "chat template" if self.template else "raw text"
        kind = "instruct" if s.chat_template else "base"
        return ModelRecord(
            label=self.label,
            name=s.name or s.path.stem,
            file=s.path.name,
            sha256=self.sha256,
            architecture=s.architecture,
            size_bytes=s.size_bytes,
            shipped_weights=s.file_type or (shipped.most_common(1)[0][0] if shipped else "?"),
            scored_weights=self.scored_weights,
            context_length=s.context_length,
            sliding_window=s.sliding_window,
            framing=f"{framed} ({kind} model: "
            f"{'it has' if s.chat_template else 'it has no'} chat template)",
        )


def locate(model: Path | None) -> Path:
    """The model file: the one given, or the demo model."""
    return model if model is not None else demo_model(cache_dir())


def check(summary: ModelSummary, request: MeasureRequest) -> list[str]:
    """Refuse what the model cannot do; return warnings about what would test too little.

    Raises:
        NybbleError: a context over the model's maximum, or a type its head size does not allow.
    """
    over = [c for c in request.contexts if c > summary.context_length]
    if over:
        raise NybbleError(
            "the context is longer than the model was trained for",
            seen=f"{max(over):,} tokens",
            allowed=f"up to {summary.context_length:,} for {summary.name or summary.path.name}",
            hint=f"--context {summary.context_length}",
        )
    for setting in request.settings:
        check_head_size(setting, set(summary.head_dim_k), set(summary.head_dim_v))
    window = summary.sliding_window
    short = [c for c in request.contexts if window is not None and c <= window]
    if short:
        return [
            f"context {', '.join(f'{c:,}' for c in short)} is within the sliding window of "
            f"{window:,} tokens, so windows never slide and nothing beyond them is tested"
        ]
    return []


def choose_template(summary: ModelSummary, framing: str) -> str | None:
    """The chat template to frame text with, or None for raw text.

    Raises:
        NybbleError: a template is demanded of a model that has none.
    """
    if framing == "raw":
        return None
    if framing == "template" and not summary.chat_template:
        raise NybbleError(
            "this model has no chat template",
            seen=summary.name or summary.path.name,
            allowed="--framing auto or raw",
        )
    return summary.chat_template or None


def prepare(label: str, path: Path, request: MeasureRequest, progress: Progress) -> PreparedModel:
    """Hash the file and make its float copy if it needs one.

    Raises:
        NybbleError: see `check`, `file_sha256` and `float_copy`.
    """
    summary = summarise(path)
    progress.stage(f"hashing {path.name}")
    sha256 = file_sha256(path)
    scored, weights = path, "as shipped"
    quantized = {t for t in summary.weight_types if t not in _FLOATS}
    if request.weights != "as-shipped" and quantized:
        scored = float_copy(summary, sha256, request.weights, request.timeout, progress)
        weights = f"{request.weights} copy"
    template = choose_template(summary, request.framing)
    return PreparedModel(label, summary, sha256, scored, weights, template)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, remembered in the cache folder by path, size and time of change.

    Raises:
        NybbleError: the file cannot be read.
    """
    try:
        stat = path.stat()
        key = content_key([str(path.resolve()), stat.st_size, stat.st_mtime_ns])
        note = cache_dir() / "sha256" / key
        if note.exists():
            return note.read_text(encoding="ascii").strip()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise NybbleError("cannot read the model", seen=f"{path}: {error}") from error
    with contextlib.suppress(OSError, NybbleError):  # only saves time: a run can do without
        note.parent.mkdir(parents=True, exist_ok=True)
        write_text(note, digest)
    return digest


def float_copy(
    summary: ModelSummary, sha256: str, kind: str, timeout: float, progress: Progress
) -> Path:
    """The float copy of a model in the cache folder, made if it is not there.

    Raises:
        NybbleError: not enough disk, a split model, or a tensor type without a conversion.
    """
    if summary.size_bytes != summary.path.stat().st_size:
        raise NybbleError(
            "a model split over several files cannot be copied to floats",
            seen=summary.path.name,
            hint="join it with llama-gguf-split --merge, or --weights as-shipped",
        )
    folder = cache_dir() / "weights"
    target = folder / f"{summary.path.stem[:60]}-{sha256[:12]}-{kind}.gguf"
    if target.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = filelock.FileLock(f"{target}.lock").acquire()
    except OSError as error:
        raise NybbleError(
            f"cannot write the {kind} copy of the weights",
            seen=f"{folder}: {error.strerror or error}",
            hint="NYBBLE_CACHE=/a/folder/of/yours, or --weights as-shipped (noise floor 5e-3)",
        ) from error
    partial = target.with_suffix(f".{os.getpid()}.part")
    with held:
        if target.exists():
            return target
        for stale in folder.glob(f"{glob.escape(target.stem)}.*.part"):  # of runs that were killed
            stale.unlink(missing_ok=True)
        _check_space(folder, copy_size(summary.n_params, kind), kind)
        progress.begin(f"{kind} copy of the weights", 1.0)
        done = 0.0

        def on_event(event: dict[str, float]) -> None:
            nonlocal done
            progress.advance(event["fraction"] - done)
            done = event["fraction"]

        child = EngineProcess(WORKER, timeout=timeout)
        try:
            child.request(
                {"op": "copy", "source": str(summary.path), "target": str(partial), "kind": kind},
                on_event=on_event,
            )
            os.replace(partial, target)
        finally:
            child.close()
            partial.unlink(missing_ok=True)
    return target


def _check_space(folder: Path, needed: int, kind: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise NybbleError(
            f"not enough disk for the {kind} copy of the weights",
            seen=f"{free:,} bytes free in {folder}",
            allowed=f"{needed:,} bytes or more",
            hint="NYBBLE_CACHE=/bigger/disk, or --weights as-shipped (noise floor 5e-3)",
        )


@dataclass(frozen=True)
class SettingSize:
    """Bytes of one setting: bits an element, bytes a token, bytes at each context."""

    bits: float
    per_token: float
    total: dict[int, int]


def cache_sizes(
    path: Path, settings: Iterable[KVSetting], contexts: Iterable[int], timeout: float
) -> dict[KVSetting, SettingSize]:
    """What each setting's cache takes, asked of the engine without loading weights."""
    wanted, lengths = list(settings), sorted(set(contexts))
    child = EngineProcess(WORKER, timeout=timeout)
    try:
        reply = child.request(
            {
                "op": "sizes",
                "path": str(path),
                "settings": [str(s) for s in wanted],
                "contexts": lengths,
            }
        )
    finally:
        child.close()
    by_setting: dict[str, list[dict[str, float]]] = {}
    for entry in reply.header["sizes"]:
        by_setting.setdefault(entry["setting"], []).append(entry)
    return {
        s: SettingSize(
            by_setting[str(s)][0]["bits"],
            by_setting[str(s)][0]["per_token"],
            {int(e["context"]): int(e["total"]) for e in by_setting[str(s)]},
        )
        for s in wanted
    }
