"""Take a model's calibration on its own, outside a measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nybble.environment import cache_dir
from nybble.errors import NybbleError
from nybble.results.store import check_folder
from nybble.scoring import prepare as prep
from nybble.scoring.request import MeasureRequest, Progress, Silent


@dataclass(frozen=True)
class Calibrated:
    """Where the statistics are, and over how many tokens they were taken."""

    path: Path
    tokens: int


def calibrate(
    model: Path | None = None,
    text: Sequence[Path] = (),
    out: Path | None = None,
    device: str = "auto",
    fresh: bool = False,
    progress: Progress | None = None,
) -> Calibrated:
    """Write the statistics that `+mean`, `+scale` and nyb4 need: up to 4,096 tokens.

    Args:
        model: a GGUF, a folder or a hub id; None for the demo model.
        text: UTF-8 files; the built-in reserved text without.
        out: the file; beside the model without.
        device: where torch runs.
        fresh: replace a file that is there.
        progress: told how far it is.

    Raises:
        NybbleError: the model or the text cannot be used, or the file is there already.
    """
    from nybble.scoring.torch_backend import Transformers  # needs an optional extra

    progress = progress or Silent()
    request = MeasureRequest(engine="transformers", device=device, contexts=(32,))
    backend = Transformers(request)
    path = prep.locate(model)
    backend.check([path])
    prepared = backend.prepare("a", path, progress)
    target = out or prep.calibration_path(prepared, cache_dir())
    if target.exists() and not fresh:
        raise NybbleError("there is a calibration already", seen=target, hint="--fresh replaces it")
    check_folder(target.parent, "the calibration's folder", "--out FILE where you may write")
    try:
        child = backend.start([prepared], progress)
        tokens = backend.calibrate(child, 0, prepared, target, text, progress)
    finally:
        backend.close()
    return Calibrated(target, tokens)
