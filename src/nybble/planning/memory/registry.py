"""Every engine that can be planned for. A new one is one file with a MemoryModel and one line here.

Modules are imported when they are asked for: a plan for one engine does not pay for ten.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from nybble.errors import NybbleError, nearest
from nybble.planning.memory.base import MemoryModel

_GPUS = ("nvidia", "amd", "intel", "what-if")
_ALL = (*_GPUS, "apple", "cpu")


@dataclass(frozen=True)
class Known:
    """Where an engine's memory model is, and what it runs on.

    Attributes:
        module: in this folder.
        name: of the class.
        vendors: of cards, as `planning.cards.Card.vendor`.
        split: how several cards share a model by default.
        weights: files it loads: "gguf", "safetensors", "exl2", "exl3" or "mlx".
        timed: whether published runs of it are among what speeds are estimated from.
    """

    module: str
    name: str
    vendors: tuple[str, ...] = _GPUS
    split: Literal["layer", "tensor"] = "tensor"
    weights: str = "safetensors"
    timed: bool = True


ENGINES: Mapping[str, Known] = MappingProxyType({
    "llama.cpp": Known("llamacpp", "LlamaCpp", _ALL, "layer", "gguf"),
    "ollama": Known("ollama", "Ollama", _ALL, "layer", "gguf"),
    "vllm": Known("vllm", "VLLM"),
    "sglang": Known("sglang", "SGLang"),
    "exllamav3": Known("exllamav3", "ExLlamaV3", ("nvidia", "amd", "what-if"), "layer", "exl3"),
    "exllamav2": Known("exllamav2", "ExLlamaV2", ("nvidia", "amd", "what-if"), "layer", "exl2"),
    "lmdeploy": Known("lmdeploy", "LMDeploy", ("nvidia", "what-if")),
    "tensorrt-llm": Known("tensorrt_llm", "TensorRTLLM", ("nvidia", "what-if")),
    "mlx-lm": Known("mlx_lm", "MlxLm", ("apple", "what-if"), "layer", "mlx"),
    "transformers": Known("transformers", "Transformers", _ALL, "layer"),
    "nybble": Known("nybble", "Nybble", _ALL, "layer", timed=False),
})  # fmt: skip


def known(engine: str) -> Known:
    """What is known of an engine.

    Raises:
        NybbleError: unknown; the nearest name is given.
    """
    found = ENGINES.get(engine.strip().lower())
    if found is None:
        near = nearest(engine, ENGINES)
        raise NybbleError(
            "unknown engine", seen=engine, allowed=ENGINES,
            hint=f"--engine {near or 'llama.cpp'}",
        )  # fmt: skip
    return found


def memory_model(engine: str) -> MemoryModel:
    """The memory model of an engine.

    Raises:
        NybbleError: unknown.
    """
    where = known(engine)
    module = importlib.import_module(f"nybble.planning.memory.{where.module}")
    made: MemoryModel = getattr(module, where.name)()
    return made
