"""How much a cell of a base has grown against a baseline run: what a gate's max_increase asks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from nybble.errors import NybbleError
from nybble.results.base.cell import Cell
from nybble.results.compared import Compared
from nybble.results.records import Estimate
from nybble.scoring.between.compare import compare
from nybble.scoring.between.sides import load, run_folder


def increases(root: Path, baseline: Path) -> Callable[[Cell, str], Estimate | str]:
    """A function of a cell and a metric: the paired difference, cell less baseline, or why none.

    Args:
        root: folder of the base that the cells are from.
        baseline: a run folder. Where it has the cell's own weights they are what is compared
            with, else its first model.

    Raises:
        NybbleError: the baseline is no run.
    """
    folder = run_folder(baseline)
    old = {m.sha256: m.label for m in load(folder).models}

    @cache
    def compared(run: str, sha256: str, setting: str, context: int) -> Compared | str:
        try:
            own = root / run
            label = next(m.label for m in load(own).models if m.sha256 == sha256)
            before = old.get(sha256, next(iter(old.values())))
            return compare(
                f"{folder}:{before}:{setting}", f"{own}:{label}:{setting}", contexts=[context]
            )
        except NybbleError as error:
            seen = f": {error.seen}" if error.seen else ""
            return f"cannot be compared with the baseline: {error.what}{seen}"

    def increase(cell: Cell, metric: str) -> Estimate | str:
        found = compared(cell.run, cell.sha256, cell.setting, cell.context)
        if isinstance(found, str):
            return found
        (pair,) = found.pairs
        contrast = pair.metrics.get(metric)
        if contrast is None or contrast.difference is None:
            return f"cannot be compared with the baseline: {pair.reason}"
        if pair.a.top_k or pair.b.top_k:
            return "cannot be compared with the baseline: a top-k comparison gives lower bounds"
        return contrast.difference

    return increase
