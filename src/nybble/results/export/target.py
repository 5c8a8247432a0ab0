"""What exports have in common: a cell as parameters and numbers, and what an export did."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from nybble.errors import MissingExtraError
from nybble.results.base.cell import Cell
from nybble.results.base.checked import PLAIN, cell_line
from nybble.results.store import content_key

# What names a cell: all that was chosen, and nothing that was found.
PARAMETERS = (
    "model", "file", "sha256", "architecture", "weights", "scored", "reference", "engine",
    "engine_version", "via", "setting", "k_type", "v_type", "role", "context", "categories",
    "text_sha256", "simulated", "top_k", "cpu", "device", "nybble", "metrics_version",
)  # fmt: skip
_COUNTS = ("bits", "bytes_per_token", "cache_bytes", "n_documents", "n_tokens", "n_nonfinite")


@dataclass(frozen=True)
class Exported:
    """What an export did.

    Attributes:
        new: runs written there.
        kept: runs that were there already, with the same numbers.
        where: the place.
        hint: what to do next, empty where there is nothing.
    """

    new: int
    kept: int
    where: str
    hint: str = ""


def parameters(cell: Cell) -> dict[str, str]:
    """What was chosen, as texts."""
    return {name: str(getattr(cell, name)) for name in PARAMETERS}


def numbers(cell: Cell) -> dict[str, float]:
    """What was found: counts, and metrics with `_low` and `_high`."""
    line = cell_line(cell)
    wanted = [*_COUNTS, *(name for name in line if name not in PLAIN)]
    return {name: float(line[name]) for name in wanted if line[name] is not None}


def place_key(cell: Cell) -> str:
    """Names a cell in its base, whatever its numbers."""
    return content_key([cell.run, cell.sha256, cell.reference, cell.setting, cell.context,
                        cell.role])  # fmt: skip


def cell_key(cell: Cell) -> str:
    """Names a cell with everything in it."""
    return content_key(cell_line(cell))


def load(package: str, extra: str) -> Any:
    """Import a package of an extra.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"exporting to {extra} needs a package that is not installed",
                                seen=f"missing: {error.name}",
                                hint=f'pip install "nybble[{extra}]"') from error  # fmt: skip


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Variables that a package reads, where the user has not set them, for as long as this."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
