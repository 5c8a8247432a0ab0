"""What a training tells while it runs: two CSV files, and TensorBoard where it is asked for.

A resumed training cuts the files back to its checkpoint, so no step is there twice and the rows
of a run that was killed are those of one that was not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from nybble.errors import MissingExtraError, NybbleError
from nybble.hardening.names import INSTALL

STEPS, HELD_OUT = "train.csv", "held_out.csv"


@dataclass(frozen=True)
class StepRow:
    """One step.

    Attributes:
        step: from 1.
        tokens: read up to here.
        loss: mean forward KL of the step, nats.
        lr: of the first parameter group; the others keep their ratio to it.
        grad_norm: before clipping.
        seconds: of training up to here.
        setting: the KV setting drawn.
    """

    step: int
    tokens: int
    loss: float
    lr: float
    grad_norm: float
    seconds: float
    setting: str


@dataclass(frozen=True)
class HeldOutRow:
    """The held-out text under one KV setting.

    Attributes:
        step: steps done.
        tokens: trained on up to here.
        setting: the KV setting; "f16" is what training costs the model itself.
        kld: mean over all tokens, nats.
        p99: of the tokens' KLD.
    """

    step: int
    tokens: int
    setting: str
    kld: float
    p99: float


Row = StepRow | HeldOutRow


class TrainLog:
    """Open log files.

    Args:
        folder: where they are.
        kind: "csv" or "tensorboard".
        step: steps done; what is logged of later ones is dropped. None starts anew.

    Raises:
        MissingExtraError: TensorBoard is asked for and not installed.
        NybbleError: the files cannot be written.
    """

    def __init__(self, folder: Path, kind: str, step: int | None) -> None:
        self._board: Any = None
        try:
            self._steps = _open(folder / STEPS, StepRow, step)
            self._held_out = _open(folder / HELD_OUT, HeldOutRow, step)
        except OSError as error:
            raise NybbleError(
                "cannot write the log", seen=f"{folder}: {error}",
                hint="--out FOLDER where you may write",
            ) from error  # fmt: skip
        if kind == "tensorboard":
            # Events from purge_step on that were there before are hidden.
            self._board = summary_writer()(
                folder / "tensorboard", purge_step=0 if step is None else step + 1
            )

    def __enter__(self) -> TrainLog:
        """The log itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Close the files."""
        self._steps.close()
        self._held_out.close()
        if self._board is not None:
            self._board.close()

    def step(self, row: StepRow) -> None:
        """Add one step."""
        _append(self._steps, [row])
        if self._board is not None:
            scalars = {"loss": row.loss, "lr": row.lr, "grad_norm": row.grad_norm}
            self._scalars("train", scalars, row.step)

    def held_out(self, rows: Sequence[HeldOutRow]) -> None:
        """Add a look at the held-out text, a row for every setting."""
        _append(self._held_out, rows)
        if self._board is not None:
            for row in rows:
                self._scalars("held_out_kld", {row.setting: row.kld}, row.step)

    def sync(self) -> None:
        """Have all rows on disk, before a checkpoint relies on them."""
        for file in (self._steps, self._held_out):
            os.fsync(file.fileno())
        if self._board is not None:
            self._board.flush()

    def _scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._board.add_scalar(f"{group}/{name}", value, step)


def summary_writer() -> Any:
    """TensorBoard's writer, a class.

    Raises:
        MissingExtraError: TensorBoard or a part of it is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError(
            "TensorBoard is not installed", seen=f"--log tensorboard: {error}",
            allowed="--log csv", hint=INSTALL,
        ) from error  # fmt: skip
    return SummaryWriter


def _open(path: Path, kind: type[Row], step: int | None) -> IO[str]:
    """Open for appending, cut back to `step`; a row that a kill left half is dropped."""
    header = ",".join(field.name for field in fields(kind)) + "\n"
    kept = [header]
    if step is not None and path.exists():
        lines = path.read_text("utf-8", errors="replace").splitlines(keepends=True)
        kept += [line for line in lines[1:] if line.endswith("\n") and _step(line) <= step]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    partial.write_text("".join(kept), encoding="utf-8", newline="\n")
    os.replace(partial, path)
    return path.open("a", encoding="utf-8", newline="\n")


def _step(line: str) -> float:
    first = line.partition(",")[0]
    return int(first) if first.isdecimal() else float("inf")


def _append(file: IO[str], rows: Sequence[Row]) -> None:
    # repr gives every float back exactly; KV settings have no comma.
    lines = [",".join(str(value) for value in astuple(row)) + "\n" for row in rows]
    try:
        file.write("".join(lines))
        file.flush()
    except OSError as error:
        raise NybbleError(
            "cannot write the log", seen=f"{file.name}: {error}",
            hint="free space; the same command continues",
        ) from error  # fmt: skip
