"""What transformers' GGUF readers leave out of the config, put right; what cannot be is refused.

Each reader maps a few keys and drops the rest without a word: the scaled RoPE of Llama 3.1 and of
Gemma 3 from 4B on, for one. A model loaded so answers, but it is another model. So every key that
changes what a layer computes is compared here with the config that came out.

Source of the keys and of their meaning: llama.cpp, `llama_model_base::load_hparams` in
`src/llama-model.cpp` and the files of `src/models/`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from nybble.errors import EngineError
from nybble.models.gguf_header import GGUFHeader, read_header

_FOLDER = "give the folder with the model's original config.json and safetensors"
_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
_SOFTCAPS = ("attn_logit_softcapping", "final_logit_softcapping")
# Factors no reader maps; 0 and 1 leave things as they are.
_FACTORS = ("attention.scale", "attention.output_scale", "attention.clamp_kqv", "logit_scale",
            "attention.max_alibi_bias", "attention.temperature_scale", "embedding_scale",
            "residual_scale", "rope.scaling.attn_factor")  # fmt: skip
# Architectures whose sliding window llama.cpp does not use, or has built in when no key says it.
_IGNORED_WINDOW = ("llama", "phi3", "qwen2", "starcoder2")
_BUILT_IN_WINDOW = {"gemma2": 4096}
# llama.cpp tells the 27B models by their layers; they alone scale q by hidden size over heads.
_LAYERS_27B = {"gemma2": 46, "gemma3": 62}
_ROPE_FREQS = "rope_freqs.weight"


def complete_config(path: Path, model: Any) -> None:
    """Make the config of `model`, read from the GGUF `path`, say what the file says.

    Only the config is changed: a copy saved with it and loaded again is right, `model` is not.

    Raises:
        EngineError: a tensor was dropped, or a key has no counterpart in the config.
    """
    header = read_header(path)
    check = _Check(path, header, model.config)
    check.rope()
    check.numbers()
    check.window()
    check.tensors(sum(p.numel() for p in model.parameters()))


class _Check:
    def __init__(self, path: Path, header: GGUFHeader, config: Any) -> None:
        self.path, self.header, self.config = path, header, config
        self.arch = str(header.metadata["general.architecture"])
        parameters = getattr(config, "rope_parameters", None) or {}
        # Gemma 3 has one set for each kind of layer; the file's keys are those of the full ones.
        self.rope_parameters: dict[str, Any] = parameters.get("full_attention", parameters)

    def key(self, name: str) -> Any:
        return self.header.metadata.get(f"{self.arch}.{name}")

    def number(self, name: str) -> float | None:
        value = self.key(name)
        ok = isinstance(value, (int, float)) and not isinstance(value, bool)
        return float(value) if ok else None

    def refuse(self, name: str, value: object, why: str) -> EngineError:
        return EngineError(
            f"transformers would load this GGUF as another model: {why}",
            seen=f"{self.path.name}: {name} is {str(value)[:80]}",
            hint=_FOLDER,
        )

    def rope(self) -> None:
        base = self.number("rope.freq_base")
        if base is not None and "rope_theta" in self.rope_parameters:
            self.rope_parameters["rope_theta"] = base
        elif base is not None:
            raise self.refuse("rope.freq_base", base, "its layers have no such RoPE")
        if self.rope_parameters.get("rope_type", "default") != "default":
            return  # the reader has read the scaling
        freqs = [t for t in self.header.tensors if t.name == _ROPE_FREQS]
        factor = self.number("rope.scaling.factor") or self.number("rope.scale_linear") or 1.0
        kind = self.key("rope.scaling.type") or "linear"  # llama.cpp's default
        if freqs and self.arch == "llama":
            # Llama 3.1: every frequency is divided by a factor of its own, which the converter
            # worked out. LongRoPE is the one type of transformers that takes such factors.
            tensor = freqs[0]
            if tensor.type_name != "F32":
                raise self.refuse(_ROPE_FREQS, tensor.type_name, "float32 is expected")
            start = self.header.data_offset + tensor.offset
            values = np.fromfile(self.path, "<f4", tensor.n_elements, offset=start).tolist()
            context = self.config.max_position_embeddings
            self.rope_parameters.update(
                rope_type="longrope", short_factor=values, long_factor=values, attention_factor=1.0,
                original_max_position_embeddings=context,
            )  # fmt: skip
        elif kind == "linear" and factor != 1.0:
            self.rope_parameters.update(rope_type="linear", factor=factor)
        elif kind not in ("none", "linear"):
            raise self.refuse("rope.scaling.type", kind, "its reader drops this scaling")
        rotated = self.number("rope.dimension_count")
        head = getattr(self.config, "head_dim", None)
        head = head or self.config.hidden_size // self.config.num_attention_heads
        part = self.rope_parameters.get("partial_rotary_factor", 1.0)
        if rotated and self.rope_parameters and int(head * part) != rotated:
            raise self.refuse("rope.dimension_count", int(rotated),
                              f"it would rotate {int(head * part)} elements of a head")  # fmt: skip

    def numbers(self) -> None:
        for name in ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"):
            value = self.number(name)
            if value is not None and not self.says(_EPSILONS, value):
                raise self.refuse(name, value, "its norms have another epsilon")
        for name in _SOFTCAPS:
            value = self.number(name)
            if value and hasattr(self.config, name):
                setattr(self.config, name, value)
            elif value:
                raise self.refuse(name, value, "its logits are not capped")
        for name in _FACTORS:
            value = self.number(name)
            if value not in (None, 0.0, 1.0):
                raise self.refuse(name, value, "its reader drops this factor")
        if self.arch in _LAYERS_27B:  # softmax(q k / sqrt(query_pre_attn_scalar))
            whole = self.config.num_hidden_layers == _LAYERS_27B[self.arch]
            heads = self.config.num_attention_heads
            self.config.query_pre_attn_scalar = (
                self.config.hidden_size // heads if whole else self.config.head_dim
            )

    def says(self, names: Iterable[str], value: float) -> bool:
        """Whether the config has the value under one of the names."""
        found = [getattr(self.config, n) for n in names if hasattr(self.config, n)]
        return any(math.isclose(f, value, rel_tol=1e-5) for f in found)

    def window(self) -> None:
        window = self.number("attention.sliding_window") or _BUILT_IN_WINDOW.get(self.arch)
        if self.arch in _IGNORED_WINDOW:
            window = None
        layers = getattr(self.config, "layer_types", None) or ()
        slides = [kind == "sliding_attention" for kind in layers]
        if not slides and getattr(self.config, "sliding_window", None):
            slides = [True]  # one window for all layers
        if any(slides) != (window is not None):
            raise self.refuse("attention.sliding_window", window,
                              f"{sum(slides)} of its layers would slide")  # fmt: skip
        if window is not None and self.config.sliding_window != window:
            raise self.refuse("attention.sliding_window", window,
                              f"its window would be {self.config.sliding_window}")  # fmt: skip
        pattern = self.key("attention.sliding_window_pattern")
        if isinstance(pattern, int) and pattern > 0:  # every nth layer is full
            pattern = tuple((i + 1) % pattern != 0 for i in range(len(slides)))
        if isinstance(pattern, tuple) and tuple(map(bool, pattern)) != tuple(slides):
            raise self.refuse("attention.sliding_window_pattern", pattern, "other layers slide")

    def tensors(self, n_loaded: int) -> None:
        """Refuse a file with more weights than arrived in the model: some were dropped."""
        trunk = self.config.num_hidden_layers
        dropped = {_ROPE_FREQS} if self.rope_parameters.get("rope_type") == "longrope" else set()
        n_file = sum(t.n_elements for t in self.header.tensors
                     # Blocks past the last layer predict more tokens; no engine here runs them.
                     if t.name not in dropped and _block(t.name) < trunk)  # fmt: skip
        if n_file != n_loaded:
            raise self.refuse("the number of weights", f"{n_file:,}",
                              f"it would hold {n_loaded:,}")  # fmt: skip


def _block(name: str) -> int:
    """The layer of a tensor such as blk.12.attn_q.weight; -1 of one that stands outside."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blk" and len(parts) > 1 and parts[1].isdecimal() else -1
