"""What `RUN`, `RUN:q8_0/q4_0`, `RUN:b` and `RUN:b:q8_0/q4_0` mean: rows of one model of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from nybble.errors import NybbleError, unknown
from nybble.formats import parse
from nybble.results.base.cell import Cell, cells_of
from nybble.results.base.find import SUMMARY, read_text, run_folders
from nybble.results.compared import Side
from nybble.results.records import Estimate, Measurement, from_json

ROLES = ("candidate", "floor")  # what may be compared; a row of a part is no setting
_SHOWN = 8  # runs that an error lists


@dataclass(frozen=True)
class Run:
    """A model of a run, and the one setting of it that was asked for.

    Attributes:
        text: as given.
        folder: of the run.
        label: of the model in the run: "a", or "b" with `--against`.
        cells: its rows against its own 16-bit cache.
        setting: as the run writes it; None where all are meant.
    """

    text: str
    folder: Path
    label: str
    cells: tuple[Cell, ...]
    setting: str | None = None

    @property
    def settings(self) -> list[str]:
        """Measured candidates, in the run's order."""
        return list(dict.fromkeys(c.setting for c in self.done if c.role == "candidate"))

    @property
    def done(self) -> list[Cell]:
        """What may be compared."""
        return [c for c in self.cells if c.role in ROLES and c.status == "done"]

    def cell(self, setting: str, context: int) -> Cell | None:
        """A measured cell; a candidate where a setting was measured as the floor, too."""
        found = [c for c in self.done if (c.setting, c.context) == (setting, context)]
        return min(found, key=lambda c: ROLES.index(c.role), default=None)

    def floor(self, context: int) -> float | None:
        """Mean KLD of its noise floor, None where it has none."""
        found = (c for c in self.done if c.role == "floor" and c.context == context)
        return next((c.metrics["mean_kld"].value for c in found), None)

    def named(self, text: str) -> str:
        """The run's name of a setting.

        Raises:
            NybbleError: no setting, or not one of this run's.
        """
        known = list(dict.fromkeys(c.setting for c in self.done))
        if text in known:
            return text
        setting = str(parse(text))
        if setting not in known:
            raise unknown(
                "the run has no such KV setting", setting, known, seen=f"{text} in {self.folder}",
                allowed=known or "nothing was measured in it",
                hint=f"nybble measure MODEL --kv {setting} --out {self.folder}",
            )  # fmt: skip
        return setting


def side(run: Run, cell: Cell) -> Side:
    """A cell as the record of a comparison names it."""
    return Side(
        run=str(run.folder), model=cell.model, sha256=cell.sha256, scored=cell.scored,
        engine=cell.engine, engine_version=cell.engine_version, via=cell.via, cpu=cell.cpu,
        setting=cell.setting, simulated=cell.simulated, top_k=cell.top_k,
    )  # fmt: skip


def choose(text: str) -> Run:
    """Read `RUN[:MODEL][:K/V]`.

    Args:
        text: RUN is a run folder, or a folder that holds one; MODEL its label in the run.

    Raises:
        NybbleError: no run, several, a damaged one, or no such model or setting in it.
    """
    path, rest = _split(text)
    folder = run_folder(path)
    record = load(folder)
    labels = [m.label for m in record.models]
    first, _, second = rest.partition(":")
    label, setting = (first, second) if first in labels else (labels[0], rest)
    if ":" in setting:
        raise NybbleError("unknown model of the run", seen=f"{first} in {text}", allowed=labels,
                          hint=f"{path}:{labels[0]}:K/V")  # fmt: skip
    run = Run(text, folder, label, own_cells(folder, record, label))
    return Run(text, folder, label, run.cells, run.named(setting)) if setting else run


def run_folder(path: Path) -> Path:
    """The run folder that a path means: itself, or the only one below it.

    Raises:
        NybbleError: there is none, or more than one.
    """
    if (path / SUMMARY).is_file():
        return path
    found = run_folders(path)
    if len(found) == 1:
        return found[0]
    if found:
        names = [str(p) for p in found[:_SHOWN]]
        more = len(found) - len(names)
        raise NybbleError(
            f"the folder holds {len(found)} runs; name one", seen=path,
            allowed=names + [f"{more} more"] * bool(more), hint=f"use {names[0]}",
        )  # fmt: skip
    raise NybbleError("no run in this folder", seen=path, allowed=f"a folder with {SUMMARY}",
                      hint=f"nybble measure MODEL --out {path}")  # fmt: skip


def load(folder: Path) -> Measurement:
    """The measurement of a run folder.

    Raises:
        NybbleError: it cannot be read, is damaged or of a newer schema.
    """
    path = folder / SUMMARY
    try:
        record = from_json(read_text(path))
    except NybbleError as error:
        raise NybbleError(
            f"cannot use the run: {error.what}", allowed=error.allowed, hint=error.hint,
            seen=f"{path}: {error.seen}" if error.seen else path,
        ) from error  # fmt: skip
    if not record.models:
        raise NybbleError("cannot use the run: it names no model", seen=path)
    return record


def own_cells(folder: Path, record: Measurement, label: str) -> tuple[Cell, ...]:
    """Rows of a model against its own 16-bit cache.

    Raises:
        NybbleError: a damaged record.
    """
    try:
        paired = zip(record.rows, cells_of(record, "."), strict=True)
        found = tuple(cell for row, cell in paired if row.model == row.reference == label)
        sound = all(_sound(cell) for cell in found)
    except (KeyError, TypeError, ValueError, AttributeError):
        sound = False
    if not sound:
        raise NybbleError(
            "cannot use the run: a damaged nybble measurement", seen=folder / SUMMARY,
            hint="measure again, or get the folder again",
        )  # fmt: skip
    return found


def _sound(cell: Cell) -> bool:
    numbers: Iterable[object] = (cell.context, cell.top_k)
    texts = (cell.setting, cell.role, cell.status, cell.model, cell.sha256)
    needed = cell.status != "done" or "mean_kld" in cell.metrics
    return (
        needed
        and all(isinstance(n, int) for n in numbers)
        and all(isinstance(t, str) for t in texts)
        and all(_estimate(e) for e in cell.metrics.values())
    )


def _estimate(found: object) -> bool:
    return (
        isinstance(found, Estimate)
        and _finite(found.value)
        and (found.low is None) == (found.high is None)
        and all(end is None or _finite(end) for end in (found.low, found.high))
    )


def _finite(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _split(text: str) -> tuple[Path, str]:
    """A path and what stands behind its colon; a folder's own name may have colons."""
    if Path(text).exists():
        return Path(text), ""
    for at in reversed([i for i, c in enumerate(text) if c == ":"]):
        if at and Path(text[:at]).is_dir():
            return Path(text[:at]), text[at + 1 :]
    raise NybbleError(
        "there is no such run folder", seen=text, allowed="RUN, RUN:K/V or RUN:MODEL:K/V",
        hint="a folder that nybble measure --out has written",
    )  # fmt: skip
