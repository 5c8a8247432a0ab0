"""The small safetensors file beside a model that holds its calibration."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors

from nybble.errors import ModelFileError
from nybble.formats.calibration import Calibration, LayerCalibration
from nybble.formats.codec import Layer
from nybble.models.safetensors_header import read_header

VERSION = 1
_FIELDS = tuple(LayerCalibration.__dataclass_fields__)
_HINT = "nybble calibrate MODEL --fresh"


def save(calibration: Calibration, path: Path) -> None:
    """Write it, atomically; float32 statistics, the basis in float16.

    Raises:
        ModelFileError: the folder cannot be written.
    """
    tensors = {}
    for index, layer in calibration.layers.items():
        for name in _FIELDS:
            value = getattr(layer, name).contiguous().cpu()
            tensors[f"layers.{index}.{name}"] = value.half() if name == "basis" else value
    about = {
        "nybble.version": str(VERSION),
        "nybble.model": calibration.model,
        "nybble.tokens": str(calibration.tokens),
        "nybble.text": calibration.text,
    }
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(write_tensors(tensors, about))
        os.replace(partial, path)
    except OSError as error:
        raise ModelFileError(
            "cannot write the calibration", seen=f"{path}: {error.strerror or error}",
            hint="NYBBLE_CACHE=/a/folder/of/yours",
        ) from error  # fmt: skip
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def load(path: Path, fingerprint: str, layers: list[Layer]) -> Calibration:
    """Read a calibration and check that it is this model's.

    Args:
        path: the file.
        fingerprint: of the model's weights.
        layers: shapes that its tensors must have.

    Raises:
        ModelFileError: damaged, of another model, or of another version.
    """
    try:
        about = read_header(path).metadata
        tokens = int(about.get("nybble.tokens", "0"))
    except (ModelFileError, ValueError) as error:
        why = error.what if isinstance(error, ModelFileError) else "a wrong number of tokens"
        raise ModelFileError(
            "cannot read the calibration", seen=f"{path}: {why}", hint=_HINT
        ) from error
    if about.get("nybble.version") != str(VERSION):
        raise ModelFileError(
            "not a calibration this nybble reads", seen=f"{path}: version "
            f"{about.get('nybble.version', 'missing')!s:.20}", allowed=f"version {VERSION}",
            hint=_HINT,
        )  # fmt: skip
    if about.get("nybble.model") != fingerprint:
        raise ModelFileError(
            "this calibration was taken of another model",
            seen=f"{path}: of weights {about.get('nybble.model', '')[:12]}",
            allowed=f"weights {fingerprint[:12]}",
            hint=_HINT,
        )
    try:
        tensors = read_tensors(path.read_bytes())
    except Exception as error:  # safetensors has an exception type of its own
        raise ModelFileError("cannot read the calibration", seen=f"{path}: {error}", hint=_HINT) \
            from error  # fmt: skip
    found = {}
    for layer in layers:
        parts = {n: tensors.get(f"layers.{layer.index}.{n}") for n in _FIELDS}
        for name, part in parts.items():
            wanted = _shape(name, layer)
            if part is None or tuple(part.shape) != wanted or not torch.isfinite(part).all():
                shape = "missing" if part is None else str(tuple(part.shape))
                raise ModelFileError(
                    "the calibration does not fit this model",
                    seen=f"{path}: layers.{layer.index}.{name} {shape}",
                    allowed=f"finite, {wanted}",
                    hint=_HINT,
                )
        found[layer.index] = LayerCalibration(**{n: p.float() for n, p in parts.items()})  # type: ignore[union-attr]
    return Calibration(found, fingerprint, tokens, about.get("nybble.text", ""))


def _shape(name: str, layer: Layer) -> tuple[int, ...]:
    h, k, v = layer.heads, layer.k_dim, layer.v_dim
    shapes = {"basis": (h, k, k), "value_mean": (h, v), "value_size": (h,)}
    return shapes.get(name, (h, k))
