"""Shapes of known models, built by hand from their published configs."""

from __future__ import annotations

from typing import Any

from nybble.models.geometry import Geometry, Layer, State


def geometry(architecture: str, layers: list[Layer], **more: Any) -> Geometry:
    """A model of these layers; the rest does not matter to the cache."""
    fields = {"hidden": 4096, "intermediate": 14336, "vocabulary": 128256,
              "context_length": 131072} | more  # fmt: skip
    return Geometry(architecture, architecture, tuple(layers), **fields)


def full(heads: int, dim: int, **more: Any) -> Layer:
    return Layer("global", 32, heads, dim, dim, **more)


def sliding(heads: int, dim: int, window: int, **more: Any) -> Layer:
    return Layer("sliding", 32, heads, dim, dim, window=window, **more)


def shared(source: int) -> Layer:
    return Layer("shared", 8, source=source)


# Elements of Qwen3-Next's Gated DeltaNet: 16 K and 32 V heads of 128, kernel 4.
GDN = State((2 * 16 * 128 + 32 * 128) * 3, 32 * 128 * 128)

LLAMA = geometry("llama", [full(8, 128)] * 32)
GEMMA3 = geometry(
    "gemma3_text",
    ([sliding(16, 128, 1024)] * 5 + [full(16, 128)]) * 10 + [sliding(16, 128, 1024)] * 2,
    hidden=5376, intermediate=21504, vocabulary=262208,
)  # fmt: skip
GEMMA4 = geometry(
    "gemma4_text", ([sliding(16, 256, 1024)] * 5 + [full(4, 512)]) * 10,
    hidden=5376, intermediate=21504, vocabulary=262144,
)  # fmt: skip
GEMMA4_E4B = geometry(
    "gemma4_text",
    ([sliding(2, 256, 512)] * 5 + [full(2, 512)]) * 4
    + ([shared(22)] * 5 + [shared(23)]) * 3,
    hidden=2560, intermediate=10240, vocabulary=262144,
)  # fmt: skip
GPT_OSS = geometry(
    "gpt_oss", [sliding(8, 64, 128, sinks=True), full(8, 64, sinks=True)] * 12,
    hidden=2880, intermediate=11520, vocabulary=201088,
)  # fmt: skip
QWEN3_NEXT = geometry(
    "qwen3_next", ([Layer("recurrent", state=GDN)] * 3 + [full(2, 256)]) * 12,
    hidden=2048, intermediate=5632, vocabulary=151936, context_length=262144,
)  # fmt: skip
DEEPSEEK_V3 = geometry(
    "deepseek_v3", [Layer("latent", 128, 1, 576, 0, rope_dim=64)] * 61,
    hidden=7168, intermediate=18432, vocabulary=129280, context_length=163840,
)  # fmt: skip

KDA = State(3 * 4096 * 3, 32 * 128 * 128)
LATENT = DEEPSEEK_V3.layers[0]

BY_NAME = {
    "qwen3.5-like": geometry(
        "qwen3_5_text", ([Layer("recurrent", state=GDN)] * 3 + [full(4, 256)]) * 8
    ),
    "kimi-linear-like": geometry(
        "kimi_linear", ([Layer("recurrent", state=KDA)] * 3 + [LATENT]) * 7
    ),
    "nearly-even": geometry("x", [sliding(8, 64, 128), full(8, 64)] * 12 + [full(8, 64)]),
    "two-windows": geometry(
        "x", ([sliding(4, 128, 512)] * 3 + [sliding(4, 128, 4096)] * 2 + [full(4, 128)]) * 5
    ),
    "llama-3.1-8b": LLAMA,
    "gemma-3-27b": GEMMA3,
    "gemma-4-31b": GEMMA4,
    "gemma-4-e4b": GEMMA4_E4B,
    "gpt-oss-20b": GPT_OSS,
    "qwen3-next-80b": QWEN3_NEXT,
    "deepseek-v3": DEEPSEEK_V3,
}
