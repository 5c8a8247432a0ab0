"""Runs of a base as runs of Weights & Biases, each with a table of its cells.

Without a login everything is written to a folder, for `wandb sync`. The id of a W&B run follows
from what is in it, so that exporting or syncing again writes to the same run.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nybble.errors import NybbleError
from nybble.results.base.cell import Cell
from nybble.results.base.checked import PLAIN, cell_line
from nybble.results.base.refresh import Progress
from nybble.results.export.target import Exported, environment, load
from nybble.results.store import content_key

PROJECT = "nybble"
_CONFIG = ("engine", "engine_version", "via", "categories", "text_sha256", "cpu", "device",
           "nybble", "metrics_version", "created", "command")  # fmt: skip
_VARIABLES = {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}


def export_wandb(cells: Sequence[Cell], project: str, folder: Path, progress: Progress) -> Exported:
    """Export cells, those of one run folder as one W&B run.

    Args:
        cells: of a base.
        project: of W&B.
        folder: `wandb/` is made in it.
        progress: told of runs.

    Raises:
        MissingExtraError: wandb is not installed.
        NybbleError: W&B refuses, or the folder cannot be written.
    """
    with environment(_VARIABLES):
        wandb = load("wandb", "wandb")
        try:
            return _export(wandb, cells, project, folder, progress)
        except (wandb.Error, OSError) as error:
            raise NybbleError("W&B refused the export", seen=" ".join(str(error).split())[:300],
                              hint="WANDB_MODE=offline, or wandb login") from error  # fmt: skip


def _export(
    wandb: Any, cells: Sequence[Cell], project: str, folder: Path, progress: Progress
) -> Exported:
    mode = os.environ.get("WANDB_MODE") or ("online" if _logged_in(wandb) else "offline")
    folder.mkdir(parents=True, exist_ok=True)
    runs = {name: list(group) for name, group in
            itertools.groupby(sorted(cells, key=lambda c: c.run), lambda c: c.run)}  # fmt: skip
    new = kept = 0
    progress.begin(f"exporting {len(runs):,} runs", len(runs))
    for name, own in runs.items():
        number = content_key([cell_line(c) for c in own])
        table = f"offline-run-*-{number}/files/media/table/cells_*"  # absent if it was cut off
        if mode == "offline" and any((folder / "wandb").glob(table)):
            kept += 1
        else:
            _write(wandb, name, number, own, project, folder, mode)
            new += 1
        progress.advance(1)
    hint = f"wandb sync {folder / 'wandb'}/offline-run-*" if mode == "offline" else ""
    return Exported(new, kept, f"project {project}, {mode}, {folder / 'wandb'}", hint)


def _logged_in(wandb: Any) -> bool:
    """Whether there is a key, without asking for one."""
    return bool(wandb.login(prompt=False))


def _write(
    wandb: Any, name: str, number: str, cells: Sequence[Cell], project: str, folder: Path, mode: str
) -> None:
    lines = [cell_line(cell) for cell in cells]
    columns = [*PLAIN, *sorted({key for line in lines for key in line} - PLAIN.keys())]
    config = {key: getattr(cells[0], key) for key in _CONFIG}
    config |= {"models": sorted({c.model for c in cells}), "folder": name}
    settings = wandb.Settings(
        silent=True, console="off", disable_git=True, disable_code=True, save_code=False,
        x_disable_meta=True, x_disable_stats=True, x_save_requirements=False,
    )  # fmt: skip
    with wandb.init(project=project, id=number, name=name, dir=str(folder), mode=mode,
                    resume="allow", config=config, settings=settings) as run:  # fmt: skip
        data = [[line.get(column) for column in columns] for line in lines]
        run.log({"cells": wandb.Table(columns=columns, data=data)})
        run.summary["cells"] = len(cells)
        run.summary["failed"] = sum(c.status == "failed" for c in cells)
