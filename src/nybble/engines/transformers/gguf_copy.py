"""A float32 copy of a GGUF in transformers' own layout, made once and kept in the cache.

transformers reads a GGUF in 10 to 50 seconds, mostly its vocabulary, and as safetensors in one.
Its readers undo what llama.cpp's converter did to the weights (permuted q and k, norms plus one);
what they leave out of the config is put right or refused in gguf_config.py.
"""

from __future__ import annotations

import contextlib
import glob
import importlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import filelock

from nybble.engines.transformers.gguf_config import complete_config
from nybble.engines.transformers.packages import INSTALL, need, quiet, reason, transformers
from nybble.errors import EngineError, MissingExtraError, NybbleError
from nybble.formats.lazy import torch
from nybble.models.checkpoint import Checkpoint
from nybble.models.gguf_header import read_header

RECIPE = 1  # part of the folder's name: a copy made by other rules is not taken for this one
_NOT_CAUSAL = ("t5", "t5encoder", "umt5", "mamba")  # what the readers know besides
_MARGIN = 64 << 20


def float_folder(
    checkpoint: Checkpoint, cache: Path, on_event: Callable[..., None] | None = None
) -> Path:
    """The folder of the copy, with config.json and safetensors; made if it is not there.

    The tokenizer is not converted: transformers' conversion is not exact, so a GGUF's token ids
    come from llama.cpp.

    Raises:
        MissingExtraError: transformers, gguf or accelerate is not installed.
        EngineError: transformers cannot read this GGUF, or would read it wrongly.
        NybbleError: not enough disk, or the cache cannot be written.
    """
    library = transformers()
    need()
    _check_architecture(checkpoint.architecture)
    if len(checkpoint.files) > 1:
        raise EngineError(
            "transformers cannot read a GGUF split over several files",
            seen=checkpoint.path.name,
            hint="join it with llama-gguf-split --merge, or give the model's safetensors folder",
        )
    if on_event:
        on_event(step="hash", path=str(checkpoint.path))
    sha256 = checkpoint.fingerprint(cache)
    folder = cache / "transformers"
    target = folder / f"{checkpoint.path.stem[:60]}-{sha256[:12]}-f32.{RECIPE}"
    if target.is_dir():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{target}.lock"):
            if target.is_dir():
                return target
            for stale in folder.glob(f"{glob.escape(target.name)}.*.part"):  # of killed runs
                shutil.rmtree(stale, ignore_errors=True)
            partial = folder / f"{target.name}.{os.getpid()}.part"
            try:
                _check_space(checkpoint, folder)
                _convert(library, checkpoint, partial, on_event)
                os.rename(partial, target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as e:
        raise NybbleError(
            "cannot write the float copy of the weights",
            seen=f"{folder}: {e.strerror or e}",
            hint="NYBBLE_CACHE=/a/folder/of/yours",
        ) from e
    return target


def architectures() -> list[str]:
    """The GGUF architectures that the installed transformers reads."""
    try:
        old = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
        new = importlib.import_module("transformers.integrations.gguf")
        known = {*old.GGUF_SUPPORTED_ARCHITECTURES, *new.GGUF_ARCHS}
    except (ImportError, AttributeError) as e:
        raise MissingExtraError(
            "this transformers reads GGUF in a way unknown to nybble",
            seen=e,
            allowed="the version in constraints.txt",
            hint=INSTALL,
        ) from e
    names = {name for name in known if name not in ("general", "tokenizer", *_NOT_CAUSAL)}
    # Its own spellings of three: the file says qwen2moe, gpt-oss and minimax-m2.
    renamed = {"qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "gpt_oss": "gpt-oss",
               "minimax_m2": "minimax-m2"}  # fmt: skip
    return sorted(renamed.get(name, name) for name in names)


def _check_architecture(arch: str) -> None:
    known = architectures()
    if arch not in known:
        raise EngineError(
            "transformers cannot read a GGUF of this architecture",
            seen=ascii(arch[:60]),
            allowed=known,
            hint="give the folder with the model's original config.json and safetensors",
        )


def _check_space(checkpoint: Checkpoint, folder: Path) -> None:
    n_params = sum(t.n_elements for t in read_header(checkpoint.path).tensors)
    needed, free = 4 * n_params + _MARGIN, shutil.disk_usage(folder).free
    if free < needed:
        raise NybbleError(
            "not enough disk for the float copy of the weights",
            seen=f"{free:,} bytes free in {folder}",
            allowed=f"{needed:,} bytes or more",
            hint="NYBBLE_CACHE=/bigger/disk",
        )


def _convert(
    library: Any, checkpoint: Checkpoint, target: Path, on_event: Callable[..., None] | None
) -> None:
    """Read the GGUF with transformers and save it; `target` is a temporary name."""
    path = checkpoint.path
    try:
        with quiet(), _progress(on_event):
            model, info = library.AutoModelForCausalLM.from_pretrained(
                str(path.parent), gguf_file=path.name, local_files_only=True,
                trust_remote_code=False, dtype=torch.float32, output_loading_info=True,
                quantization_config=library.GgufConfig(dequantize=True),
            )  # fmt: skip
    except Exception as e:
        raise EngineError(
            "transformers cannot read this GGUF",
            seen=f"{path}: {reason(e)}",
            hint="give the folder with the model's original config.json and safetensors",
        ) from e
    missing = sorted(info.get("missing_keys") or ())
    if missing:
        raise EngineError(
            "transformers does not find all weights of its model in this GGUF",
            seen=f"{path.name}: {len(missing):,} missing, such as {missing[0]}",
            hint="give the folder with the model's original config.json and safetensors",
        )
    complete_config(path, model)
    # It calls the model quantized, which it no longer is, and will not save such a one.
    model.hf_quantizer, model.is_quantized = None, False
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    with quiet():
        model.save_pretrained(str(target))


@contextlib.contextmanager
def _progress(on_event: Callable[..., None] | None) -> Iterator[None]:
    """Turn the reader's progress bar, which would write to the terminal, into events."""
    reader: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    before = reader.tqdm

    def told(tensors: Iterable[Any], **_: object) -> Iterator[Any]:
        listed = list(tensors)
        for i, tensor in enumerate(listed):
            if on_event:
                on_event(step="convert", fraction=i / len(listed))
            yield tensor

    reader.tqdm = told
    try:
        yield
    finally:
        reader.tqdm = before
