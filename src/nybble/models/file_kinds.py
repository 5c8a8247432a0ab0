"""Say what a file is when it is not the GGUF that was asked for."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path

from nybble.errors import ModelFileError, nearest

_AGAIN = "download the file again; its size now is {size:,} bytes"
_CONVERT = "convert the model with llama.cpp's convert_hf_to_gguf.py, or get it as a GGUF"

# First bytes, what they mean, what to do.
_MAGICS = (
    (
        rb"PK\x03\x04|\x80[\x02-\x05]",
        "a zip or PyTorch pickle: refused, nybble reads only GGUF and safetensors",
        _CONVERT,
    ),
    (rb".{7}\0\s*\{", "a safetensors file", _CONVERT),
    (rb"version https://git-lfs", "a git-lfs pointer, not the file it stands for", "git lfs pull"),
    (rb"\s*(?i:<!doctype|<html|<\?xml)", "an HTML or XML page: the download failed", _AGAIN),
    (rb"lmgg|fmgg|tjgg|algg", "a legacy ggml file, of before GGUF (August 2023)", _CONVERT),
    (rb"FUGG", "a big-endian GGUF", "get the model as a little-endian GGUF"),
    (rb"\s*\{", "JSON text", "name the .gguf file"),
    (rb"\x1f\x8b|\x28\xb5\x2f\xfd|\xfd7zXZ|7z\xbc\xaf", "a compressed file", "unpack it first"),
    (rb"\0{64}", "zero bytes: an unfinished download", _AGAIN),
)


def show(text: object) -> str:
    """Return text from a hostile file fit for a terminal: quoted, escaped, 60 characters."""
    return ascii(str(text)[:60])


def _models_in(path: Path) -> list[str]:
    """Names of the GGUF files in a folder; looks at no more than 1,000 entries."""
    try:
        return sorted(p.name for p in islice(path.iterdir(), 1000) if p.suffix == ".gguf")
    except OSError:
        return []


def folder(path: Path) -> ModelFileError:
    """Return the error for a folder given in place of a file."""
    names = _models_in(path)
    return ModelFileError(
        "A model file is needed, this is a folder",
        seen=path,
        allowed="one GGUF file",
        hint=f"name the file, such as {path / names[0]}" if names else "name a .gguf file",
    )


def not_regular(path: Path) -> ModelFileError:
    """Return the error for a pipe, a socket or a device."""
    what = "The model is a pipe or a device, not a file"
    return ModelFileError(what, seen=path, allowed="one GGUF file", hint="save it to a file first")


def missing(path: Path) -> ModelFileError:
    """Return the error for a file that is not there, with the nearest name that is."""
    try:
        names = [p.name for p in islice(path.parent.iterdir(), 1000) if p.suffix == ".gguf"]
    except OSError:
        names = []
    close = nearest(path.name, names)
    hint = f"did you mean {path.parent / close}" if close else "check the path"
    return ModelFileError("There is no such model file", seen=path, hint=hint)


def not_gguf(path: Path, start: bytes, size: int) -> ModelFileError:
    """Return the error for a file of `size` bytes whose first bytes, `start`, are no GGUF's."""
    if b"GGUF".startswith(start[:4]):
        return ModelFileError(
            f"The model file {'is empty' if size == 0 else f'is cut short (at byte {size})'}",
            seen=path,
            allowed="a GGUF header has at least 24 bytes",
            hint=_AGAIN.format(size=size),
        )
    known = [(kind, hint) for magic, kind, hint in _MAGICS if re.match(magic, start, re.DOTALL)]
    seen, hint = known[0] if known else (f"it starts with {start[:8]!r}", _AGAIN)
    return ModelFileError(
        f"The model file is not a GGUF (at byte 0): {path}",
        seen=seen,
        allowed="a file that starts with b'GGUF', version 2 or 3, little endian",
        hint=hint.format(size=size),
    )
