"""Weights an engine loads, and how it is told them: what several engines' launches share."""

from __future__ import annotations

from nybble.engines.known.base import Deployment
from nybble.errors import NybbleError

_HINTS = {
    "gguf": "give the folder or hub id of its safetensors, or: nybble config MODEL.gguf --engine "
            "llama.cpp",
    "exl2": "nybble config MODEL --engine exllamav2",
    "exl3": "nybble config MODEL --engine exllamav3",
    "mlx": "nybble config MODEL --engine mlx-lm",
}  # fmt: skip


def refuse_weights(asked: Deployment, engine: str, loads: tuple[str, ...], why: str = "") -> None:
    """Refuse files the engine has no loader for.

    Args:
        asked: the deployment.
        engine: its name, as in the error.
        loads: kinds of weights it loads.
        why: what is known of the others, in a clause.

    Raises:
        NybbleError: see above.
    """
    if asked.weights in loads:
        return
    raise NybbleError(
        f"{engine} does not load {asked.weights} files{f': {why}' if why else ''}",
        seen=f"{asked.model} ({asked.weights})", allowed=loads,
        hint=_HINTS.get(asked.weights, "name the model's safetensors"),
    )  # fmt: skip


def hub_or_path(model: str) -> str:
    """A model as Hugging Face's loaders take it: a path or owner/repository, without `hf:`.

    Raises:
        NybbleError: a URL, which they do not take.
    """
    if model.startswith(("http://", "https://")):
        raise NybbleError("this engine takes a folder or a hub id, not a URL", seen=model,
                          allowed="owner/repository, or a path")  # fmt: skip
    return model.removeprefix("hf:")


def heads(asked: Deployment) -> set[int]:
    """Head sizes of K in all layers that keep rows."""
    return {x.k_dim for x in asked.geometry.of_kind("global", "sliding", "latent")}


def sinks(asked: Deployment) -> bool:
    """Whether the model has attention sinks."""
    return any(layer.sinks for layer in asked.geometry.layers)


SINKS = ("this model has attention sinks, and quantized keys cost such models much: measure first "
         "(TheTom/llama-cpp-turboquant#305)")  # fmt: skip
