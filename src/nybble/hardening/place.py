"""Where a hardened model goes: checked before any work, written whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from nybble.errors import ModelFileError, NybbleError
from nybble.models.folder import weight_files
from nybble.models.gguf_header import read_header as read_gguf
from nybble.models.safetensors_header import read_header as read_safetensors

RECORD = "nybble.hardened"  # every key of the record starts with it
_MARGIN = 64 << 20  # for the record, and 16-bit norms that are written in 32 bits
# Weights in a form that is not edited: the hardened model must not bring the original ones along.
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")


def check_target(source: Path, target: Path, fresh: bool, kind: Literal["gguf", "folder"]) -> None:
    """Refuse an output before any work is done for it; frees what killed runs left beside it.

    Args:
        source: the model that is hardened.
        target: the file or folder to make.
        fresh: whether one that exists is replaced; of folders only hardened models.
        kind: what source and target are.

    Raises:
        NybbleError: it is the input or inside it, exists, its folder is missing or may not be
            written, or there is not enough free space.
    """
    target = Path(os.path.abspath(target))
    try:
        _check_apart(source.resolve(), target.resolve())
        _check_parent(target.parent)
        _check_free(target, fresh, kind)
        _remove_stale(target)
        files = copied_files(source) if kind == "folder" else [source]
        needed = sum(f.stat().st_size for f in files) + _MARGIN
        free = shutil.disk_usage(target.parent).free
    except (OSError, RuntimeError, ValueError) as e:  # a loop of links, a name with a zero byte
        raise NybbleError("cannot use this output", seen=f"{str(target)!r}: {e}",
                          hint="--out another path") from e  # fmt: skip
    if free < needed:
        raise NybbleError(
            "not enough disk for the hardened model",
            seen=f"{free:,} bytes free in {target.parent}",
            allowed=f"{needed:,} bytes or more",
            hint="--out on a bigger disk",
        )


@contextmanager
def partial(target: Path, fresh: bool = False) -> Iterator[Path]:
    """Give a name beside `target` to write to; it becomes `target` when nothing is raised.

    `.NAME.PID.part`, with `.gguf` after it for a GGUF, is removed on any exception. What was
    written is on the disk before it is renamed. `fresh` is as in `check_target`, and looked at
    again: hours of training may lie between.

    Raises:
        NybbleError: the target exists, or the disk is full or cannot be written.
    """
    target = Path(os.path.abspath(target))
    path = _beside(target, "part")
    if os.path.lexists(target) and not fresh:
        raise _exists(target)
    with disk_errors(target):
        _remove_stale(target)
        _remove(path)  # of an earlier run that had this process id
    try:
        yield path
        with disk_errors(target):
            _sync(path)
            _check_free(target, fresh, "folder" if path.is_dir() else "gguf")
            _replace(path, target)
            _sync_folder(target.parent)
    except BaseException:
        with suppress(OSError):
            _remove(path)
        raise


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turn a full disk or a read-only folder into an error that says what to do.

    Raises:
        NybbleError: naming the path and, for a full disk, the free space.
    """
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(target.parent).free
            raise NybbleError("the disk is full",
                              seen=f"{target.parent}: {free:,} bytes free",
                              hint="free space, or --out on another disk") from e  # fmt: skip
        raise NybbleError("cannot write the hardened model",
                          seen=f"{target}: {e.strerror or e}",
                          hint="--out where you may write") from e  # fmt: skip


def hardened(path: Path) -> dict[str, str]:
    """The record that a hardened GGUF or folder carries; empty for any other model.

    Raises:
        ModelFileError: it is damaged or no model.
    """
    if path.is_dir():
        about = [read_safetensors(f).metadata for f in weight_files(path)]
        return {k: v for part in about for k, v in part.items() if k.startswith(RECORD)}
    keys = read_gguf(path).metadata
    return {k: str(v) for k, v in keys.items() if k.startswith(RECORD)}


def copied_files(folder: Path) -> list[Path]:
    """The files of a model folder that a hardened copy has, by name.

    Those in the folder itself, links followed; no subfolders, no pipes, no weights in a form that
    is not edited (pickles, Mistral's consolidated.safetensors, ...).

    Raises:
        ModelFileError: a link points to a file that is gone, or the weights are not usable.
    """
    weights = {f.name for f in weight_files(folder)}
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and not path.exists():
            raise ModelFileError(f"{path.name} points to a file that is gone", seen=path,
                                 hint="download the model again")  # fmt: skip
        other = path.suffix in _OTHER_WEIGHTS or path.suffix == ".safetensors"
        if path.is_file() and (path.name in weights or not other):
            found.append(path)
    return found


def _check_apart(source: Path, target: Path) -> None:
    """Both without links."""
    hint = "--out another path"
    if source == target or (target.exists() and target.samefile(source)):
        raise NybbleError("the output is the input", seen=target, hint=hint)
    if target.is_relative_to(source):
        raise NybbleError("the output is inside the input", seen=target, hint=hint)
    if source.is_relative_to(target):
        raise NybbleError("the input is inside the output", seen=target, hint=hint)


def _check_parent(parent: Path) -> None:
    if not parent.exists():
        raise NybbleError("the folder for the output is missing", seen=parent,
                          hint=f"mkdir -p {parent}")  # fmt: skip
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        why = "may not be written" if parent.is_dir() else "is a file"
        raise NybbleError("cannot write the output there", seen=f"{parent} {why}",
                          hint="--out where you may write")  # fmt: skip


def _check_free(target: Path, fresh: bool, kind: str) -> None:
    if not os.path.lexists(target):
        return
    if not fresh:
        raise _exists(target)
    if kind == "gguf":
        if not target.is_dir():
            return
        what = "a folder"
    else:
        if target.is_dir() and not target.is_symlink() and _is_ours(target):
            return
        what = "not a hardened model's folder"
    raise NybbleError("the output cannot be replaced", seen=f"{target} is {what}",
                      hint="--out another path")  # fmt: skip


def _is_ours(folder: Path) -> bool:
    """Whether a folder may be deleted: it is empty, or holds a model that nybble wrote."""
    inside = list(folder.iterdir())
    if any(p.is_dir() for p in inside):
        return False
    with suppress(ModelFileError):
        return not inside or bool(hardened(folder))
    return False


def _exists(target: Path) -> NybbleError:
    return NybbleError("the output exists", seen=target, hint="--fresh, or --out another path")


def _beside(target: Path, ending: str) -> Path:
    suffix = ".gguf" if target.suffix == ".gguf" else ""
    return target.with_name(f".{target.name}.{os.getpid()}.{ending}{suffix}")


def _remove_stale(target: Path) -> None:
    """Remove what runs that no longer live left of this target.

    The folder that one was replacing goes only when its successor is in place.
    """
    name = re.compile(rf"\.{re.escape(target.name)}\.(\d+)\.(part|old)(\.gguf)?")
    for path in target.parent.iterdir():
        left = name.fullmatch(path.name)
        if left and not _alive(int(left[1])) and (left[2] == "part" or os.path.lexists(target)):
            _remove(path)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _replace(path: Path, target: Path) -> None:
    if not path.is_dir() or not os.path.lexists(target):
        os.replace(path, target)
        return
    old = _beside(target, "old")  # a folder with files cannot be renamed over
    os.rename(target, old)
    try:
        os.rename(path, target)
    except BaseException:
        os.rename(old, target)
        raise
    _remove(old)


def _sync(path: Path) -> None:
    for part in [*path.iterdir(), path] if path.is_dir() else [path]:
        _sync_folder(part)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
