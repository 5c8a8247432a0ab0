"""A tiny model with sliding-window layers."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

WINDOW, LAYERS, HEAD = 64, 4, 64  # numbers test_layout.py counts with


@pytest.fixture(scope="session")
def tiny_sliding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random gemma2: every other layer looks back WINDOW tokens; one KV head of HEAD."""
    path = tmp_path_factory.mktemp("models") / "tiny-sliding.gguf"
    rng = np.random.default_rng(0)
    embd, n_head, ff = 128, 2, 64
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>"] + [f"<0x{i:02X}>" for i in range(256)]
    w = gguf.GGUFWriter(path, "gemma2")
    w.add_name("tiny sliding")
    w.add_context_length(8192)
    w.add_embedding_length(embd)
    w.add_block_count(LAYERS)
    w.add_feed_forward_length(ff)
    w.add_head_count(n_head)
    w.add_head_count_kv(1)
    w.add_key_length(HEAD)
    w.add_value_length(HEAD)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_sliding_window(WINDOW)
    w.add_attn_logit_softcapping(50.0)
    w.add_final_logit_softcapping(30.0)
    w.add_tokenizer_model("llama")
    w.add_token_list(tokens)
    w.add_token_scores([-float(i) for i in range(len(tokens))])
    w.add_token_types([3, 3, 3, 2] + [6] * 256)
    w.add_bos_token_id(2)
    w.add_eos_token_id(1)

    def add(key: str, *shape: int, scale: float) -> None:
        w.add_tensor(key, (rng.standard_normal(shape) * scale).astype(np.float32))

    add("token_embd.weight", len(tokens), embd, scale=0.3)
    w.add_tensor("output_norm.weight", np.ones(embd, np.float32))
    for i in range(LAYERS):
        for norm in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            w.add_tensor(f"blk.{i}.{norm}.weight", np.ones(embd, np.float32))
        add(f"blk.{i}.attn_q.weight", n_head * HEAD, embd, scale=0.2)
        add(f"blk.{i}.attn_k.weight", HEAD, embd, scale=0.2)
        add(f"blk.{i}.attn_v.weight", HEAD, embd, scale=0.2)
        add(f"blk.{i}.attn_output.weight", embd, n_head * HEAD, scale=0.2)
        add(f"blk.{i}.ffn_gate.weight", ff, embd, scale=0.1)
        add(f"blk.{i}.ffn_up.weight", ff, embd, scale=0.1)
        add(f"blk.{i}.ffn_down.weight", embd, ff, scale=0.1)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path
