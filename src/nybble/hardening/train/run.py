"""`nybble harden --train`: fold, train, write beside the target, verify, and only then name it."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping
from pathlib import Path

from nybble.environment import cache_dir
from nybble.errors import NybbleError
from nybble.hardening.export import export_gguf
from nybble.hardening.export_folder import export_folder
from nybble.hardening.harden import HardenRequest, advancing, record, source
from nybble.hardening.names import Array
from nybble.hardening.place import partial
from nybble.hardening.sites import find_sites
from nybble.hardening.train.loop import train
from nybble.hardening.train.processes import is_main
from nybble.hardening.train.request import TrainRequest
from nybble.hardening.train.start import calibrated, folds_of, loaded, texts
from nybble.hardening.train.student import KVStudent
from nybble.hardening.verify import verify
from nybble.models.checkpoint import Checkpoint
from nybble.results.hardened import Hardened, LayerGain
from nybble.scoring.request import Progress, Silent


def harden_by_training(
    request: HardenRequest, training: TrainRequest, progress: Progress | None = None
) -> Hardened | None:
    """Start from the fold, train, export the best state and verify it.

    Args:
        request: the model, its target, and how it is verified.
        training: how it is trained; checkpoints and logs are kept in its own `out`.
        progress: told of every step.

    Returns:
        What was measured; None in all but the main process of a distributed run.

    Raises:
        MissingExtraError: a package of the extra "train" is missing.
        NybbleError: see `harden` and `train.loop.train`; the checkpoints stay, so the same
            command goes on from them.
    """
    if progress is None or os.environ.get("RANK", "0") != "0":  # torchrun's; one process tells
        progress = Silent()
    if request.statistics == "llama.cpp":
        raise NybbleError(
            "training sees keys and queries in transformers", seen="--statistics llama.cpp",
            allowed="auto, transformers",
        )  # fmt: skip
    checkpoint = source(request)
    if training.stored and checkpoint.kind == "folder":
        raise NybbleError(
            "only a GGUF stores weights in such a type", seen=f"--stored {training.stored}",
            allowed="a GGUF as MODEL", hint="convert_hf_to_gguf.py MODEL --outtype f16",
        )  # fmt: skip
    find_sites(checkpoint)  # refuses a family without a rule before anything is converted
    calibration, pool = texts(checkpoint, request, training, progress)
    progress.stage("loading the weights")
    model, family, sites = loaded(checkpoint)
    energies = calibrated(model, calibration, training.cpu_threads, progress)
    folds = folds_of(energies, family, sites)
    student = KVStudent(model, family, sites, training)
    student.set_scales({i: f.scale for i, f in folds.items()})
    fingerprint = checkpoint.fingerprint(cache_dir())
    result = train(student, pool, training, fingerprint, progress)
    if not result.improved:
        progress.note("training did not lower the held-out KLD; the fold alone is kept")
    tensors = {name: t.cpu().numpy() for name, t in student.changed().items()}
    if not result.improved and training.stored is None:
        # What was trained is as it was: to store it in another type would only lose of it.
        folded = {name for site in sites for name in (*site.queries, *site.keys)}
        tensors = {name: values for name, values in tensors.items() if name in folded}
    del student, model
    gc.collect()  # verification loads the model twice more
    if not is_main():
        return None
    more = {
        "settings": ", ".join(training.settings), "scope": training.scope,
        "steps": f"{result.best_step} of {result.steps}", "text.trained": pool.sha256,
    }  # fmt: skip
    kept = record(checkpoint, "train", energies, more)
    with partial(request.out, request.fresh) as path:
        _write(checkpoint, path, tensors, training, kept, progress)
        verification = verify(request.measurement(checkpoint.path, path), progress, trained=True)
    return Hardened(
        file=request.out.name, method="train", family=family.name, statistics=energies.engine,
        tokens=energies.tokens, layers=tuple(LayerGain(i, f.gain, f.bound)
                                             for i, f in sorted(folds.items())),
        training=result,
        **vars(verification),
    )  # fmt: skip


def _write(
    checkpoint: Checkpoint, path: Path, tensors: Mapping[str, Array], training: TrainRequest,
    kept: Mapping[str, str], progress: Progress,
) -> None:  # fmt: skip
    progress.begin("writing", 1.0)
    on_progress = advancing(progress)
    # Trained values fit no coarse type's grid, unless they were trained on it.
    kind = training.stored or "f16"
    if checkpoint.kind == "gguf":
        export_gguf(checkpoint.path, path, tensors, kind, kept, on_progress)
    else:
        export_folder(checkpoint.path, path, tensors, "keep", kept, on_progress)
