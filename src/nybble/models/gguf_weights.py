"""What the weights of a GGUF take, summed over its own tensors.

Source: `create_tensor` calls of llama.cpp's `src/models/`; experts are one tensor a layer whose
last dimension counts them, and a token meets expert_used_count of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from types import MappingProxyType

from nybble.models.geometry import Weights
from nybble.models.gguf_types import TensorInfo

# Tables of which a token reads one row.
_TABLES = ("token_embd.weight", "per_layer_token_embd.weight", "position_embd.weight",
           "token_types.weight")  # fmt: skip


def block_of(tensor: TensorInfo) -> int | None:
    """Number of the block a tensor belongs to, None for those outside of blocks."""
    parts = tensor.name.split(".", 2)
    return int(parts[1]) if parts[0] == "blk" and parts[1].isdigit() else None


def weights(tensors: Iterable[TensorInfo], experts_used: Callable[[int], int]) -> Weights:
    """Sum the tensors of a model, prediction blocks left out.

    Args:
        tensors: those of the trunk.
        experts_used: experts a token meets in a block.
    """
    tensors = list(tensors)
    tied = not any(t.name == "output.weight" for t in tensors)
    total = params = read = active = lookup = 0
    types: Counter[str] = Counter()
    for tensor in tensors:
        n_bytes, elements = tensor.n_bytes, tensor.n_elements
        total += n_bytes
        params += elements
        types[tensor.type_name] += n_bytes
        if tensor.name in _TABLES:
            lookup += n_bytes
            if not (tied and tensor.name == "token_embd.weight"):
                continue
        elif "_exps" in tensor.name and len(tensor.shape) > 1:
            block, experts = block_of(tensor), tensor.shape[-1]
            used = min(experts, experts_used(block)) if block is not None else experts
            n_bytes, elements = n_bytes * used // experts, elements * used // experts
        read += n_bytes
        if len(tensor.shape) > 1 and not tensor.name.endswith(".bias"):
            active += elements
    by_type = MappingProxyType(dict(types))
    return Weights(total, params, read, active, "tensors", by_type, lookup, tied)


def intermediate(tensors: Iterable[TensorInfo], experts_used: Callable[[int], int]) -> int:
    """Width of the widest feed-forward block one token passes, its experts summed."""
    width: Counter[int] = Counter()
    for tensor in tensors:
        block = block_of(tensor)
        if block is None or not tensor.name.endswith(".weight"):
            continue
        part = tensor.name.split(".")[2]
        if part in ("ffn_down", "ffn_down_shexp"):
            width[block] += tensor.shape[0]
        elif part == "ffn_down_exps":
            width[block] += tensor.shape[0] * min(tensor.shape[-1], experts_used(block))
    return max(width.values(), default=0)
