"""From what `nybble generate` names to a loaded model: weights, tokenizer, calibration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from nybble.cli.console import BarProgress
from nybble.cli.generate_text import ModelText
from nybble.engines.transformers.packages import transformers
from nybble.environment import cache_dir
from nybble.errors import NybbleError
from nybble.formats.setting import KVSetting
from nybble.models.checkpoint import Checkpoint, resolve
from nybble.models.gguf_header import read_header as read_gguf
from nybble.models.safetensors_header import read_header as read_safetensors

if TYPE_CHECKING:
    from nybble.formats.calibration import Calibration
    from nybble.runtime.generate import Runtime

DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda")
_ITEM = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Wanted:
    """What to load.

    Attributes:
        model: a GGUF, a folder or a hub id; None for the demo model.
        setting: the KV setting.
        latent: one latent where K equals V.
        context: most tokens, or None for the model's own.
        device: one of `DEVICES`, or as torch names it.
        dtype: of the weights, one of `DTYPES`; auto is float32 on a CPU, bfloat16 on a GPU.
        calibration: a file, or None for the one beside the model, taken if there is none.
    """

    model: Path | None
    setting: KVSetting
    latent: bool = False
    context: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    calibration: Path | None = None


def load_runtime(wanted: Wanted, progress: BarProgress) -> tuple[Runtime, ModelText, str]:
    """Load a model, its tokenizer, and what the KV setting needs.

    Returns:
        The runtime, the tokenizer, and the model's name.

    Raises:
        NybbleError: anything of it cannot be had; before the weights are read where that is known.
    """
    from nybble.scoring.prepare import locate

    transformers()  # shuts the network before anything else imports it
    if wanted.dtype not in DTYPES:
        raise NybbleError("unknown dtype", seen=wanted.dtype, allowed=DTYPES)
    path = locate(wanted.model)
    checkpoint = resolve(path, packed=True)
    packed = checkpoint.quantization
    if packed is not None and wanted.setting.calibrated:
        raise NybbleError(
            "statistics of a model are taken from unquantized weights",
            seen=f"{wanted.setting} with {packed} weights",
            allowed="a KV setting without calibration", hint="--kv q4_0/q4_0",
        )  # fmt: skip
    longest = checkpoint.context_length
    if wanted.context is not None and longest is not None and wanted.context > longest:
        raise NybbleError("the context is longer than the model was trained for",
                          seen=f"{wanted.context:,} tokens", allowed=f"up to {longest:,}",
                          hint=f"--context {longest}")  # fmt: skip
    device = _device(wanted.device)
    dtype = wanted.dtype
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    _check_fit(checkpoint, device, dtype)
    taken = _calibration_file(wanted, path, progress) if wanted.setting.calibrated else None
    model = _load(checkpoint, dtype, device, progress)
    text = ModelText(checkpoint, _ends(model))
    try:
        return _runtime(wanted, model, taken), text, _name(checkpoint)
    except BaseException:
        text.close()
        raise


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise NybbleError("unknown device", seen=name, allowed=DEVICES) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise NybbleError(
            "torch sees no GPU here", seen=f"--device {name}, torch {torch.__version__}",
            allowed="cpu", hint="--device cpu, or a torch build for your GPU",
        )  # fmt: skip
    if device.type not in ("cpu", "cuda"):
        raise NybbleError("the runtime does not run on this device", seen=name, allowed=DEVICES)
    return name


def _check_fit(checkpoint: Checkpoint, device: str, dtype: str) -> None:
    """Refuse weights that the memory cannot hold, before the kernel ends the process for them."""
    if checkpoint.quantization == "compressed-tensors":
        raise NybbleError(
            "transformers unpacks compressed-tensors weights to 16 bits in the first pass",
            seen=checkpoint.path, allowed="bitsandbytes, GPTQ, AWQ, HQQ or torchao weights",
            hint=f"nybble serve {checkpoint.path} --engine vllm",
        )  # fmt: skip
    if checkpoint.kind == "gguf":
        elements = sum(t.n_elements for f in checkpoint.files for t in read_gguf(f).tensors)
    else:
        elements = sum(t.n_elements for f in checkpoint.files for t in read_safetensors(f).tensors)
    needed = checkpoint.size_bytes if checkpoint.quantization else elements * _ITEM[dtype]
    where, free = "memory", psutil.virtual_memory().available
    if needed <= free and device != "cpu":
        import torch

        where, free = f"the memory of {device}", torch.cuda.mem_get_info(device)[0]
    if needed > free:
        raise NybbleError(
            f"the weights do not fit {where}", seen=f"{needed / 2**30:.1f} GiB as {dtype}",
            allowed=f"{free / 2**30:.1f} GiB, which are free",
            hint="--dtype bfloat16, or a smaller model" if dtype == "float32"
            else "a smaller model, or nybble serve MODEL (llama.cpp keeps weights quantized)",
        )  # fmt: skip


def _calibration_file(wanted: Wanted, path: Path, progress: BarProgress) -> tuple[Path, str]:
    """The statistics of this model, taken now if there are none; and the weights' fingerprint."""
    from nybble.scoring import prepare
    from nybble.scoring.calibrate import calibrate
    from nybble.scoring.request import MeasureRequest
    from nybble.scoring.torch_backend import Transformers

    request = MeasureRequest(engine="transformers", device=wanted.device, contexts=(32,))
    prepared = Transformers(request).prepare("a", path, progress)
    found = wanted.calibration or prepare.calibration_path(prepared, cache_dir())
    if not found.is_file():
        if wanted.calibration:
            raise NybbleError("there is no such calibration", seen=found,
                              hint="nybble calibrate MODEL")  # fmt: skip
        progress.note(f"{wanted.setting} needs statistics of the model: taken once, into {found}")
        calibrate(wanted.model, out=found, device=wanted.device, progress=progress)
    return found, prepared.sha256


def _load(checkpoint: Checkpoint, dtype: str, device: str, progress: BarProgress) -> Any:
    import torch

    from nybble.engines.transformers.load import load

    done = 0.0

    def tell(step: str, fraction: float | None = None, **_: object) -> None:
        nonlocal done
        if step == "convert" and fraction is not None:
            if not done:
                progress.begin("float copy of the weights", 1.0)
            progress.advance(fraction - done)
            done = max(fraction, 1e-9)
        elif step == "load":
            progress.stage("loading the weights")
        elif step == "hash":
            progress.stage(f"hashing {checkpoint.path.name}")

    return load(checkpoint, cache_dir(), getattr(torch, dtype), device, "sdpa", tell)


def _ends(model: Any) -> list[int]:
    """Ids that end an answer, as the model's generation config says."""
    said = getattr(model.generation_config, "eos_token_id", None)
    return [int(i) for i in (said if isinstance(said, list) else [said]) if i is not None]


def _runtime(wanted: Wanted, model: Any, taken: tuple[Path, str] | None) -> Runtime:
    from nybble.runtime.generate import Runtime

    calibration = None if taken is None else _calibration(model, *taken)
    return Runtime(
        model, wanted.setting, calibration=calibration, latent=wanted.latent,
        context=wanted.context,
    )  # fmt: skip


def _calibration(model: Any, path: Path, fingerprint: str) -> Calibration:
    from nybble.engines.transformers.calibration_file import load
    from nybble.formats.codec import Layer
    from nybble.models.config_geometry import geometry_of_config

    config = model.config.get_text_config(decoder=True)
    layers = geometry_of_config(config.to_dict(), "").layers
    return load(path, fingerprint, [
        Layer(i, len(layers), layer.kv_heads, layer.k_dim, layer.v_dim)
        for i, layer in enumerate(layers) if layer.kind in ("global", "sliding")
    ])  # fmt: skip


def _name(checkpoint: Checkpoint) -> str:
    return checkpoint.path.stem if checkpoint.kind == "gguf" else checkpoint.name
