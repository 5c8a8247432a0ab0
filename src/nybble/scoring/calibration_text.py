"""The token ids a calibration is taken on, and a training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from nybble.errors import NybbleError
from nybble.scoring.corpora import training
from nybble.scoring.corpora.calibration import groups
from nybble.scoring.corpora.files import from_text_files
from nybble.scoring.text import Source, Text, cut_source

if TYPE_CHECKING:
    from nybble.scoring.backend import Backend
    from nybble.scoring.prepare import PreparedModel
    from nybble.scoring.request import MeasureRequest

CONTEXT = 1024
TEXTS = 4  # of CONTEXT tokens: 4,096 in all
ALL = 100_000  # chunks: more than a training on this machine reads


def calibration_chunks(
    backend: Backend,
    model: PreparedModel,
    request: MeasureRequest,
    text: Sequence[Path] | None,
) -> npt.NDArray[np.int32]:
    """Token ids [texts, context]: the reserved documents, or the user's files.

    Raises:
        NybbleError: too little text.
    """
    return np.stack(_cut(backend, model, text, min(CONTEXT, model.context_length), TEXTS))


def short_texts(
    backend: Backend, model: PreparedModel, text: Sequence[Path] | None, tokens: int
) -> list[npt.NDArray[np.int32]]:
    """Token ids of a few texts, `tokens` in all: a quarter of them from each reserved group.

    Raises:
        NybbleError: too little text.
    """
    each = -(-tokens // TEXTS)
    longest = min(CONTEXT, model.context_length)
    # More than one chunk of a group only where a quarter is longer than a text may be.
    per_group = -(-each // longest)
    context = -(-each // per_group)
    return _cut(backend, model, text, context, TEXTS * per_group)


def training_texts(
    backend: Backend, model: PreparedModel, text: Sequence[Path] | None, context: int
) -> tuple[npt.NDArray[np.int32], list[str]]:
    """Token ids [n, context] to train on and the document of each: all there is.

    Raises:
        NybbleError: too little text.
    """
    documents = from_text_files(list(text)) if text else list(training.documents())
    child, extra = backend.tokenizer(model)
    gathered = Text()
    try:
        source = Source("training", documents, ALL)
        chunks = cut_source(child, extra, source, context, model.template, gathered)
    finally:
        child.close()
    if not chunks:
        raise _too_little("train", gathered, context)
    return np.stack([c.tokens for c in chunks]), [c.document for c in chunks]


def _too_little(what: str, gathered: Text, context: int) -> NybbleError:
    return NybbleError(
        f"too little text to {what} on", seen="; ".join(gathered.warnings),
        allowed=f"{context:,} tokens or more", hint="longer --text",
    )  # fmt: skip


def _cut(
    backend: Backend, model: PreparedModel, text: Sequence[Path] | None, context: int, wanted: int
) -> list[npt.NDArray[np.int32]]:
    if text:
        sources = [Source("calibration", from_text_files(list(text)), wanted)]
    else:
        sources = [Source("calibration", group, wanted // TEXTS) for group in groups()]
    found: list[npt.NDArray[np.int32]] = []
    gathered = Text()
    child, extra = backend.tokenizer(model)
    try:
        for source in sources:
            chunks = cut_source(child, extra, source, context, model.template, gathered)
            found += [c.tokens for c in chunks]
    finally:
        child.close()
    if not found:
        raise _too_little("calibrate", gathered, context)
    return found
