"""What training needs that is not part of every installation; looked for, not imported."""

from __future__ import annotations

import importlib.util

from nybble.errors import MissingExtraError
from nybble.hardening.names import INSTALL
from nybble.hardening.train.request import TrainRequest

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "accelerate")


def need(request: TrainRequest, *, gguf: bool = False, weights: bool = False) -> None:
    """Refuse a training before anything is loaded for it.

    Args:
        request: of the training.
        gguf: whether a GGUF is read or written.
        weights: whether weights are trained as quantized ones too (weights.py).

    Raises:
        MissingExtraError: names the packages that are not installed.
    """
    asked = {"gguf": gguf, "torchao": weights, "tensorboard": request.log == "tensorboard"}
    wanted = [*PACKAGES, *(name for name, yes in asked.items() if yes)]
    absent = [name for name in wanted if importlib.util.find_spec(name) is None]
    if absent:
        raise MissingExtraError(
            "training needs packages that are not installed", seen=f"missing: {', '.join(absent)}",
            allowed=f"{', '.join(wanted)} of this environment", hint=INSTALL,
        )  # fmt: skip
