"""Checkpoints that survive kill -9: safetensors for tensors, JSON for the rest, never pickle.

A checkpoint is a pair of files, and it exists once its JSON does: the tensors are written, synced
and renamed first, and the JSON holds their SHA-256. The one before is kept until then and after,
so a damaged newest costs some steps and not the run. The best tensors have a file of their own,
written when they are found and kept while a checkpoint names them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import filelock
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nybble.errors import NybbleError

VERSION = 1
KEPT = 2  # checkpoints: the newest and the one before

Tensors = Mapping[str, torch.Tensor]
_ELSE = "--restart trains from the start, or another --run"
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError)


@dataclass(frozen=True)
class State:
    """Where a training stands, but for its tensors.

    Attributes:
        step: steps done.
        tokens: read so far.
        seconds: of training so far.
        start: mean held-out KLD by KV setting before the first step; "f16" is the tax.
        best: the same at `best_step`.
        best_step: step of the lowest held-out KLD; 0 while nothing beat the start.
        mark: the objective when it last improved by 1 %.
        waited: looks at the held-out text since then.
        skipped: steps whose loss or gradient was not finite.
        bad: of those, how many in a row up to here.
    """

    step: int
    tokens: int
    seconds: float
    start: dict[str, float]
    best: dict[str, float]
    best_step: int
    mark: float
    waited: int = 0
    skipped: int = 0
    bad: int = 0


@dataclass(frozen=True)
class Loaded:
    """A checkpoint, read and checked."""

    state: State
    trained: dict[str, torch.Tensor]
    moments: dict[str, torch.Tensor]


class Checkpoints:
    """The folder of one training's checkpoints.

    Args:
        folder: made if missing.
        identity: what must be the same to resume: JSON values by the name the user knows.
        writer: whether this process writes; the others of a distributed run only read.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], writer: bool = True) -> None:
        self.folder = folder
        self._writer = writer
        self._identity = dict(identity)
        self._best: tuple[int, str] | None = None  # step and SHA-256 of the best tensors
        self._lock = filelock.FileLock(folder / ".lock", blocking=False)

    def __enter__(self) -> Checkpoints:
        """Take the folder for this process, and remove what a killed one left half written.

        Raises:
            NybbleError: another training holds it, or it cannot be written.
        """
        if not self._writer:
            return self
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except filelock.Timeout as error:
            raise NybbleError(
                "another training is writing to this folder", seen=str(self.folder),
                hint="wait for it, or give this one its own --run",
            ) from error  # fmt: skip
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        for stale in self.folder.glob(".*.part"):
            stale.unlink(missing_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Give the folder back."""
        self._lock.release()

    def clear(self) -> None:
        """Remove all checkpoints."""
        if self._writer:
            self._remove(set())

    def save_best(self, step: int, trained: Tensors) -> None:
        """Write the best tensors so far, found at `step`.

        Raises:
            NybbleError: the disk is full or the folder cannot be written.
        """
        if not self._writer:
            return
        self._best = (step, self._write_tensors(self._path("best", step), trained, {}))

    def save(self, state: State, trained: Tensors, moments: Tensors) -> None:
        """Write a checkpoint, then remove those that are no longer needed.

        Raises:
            NybbleError: the disk is full or the folder cannot be written.
        """
        if not self._writer:
            return
        assert self._best is not None and self._best[0] == state.best_step
        path = self._path("step", state.step)
        digest = self._write_tensors(path, trained, moments)
        about = {
            "version": VERSION,
            "identity": self._identity,
            "state": asdict(state),
            "sha256": digest,
            "best_sha256": self._best[1],
        }
        text = json.dumps(about, indent=1)
        self._write(path.with_suffix(".json"), lambda part: part.write_text(text, "utf-8"))
        self._drop_old()

    def load(self, on_damage: Callable[[str], None]) -> Loaded | None:
        """Read the newest checkpoint, or the one before where that is damaged; None if none is.

        Args:
            on_damage: told of a damaged one.

        Raises:
            NybbleError: made with another model, text or request; or all are damaged.
        """
        found = sorted(self._numbers("step", "json"), reverse=True)
        why = ""
        for path in found:
            try:
                loaded = self._read(path)
            except _DAMAGE as error:
                why = f"{path}: {error}"
                if path != found[-1]:
                    on_damage(f"the checkpoint {path.name} is damaged; going on from an older one")
                continue
            for newer in found[: found.index(path)] if self._writer else ():
                newer.unlink(missing_ok=True)  # or it would be the newest again
            return loaded
        if not found:
            return None
        raise NybbleError("no checkpoint can be read", seen=why, hint=_ELSE)

    def best(self) -> dict[str, torch.Tensor]:
        """The best tensors.

        Raises:
            NybbleError: their file is damaged or gone.
        """
        assert self._best is not None
        path = self._path("best", self._best[0])
        try:
            return _parts(path, self._best[1])["trained"]
        except _DAMAGE as error:
            raise NybbleError(
                "the best tensors cannot be read back", seen=f"{path}: {error}", hint=_ELSE
            ) from error

    def _read(self, path: Path) -> Loaded:
        about = json.loads(path.read_text("utf-8"))
        if about["version"] != VERSION:
            raise NybbleError(
                "a checkpoint of another version of nybble", seen=f"{path}: {about['version']}",
                allowed=f"version {VERSION}", hint=_ELSE,
            )  # fmt: skip
        self._check_identity(about["identity"], path)
        state = State(**about["state"])
        if path != self._path("step", state.step).with_suffix(".json"):
            raise ValueError(f"holds step {state.step}")
        _parts(self._path("best", state.best_step), about["best_sha256"])
        parts = _parts(path.with_suffix(".safetensors"), about["sha256"])
        self._best = (state.best_step, about["best_sha256"])
        return Loaded(state, **parts)

    def _check_identity(self, before: dict[str, Any], path: Path) -> None:
        now = json.loads(json.dumps(self._identity))
        for name in sorted({*before, *now}):
            if before.get(name) != now.get(name):
                raise NybbleError(
                    f"cannot resume with another value of {name}", seen=f"asked: {now.get(name)}",
                    allowed=f"{before.get(name)}, as in {path}", hint=_ELSE,
                )  # fmt: skip

    def _drop_old(self) -> None:
        newest = sorted(self._numbers("step", "json"), reverse=True)
        wanted = set()
        for path in newest[:KEPT]:
            wanted |= {path.name, path.with_suffix(".safetensors").name}
            try:
                step = int(json.loads(path.read_text("utf-8"))["state"]["best_step"])
            except _DAMAGE:
                continue  # the older one is damaged: nothing to keep for it
            wanted.add(self._path("best", step).name)
        self._remove(wanted)

    def _remove(self, wanted: set[str]) -> None:
        # JSON first: without it, tensors are no checkpoint.
        for what, suffix in (("step", "json"), ("step", "safetensors"), ("best", "safetensors")):
            for path in self._numbers(what, suffix):
                if path.name not in wanted:
                    path.unlink(missing_ok=True)

    def _path(self, what: str, step: int) -> Path:
        return self.folder / f"{what}-{step:010d}.safetensors"

    def _numbers(self, what: str, suffix: str) -> list[Path]:
        return list(self.folder.glob(f"{what}-{'[0-9]' * 10}.{suffix}"))

    def _write_tensors(self, path: Path, trained: Tensors, moments: Tensors) -> str:
        """Write and sync; SHA-256 of the file."""
        parts = {"trained": trained, "moments": moments}
        tensors = {
            f"{part}/{name}": _plain(t) for part, some in parts.items() for name, t in some.items()
        }
        return self._write(path, lambda partial: save_file(tensors, partial))

    def _write(self, path: Path, write: Callable[[Path], object]) -> str:
        partial = path.with_name(f".{path.name}.part")
        try:
            write(partial)
            with partial.open("rb+") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            os.replace(partial, path)
            _sync_folder(self.folder)
        except (OSError, SafetensorError) as error:
            raise _unwritable(path, error) from error
        finally:
            partial.unlink(missing_ok=True)
        return digest


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """On the CPU, whole in memory of its own: safetensors refuses views."""
    tensor = tensor.detach().to("cpu").contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _parts(path: Path, sha256: str) -> dict[str, dict[str, torch.Tensor]]:
    """Read what `_write_tensors` wrote."""
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise ValueError(f"{path.name} is not what was written")
    parts: dict[str, dict[str, torch.Tensor]] = {"trained": {}, "moments": {}}
    for key, tensor in load_file(path).items():
        part, _, name = key.partition("/")
        parts[part][name] = tensor
    return parts


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; Windows has no such call."""
    if os.name != "nt":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _unwritable(path: Path, error: Exception) -> NybbleError:
    return NybbleError(
        "cannot write a checkpoint; the one before is kept",
        seen=f"{path}: {error}",
        hint="free space, or --run on another disk; the same command continues",
    )
