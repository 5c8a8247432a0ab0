"""Every engine whose capabilities are known. A new one is one file and one line here.

Modules are imported when they are asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from nybble.engines.known.base import Engine
from nybble.errors import NybbleError, nearest

_PLACES: Mapping[str, tuple[str, str]] = MappingProxyType({
    "llama.cpp": ("llamacpp", "LlamaCpp"),
    "ollama": ("ollama", "Ollama"),
    "vllm": ("vllm", "VLLM"),
    "sglang": ("sglang", "SGLang"),
    "exllamav3": ("exllamav3", "ExLlamaV3"),
    "exllamav2": ("exllamav2", "ExLlamaV2"),
    "lmdeploy": ("lmdeploy", "LMDeploy"),
    "tensorrt-llm": ("tensorrt_llm", "TensorRTLLM"),
    "mlx-lm": ("mlx_lm", "MlxLm"),
    "transformers": ("transformers", "Transformers"),
    "nybble": ("nybble", "Nybble"),
})  # fmt: skip
NAMES = tuple(_PLACES)


def engine(name: str) -> Engine:
    """The capabilities of an engine.

    Raises:
        NybbleError: unknown; the nearest name is given.
    """
    place = _PLACES.get(name.strip().lower())
    if place is None:
        near = nearest(name, _PLACES)
        raise NybbleError("unknown engine", seen=name, allowed=_PLACES,
                          hint=f"nybble engines {near or 'llama.cpp'}")  # fmt: skip
    module = importlib.import_module(f"nybble.engines.known.{place[0]}")
    made: Engine = getattr(module, place[1])()
    return made


def engines() -> Iterator[Engine]:
    """All of them, in the order of the list."""
    return (engine(name) for name in NAMES)
