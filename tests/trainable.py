"""Tiny GGUFs that a training makes better within a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from gguf_models import write_tiny_qwen3

_DIM = 128  # what transformers takes a Qwen3's heads for, whatever its GGUF says


def disturb(path: Path, seed: int = 0, head: float = 0.3) -> Path:
    """Give a GGUF outsized keys, which a fold mends, and errors that training can.

    All embeddings have a part in common, so 4-bit caches are wrong in the same way at every
    token, and values can be moved to where they are stored better. `head` is a factor of the
    output matrix: a random model that is sure of itself has a perplexity that anything moves.
    """
    rng = np.random.default_rng(seed)
    reader: Any = gguf.GGUFReader(path, "r+")
    tensors = {t.name: t.data for t in reader.tensors}
    norms = any("attn_k_norm" in name for name in tensors)
    for name, data in tensors.items():
        if name == "token_embd.weight":
            common = rng.standard_normal(data.shape[1])
            data[:] = 0.3 * data + (2 if "output.weight" in tensors else 0.1) * common
        elif name == "output.weight":
            data *= head
        elif name.endswith("attn_k_norm.weight"):
            g = np.tile(np.exp(1.5 * rng.standard_normal(len(data) // 2)), 2)
            data[:], tensors[name.replace("_k_", "_q_")][:] = g, 1 / g
        elif name.endswith("attn_k.weight") and not norms:  # neighbours are rotated together
            data[:] *= np.repeat(np.exp(rng.standard_normal((len(data) // 2, 1))), 2, axis=0)
    reader.data.flush()
    return path


def write_qwen3(path: Path, seed: int = 0, head: float = 0.3) -> Path:
    write_tiny_qwen3(path, head_dim=_DIM, n_head=2, n_kv=1, embd=64, ff=64, seed=seed)
    return disturb(path, head=head)
