"""Tiny random GGUFs of architectures with norms on queries and keys; they load in llama.cpp.

Norm gains are drawn far from one, so that energies differ between channels as in real models.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import quantize

TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>"] + [f"<0x{i:02X}>" for i in range(256)]
FIRST_BYTE = 4  # id of byte 0


class _Model:
    """A GGUF in the making: keys and byte vocabulary at once, then tensors, then `close`."""

    def __init__(
        self, path: Path, architecture: str, seed: int, weight_type: str, name: str, **sizes: int
    ):
        self.path, self._rng = path, np.random.default_rng(seed)
        self._kind = gguf.GGMLQuantizationType[weight_type]
        self.embd, self.ff = sizes["embd"], sizes["ff"]
        w = self.writer = gguf.GGUFWriter(path, architecture)
        w.add_name(name)
        w.add_context_length(8192)
        w.add_embedding_length(self.embd)
        w.add_block_count(sizes["n_layer"])
        w.add_feed_forward_length(self.ff)
        w.add_head_count(sizes["n_head"])
        w.add_layer_norm_rms_eps(1e-6)
        w.add_rope_freq_base(10000.0)
        w.add_file_type(0)
        w.add_tokenizer_model("llama")
        w.add_token_list(TOKENS)
        w.add_token_scores([-float(i) for i in range(len(TOKENS))])
        w.add_token_types([3, 3, 3, 2] + [6] * 256)
        w.add_bos_token_id(2)
        w.add_eos_token_id(1)

    def matrix(self, key: str, *shape: int, scale: float) -> None:
        data = (self._rng.standard_normal(shape) * scale).astype(np.float32)
        if self._kind == gguf.GGMLQuantizationType.F32:
            self.writer.add_tensor(f"{key}.weight", data)
        else:
            self.writer.add_tensor(
                f"{key}.weight", quantize(data, self._kind), raw_dtype=self._kind
            )

    def gains(self, key: str, n: int) -> None:
        gains = np.exp(self._rng.standard_normal(n) / 2).astype(np.float32)
        self.writer.add_tensor(f"{key}.weight", gains)

    def block(self, i: int, heads: int, kv_heads: int, dim: int, norms: Sequence[str]) -> None:
        """One layer; no K, V and K norm where kv_heads is 0."""
        at, embd, ff = f"blk.{i}.", self.embd, self.ff
        for norm in norms:
            self.gains(at + norm, embd)
        self.gains(at + "attn_q_norm", dim)
        self.matrix(at + "attn_q", heads * dim, embd, scale=0.2)
        if kv_heads:
            self.gains(at + "attn_k_norm", dim)
            self.matrix(at + "attn_k", kv_heads * dim, embd, scale=0.2)
            self.matrix(at + "attn_v", kv_heads * dim, embd, scale=0.2)
        self.matrix(at + "attn_output", embd, heads * dim, scale=0.2)
        self.matrix(at + "ffn_gate", ff, embd, scale=0.1)
        self.matrix(at + "ffn_up", ff, embd, scale=0.1)
        self.matrix(at + "ffn_down", embd, ff, scale=0.1)

    def close(self) -> Path:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()
        return self.path


_QWEN_NORMS = ("attn_norm", "ffn_norm")
_GEMMA_NORMS = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")


def write_tiny_qwen3(
    path: Path, *, head_dim: int = 64, n_head: int = 4, n_kv: int = 2, n_layer: int = 2,
    embd: int = 128, ff: int = 64, seed: int = 0, weight_type: str = "F32",
    name: str = "tiny qwen3",
) -> Path:  # fmt: skip
    """Qwen3: global layers, RoPE pairs D/2 apart, an output matrix of its own."""
    model = _Model(path, "qwen3", seed, weight_type, name, embd=embd, ff=ff, n_layer=n_layer,
                   n_head=n_head)  # fmt: skip
    model.writer.add_head_count_kv(n_kv)
    model.writer.add_key_length(head_dim)
    model.writer.add_value_length(head_dim)
    model.matrix("token_embd", len(TOKENS), embd, scale=1.0)
    model.gains("output_norm", embd)
    model.matrix("output", len(TOKENS), embd, scale=0.3)
    for i in range(n_layer):
        model.block(i, n_head, n_kv, head_dim, _QWEN_NORMS)
    return model.close()


def write_tiny_gemma3(
    path: Path, *, head_dim: int = 64, n_head: int = 4, n_kv: int = 2, n_layer: int = 3,
    embd: int = 128, ff: int = 64, window: int = 64, pattern: int = 3, seed: int = 0,
    weight_type: str = "F32", name: str = "tiny gemma3",
) -> Path:  # fmt: skip
    """Gemma 3: every `pattern`th layer is global, the others slide; tied embeddings."""
    model = _Model(path, "gemma3", seed, weight_type, name, embd=embd, ff=ff, n_layer=n_layer,
                   n_head=n_head)  # fmt: skip
    model.writer.add_head_count_kv(n_kv)
    model.writer.add_key_length(head_dim)
    model.writer.add_value_length(head_dim)
    model.writer.add_sliding_window(window)
    model.writer.add_sliding_window_pattern([i % pattern != pattern - 1 for i in range(n_layer)])
    model.matrix("token_embd", len(TOKENS), embd, scale=0.3)
    model.gains("output_norm", embd)
    for i in range(n_layer):
        model.block(i, n_head, n_kv, head_dim, _GEMMA_NORMS)
    return model.close()


def write_tiny_gemma4(
    path: Path, *, sliding_dim: int = 32, global_dim: int = 64, n_head: int = 4,
    sliding_kv: int = 2, global_kv: int = 1, sliding: Sequence[bool] = (True, True, False) * 2,
    shared: int = 3, embd: int = 128, ff: int = 64, window: int = 64, seed: int = 0,
    name: str = "tiny gemma4",
) -> Path:  # fmt: skip
    """Gemma 4: other heads in sliding and global layers; the last `shared` read others' keys."""
    n_layer = len(sliding)
    kv_heads = [sliding_kv if slides else global_kv for slides in sliding]
    model = _Model(path, "gemma4", seed, "F32", name, embd=embd, ff=ff, n_layer=n_layer,
                   n_head=n_head)  # fmt: skip
    w = model.writer
    w.add_head_count_kv(kv_heads)
    w.add_key_length(global_dim)
    w.add_value_length(global_dim)
    w.add_key_length_swa(sliding_dim)
    w.add_value_length_swa(sliding_dim)
    w.add_rope_dimension_count(global_dim)
    w.add_rope_dimension_count_swa(sliding_dim)
    w.add_sliding_window(window)
    w.add_sliding_window_pattern(list(sliding))
    w.add_shared_kv_layers(shared)
    w.add_embedding_length_per_layer_input(0)
    model.matrix("token_embd", len(TOKENS), embd, scale=0.3)
    model.gains("output_norm", embd)
    # Only the first quarter of a global head is rotated: other frequencies are divided by 1e30.
    still = np.where(np.arange(global_dim // 2) < global_dim // 8, 1.0, 1e30)
    w.add_tensor("rope_freqs.weight", still.astype(np.float32))
    for i, slides in enumerate(sliding):
        dim = sliding_dim if slides else global_dim
        owned = kv_heads[i] if i < n_layer - shared else 0
        model.block(i, n_head, owned, dim, _GEMMA_NORMS)
    return model.close()


def hold_still(path: Path) -> Path:
    """Zero what layers add to the stream, so that every layer sees the embeddings alone."""
    return fill(path, r"(attn_output|ffn_down)\.weight$", 0.0)


def fill(path: Path, pattern: str, value: float) -> Path:
    """Overwrite F32 tensors whose names match."""
    reader: Any = gguf.GGUFReader(path, "r+")
    found = [t for t in reader.tensors if re.search(pattern, t.name)]
    assert found and all(t.tensor_type == gguf.GGMLQuantizationType.F32 for t in found)
    for tensor in found:
        tensor.data[...] = value
    reader.data.flush()
    return path
