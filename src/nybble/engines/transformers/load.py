"""Load a causal language model into torch, from a folder or from a GGUF's float copy.

Call this in a child process: a model too large for the machine is ended by the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nybble.engines.transformers.gguf_copy import float_folder
from nybble.engines.transformers.packages import quiet, reason, transformers
from nybble.errors import EngineError, nearest
from nybble.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def load(
    checkpoint: Checkpoint,
    cache: Path,
    dtype: torch.dtype,
    device: str,
    attention: str = "sdpa",
    on_event: Callable[..., None] | None = None,
) -> PreTrainedModel:
    """Load the weights; the model is in eval mode and its parameters take no gradients.

    Args:
        checkpoint: what `models.checkpoint.resolve` found.
        cache: folder for the float copy of a GGUF (made once, found again by its SHA-256).
        dtype: of the weights and activations.
        device: as torch names it.
        attention: a name registered with transformers' AttentionInterface; sdpa becomes eager
            where a model cannot use it.
        on_event: told where the work is, as on_event(step="convert", fraction=0.5).

    Raises:
        MissingExtraError: torch or transformers (for a GGUF: gguf, accelerate) is not installed.
        EngineError: transformers does not know the model, or weights are missing or misshapen.
        NybbleError: see `float_folder`.
    """
    library = transformers()
    folder = checkpoint.path
    if checkpoint.kind == "gguf":
        folder = float_folder(checkpoint, cache, on_event)
    config = read_config(checkpoint, folder)  # its errors say more than those below
    kind = library.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if attention == "sdpa" and not getattr(kind, "_supports_sdpa", True):
        attention = "eager"  # Gemma 2 caps its scores, which sdpa cannot
    if on_event:
        on_event(step="load", path=str(folder))
    try:
        with quiet():
            model, info = library.AutoModelForCausalLM.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, use_safetensors=True,
                dtype=dtype, attn_implementation=attention, output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                # Quantized weights do not move once they are loaded.
                **({"device_map": {"": device}} if checkpoint.quantization else {}),
            )  # fmt: skip
        _refuse_gaps(info, folder)
        if not checkpoint.quantization:
            model = model.to(device)
    except EngineError:
        raise
    except Exception as e:
        raise EngineError(
            "transformers cannot load this model",
            seen=f"{folder}: {reason(e)}",
            hint=f"rm -r {folder}, to convert it again"
            if folder != checkpoint.path
            else "download the model again; a smaller one if memory ran out",
        ) from e
    loaded: PreTrainedModel = model.eval().requires_grad_(False)
    return loaded


def read_config(checkpoint: Checkpoint, folder: Path) -> Any:
    """The config of a model in `folder`, with the defaults of its class filled in.

    Raises:
        MissingExtraError: transformers is not installed.
        EngineError: transformers does not know the model or cannot read its config.
    """
    library = transformers()
    kind = checkpoint.architecture
    if checkpoint.kind == "folder" and kind not in library.CONFIG_MAPPING:
        raise EngineError(
            f"transformers {library.__version__} does not know this kind of model",
            seen=f"model_type {ascii(kind[:60])}",
            allowed=f"nearest known: {nearest(kind, library.CONFIG_MAPPING.keys()) or 'none'}",
            hint="a newer transformers, or the model as a GGUF with the llama.cpp engine",
        )
    try:
        with quiet():
            config = library.AutoConfig.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    except Exception as e:  # whatever a stranger's config makes of transformers' code
        raise EngineError(
            "transformers cannot read config.json",
            seen=f"{folder}: {reason(e)}",
            hint="take config.json from where the model came from",
        ) from e
    if type(config) not in library.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise EngineError(
            "transformers has no causal language model of this kind",
            seen=f"model_type {ascii(kind[:60])}",
            allowed="models that AutoModelForCausalLM loads",
            hint="name the folder of a text generation model",
        )
    return config


def _refuse_gaps(info: dict[str, Any], folder: Path) -> None:
    """Refuse missing weights: transformers fills them with random numbers, which is no model."""
    gaps = [(what, sorted(map(_name, info.get(key) or ())))
            for what, key in (("missing", "missing_keys"), ("misshapen", "mismatched_keys"),
                              ("not loaded", "error_msgs"))]  # fmt: skip
    found = [f"{len(names):,} {what}, such as {ascii(names[0][:100])[1:-1]}"
             for what, names in gaps if names]  # fmt: skip
    if found:
        raise EngineError(
            "the weights do not fit the model that config.json describes",
            seen=f"{folder}: {'; '.join(found)}",
            allowed="a tensor for every weight",
            hint="download config.json and the weights again, from one place",
        )


def _name(entry: object) -> str:
    """Name of a tensor; those of a wrong shape come with both shapes."""
    return str(entry[0]) if isinstance(entry, (tuple, list)) and entry else str(entry)
