"""What every training starts from: text, the model in float32, and its fold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
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
from nybble.hardening.families import Family  # noqa: E402
from nybble.hardening.fold import LayerFold, fold  # noqa: E402
from nybble.hardening.harden import HardenRequest  # noqa: E402
from nybble.hardening.names import plain_name  # noqa: E402
from nybble.hardening.sites import Site, find_sites  # noqa: E402
from nybble.hardening.train.data import TokenPool  # noqa: E402
from nybble.hardening.train.request import TrainRequest  # noqa: E402
from nybble.models.checkpoint import Checkpoint  # noqa: E402
from nybble.models.folder import weight_files  # noqa: E402
from nybble.scoring.calibration_text import short_texts, training_texts  # noqa: E402
from nybble.scoring.choose import choose_backend  # noqa: E402
from nybble.scoring.request import Progress  # noqa: E402

Tokens = npt.NDArray[np.int32]


def texts(
    checkpoint: Checkpoint, request: HardenRequest, training: TrainRequest, progress: Progress
) -> tuple[list[Tokens], TokenPool]:
    """Token ids to calibrate on, each text by itself, and to train on.

    Raises:
        NybbleError: too little text, or a context that the model was not made for.
    """
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


def loaded(checkpoint: Checkpoint) -> tuple[Any, Family, list[Site]]:
    """The model in float32, its rule, and its layers as its class names them."""
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


def calibrated(
    model: Any, calibration: Sequence[Tokens], threads: int, progress: Progress
) -> Energies:
    """What the fold needs to know of the model's keys and queries."""
    progress.begin("calibrating", sum(map(len, calibration)))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return observe(TorchModel(model), calibration, progress.advance)
    finally:
        torch.set_num_threads(before)


def folds_of(energies: Energies, family: Family, sites: Sequence[Site]) -> dict[int, LayerFold]:
    """The fold of every layer with keys of its own, to start from."""
    pooled = family.form == "norms"
    return {
        s.layer: fold(energies.layers[s.layer], s.ties, pooled=pooled, exact=False)
        for s in sites
        if s.keys
    }
