"""Parameters of transformers and the tensors of a GGUF that hold them, in both directions.

Names come from gguf-py's own map. What llama.cpp's converter does to values on the way is here:
one is added to Gemma 3's norms, the rows of a llama's W_q and W_k are brought into the order of
adjacent RoPE pairs, the two halves of fused experts become two tensors.

Source of what is done: llama.cpp, conversion/{base,llama,gemma,qwen}.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nybble.errors import MissingExtraError, NybbleError, nearest
from nybble.models.file_kinds import show
from nybble.models.gguf_types import GGUFHeader

FAMILIES = ("gemma3", "gemma4", "qwen3", "qwen3moe", "qwen2", "llama")
INSTALL = 'pip install -c constraints.txt -e ".[train]"'

Array = npt.NDArray[np.float32]

_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
# Where a model class keeps its parameters; only needed to go from a tensor back to a name.
_OUTSIDE = (
    _EMBEDDING, "model.norm.weight", _HEAD, "model.embed_tokens_per_layer.weight",
    "model.per_layer_model_projection.weight", "model.per_layer_projection_norm.weight",
)  # fmt: skip
_INSIDE = (
    *(f"self_attn.{m}_proj.{part}" for m in "qkvo" for part in ("weight", "bias")),
    *(f"self_attn.{m}_norm.weight" for m in "qk"),
    *(f"mlp.{m}_proj.weight" for m in ("gate", "up", "down")),
    "input_layernorm.weight", "post_attention_layernorm.weight",
    "pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight",
)  # fmt: skip
_INSIDE_QWEN3MOE = ("mlp.gate.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj")
_INSIDE_GEMMA4 = (
    "layer_scalar", "per_layer_input_gate.weight", "per_layer_projection.weight",
    "post_per_layer_input_norm.weight", "router.proj.weight", "router.scale",
    "router.per_expert_scale", "experts.gate_up_proj", "experts.down_proj",
    "pre_feedforward_layernorm_2.weight", "post_feedforward_layernorm_1.weight",
    "post_feedforward_layernorm_2.weight",
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A GGUF tensor and how it is made of a parameter.

    Attributes:
        tensor: its name in the GGUF.
        heads: heads whose rows are permuted for RoPE on adjacent channels; 0 for none.
        added: added to every value.
        half: 0 or 1 where it holds that half of axis 1 (gate and up of fused experts).
    """

    tensor: str
    heads: int = 0
    added: float = 0.0
    half: int | None = None

    def store(self, values: Array) -> Array:
        """From transformers' values to those of the GGUF."""
        if self.half is not None:
            values = np.split(values, 2, axis=1)[self.half]
        if self.heads:
            values = _permute(values, self.heads, 2)
        return values + np.float32(self.added) if self.added else values

    def load(self, values: Array) -> Array:
        """The inverse of `store`; of a half, that half."""
        if self.added:
            values = values - np.float32(self.added)
        if self.heads:
            values = _permute(values, self.heads, len(values) // self.heads // 2)
        return values


class Names:
    """The names of one GGUF's tensors.

    Args:
        header: of the GGUF.

    Raises:
        MissingExtraError: gguf is not installed.
        NybbleError: an architecture whose conversion is not known here.
    """

    def __init__(self, header: GGUFHeader) -> None:
        try:
            import gguf
        except ImportError as e:
            raise MissingExtraError("tensor names need the gguf package", hint=INSTALL) from e
        self.architecture = str(header.metadata.get("general.architecture"))
        if self.architecture not in FAMILIES:
            raise NybbleError(
                "the tensor names of this architecture are not known to nybble",
                seen=show(self.architecture), allowed=FAMILIES,
                hint="train the model's safetensors folder and convert the result",
            )  # fmt: skip
        self._tensors = {t.name: t for t in header.tensors}
        self._blocks = self._count(header, "block_count")
        self._heads = {}
        if self.architecture == "llama":
            self._heads = {"q": self._count(header, "attention.head_count"),
                           "k": self._count(header, "attention.head_count_kv")}  # fmt: skip
        arch = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}[self.architecture]
        self._map = gguf.get_tensor_name_map(arch, self._blocks)

    def parts(self, name: str) -> tuple[Part, ...]:
        """The tensors that hold a parameter: one, or two for fused experts in two tensors.

        Args:
            name: as `named_parameters()` has it, also of the language model in a multimodal one.

        Raises:
            NybbleError: the file has no such tensor.
        """
        plain = plain_name(name)
        if plain == _HEAD and "output.weight" not in self._tensors:
            plain = _EMBEDDING  # tied: the file holds one matrix for both
        found = self._parts(plain)
        absent = [p.tensor for p in found if p.tensor not in self._tensors]
        if absent or not found:
            near = nearest(absent[0], self._tensors) if absent else None
            raise NybbleError(
                "the GGUF holds no tensor for this parameter of the model",
                seen=show(name) + (f", which is {absent[0]}" if absent else ""),
                allowed=f"nearest: {near}" if near else None,
                hint="name the GGUF that was made from this very model"
                + (", without --fuse-qkv" if "attn_qkv" in (near or "") else ""),
            )
        return found

    def store(self, name: str, values: Array) -> dict[str, Array]:
        """The GGUF's tensors, by name, that a parameter's values make."""
        return {part.tensor: part.store(values) for part in self.parts(name)}

    def load(self, name: str, read: Callable[[str], Array]) -> Array:
        """A parameter's values out of the GGUF's tensors.

        Args:
            name: of the parameter.
            read: gives a tensor's values by its name, in torch's order of axes.
        """
        found = [part.load(read(part.tensor)) for part in self.parts(name)]
        return found[0] if len(found) == 1 else np.concatenate(found, axis=1)

    def parameters(self) -> dict[str, str]:
        """The parameter of every tensor that has one, by the tensor's name.

        Parameters are named as in the text model's own class; of a tied head, the embedding.
        """
        inside = _INSIDE
        if self.architecture == "qwen3moe":
            inside += _INSIDE_QWEN3MOE
        elif self.architecture == "gemma4":
            inside += _INSIDE_GEMMA4
        layers = (f"model.layers.{i}.{n}" for i in range(self._blocks) for n in inside)
        return {
            part.tensor: name
            for name in (*_OUTSIDE, *layers)
            for part in self._parts(name)
            if part.tensor in self._tensors
        }

    def _parts(self, plain: str) -> tuple[Part, ...]:
        """The same by name alone, whether the file holds them or not."""
        found = _LAYER.search(plain)
        block = f"blk.{found[1]}." if found else ""
        if plain.endswith(".experts.gate_up_proj"):
            if f"{block}ffn_gate_up_exps.weight" in self._tensors:
                return (Part(f"{block}ffn_gate_up_exps.weight"),)
            return (Part(f"{block}ffn_gate_exps.weight", half=0),
                    Part(f"{block}ffn_up_exps.weight", half=1))  # fmt: skip
        # Gemma 4's router has two vectors that the converter names without the map.
        if plain.endswith(".router.scale"):
            return (Part(f"{block}ffn_gate_inp.scale"),)
        if plain.endswith(".router.per_expert_scale"):
            return (Part(f"{block}ffn_down_exps.scale"),)
        tensor = self._map.get_name(plain, (".weight", ".bias"))
        if tensor is None:
            return ()
        if not tensor.endswith((".weight", ".bias")):
            tensor += ".weight"
        heads = re.search(r"\.self_attn\.([qk])_proj\.(weight|bias)$", plain)
        norm = self.architecture == "gemma3" and plain.endswith("norm.weight")
        return (Part(tensor, self._heads.get(heads[1], 0) if heads else 0, float(norm)),)

    def _count(self, header: GGUFHeader, key: str) -> int:
        value = header.metadata.get(f"{self.architecture}.{key}")
        if key == "attention.head_count_kv" and value is None:  # llama.cpp's default: all heads
            value = header.metadata.get(f"{self.architecture}.attention.head_count")
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= 1024:
            raise NybbleError(
                "the GGUF lacks a number that its tensor names need",
                seen=f"{self.architecture}.{key} is {show(value)}", allowed="1 to 1,024",
                hint="download the file again",
            )  # fmt: skip
        return value


def plain_name(name: str) -> str:
    """A parameter's name in the text model's own class, without a multimodal class's prefix."""
    return name.replace("language_model.", "")


def _permute(values: Array, heads: int, rows: int) -> Array:
    """Swap the two axes that a head's output channels make: [rows, n / rows] -> [n / rows, rows].

    Halves [2, D / 2] to pairs with rows = 2, and back with rows = D / 2.
    """
    n = len(values) // heads // rows
    split = values.reshape(heads, rows, n, *values.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(values.shape))
