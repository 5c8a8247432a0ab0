"""From a path to a model ready to score: header checked, hashed, copied to float, sized."""

from __future__ import annotations

import glob
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from nybble.engines.child import EngineProcess
from nybble.engines.llamacpp.floatcopy import copy_size
from nybble.environment import cache_dir
from nybble.errors import NybbleError
from nybble.formats import KVSetting, check_head_size
from nybble.models.content_hash import file_sha256
from nybble.models.demo import demo_model
from nybble.models.summary import ModelSummary, summarise
from nybble.results.records import ModelRecord
from nybble.scoring.request import MeasureRequest, Progress

WORKER = "nybble.scoring.worker"
_FLOATS = {"F32", "F16"}  # ggml multiplies these with float activations; bf16 it does not


@dataclass(frozen=True)
class PreparedModel:
    """A model and where its scores come from.

    Attributes:
        label: "a", or "b" for the model given with --against.
        source: the file or folder as named, or the hub id.
        stem: short name for files and folders.
        sha256: of the weights as shipped.
        scored_file: what the engine loads.
        context_length: tokens it was trained for.
        template: the chat template that frames its text, or None.
        record: what the result says of it.
    """

    label: str
    source: Path
    stem: str
    sha256: str
    scored_file: Path
    context_length: int
    template: str | None
    record: ModelRecord


def locate(model: Path | None) -> Path:
    """The model file: the one given, or the demo model."""
    return model if model is not None else demo_model(cache_dir())


def check(summary: ModelSummary, request: MeasureRequest) -> list[str]:
    """Refuse what the model cannot do; return warnings about what would test too little.

    Raises:
        NybbleError: a context over the model's maximum, or a type its head size does not allow.
    """
    check_context(request.contexts, summary.context_length, summary.name or summary.path.name)
    for setting in request.settings:
        check_head_size(setting, set(summary.head_dim_k), set(summary.head_dim_v))
    return window_warnings(request.contexts, summary.sliding_window)


def check_context(contexts: Iterable[int], longest: int, name: str) -> None:
    """Refuse a context beyond what the model was trained for.

    Raises:
        NybbleError: states the longest.
    """
    over = [c for c in contexts if c > longest]
    if over:
        raise NybbleError(
            "the context is longer than the model was trained for",
            seen=f"{max(over):,} tokens",
            allowed=f"up to {longest:,} for {name}",
            hint=f"--context {longest}",
        )


def window_warnings(contexts: Iterable[int], window: int | None) -> list[str]:
    """Say which contexts never leave the sliding window."""
    short = [c for c in contexts if window is not None and c <= window]
    if not short:
        return []
    return [
        f"context {', '.join(f'{c:,}' for c in short)} is within the sliding window of "
        f"{window:,} tokens, so windows never slide and nothing beyond them is tested"
    ]


def choose_template(chat_template: str | None, name: str, framing: str) -> str | None:
    """The chat template to frame text with, or None for raw text.

    Raises:
        NybbleError: a template is demanded of a model that has none.
    """
    if framing == "raw":
        return None
    if framing == "template" and not chat_template:
        raise NybbleError(
            "this model has no chat template",
            seen=name,
            allowed="--framing auto or raw",
        )
    return chat_template or None


def prepare(label: str, path: Path, request: MeasureRequest, progress: Progress) -> PreparedModel:
    """Hash the file and make its float copy if it needs one.

    Raises:
        NybbleError: see `check`, `file_sha256` and `float_copy`.
    """
    summary = summarise(path)
    progress.stage(f"hashing {path.name}")
    sha256 = file_sha256(path, cache_dir())
    scored, weights = path, "as shipped"
    quantized = {t for t in summary.weight_types if t not in _FLOATS}
    if request.weights != "as-shipped" and quantized:
        scored = float_copy(summary, sha256, request.weights, request.timeout, progress)
        weights = f"{request.weights} copy"
    template = choose_template(summary.chat_template, summary.name or path.name, request.framing)
    shipped = Counter(summary.weight_types)
    record = ModelRecord(
        label=label,
        name=summary.name or path.stem,
        file=path.name,
        sha256=sha256,
        architecture=summary.architecture,
        size_bytes=summary.size_bytes,
        shipped_weights=summary.file_type or (shipped.most_common(1)[0][0] if shipped else "?"),
        scored_weights=weights,
        context_length=summary.context_length,
        sliding_window=summary.sliding_window,
        framing=describe_framing(summary.chat_template, template),
    )
    return PreparedModel(
        label, path, path.stem, sha256, scored, summary.context_length, template, record
    )


def describe_framing(chat_template: str | None, used: str | None) -> str:
    """How text is framed, and why, in words."""
    framed = "chat template" if used else "raw text"
    kind = "instruct" if chat_template else "base"
    has = "it has" if chat_template else "it has no"
    return f"{framed} ({kind} model: {has} chat template)"


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


def calibration_path(model: PreparedModel, cache: Path) -> Path:
    """Where a model's calibration belongs: beside it, or in the cache if that cannot be written."""
    source = model.scored_file
    name = "nybble-calibration.safetensors"
    beside = source / name if source.is_dir() else source.with_name(f"{source.stem}.{name}")
    # A hub snapshot is shared and made of links: nothing of ours belongs there.
    shared = "snapshots" in source.parts
    if beside.is_file() or (not shared and os.access(beside.parent, os.W_OK)):
        return beside
    return cache / "calibration" / f"{model.sha256[:16]}.{name}"


@dataclass(frozen=True)
class SettingSize:
    """Bytes of one setting: bits an element at each context, bytes a token, bytes at each context.

    Bits depend on the context where some tokens are stored otherwise than most.
    """

    bits: dict[int, float]
    per_token: float
    total: dict[int, int]


Sizes = dict[tuple[str, KVSetting], SettingSize]  # by model label and setting


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
    return {s: setting_size(reply.header["sizes"], str(s)) for s in wanted}


def setting_size(entries: Iterable[dict[str, Any]], setting: str) -> SettingSize:
    """One setting's size out of a worker's answer to `sizes`."""
    mine = [e for e in entries if e["setting"] == setting]
    return SettingSize(
        {int(e["context"]): e["bits"] for e in mine},
        mine[0]["per_token"],
        {int(e["context"]): int(e["total"]) for e in mine},
    )
