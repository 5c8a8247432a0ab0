"""`nybble harden --train`: fold, train, write beside the target, verify, and only then name it."""

from __future__ import annotations

import gc
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nybble.engines.transformers.packages import transformers

transformers()  # shuts the network before anything of it is imported

import torch  # noqa: E402

from nybble.engines.transformers.attention import NAME  # noqa: E402
from nybble.engines.transformers.gguf_copy import float_folder  # noqa: E402
from nybble.engines.transformers.load import load  # noqa: E402
from nybble.engines.transformers.model import TorchModel  # noqa: E402
from nybble.engines.transformers.observe import observe  # noqa: E402
from nybble.environment import cache_dir  # noqa: E402
from nybble.errors import NybbleError  # noqa: E402
from nybble.formats.energies import Energies, text_hash  # noqa: E402
from nybble.hardening.export import export_gguf  # noqa: E402
from nybble.hardening.export_folder import export_folder  # noqa: E402
from nybble.hardening.families import Family  # noqa: E402
from nybble.hardening.fold import LayerFold, fold  # noqa: E402
from nybble.hardening.harden import HardenRequest, advancing, record, source  # noqa: E402
from nybble.hardening.names import Array, plain_name  # noqa: E402
from nybble.hardening.place import partial  # noqa: E402
from nybble.hardening.sites import Site, find_sites  # noqa: E402
from nybble.hardening.train.data import TokenPool  # noqa: E402
from nybble.hardening.train.loop import train  # noqa: E402
from nybble.hardening.train.processes import is_main  # noqa: E402
from nybble.hardening.train.request import TrainRequest  # noqa: E402
from nybble.hardening.train.student import KVStudent  # noqa: E402
from nybble.hardening.verify import verify  # noqa: E402
from nybble.models.checkpoint import Checkpoint  # noqa: E402
from nybble.models.folder import weight_files  # noqa: E402
from nybble.results.hardened import Hardened, LayerGain  # noqa: E402
from nybble.scoring.calibration_text import short_texts, training_texts  # noqa: E402
from nybble.scoring.measure import choose_backend  # noqa: E402
from nybble.scoring.request import Progress, Silent  # noqa: E402

Tokens = npt.NDArray[np.int32]


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
    calibration, pool = _texts(checkpoint, request, training, progress)
    progress.stage("loading the weights")
    model, family, sites = _loaded(checkpoint)
    energies = _calibrated(model, calibration, training.cpu_threads, progress)
    folds = _folds(energies, family, sites)
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


def _texts(
    checkpoint: Checkpoint, request: HardenRequest, training: TrainRequest, progress: Progress
) -> tuple[list[Tokens], TokenPool]:
    """Token ids to calibrate on and to train on."""
    measurement = request.measurement(checkpoint.path)
    backend = choose_backend(measurement, [checkpoint.path])
    try:
        backend.check([checkpoint.path])
        prepared = backend.prepare("a", checkpoint.path, progress)
        if training.context > prepared.context_length:
            raise NybbleError(
                "the model was not made for texts this long", seen=f"--context {training.context}",
                allowed=f"up to {prepared.context_length:,}",
            )  # fmt: skip
        progress.stage("tokenizing")
        calibration = short_texts(backend, prepared, request.text, request.tokens)
        chunks, documents = training_texts(backend, prepared, request.text, training.context)
    finally:
        backend.close()
    pool = TokenPool.split(chunks, documents, training.held_out, training.seed)
    # A checkpoint holds scales that started from this calibration; another is another training.
    both = hashlib.sha256((pool.sha256 + text_hash(calibration)).encode()).hexdigest()
    return calibration, replace(pool, sha256=both)


def _loaded(checkpoint: Checkpoint) -> tuple[Any, Family, list[Site]]:
    """The model in float32, and its layers as its class names them."""
    folder = checkpoint
    if checkpoint.kind == "gguf":
        path = float_folder(checkpoint, cache_dir())
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        # No `resolve`: the copy has no tokenizer, the ids come from llama.cpp.
        folder = replace(
            checkpoint, kind="folder", path=path, config=config,
            files=tuple(weight_files(path)), architecture=config["model_type"],
        )  # fmt: skip
    family, sites = find_sites(folder)
    model = load(folder, cache_dir(), torch.float32, "cpu", attention=NAME)
    names = {plain_name(name): name for name, _ in model.named_parameters()}

    def named(given: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(names[plain_name(name)] for name in given)

    return model, family, [replace(s, queries=named(s.queries), keys=named(s.keys)) for s in sites]


def _calibrated(
    model: Any, calibration: Sequence[Tokens], threads: int, progress: Progress
) -> Energies:
    progress.begin("calibrating", sum(map(len, calibration)))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return observe(TorchModel(model), calibration, progress.advance)
    finally:
        torch.set_num_threads(before)


def _folds(energies: Energies, family: Family, sites: Sequence[Site]) -> dict[int, LayerFold]:
    """The fold of every layer with keys of its own, to start from."""
    pooled = family.form == "norms"
    return {
        s.layer: fold(energies.layers[s.layer], s.ties, pooled=pooled, exact=False)
        for s in sites
        if s.keys
    }


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
