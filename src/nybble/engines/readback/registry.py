"""Every engine whose servers can be read. A new one is one file and one line here."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType

from nybble.engines.readback.base import Http, Reader
from nybble.errors import NybbleError, nearest

# In the order they are asked who they are: the more particular answers first.
_PLACES: Mapping[str, tuple[str, str]] = MappingProxyType({
    "vllm": ("vllm", "VLLMReader"),
    "sglang": ("sglang", "SGLangReader"),
    "ollama": ("ollama", "OllamaReader"),
    "exllamav3": ("tabbyapi", "TabbyReader"),
    "llama.cpp": ("llamacpp", "LlamaCppReader"),
    "lmdeploy": ("lmdeploy", "LMDeployReader"),
    "tensorrt-llm": ("tensorrt_llm", "TensorRTReader"),
    "mlx-lm": ("mlx_lm", "MlxReader"),
})  # fmt: skip


def reader(engine: str) -> Reader:
    """The reader of an engine.

    Raises:
        NybbleError: nobody reads such servers.
    """
    place = _PLACES.get(engine)
    if place is None:
        near = nearest(engine, _PLACES)
        raise NybbleError("servers of this engine cannot be read", seen=engine, allowed=_PLACES,
                          hint=f"--engine {near or 'llama.cpp'}")  # fmt: skip
    module = importlib.import_module(f"nybble.engines.readback.{place[0]}")
    made: Reader = getattr(module, place[1])()
    return made


def recognised(http: Http) -> Reader | None:
    """The reader of the engine that answers there; None where none is recognised."""
    for name in _PLACES:
        found = reader(name)
        if found.recognise(http):
            return found
    return None
