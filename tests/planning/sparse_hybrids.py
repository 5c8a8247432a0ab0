"""Sparse GGUF files of models with recurrent layers beside attention: shapes, no weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparse_gguf import Sparse, _attention, _experts, _ffn

Shapes = dict[str, Sequence[int]]


def _mamba2(m: Sparse, i: int, inner: int, state: int, groups: int, ranks: int) -> Shapes:
    channels = inner + 2 * groups * state
    m.add(f"blk.{i}.ssm_conv1d", 4, channels, f32=True)
    m.add(f"blk.{i}.ssm_conv1d.bias", channels, f32=True)
    m.add(f"blk.{i}.ssm_dt.bias", ranks, f32=True)
    m.raw(f"blk.{i}.ssm_a", 1, ranks)
    m.raw(f"blk.{i}.ssm_d", 1, ranks)
    return {
        "ssm_in": [m.hidden, inner + channels + ranks],
        "ssm_norm": [inner // groups, groups], "ssm_out": [inner, m.hidden],
    }  # fmt: skip


def falcon_h1(path: Path) -> Path:
    """Falcon-H1 7B: attention and Mamba-2 side by side in every layer."""
    layers, hidden, ff, inner, state = 44, 3072, 12_288, 3072, 256
    m = Sparse(path, "falcon-h1", layers=layers, hidden=hidden, heads=12, kv_heads=2, vocab=130_048,
               ff=ff, head_dim=128, ssm__conv_kernel=4, ssm__inner_size=inner,
               ssm__state_size=state, ssm__time_step_rank=24, ssm__group_count=1)  # fmt: skip
    m.ends()
    for i in range(layers):
        m.raw(f"blk.{i}.ffn_norm", hidden)
        m.block(i, {**_attention(hidden, 12, 2, 128), **_mamba2(m, i, inner, state, 1, 24),
                    **_ffn(hidden, ff)})  # fmt: skip
    return m.close()


def nemotron_h(path: Path) -> Path:
    """Nemotron-H 8B: a layer is one of Mamba-2, attention and feed-forward."""
    plan = "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"
    hidden, ff, inner, state = 4096, 21_504, 8192, 128
    m = Sparse(path, "nemotron_h", layers=len(plan), hidden=hidden, heads=32,
               kv_heads=[8 if k == "*" else 0 for k in plan], vocab=131_072, context=8192,
               head_dim=128, feed_forward_length=[ff if k == "-" else 0 for k in plan],
               ssm__conv_kernel=4, ssm__inner_size=inner, ssm__state_size=state,
               ssm__time_step_rank=128, ssm__group_count=8,
               attention__layer_norm_epsilon=1e-5)  # fmt: skip
    m.ends()
    for i, kind in enumerate(plan):
        shapes: Shapes = {"attn_norm": [hidden]}
        if kind == "M":
            shapes |= _mamba2(m, i, inner, state, 8, 128)
        elif kind == "*":
            shapes |= _attention(hidden, 32, 8, 128)
        else:
            shapes |= _ffn(hidden, ff, gate=False)
        m.block(i, shapes)
    return m.close()


def jamba(path: Path) -> Path:
    """Jamba Mini: one attention layer in eight, the others Mamba; experts in every other layer."""
    layers, hidden, ff, inner, state, rank = 32, 4096, 14_336, 8192, 16, 256
    kv = [8 if i % 8 == 4 else 0 for i in range(layers)]
    m = Sparse(path, "jamba", layers=layers, hidden=hidden, heads=32, kv_heads=kv, vocab=65_536,
               context=262_144, ff=ff, head_dim=128, expert_count=16, expert_used_count=2,
               ssm__conv_kernel=4, ssm__inner_size=inner, ssm__state_size=state,
               ssm__time_step_rank=rank)  # fmt: skip
    m.ends()
    for i in range(layers):
        shapes: Shapes = {"attn_norm": [hidden], "ffn_norm": [hidden]}
        if kv[i]:
            shapes |= _attention(hidden, 32, 8, 128)
        else:
            shapes |= {"ssm_in": [hidden, 2 * inner], "ssm_x": [inner, rank + 2 * state],
                       "ssm_dt_norm": [rank], "ssm_dt": [rank, inner], "ssm_b_norm": [state],
                       "ssm_c_norm": [state], "ssm_out": [inner, hidden]}  # fmt: skip
            m.add(f"blk.{i}.ssm_conv1d", 4, inner, f32=True)
            m.add(f"blk.{i}.ssm_conv1d.bias", inner, f32=True)
            m.add(f"blk.{i}.ssm_dt.bias", inner, f32=True)
            m.raw(f"blk.{i}.ssm_a", state, inner)
            m.raw(f"blk.{i}.ssm_d", inner)
        shapes |= _experts(hidden, ff, 16) if i % 2 else _ffn(hidden, ff)
        m.block(i, shapes)
    return m.close()


def lfm2(path: Path) -> Path:
    """LFM2 1.2B: short convolutions, whose inputs are all they keep, and six attention layers."""
    layers, hidden, ff = 16, 2048, 8192
    kv = [8 if i in (2, 5, 8, 10, 12, 14) else 0 for i in range(layers)]
    m = Sparse(path, "lfm2", layers=layers, hidden=hidden, heads=32, kv_heads=kv, vocab=65_536,
               context=128_000, ff=ff, head_dim=64, shortconv__l_cache=3)  # fmt: skip
    m.add("token_embd", hidden, 65_536, kind="Q6_K")
    m.add("token_embd_norm", hidden)
    for i in range(layers):
        shapes: Shapes = {"attn_norm": [hidden], "ffn_norm": [hidden], **_ffn(hidden, ff)}
        if kv[i]:
            shapes |= _attention(hidden, 32, 8, 64, qk_norm=True)
        else:
            shapes |= {"shortconv.in_proj": [hidden, 3 * hidden],
                       "shortconv.out_proj": [hidden, hidden]}  # fmt: skip
            m.add(f"blk.{i}.shortconv.conv", 3, hidden, f32=True)
        m.block(i, shapes)
    return m.close()


HYBRIDS: dict[str, Any] = {
    "falcon-h1-7b": falcon_h1, "nemotron-h-8b": nemotron_h, "jamba-mini": jamba,
    "lfm2-1.2b": lfm2,
}  # fmt: skip
