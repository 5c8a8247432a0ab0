"""One tiny model of each family twice: in torch, and as a GGUF of the same shape to export into."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers as hf
from gguf.quants import dequantize, quantize

from nybble.engines.llamacpp.model import Model
from nybble.formats import parse
from nybble.models.gguf_header import read_header

FAMILIES = ("llama", "gemma3", "qwen3", "qwen2", "qwen3moe")
LAYERS, HEADS, KV_HEADS, DIM, HIDDEN, FF, EXPERTS, VOCAB = 2, 4, 2, 32, 64, 96, 4, 300

_SHARED: dict[str, Any] = dict(
    vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=FF, num_attention_heads=HEADS,
    num_key_value_heads=KV_HEADS, head_dim=DIM, max_position_embeddings=512,
    num_hidden_layers=LAYERS, pad_token_id=0, bos_token_id=1, eos_token_id=2, rms_norm_eps=1e-5,
    tie_word_embeddings=False,
)  # fmt: skip
# (class of the config, what differs in it)
_CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (hf.LlamaConfig, {}),
    "gemma3": (hf.Gemma3TextConfig, dict(
        layer_types=["sliding_attention"] * LAYERS, sliding_window=512, query_pre_attn_scalar=DIM,
        tie_word_embeddings=True)),
    "qwen3": (hf.Qwen3Config, {}),
    "qwen2": (hf.Qwen2Config, dict(head_dim=DIM, hidden_size=HEADS * DIM)),
    "qwen3moe": (hf.Qwen3MoeConfig, dict(
        num_experts=EXPERTS, num_experts_per_tok=2, moe_intermediate_size=FF, norm_topk_prob=True)),
}  # fmt: skip


def torch_model(family: str, **changed: Any) -> Any:
    """Random weights, large enough for attention to be far from flat; norms away from one."""
    kind, different = _CONFIGS[family]
    model = hf.AutoModelForCausalLM.from_config(kind(**{**_SHARED, **different, **changed}))
    torch.manual_seed(7)
    with torch.no_grad():
        for name, values in model.named_parameters():
            values.normal_(0, 0.3 if "norm" in name else 0.2)
            if "norm" in name and family != "gemma3":
                values += 1
    return model.eval()


def parameters(model: Any) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}


def shapes(family: str) -> dict[str, tuple[int, ...]]:
    """The tensors of the family's GGUF in torch's order of axes, written down by hand."""
    hidden = HEADS * DIM if family == "qwen2" else HIDDEN
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCAB, hidden)}
    if family != "gemma3":
        found["output.weight"] = (VOCAB, hidden)
    found["output_norm.weight"] = (hidden,)
    experts = (EXPERTS,) if family == "qwen3moe" else ()
    plural = "_exps" if experts else ""
    block: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,), "ffn_norm": (hidden,),
        "attn_q": (HEADS * DIM, hidden), "attn_k": (KV_HEADS * DIM, hidden),
        "attn_v": (KV_HEADS * DIM, hidden), "attn_output": (hidden, HEADS * DIM),
        f"ffn_gate{plural}": (*experts, FF, hidden), f"ffn_up{plural}": (*experts, FF, hidden),
        f"ffn_down{plural}": (*experts, hidden, FF),
    }  # fmt: skip
    if family in ("gemma3", "qwen3", "qwen3moe"):
        block |= {"attn_q_norm": (DIM,), "attn_k_norm": (DIM,)}
    if family == "gemma3":
        block |= {"post_attention_norm": (hidden,), "post_ffw_norm": (hidden,)}
    if experts:
        block["ffn_gate_inp"] = (EXPERTS, hidden)
    for i in range(LAYERS):
        found |= {f"blk.{i}.{name}.weight": shape for name, shape in block.items()}
        if family == "qwen2":
            found |= {f"blk.{i}.attn_{m}.bias": (heads * DIM,)
                      for m, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))}  # fmt: skip
    return found


def write_base(
    path: Path, family: str, kind: str = "F32", kinds: dict[str, str] | None = None,
    alignment: int | None = None, file_type: int | None = 0,
) -> Path:  # fmt: skip
    """A GGUF of other random weights: matrices in `kind`, or by tensor name as `kinds` says."""
    rng = np.random.default_rng(3)
    w = gguf.GGUFWriter(path, family)
    if alignment:
        w.add_custom_alignment(alignment)
    w.add_name("base")
    w.add_context_length(512)
    w.add_embedding_length(HEADS * DIM if family == "qwen2" else HIDDEN)
    w.add_block_count(LAYERS)
    w.add_feed_forward_length(FF)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV_HEADS)
    w.add_key_length(DIM)
    w.add_value_length(DIM)
    w.add_rope_dimension_count(DIM)
    w.add_layer_norm_rms_eps(1e-5)
    if family == "gemma3":
        w.add_sliding_window(512)
    if family == "qwen3moe":
        w.add_expert_count(EXPERTS)
        w.add_expert_used_count(2)
        w.add_expert_feed_forward_length(FF)
    if file_type is not None:
        w.add_file_type(file_type)
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    tokens += [f"w{i}" for i in range(VOCAB - len(tokens))]
    w.add_tokenizer_model("llama")
    w.add_token_list(tokens)
    w.add_token_scores([-float(i) for i in range(VOCAB)])
    w.add_token_types([2, 3, 3] + [6] * 256 + [1] * (VOCAB - 259))
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    for name, shape in shapes(family).items():
        values = rng.normal(0, 0.2, shape).astype(np.float32)
        wanted = gguf.GGMLQuantizationType[
            (kinds or {}).get(name, kind if values.ndim > 1 else "F32")
        ]
        w.add_tensor(name, quantize(values, wanted), raw_dtype=wanted)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def stored(path: Path) -> dict[str, tuple[str, bytes]]:
    """Every tensor's type and bytes."""
    header, data = read_header(path), path.read_bytes()
    start = header.data_offset
    return {t.name: (t.type_name, data[start + t.offset : start + t.offset + t.n_bytes])
            for t in header.tensors}  # fmt: skip


def values_of(path: Path) -> dict[str, np.ndarray]:
    """Every tensor as float32, in torch's order of axes, by gguf-py's own reader."""
    return {
        t.name: dequantize(t.data, t.tensor_type).reshape([int(n) for n in reversed(t.shape)])
        for t in gguf.GGUFReader(path).tensors
    }


def llama_cpp_logits(path: Path, tokens: list[int]) -> np.ndarray:
    with closing(Model(path)) as model:
        with closing(model.context(parse("f16"), 64, rows=len(tokens), threads=1)) as context:
            return context.score(tokens, 0).astype(np.float64)


def torch_logits(model: Any, tokens: list[int]) -> np.ndarray:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([tokens])).logits[0].double().numpy()


def kld(reference: np.ndarray, other: np.ndarray) -> float:
    """Mean Kullback-Leibler divergence over rows of logits, in nats."""
    a, b = (x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))
            - x.max(-1, keepdims=True) for x in (reference, other))  # fmt: skip
    return float((np.exp(a) * (a - b)).sum(-1).mean())
