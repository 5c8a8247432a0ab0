"""What `lm_eval --model_args` may say to the model `nybble`, checked before anything is loaded."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nybble.errors import EngineError, ModelFileError, NybbleError, unknown
from nybble.formats import KVSetting, parse
from nybble.models.checkpoint import Checkpoint, resolve
from nybble.models.folder import check_tokenizer
from nybble.models.hub_cache import is_hub_id, snapshot

OWN = ("pretrained", "kv", "calibration", "tokenizer", "dtype")
# Arguments of lm-eval's own Hugging Face model that mean the same here.
PASSED = (
    "max_length", "truncation", "logits_cache", "softmax_dtype", "add_bos_token",
    "prefix_token_id", "think_end_token", "enable_thinking", "chat_template_args",
)  # fmt: skip
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


@dataclass(frozen=True)
class Arguments:
    """The arguments, read.

    Attributes:
        setting: the KV setting.
        checkpoint: the model, found and checked.
        tokenizer: folder with its tokenizer.json.
        calibration: the calibration's file, where the setting needs one.
        device: as torch names it.
        dtype: of weights and activations.
    """

    setting: KVSetting
    checkpoint: Checkpoint
    tokenizer: Path
    calibration: Path | None
    device: str
    dtype: torch.dtype


def read(
    pretrained: str,
    kv: str,
    calibration: str | None,
    tokenizer: str | None,
    device: str | None,
    dtype: str,
    options: Mapping[str, Any],
) -> Arguments:
    """Check the arguments and find the files they name.

    Raises:
        NybbleError: an unknown argument, KV setting or dtype, or no calibration where one is
            needed.
        ModelFileError: the model or its tokenizer is not there or damaged.
        EngineError: several processes.
    """
    for name, value in options.items():
        if name not in PASSED:
            raise unknown("unknown model argument", name, (*OWN, *PASSED),
                          seen=f"{name}={value}", hint="docs/lm-eval.md")  # fmt: skip
    if not pretrained:
        raise NybbleError("no model is named", allowed="pretrained=MODEL in --model_args",
                          hint="docs/lm-eval.md")  # fmt: skip
    if dtype != "auto" and dtype not in _DTYPES:
        raise NybbleError("unknown dtype", seen=dtype, allowed=("auto", *_DTYPES))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise EngineError(
            "the model nybble runs in one process",
            seen=f"WORLD_SIZE={os.environ['WORLD_SIZE']}",
            hint="start it without accelerate launch or torchrun",
        )
    setting = parse(str(kv))
    if setting.calibrated and calibration is None:
        raise NybbleError(
            "this KV setting needs a calibration of the model",
            seen=str(setting),
            allowed="calibration=FILE in --model_args",
            hint=f"nybble calibrate {pretrained}",
        )
    checkpoint = resolve(str(pretrained))
    where = _device(device)
    auto = torch.float32 if where == "cpu" else torch.bfloat16
    return Arguments(
        setting,
        checkpoint,
        _tokenizer_folder(checkpoint, tokenizer),
        Path(calibration) if calibration is not None and setting.calibrated else None,
        where,
        _DTYPES.get(dtype, auto),
    )


def _device(wanted: str | None) -> str:
    """Where to run; lm-eval's own default is cuda:0, and it takes the CPU where there is none."""
    if wanted is None or wanted.startswith("cuda"):
        return (wanted or "cuda") if torch.cuda.is_available() else "cpu"
    return wanted


def _tokenizer_folder(checkpoint: Checkpoint, tokenizer: str | None) -> Path:
    if tokenizer is None:
        if checkpoint.kind == "gguf":
            raise ModelFileError(
                "a GGUF needs its model's own tokenizer here, which transformers cannot make of it",
                seen=checkpoint.path,
                allowed="tokenizer=FOLDER in --model_args, with tokenizer.json",
                hint="download tokenizer.json and tokenizer_config.json from where the model "
                "came from",
            )
        return checkpoint.path
    folder = Path(str(tokenizer))
    if not folder.is_dir():
        if folder.exists() or not is_hub_id(str(tokenizer)):
            raise ModelFileError("there is no such tokenizer folder", seen=tokenizer,
                                 allowed="a folder with tokenizer.json",
                                 hint="check the path")  # fmt: skip
        folder = snapshot(str(tokenizer))
    check_tokenizer(folder)
    return folder


@contextmanager
def network_shut_for_now() -> Iterator[None]:
    """Take back that loading a model shuts the network: lm-eval fetches its tasks after that."""
    constants = importlib.import_module("huggingface_hub").constants
    shut, before = constants.HF_HUB_OFFLINE, {name: os.environ.get(name) for name in _OFFLINE}
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = shut
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
