"""Open and read the small files of a model folder without trusting them."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from nybble.errors import ModelFileError
from nybble.models.file_kinds import show

MAX_JSON_BYTES = 32 << 20  # the largest real one, the index of a model of 140,000 tensors: 15 MB
MAX_TEXT_BYTES = 1 << 20  # longer than any chat template


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file for reading; gives the file and its size in bytes.

    Raises:
        ModelFileError: missing, no regular file, or not readable (also while it is being read).
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe or a device would block or never end
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or a device"
            raise ModelFileError(f"{path.name} is {kind}, not a file", seen=path,
                                 hint="download the model again")  # fmt: skip
        with path.open("rb") as file:
            yield file, os.fstat(file.fileno()).st_size
    except FileNotFoundError as e:
        broken = path.is_symlink()
        what = "points to a file that is gone" if broken else "is missing"
        raise ModelFileError(f"{path.name} {what}", seen=path,
                             hint="download the model again") from e  # fmt: skip
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or e
        raise ModelFileError(f"Cannot read {path.name}: {reason}", seen=path,
                             hint="check the permissions of the file") from e  # fmt: skip


def read_text(path: Path, most: int = MAX_TEXT_BYTES) -> str:
    """Return a UTF-8 text of up to `most` bytes.

    Raises:
        ModelFileError: see `opened`; or too large, or not UTF-8.
    """
    with opened(path) as (file, size):
        data = file.read(most + 1)
    if len(data) > most:
        raise ModelFileError(f"{path.name} is too large", seen=f"{size:,} bytes: {path}",
                             allowed=f"up to {most:,} bytes",
                             hint="download the model again")  # fmt: skip
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise ModelFileError(f"{path.name} is not UTF-8 text (at byte {e.start:,})", seen=path,
                             hint="download the model again") from e  # fmt: skip


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    NaN and Infinity are taken, as transformers takes them: Mamba's config.json has one.

    Raises:
        ModelFileError: see `read_text`; or no JSON, nested too deep, or no object.
    """
    text = read_text(path, MAX_JSON_BYTES)
    if text.startswith("version https://git-lfs"):
        raise ModelFileError(f"{path.name} is a git-lfs pointer, not the file it stands for",
                             seen=path, hint="git lfs pull")  # fmt: skip
    try:
        value = json.loads(text)
    except RecursionError as e:
        raise ModelFileError(f"{path.name} nests too deep", seen=path,
                             hint="download the model again") from e  # fmt: skip
    except ValueError as e:  # no JSON, or a number of more than 4,300 digits
        raise ModelFileError(f"{path.name} is not JSON", seen=f"{str(e)[:80]}: {path}",
                             hint="download the model again") from e  # fmt: skip
    if not isinstance(value, dict):
        raise ModelFileError(f"{path.name} does not hold a JSON object", seen=show(text[:60]),
                             allowed="{...}", hint="download the model again")  # fmt: skip
    return value
