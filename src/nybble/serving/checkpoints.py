"""Which files an engine is given for a model: QAT releases come as one checkpoint per engine."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from nybble.errors import NybbleError
from nybble.models import catalogue
from nybble.models.found import Found
from nybble.models.remote_names import is_remote
from nybble.planning.memory.registry import known

_REPO = re.compile(r"huggingface\.co/([\w.-]+/[\w.-]+)")
_OWN = {"exl3": "EXL3", "exl2": "EXL2", "mlx": "MLX"}


@dataclass(frozen=True)
class Checkpoint:
    """A model as one engine loads it.

    Attributes:
        model: path, hub id, hf:org/repo/file or URL.
        weights: kind of its files.
        quantization: of the weights, as their quantization_config names it; None for none, and
            for GGUFs, whose tensors say it.
        name: to serve it under.
        notes: what a user should know.
    """

    model: str
    weights: str
    quantization: str | None
    name: str
    notes: tuple[str, ...] = ()


def file_for(model: str, file: str | None, engine: str) -> str | None:
    """Which published file of a catalogue model an engine's plan must count; others pass.

    A GGUF's size would be wrong for an engine that loads the 16-bit checkpoint of that model.
    """
    if file is not None or known(engine).weights == "gguf" or Path(model).exists():
        return file
    entry = catalogue.find(model)
    return catalogue.AS_CONFIGURED if entry is not None and not entry.loads else None


def checkpoint(model: str, file: str | None, found: Found, engine: str) -> Checkpoint:
    """The checkpoint of `found` that `engine` loads.

    Raises:
        NybbleError: the engine loads files of another kind, or nobody published where it is.
    """
    kind = known(engine).weights
    if kind == "gguf":
        return _gguf(model, file, found, engine)
    if found.kind == "catalogue":
        return _published(model, found, engine, kind)
    if found.weights == "gguf" and engine not in ("transformers", "nybble"):
        raise NybbleError(
            f"{engine} loads {_OWN.get(kind, kind)} weights, not GGUF", seen=model,
            allowed="a folder or hub id with config.json and such weights",
            hint=f"nybble config {model} --engine llama.cpp",
        )  # fmt: skip
    if found.weights == "gguf":
        return Checkpoint(str(found.path or model), "gguf", None, Path(found.file or model).stem)
    path = str(found.path.resolve()) if found.path and Path(model).exists() else model
    name = Path(path).name if Path(model).exists() else model.removeprefix("hf:")
    method = _method(found.path)
    if kind in ("exl3", "exl2") and method != kind:
        raise NybbleError(
            f"{engine} loads {_OWN[kind]} weights", seen=f"{model}, quantized with "
            f"{method or 'nothing'}", allowed=f'quantization_config.quant_method "{kind}"',
            hint=f"convert it with {engine}'s convert.py, or --engine vllm",
        )  # fmt: skip
    return Checkpoint(path.removeprefix("hf:"), kind, method, name)


def _gguf(model: str, file: str | None, found: Found, engine: str) -> Checkpoint:
    if found.kind == "gguf":
        where = model if is_remote(model) or found.path is None else str(found.path.resolve())
        return Checkpoint(where, "gguf", None, Path(found.file or model).stem)
    if found.kind == "catalogue":
        entry = catalogue.find(model)
        chosen = entry.file(file) if entry else None
        repo = _REPO.search(chosen.source) if chosen else None
        if chosen is not None and repo is not None:
            return Checkpoint(f"hf:{repo[1]}/{chosen.name}", "gguf", None, Path(chosen.name).stem)
    raise NybbleError(
        f"{engine} loads GGUF files, and it is not known where one of this model is", seen=model,
        allowed="a file.gguf, or hf:org/repo/file.gguf",
        hint=f"nybble config hf:ORG/REPO/FILE.gguf --engine {engine}",
    )  # fmt: skip


def _published(model: str, found: Found, engine: str, kind: str) -> Checkpoint:
    entry = catalogue.find(model)
    assert entry is not None  # found.kind says so
    hub = [a for a in entry.aliases if "/" in a and not a.lower().endswith("gguf")]
    if kind != "safetensors":
        name = f"{entry.id}-{kind}"
        note = (f"put an {_OWN[kind]} folder of this model where {engine} looks, under the name "
                f"{name}; nybble knows of no published one")  # fmt: skip
        return Checkpoint(name, kind, kind, name, (note,))
    loads = entry.loads.get("compressed-tensors")
    if loads:
        size = "its size was taken from the Q4_0 file"
        return Checkpoint(loads, kind, "compressed-tensors", loads,
                          (f"QAT weights for {engine} are {loads}; {size}",))  # fmt: skip
    if not hub:
        raise NybbleError(
            f"it is not known where safetensors of this model are, which {engine} loads",
            seen=model, allowed="a folder or a hub id", hint=f"nybble config ORG/REPO --engine "
            f"{engine}",
        )  # fmt: skip
    return Checkpoint(hub[0], kind, None, hub[0])


def _method(folder: Path | None) -> str | None:
    """quant_method of a folder's config.json; that it parses was seen to when it was found."""
    if folder is None:
        return None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for part in (config, config.get("text_config") or {}):
        given = part.get("quantization_config") if isinstance(part, dict) else None
        if isinstance(given, dict) and isinstance(given.get("quant_method"), str):
            return str(given["quant_method"])
    return None
