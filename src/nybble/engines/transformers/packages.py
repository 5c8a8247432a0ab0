"""The optional packages of this engine, imported when first used, offline and silent."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nybble.errors import MissingExtraError

INSTALL = 'pip install -c constraints.txt -e ".[transformers]"'
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors")
GGUF_PACKAGES = ("gguf", "accelerate")  # transformers' GGUF reader; it tests for both by name


def transformers() -> Any:
    """The transformers module, with the network shut and its messages off.

    Raises:
        MissingExtraError: it or torch is not installed.
    """
    # huggingface_hub reads these once, when it is imported. Nothing here may reach the network,
    # whatever the user's environment says.
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY",
                 "DISABLE_SAFETENSORS_CONVERSION"):  # fmt: skip
        os.environ[name] = "1"
    need(PACKAGES)
    with quiet():
        module = importlib.import_module("transformers")
        if importlib.util.find_spec("torchao") is not None:
            # Imported by the first model otherwise, and it warns of every kernel of its own that
            # was built for another torch.
            importlib.import_module("transformers.modeling_utils")
        # transformers adds handlers to its own logger only; progress bars go to stderr.
        module.utils.logging.set_verbosity_error()
        module.utils.logging.disable_progress_bar()
        # For the case that it was imported before the variables above were set.
        importlib.import_module("huggingface_hub").constants.HF_HUB_OFFLINE = True
    return module


def need(names: tuple[str, ...] = GGUF_PACKAGES) -> None:
    """Refuse to go on without packages; by default those that reading a GGUF takes.

    Raises:
        MissingExtraError: names the ones that are not installed.
    """
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    if absent:
        raise MissingExtraError(
            "the transformers engine is not installed",
            seen=f"missing: {', '.join(absent)}",
            allowed=f"{', '.join(names)} of this environment",
            hint=INSTALL,
        )


def reason(error: BaseException) -> str:
    """The first line of an error that says something, fit for one line of a terminal."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines and lines[0].endswith(":") else "".join(lines[:1])
    return ascii(text[:200])[1:-1] or type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings of the packages, Python's and those of loggers, off the user's terminal."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
