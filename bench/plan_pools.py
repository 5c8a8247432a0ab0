"""What LMDeploy and SGLang say of their caches, by their own functions; no weights, no GPU.

    python bench/plan_pools.py LMDEPLOY_FOLDER SGLANG_FOLDER

The folders hold the unzipped wheels; what they import has to be installed, Triton included.
LMDeploy lays a block out on torch's meta device; SGLang's pool configurators compute the bytes of
a token. Modules of GPU kernels are replaced by stand-ins. tests/planning compares nybble's
numbers with the result.
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
from plan_vllm import MODELS

LMDEPLOY_TYPES = {"f16": 0, "fp8_e4m3": 16, "lmdeploy_int8": 8, "lmdeploy_int4": 4}
# Packages of kernels and of serving that these sums do not touch.
ABSENT = ("sgl_kernel", "IPython", "compressed_tensors", "torchvision")
SGLANG_TYPES = ("f16", "fp8_e4m3", "nvfp4", "fp4_mx_block16")


class Missing:
    """Finds stand-ins for packages that need a GPU or have nothing to do with sizes."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """A module of nothing for what is on the list."""
        if name.partition(".")[0] not in ABSENT:
            return None
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> Any:
        """Something that has every attribute."""
        return mock.MagicMock(__spec__=spec, __path__=[], __version__="3.6.0")

    def exec_module(self, module: Any) -> None:
        """Nothing to run."""


def version(folder: str) -> str:
    """Version of the wheel that was unzipped there."""
    return next(Path(folder).glob("*.dist-info")).name.split("-")[1].removesuffix(".dist")


def lmdeploy(folder: str) -> dict[str, Any]:
    """Bytes of a block of all layers on one card."""
    import torch
    from lmdeploy.messages import QuantPolicy
    from lmdeploy.pytorch.backends.default.cache import DefaultCacheBackend
    from lmdeploy.pytorch.config import CacheConfig, ModelConfig
    from lmdeploy.pytorch.engine.cache_engine import plan, schema, state

    fake = SimpleNamespace(
        get_k_block_shape=lambda block, heads, dim, _: (block, heads, dim),
        get_v_block_shape=lambda block, heads, dim, _: (block, heads, dim),
        get_cache_backend=lambda: DefaultCacheBackend,
    )
    cases = []
    with mock.patch.object(plan, "get_backend", lambda: fake), mock.patch.object(
        schema, "get_backend", lambda: fake
    ), mock.patch.object(state, "get_backend", lambda: fake):  # fmt: skip
        for name in ("llama-3.1-8b", "gemma-3-27b", "gpt-oss-20b", "qwen3-next-80b",
                     "deepseek-v3"):  # fmt: skip
            layers = [x for x in MODELS[name] if "kv_heads" in x]
            first = layers[0]
            for kind, policy in LMDEPLOY_TYPES.items():
                for cards in (1, 2):
                    heads = first["kv_heads"] if first["kind"] != "latent" else cards
                    config = ModelConfig(
                        hidden_size=1, num_layers=len(layers), num_attention_heads=heads * 2,
                        num_key_value_heads=heads, bos_token_id=0, eos_token_id=[0],
                        head_dim=first["k_dim"], k_head_dim=first["k_dim"],
                        v_head_dim=first["v_dim"], dtype=torch.bfloat16,
                    )  # fmt: skip
                    if first["kind"] == "latent" and kind != "f16":
                        continue  # backends/cuda/attention/mla.py asserts that there is none
                    cache = CacheConfig(1, 64, 0, 0, quant_policy=QuantPolicy(policy))
                    made = plan.build_block_cache_plan(config, cache, cards)
                    cases.append({"model": name, "type": kind, "cards": cards, "block": 64,
                                  "bytes": made.logical_block_nbytes})  # fmt: skip
        gdn = next(x for x in MODELS["qwen3-next-80b"] if x["kind"] == "recurrent")
        shapes = [((36, gdn["conv"] // 3, 4), torch.bfloat16),
                  ((36, 32, 128, 128), torch.bfloat16)]  # fmt: skip
        slot = state.StateCacheEngine.get_state_slot_nbytes(shapes)
    return {"version": version(folder), "blocks": cases, "qwen3_next_slot": slot}


def sglang(folder: str) -> dict[str, Any]:
    """Bytes of a token on one card, and the sizes of prefill graphs."""
    import torch
    from sglang.srt.layers.quantization import fp4_kv_cache_quant_method as fp4
    from sglang.srt.model_executor import pool_configurator as pools

    graph_sizes: dict[str, int] = {}
    from sglang.srt.arg_groups.cuda_graph_hook import generate_prefill_cuda_graph_batch_sizes

    for largest in (2048, 4096, 8192, 16384):
        graph_sizes[str(largest)] = len(generate_prefill_cuda_graph_batch_sizes(largest))
    dtypes = {"f16": torch.bfloat16, "fp8_e4m3": torch.float8_e4m3fn}
    cells = []
    for name in ("llama-3.1-8b", "gemma-3-27b", "deepseek-v3"):
        layers = [x for x in MODELS[name] if "kv_heads" in x]
        first = layers[0]
        for kind in SGLANG_TYPES:
            if name == "deepseek-v3" and kind == "nvfp4":
                continue
            for cards in (1, 2):
                config = SimpleNamespace(
                    hf_config=SimpleNamespace(architectures=["X"]), hf_text_config=None,
                    kv_lora_rank=512, qk_rope_head_dim=64, head_dim=first["k_dim"],
                    v_head_dim=first["v_dim"], is_hybrid_swa=False,
                    get_num_kv_heads=lambda tp, dcp=1, n=first["kv_heads"]: max(1, n // tp),
                )  # fmt: skip
                kvc = SimpleNamespace(
                    model_config=config, kv_cache_dtype=dtypes.get(kind, torch.float4_e2m1fn_x2),
                    kv_cache_dtype_str=kind, use_mla_backend=first["kind"] == "latent",
                    server_args=SimpleNamespace(enable_hisparse=False), device="cpu", page_size=1,
                )  # fmt: skip
                method = None
                if kind in ("nvfp4", "fp4_mx_block16"):
                    made = fp4.get_kv_cache_quant_method(kind, num_layers=1, device="cpu",
                                                         page_size=1)  # fmt: skip
                    # What FlashInfer's prefill makes of it; SM100 stores its own scales instead.
                    made.configure_attention_backends_from_server_args = lambda _: None
                    made.needs_dequant_workspace = lambda k=kind: k == "nvfp4"
                    made.dequant_workspace_dtype = lambda k=kind: (
                        torch.float8_e4m3fn if k == "nvfp4" else None)  # fmt: skip
                    made.needs_linear_scale_buffer = lambda: True
                    made.needs_native_fp4_scales = lambda: False
                    method = made
                self = mock.MagicMock(kv_cache_dtype_str=kind)
                self._compute_qsa_cell_size.return_value = 0
                with (
                    mock.patch.object(pools, "get_parallel", lambda n=cards: SimpleNamespace(
                        attn_tp_size=n, attn_dcp_size=1)),
                    mock.patch.object(pools, "is_deepseek_dsa", lambda _: False),
                    mock.patch.object(pools, "is_float4_e2m1fn_x2",  # False without a GPU
                                      lambda dtype: dtype == torch.float4_e2m1fn_x2),
                    mock.patch.object(pools, "is_minimax_sparse", lambda _: False),
                    mock.patch("sglang.srt.layers.cp.utils."
                               "get_glm_dsa_layer_split_effective_num_layers", lambda _, n: n),
                    mock.patch("sglang.srt.mem_cache.kv_cache_configurator."
                               "calculate_mla_kv_cache_dim", lambda **_: 576),
                    mock.patch.object(fp4, "get_kv_cache_quant_method", 
                                      lambda *_, m=method, **__: m),
                ):  # fmt: skip
                    size = pools.DefaultPoolConfigurator._compute_cell_size(self, kvc, len(layers))
                cells.append({"model": name, "type": kind, "cards": cards, "bytes": size})
    hybrid = []
    for name in ("gemma-4-31b", "gpt-oss-20b"):
        layers = MODELS[name]
        full, narrow = (next(x for x in layers if x["kind"] == k) for k in ("global", "sliding"))
        n_full = sum(x["kind"] == "global" for x in layers)
        for kind in ("f16", "fp8_e4m3"):
            for cards in (1, 2):
                config = SimpleNamespace(
                    attention_arch=None, hf_config=None, head_dim=full["k_dim"],
                    v_head_dim=full["v_dim"], swa_head_dim=narrow["k_dim"],
                    swa_v_head_dim=narrow["v_dim"],
                    get_num_kv_heads=lambda tp, n=full["kv_heads"]: max(1, n // tp),
                    get_swa_num_kv_heads=lambda tp, n=narrow["kv_heads"]: max(1, n // tp),
                )  # fmt: skip
                nothing = SimpleNamespace(is_eagle=lambda: False, is_standalone=lambda: False,
                                          is_dflash_family=lambda: False)  # fmt: skip
                kvc = SimpleNamespace(
                    model_config=config, kv_cache_dtype=dtypes[kind], kv_cache_dtype_str=kind,
                    layer_info=SimpleNamespace(
                        full_attention_layer_ids=range(n_full),
                        swa_attention_layer_ids=range(len(layers) - n_full)),
                    sliding_window_size=narrow["window"], page_size=1, spec_algorithm=nothing,
                    is_draft_worker=False, fused_entry_bytes=lambda _: None,
                )  # fmt: skip
                with (
                    mock.patch.object(pools, "get_parallel", lambda n=cards: SimpleNamespace(
                        attn_tp_size=n, attn_dcp_size=1)),
                    mock.patch.object(pools, "get_schedule", lambda: SimpleNamespace(
                        swa_full_tokens_ratio=0.8)),
                    mock.patch.object(pools, "get_memory", lambda: SimpleNamespace(
                        enable_unified_memory=False)),
                ):  # fmt: skip
                    pool = pools.HybridSWAPoolConfigurator(kvc)
                    for tokens in (8192, 131072, 4 * 131072):
                        made = pool.calculate_pool_sizes_from_max_tokens(tokens, 1)
                        hybrid.append({
                            "model": name, "type": kind, "cards": cards, "tokens": tokens,
                            "full_tokens": made.full_max_total_num_tokens,
                            "sliding_tokens": made.swa_max_total_num_tokens,
                            "full_token_bytes": pool._full_cell_bytes(),
                            "sliding_token_bytes": pool._swa_cell_bytes(),
                        })  # fmt: skip
    return {"version": version(folder), "cells": cells, "hybrid": hybrid,
            "prefill_graphs": graph_sizes}  # fmt: skip


def child(engine: str, folder: str) -> None:
    """One engine, as JSON on stdout."""
    sys.path.insert(0, folder)
    warnings.simplefilter("ignore")
    sys.meta_path.insert(0, Missing())
    json.dump({"lmdeploy": lmdeploy, "sglang": sglang}[engine](folder), sys.stdout)


def main() -> None:
    """Run both, store what they say."""
    if sys.argv[1:2] == ["--child"]:
        return child(*sys.argv[2:4])
    found = {}
    for engine, folder in zip(("lmdeploy", "sglang"), sys.argv[1:], strict=True):
        done = subprocess.run([sys.executable, __file__, "--child", engine, folder], text=True,
                              stdout=subprocess.PIPE, check=True)  # fmt: skip
        found[engine] = json.loads(done.stdout.splitlines()[-1])
        print(f"{engine} {found[engine]['version']}")
    save("plan_pools", found)


if __name__ == "__main__":
    main()
