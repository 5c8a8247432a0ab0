"""What a sweep says of itself: plain records."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

SWEEP_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class PlannedGroup:
    """One line of a dry run.

    Attributes:
        run: name of its folder.
        model: path or hub id.
        corpus: category of text.
        context: tokens.
        cells: KV settings, scored side by side.
        done: whether it is finished already.
        memory_bytes: what it holds; 0 where the plan cannot tell.
        seconds: rough time, good to a factor of two.
        cost: of those seconds, in the currency of price_per_hour.
        skipped: why it never fits, else empty.
        note: what the estimate lacks, else empty.
    """

    run: str
    model: str
    corpus: str
    context: int
    cells: int
    done: bool
    memory_bytes: int
    seconds: float
    cost: float
    skipped: str = ""
    note: str = ""


@dataclass(frozen=True)
class FailedCell:
    """A cell without numbers, and why.

    Attributes:
        run: name of its folder.
        key: of the cell.
        setting: KV setting.
        context: tokens.
        corpus: category of text.
        error: what the worker said, first line first.
        skipped: whether it was never tried, since it fits nowhere.
    """

    run: str
    key: str
    setting: str
    context: int
    corpus: str
    error: str
    skipped: bool = False


@dataclass(frozen=True)
class SweepResult:
    """What became of a sweep.

    Attributes:
        place: where its results are.
        runs: names of the run folders that are merged, in the order of the sweep.
        merged: those of them whose summary was made now.
        cells: how many it has.
        scored: cells finished now, of groups that lacked something.
        found: cells that were there already.
        failed: cells without numbers.
        unmerged: runs without a summary, each with its error.
        damaged: files of cells that could not be read, and groups whose cells are not there; the
            same command scores them again.
        groups: groups run now.
        seconds: from the first task to the last.
        busy_seconds: of all workers together, as they told.
        executor: who ran it.
        workers: tasks at once.
    """

    place: str
    runs: list[str]
    merged: list[str]
    cells: int
    scored: int
    found: int
    failed: list[FailedCell] = field(default_factory=list)
    unmerged: dict[str, str] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    groups: int = 0
    seconds: float = 0.0
    busy_seconds: float = 0.0
    executor: str = ""
    workers: int = 0
    schema_version: int = SWEEP_SCHEMA_VERSION

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return dataclasses.asdict(self)
