"""GGUFs with the shapes of real models and no weights: a header, then a hole.

llama.cpp opens them in its dry run, where nothing is read behind the header.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gguf

Q = gguf.GGMLQuantizationType


class Sparse:
    """A GGUF in the making; matrices are stored as `kind` where its blocks divide their rows."""

    def __init__(
        self, path: Path, arch: str, *, layers: int, hidden: int, heads: int | Sequence[int],
        kv_heads: int | Sequence[int], vocab: int, context: int = 131_072, ff: int | None = None,
        kind: str = "Q4_K", head_dim: int | None = None, **keys: Any,
    ) -> None:  # fmt: skip
        self.path, self.arch, self.hidden, self.vocab = path, arch, hidden, vocab
        self.kind = Q[kind]
        w = self.writer = gguf.GGUFWriter(path, arch)
        w.add_name(f"sparse {path.stem}")
        w.add_block_count(layers)
        w.add_context_length(context)
        w.add_embedding_length(hidden)
        w.add_head_count(heads)  # type: ignore[arg-type]
        w.add_head_count_kv(kv_heads)  # type: ignore[arg-type]
        w.add_layer_norm_rms_eps(1e-6)
        w.add_tokenizer_model("none")
        w.add_vocab_size(vocab)
        if ff is not None:
            w.add_feed_forward_length(ff)
        if head_dim is not None:
            w.add_key_length(head_dim)
            w.add_value_length(head_dim)
        for name, value in keys.items():
            self.key(name, value)

    def key(self, name: str, value: Any) -> None:
        """Add `<arch>.<name>`; two underscores in the name are a dot."""
        name = f"{self.arch}.{name.replace('__', '.')}"
        if isinstance(value, (list, tuple)):
            self.writer.add_array(name, value)
        elif isinstance(value, float):
            self.writer.add_float32(name, value)
        elif isinstance(value, bool):
            self.writer.add_bool(name, value)
        else:
            self.writer.add_uint32(name, value)

    def add(self, name: str, *shape: int, f32: bool = False, kind: str | None = None) -> None:
        """Add a tensor, ggml order: the row length first."""
        if not name.endswith((".bias", ".scale")):
            name += ".weight"
        chosen = Q[kind] if kind else self.kind
        if f32 or len(shape) == 1:
            chosen = Q.F32
        elif shape[0] % gguf.GGML_QUANT_SIZES[chosen][0]:
            chosen = Q.Q8_0 if shape[0] % 32 == 0 else Q.F16
        block, size = gguf.GGML_QUANT_SIZES[chosen]
        n_bytes = block and size
        for i, n in enumerate(shape):
            n_bytes *= n // block if i == 0 else n
        self.writer.add_tensor_info(
            name, tuple(reversed(shape)), None, n_bytes, raw_dtype=chosen  # type: ignore[arg-type]
        )  # fmt: skip

    def raw(self, name: str, *shape: int) -> None:
        """Add an F32 tensor under exactly this name."""
        n_bytes = 4
        for n in shape:
            n_bytes *= n
        self.writer.add_tensor_info(
            name, tuple(reversed(shape)), None, n_bytes, raw_dtype=Q.F32  # type: ignore[arg-type]
        )  # fmt: skip

    def block(self, i: int, shapes: dict[str, Sequence[int]], kind: str | None = None) -> None:
        """Add the tensors of one block."""
        for name, shape in shapes.items():
            self.add(f"blk.{i}.{name}", *shape, kind=kind)

    def ends(self, *, tied: bool = False, kind: str = "Q6_K") -> None:
        """Add embedding, output norm and output matrix."""
        self.add("token_embd", self.hidden, self.vocab, kind=kind)
        self.add("output_norm", self.hidden)
        if not tied:
            self.add("output", self.hidden, self.vocab, kind=kind)

    def close(self) -> Path:
        """Write the header; the weights are a hole that takes no disk."""
        w = self.writer
        size = sum(-(-t.nbytes // 32) * 32 for shard in w.tensors for t in shard.values())
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_ti_data_to_file()
        w.close()
        with self.path.open("r+b") as file:
            header = -(-self.path.stat().st_size // 32) * 32
            file.truncate(header + size)
        return self.path


def _attention(
    hidden: int, heads: int, kv: int, dim: int, *, qk_norm: bool = False, v: bool = True
) -> dict[str, Sequence[int]]:
    found: dict[str, Sequence[int]] = {
        "attn_norm": [hidden], "attn_q": [hidden, heads * dim],
        "attn_output": [heads * dim, hidden],
    }  # fmt: skip
    if kv:
        found["attn_k"] = [hidden, kv * dim]
        if v:
            found["attn_v"] = [hidden, kv * dim]
    if qk_norm:
        found["attn_q_norm"] = [dim]
        if kv:
            found["attn_k_norm"] = [dim]
    return found


def _ffn(hidden: int, ff: int, *, suffix: str = "", gate: bool = True) -> dict[str, Sequence[int]]:
    found = {f"ffn_up{suffix}": [hidden, ff], f"ffn_down{suffix}": [ff, hidden]}
    return {**({f"ffn_gate{suffix}": [hidden, ff]} if gate else {}), **found}


def _experts(hidden: int, ff: int, n: int) -> dict[str, Sequence[int]]:
    return {"ffn_gate_inp": [hidden, n],
            **{k: [*s, n] for k, s in _ffn(hidden, ff, suffix="_exps").items()}}  # fmt: skip


def llama(path: Path, *, size: str = "8B", kind: str = "Q4_K") -> Path:
    """Llama 3.1 8B or 70B."""
    layers, hidden, heads, ff = {"8B": (32, 4096, 32, 14336), "70B": (80, 8192, 64, 28672)}[size]
    m = Sparse(path, "llama", layers=layers, hidden=hidden, heads=heads, kv_heads=8, vocab=128_256,
               ff=ff, kind=kind, rope__dimension_count=128)  # fmt: skip
    m.ends()
    for i in range(layers):
        m.block(i, {**_attention(hidden, heads, 8, 128), "ffn_norm": [hidden], **_ffn(hidden, ff)})
    return m.close()


def qwen3(path: Path, *, kind: str = "Q4_K") -> Path:
    """Qwen3 8B."""
    m = Sparse(path, "qwen3", layers=36, hidden=4096, heads=32, kv_heads=8, vocab=151_936,
               context=40_960, ff=12_288, head_dim=128, kind=kind)  # fmt: skip
    m.ends()
    for i in range(36):
        m.block(i, {**_attention(4096, 32, 8, 128, qk_norm=True), "ffn_norm": [4096],
                    **_ffn(4096, 12_288)})  # fmt: skip
    return m.close()


def qwen3moe(path: Path) -> Path:
    """Qwen3 30B-A3B."""
    m = Sparse(path, "qwen3moe", layers=48, hidden=2048, heads=32, kv_heads=4, vocab=151_936,
               ff=6144, head_dim=128, expert_count=128, expert_used_count=8,
               expert_feed_forward_length=768)  # fmt: skip
    m.ends()
    for i in range(48):
        m.block(i, {**_attention(2048, 32, 4, 128, qk_norm=True), "ffn_norm": [2048],
                    **_experts(2048, 768, 128)})  # fmt: skip
    return m.close()


_GEMMA4 = {  # layers, hidden, heads, kv local, kv global, window, ff, period, shared, per layer
    "31B": (60, 5376, 32, 16, 4, 1024, 21504, 6, 0, 0),
    "26B-A4B": (30, 2816, 16, 8, 2, 1024, 2112, 6, 0, 0),
    "12B": (48, 3840, 16, 8, 1, 1024, 15360, 6, 0, 0),
    "E4B": (42, 2560, 8, 2, 2, 512, 10240, 6, 18, 256),
    "E2B": (35, 1536, 8, 1, 1, 512, 6144, 5, 20, 256),
}


def gemma4(path: Path, *, size: str = "31B", kind: str = "Q4_0") -> Path:
    """Gemma 4, any size; K and V come from one projection in the larger ones' global layers."""
    layers, hidden, heads, local, wide, window, ff, period, shared, ple = _GEMMA4[size]
    slides = [(i + 1) % period != 0 for i in range(layers)]
    kv = [local if s else wide for s in slides]
    m = Sparse(
        path, "gemma4", layers=layers, hidden=hidden, heads=heads, kv_heads=kv, vocab=262_144,
        context=262_144 if window == 1024 else 131_072, kind=kind, head_dim=512,
        ff=[ff * (2 if size == "E2B" and i >= layers - shared else 1) for i in range(layers)],
        attention__key_length_swa=256, attention__value_length_swa=256,
        attention__sliding_window=window, attention__sliding_window_pattern=slides,
        attention__shared_kv_layers=shared, embedding_length_per_layer_input=ple,
        rope__dimension_count=512, rope__dimension_count_swa=256, final_logit_softcapping=30.0,
    )  # fmt: skip
    moe = size == "26B-A4B"
    if moe:
        for name, value in (("expert_count", 128), ("expert_used_count", 8),
                            ("expert_feed_forward_length", 704)):  # fmt: skip
            m.key(name, value)
    m.ends(tied=True)
    m.add("rope_freqs", 256)
    if ple:
        m.add("per_layer_token_embd", ple * layers, 262_144, kind="Q6_K")
        m.add("per_layer_model_proj", hidden, ple * layers)
        m.add("per_layer_proj_norm", ple)
    for i, slide in enumerate(slides):
        dim, n_kv = (256, kv[i]) if slide else (512, kv[i])
        k_is_v = not slide and size in ("31B", "26B-A4B", "12B")
        owned = n_kv if i < layers - shared else 0
        wide_ff = ff * (2 if size == "E2B" and i >= layers - shared else 1)
        shapes = {**_attention(hidden, heads, owned, dim, qk_norm=True, v=not k_is_v),
                  **_ffn(hidden, wide_ff)}  # fmt: skip
        for norm in ("post_attention_norm", "ffn_norm", "post_ffw_norm"):
            shapes[norm] = [hidden]
        if moe:
            shapes |= {"ffn_gate_inp": [hidden, 128], "ffn_gate_inp.scale": [hidden],
                       "pre_ffw_norm_2": [hidden], "post_ffw_norm_1": [hidden],
                       "post_ffw_norm_2": [hidden], "ffn_gate_up_exps": [hidden, 1408, 128],
                       "ffn_down_exps": [704, hidden, 128]}  # fmt: skip
        if ple:
            shapes |= {"inp_gate": [hidden, ple], "proj": [ple, hidden], "post_norm": [hidden]}
        m.block(i, shapes)
    return m.close()


def gemma(path: Path, *, version: int = 3) -> Path:
    """Gemma 2 9B or Gemma 3 4B."""
    layers, hidden, heads, kv, ff, window, dim = {
        2: (42, 3584, 16, 8, 14336, 4096, 256), 3: (34, 2560, 8, 4, 10240, 1024, 256),
    }[version]  # fmt: skip
    m = Sparse(path, f"gemma{version}", layers=layers, hidden=hidden, heads=heads, kv_heads=kv,
               vocab=256_000 if version == 2 else 262_144, ff=ff, head_dim=dim,
               attention__sliding_window=window)  # fmt: skip
    if version == 2:
        m.key("attn_logit_softcapping", 50.0)
        m.key("final_logit_softcapping", 30.0)
    m.ends(tied=True)
    for i in range(layers):
        shapes = {**_attention(hidden, heads, kv, dim, qk_norm=version == 3), **_ffn(hidden, ff)}
        for norm in ("post_attention_norm", "ffn_norm", "post_ffw_norm"):
            shapes[norm] = [hidden]
        m.block(i, shapes)
    return m.close()


def gemma3n(path: Path) -> Path:
    """Gemma 3n E4B."""
    layers, hidden, ple, rank = 35, 2048, 256, 64
    m = Sparse(path, "gemma3n", layers=layers, hidden=hidden, heads=8, kv_heads=2, vocab=262_400,
               context=32_768, ff=16_384, head_dim=256, attention__sliding_window=512,
               attention__shared_kv_layers=15, embedding_length_per_layer_input=ple,
               altup__num_inputs=4, altup__active_idx=0)  # fmt: skip
    m.ends(tied=True)
    for name in ("altup_proj", "altup_unembd_proj"):
        m.add(name, hidden, hidden, 3)
    m.add("per_layer_token_embd", ple * layers, 262_400, kind="Q6_K")
    m.add("per_layer_model_proj", hidden, ple * layers)
    m.add("per_layer_proj_norm", ple)
    for i in range(layers):
        shapes = {**_attention(hidden, 8, 2, 256, qk_norm=True), **_ffn(hidden, 16_384),
                  "inp_gate": [hidden, ple], "proj": [ple, hidden], "altup_correct_coef": [4, 4],
                  "altup_predict_coef": [4, 16], "altup_router": [hidden, 4],
                  "laurel_l": [hidden, rank], "laurel_r": [rank, hidden]}  # fmt: skip
        for norm in ("post_attention_norm", "ffn_norm", "post_ffw_norm", "post_norm",
                     "altup_correct_scale", "altup_router_norm", "laurel_post_norm"):  # fmt: skip
            shapes[norm] = [hidden]
        m.block(i, shapes)
    return m.close()


def gpt_oss(path: Path) -> Path:
    """gpt-oss 20B: sinks, sliding window of 128, experts in MXFP4."""
    layers, hidden, experts = 24, 2880, 32
    m = Sparse(path, "gpt-oss", layers=layers, hidden=hidden, heads=64, kv_heads=8, vocab=201_088,
               ff=2880, head_dim=64, kind="Q8_0", attention__sliding_window=128,
               expert_count=experts, expert_used_count=4,
               expert_feed_forward_length=2880)  # fmt: skip
    m.ends(kind="Q8_0")
    for i in range(layers):
        m.block(i, {**_attention(hidden, 64, 8, 64), "post_attention_norm": [hidden],
                    "attn_sinks": [64], "ffn_gate_inp": [hidden, experts]})  # fmt: skip
        m.block(i, {k: [2880, 2880, experts] for k in
                    ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")}, kind="MXFP4")  # fmt: skip
        for name, shape in (("attn_q", [4096]), ("attn_k", [512]), ("attn_v", [512]),
                            ("attn_output", [hidden]), ("ffn_gate_inp", [experts]),
                            ("ffn_gate_exps", [2880, experts]), ("ffn_up_exps", [2880, experts]),
                            ("ffn_down_exps", [hidden, experts])):  # fmt: skip
            m.add(f"blk.{i}.{name}.bias", *shape, f32=True)
    return m.close()


def qwen3next(path: Path) -> Path:
    """Qwen3-Next 80B-A3B: three of four layers keep a recurrent state."""
    layers, hidden = 48, 2048
    m = Sparse(path, "qwen3next", layers=layers, hidden=hidden, heads=16, kv_heads=2,
               vocab=151_936, context=262_144, ff=5120, head_dim=256, expert_count=512,
               expert_used_count=10, expert_feed_forward_length=512,
               expert_shared_feed_forward_length=512, ssm__conv_kernel=4, ssm__inner_size=4096,
               ssm__state_size=128, ssm__time_step_rank=32, ssm__group_count=16,
               rope__dimension_count=64)  # fmt: skip
    m.ends()
    for i in range(layers):
        shapes: dict[str, Sequence[int]] = {
            "attn_norm": [hidden], "post_attention_norm": [hidden],
            **_experts(hidden, 512, 512), **_ffn(hidden, 512, suffix="_shexp"),
            "ffn_gate_inp_shexp": [hidden],
        }  # fmt: skip
        if (i + 1) % 4 == 0:
            shapes |= {"attn_q": [hidden, 8192], "attn_k": [hidden, 512], "attn_v": [hidden, 512],
                       "attn_output": [4096, hidden], "attn_q_norm": [256],
                       "attn_k_norm": [256]}  # fmt: skip
        else:
            shapes |= {"attn_qkv": [hidden, 8192], "attn_gate": [hidden, 4096],
                       "ssm_ba": [hidden, 64], "ssm_norm": [128],
                       "ssm_out": [4096, hidden]}  # fmt: skip
            m.add(f"blk.{i}.ssm_conv1d", 4, 8192, f32=True)
            m.add(f"blk.{i}.ssm_dt.bias", 32, f32=True)
            m.raw(f"blk.{i}.ssm_a", 32)
        m.block(i, shapes)
    return m.close()


def deepseek2(path: Path) -> Path:
    """DeepSeek V2 Lite: MLA, whose cache is one latent a token."""
    layers, hidden, heads = 27, 2048, 16
    m = Sparse(path, "deepseek2", layers=layers, hidden=hidden, heads=heads, kv_heads=1,
               vocab=102_400, context=163_840, ff=10_944, expert_count=64, expert_used_count=6,
               expert_shared_count=2, expert_feed_forward_length=1408,
               leading_dense_block_count=1, rope__dimension_count=64, expert_weights_scale=1.0,
               attention__kv_lora_rank=512, attention__key_length=576,
               attention__value_length=512, attention__key_length_mla=192,
               attention__value_length_mla=128)  # fmt: skip
    m.ends()
    for i in range(layers):
        shapes: dict[str, Sequence[int]] = {
            "attn_norm": [hidden], "ffn_norm": [hidden], "attn_q": [hidden, heads * 192],
            "attn_kv_a_norm": [512], "attn_kv_a_mqa": [hidden, 576],
            "attn_k_b": [128, 512, heads], "attn_v_b": [512, 128, heads],
            "attn_output": [heads * 128, hidden],
        }  # fmt: skip
        shapes |= (
            _ffn(hidden, 10_944) if i == 0
            else {**_experts(hidden, 1408, 64), **_ffn(hidden, 2816, suffix="_shexp")}
        )  # fmt: skip
        m.block(i, shapes)
    return m.close()


def write(path: Path, names: Iterable[str]) -> dict[str, Path]:
    """Write several by name."""
    return {name: MODELS[name](path / f"{name}.gguf") for name in names}


MODELS: dict[str, Any] = {
    "gemma-4-31b": gemma4,
    "gemma-4-26b-a4b": lambda path: gemma4(path, size="26B-A4B"),
    "gemma-4-e4b": lambda path: gemma4(path, size="E4B"),
    "llama-3.1-8b": llama,
    "llama-3.1-70b": lambda path: llama(path, size="70B"),
    "qwen3-8b": qwen3,
    "qwen3-30b-a3b": qwen3moe,
    "gemma-2-9b": lambda path: gemma(path, version=2),
    "gemma-3-4b": gemma,
    "gemma-3n-e4b": gemma3n,
    "gpt-oss-20b": gpt_oss,
    "qwen3-next-80b": qwen3next,
    "deepseek-v2-lite": deepseek2,
}
