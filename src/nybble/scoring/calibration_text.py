"""The token ids a calibration is taken on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from nybble.errors import NybbleError
from nybble.scoring.corpora.calibration import groups
from nybble.scoring.corpora.files import from_text_files
from nybble.scoring.text import Source, Text, cut_source

if TYPE_CHECKING:
    from nybble.scoring.backend import Backend
    from nybble.scoring.prepare import PreparedModel
    from nybble.scoring.request import MeasureRequest

CONTEXT = 1024
TEXTS = 4  # of CONTEXT tokens: 4,096 in all


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
    context = min(CONTEXT, model.context_length)
    if text:
        sources = [Source("calibration", from_text_files(list(text)), TEXTS)]
    else:
        sources = [Source("calibration", group, 1) for group in groups()]
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
        raise NybbleError(
            "too little text to calibrate on", seen="; ".join(gathered.warnings),
            allowed=f"{context:,} tokens or more", hint="longer --text",
        )  # fmt: skip
    return np.stack(found)
