"""Cases of the conformance file that are worked by hand, each with its arithmetic and source."""

from __future__ import annotations

from typing import Any


def _cases(
    engine: str, version: str, source: str, *rows: tuple[Any, ...], counts: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """Rows of model, setting, context, sequences, arithmetic."""
    names = ("model", "setting", "context", "sequences", "arithmetic")
    more = {"counts": list(counts)} if counts else {}
    return [
        {"engine": engine, "version": version, "source": source,
         **dict(zip(names, row, strict=True)), **more}
        for row in rows
    ]  # fmt: skip


# Rows are 128 elements unless said otherwise: 64 + 8 B at 4 bits with a scale for 32 elements.
HAND = [
    *_cases(
        "exllamav2", "0.3.2", "exllamav2 0.3.2 cache.py: shape_wk, shape_wv, shape_s, FP16 scales",
        ("llama-3.1-8b", "f16/f16", 131072, 1, "131072 * 32 * 8 * (256 + 256)"),
        ("llama-3.1-8b", "exl2_q8/exl2_q8", 32768, 1, "32768 * 32 * 8 * 2 * (128 + 4 * 2)"),
        ("llama-3.1-8b", "exl2_q8/exl2_q4", 999, 5, "5 * 999 * 32 * 8 * (136 + 72)"),
        ("llama-3.1-8b", "exl2_q4/exl2_q4", 131072, 1, "131072 * 32 * 8 * 2 * (64 + 4 * 2)"),
        ("gemma-3-27b", "exl2_q4/exl2_q4", 8192, 2, "2 * 8192 * 62 * 16 * 2 * 72"),
    ),
    *_cases(
        "exllamav3", "1.6.5",
        "exllamav3 1.6.5 cache/quant.py storage_size, generator/job.py (pages of 256 a sequence), "
        "modules/sliding_attn.py kv_state_size (window - 1 + 512 up to pages), cache/mla.py",
        ("llama-3.1-8b", "f16/f16", 300, 10, "10 * 512 * 32 * 8 * 512"),
        ("llama-3.1-8b", "exl3_8/exl3_8", 131072, 1, "131072 * 32 * 8 * 2 * 4 * (4 * 8 + 2)"),
        ("llama-3.1-8b", "exl3_4/exl3_4", 131072, 1, "131072 * 32 * 8 * 2 * 4 * (4 * 4 + 2)"),
        ("llama-3.1-8b", "exl3_5/exl3_4", 8192, 4, "4 * 8192 * 32 * 8 * 4 * (22 + 18)"),
        ("gemma-3-27b", "f16/f16", 8192, 1, "(10 * 8192 + 52 * 1536) * 16 * 512"),
        ("gemma-3-27b", "exl3_4/exl3_4", 8192, 3,
         "3 * (10 * 8192 * 16 * 2 * 72 + 52 * 1536 * 16 * 512)"),
        ("gemma-4-31b", "exl3_6/exl3_6", 65536, 1,
         "10 * 65536 * 4 * 2 * 16 * (4 * 6 + 2) + 50 * 1536 * 16 * 2 * 512"),
        ("gpt-oss-20b", "f16/f16", 8192, 1, "12 * (8192 + 768) * 8 * 256"),
        ("deepseek-v3", "exl3_4/exl3_4", 4096, 1, "4096 * 61 * (16 * (4 * 4 + 2) + 64 * 2)"),
    ),
    *_cases(
        "mlx-lm", "0.32.2",
        "mlx-lm 0.32.2 models/cache.py: step 256, RotatingKVCache._update_concat (window - 1 + "
        "2,048 at the end of a chunk), QuantizedKVCache (scale and bias of 64 elements, 2 B each)",
        ("llama-3.1-8b", "f16/f16", 5000, 1, "5120 * 32 * 8 * 512"),
        ("llama-3.1-8b", "mlx_8/mlx_8", 131072, 1, "131072 * 32 * 8 * 2 * (128 + 2 * 4)"),
        ("llama-3.1-8b", "mlx_4/mlx_4", 8193, 2, "2 * 8448 * 32 * 8 * 2 * (64 + 2 * 4)"),
        ("gemma-3-27b", "f16/f16", 8192, 1, "(10 * 8192 + 52 * 3071) * 16 * 512"),
        ("gemma-4-31b", "f16/f16", 131072, 1, "131072 * 10 * 4 * 2048 + 3071 * 50 * 16 * 1024"),
        ("deepseek-v3", "f16/f16", 1024, 1, "1024 * 61 * (512 + 64) * 2"),
    ),
    *_cases(
        "tensorrt-llm", "1.3.0rc27",
        "NVIDIA/TensorRT-LLM at 001541b, resource_manager.py get_cache_bytes_per_token and "
        "calculate_scaling_factor_size_bytes; blocks of 32 tokens; read, never run",
        ("llama-3.1-8b", "f16/f16", 1000, 3, "3 * 1024 * 32 * 8 * 512"),
        ("llama-3.1-8b", "fp8_e4m3/fp8_e4m3", 131072, 1, "131072 * 32 * 8 * 256"),
        ("llama-3.1-8b", "nvfp4/nvfp4", 131072, 1, "131072 * 32 * 8 * 2 * (64 + 8)"),
        ("deepseek-v3", "fp8_e4m3/fp8_e4m3", 4096, 1, "4096 * 61 * 576"),
    ),
    *_cases(
        "transformers", "5.23.0",
        "transformers 5.23.0 cache_utils.py QuantizedLayer, all tokens quantized; groups of 64 "
        "with FP16 scale and zero point (hqq, optimum-quanto)",
        ("llama-3.1-8b", "hqq_8/hqq_8", 8192, 1, "8192 * 32 * 8 * 2 * (128 + 2 * 4)"),
        ("llama-3.1-8b", "hqq_4/hqq_4", 8192, 4, "4 * 8192 * 32 * 8 * 2 * (64 + 2 * 4)"),
        ("llama-3.1-8b", "quanto_4/quanto_4", 8192, 1, "8192 * 32 * 8 * 2 * (64 + 2 * 4)"),
        ("llama-3.1-8b", "quanto_2/quanto_2", 8192, 1, "8192 * 32 * 8 * 2 * (32 + 2 * 4)"),
    ),
    *_cases(
        "vllm", "0.33.0", "vLLM 0.33.0 FullAttentionSpec: blocks of 16 tokens and the null block",
        ("llama-3.1-8b", "int4_per_token_head/int4_per_token_head", 100, 1,
         "(7 + 1) * 16 * 32 * 8 * 2 * (64 + 4)"),
        ("llama-3.1-8b", "f16/f16", 131072, 4, "(4 * 8192 + 1) * 16 * 32 * 8 * 512"),
    ),
    *_cases(
        "mlx-lm", "0.32.2", "mlx-lm 0.32.2 ArraysCache: 3 past inputs in 16 bits, states in 32",
        ("qwen3-next-80b", "f16/f16", 1024, 2, "2 * 36 * (24576 * 2 + 524288 * 4)"),
        counts=("state",),
    ),
]  # fmt: skip
