"""Shapes and sizes of the models in published_speed.csv, from their published configs.

Sizes are those that the cited run or its engine prints; where a file's parts are not known, the
input embedding is taken at the file's mean bits a weight.
"""

from __future__ import annotations

from nybble.models.geometry import Geometry, Layer, Weights
from nybble.planning.roofline import Experts

GIB = 2**30


def _dense(
    name: str,
    layers: tuple[Layer, ...],
    hidden: int,
    vocabulary: int,
    params: float,
    n_bytes: float,
    tied: bool = False,
    types: tuple[str, ...] = (),
) -> tuple[Geometry, Experts | None]:
    embedding = 0.0 if tied else hidden * vocabulary * n_bytes / params
    weights = Weights(
        int(n_bytes),
        int(params),
        int(n_bytes - embedding),
        int(params - (0 if tied else hidden * vocabulary)),
        "published",
        dict.fromkeys(types, 0),
    )
    return Geometry(name, "", layers, hidden, 0, vocabulary, 0, weights), None


def _plain(n: int, heads: int, kv_heads: int, dim: int = 128) -> tuple[Layer, ...]:
    return (Layer("global", heads, kv_heads, dim, dim),) * n


GEMMA_31B = tuple(
    Layer("global", 32, 4, 512, 512)
    if i % 6 == 5
    else Layer("sliding", 32, 16, 256, 256, window=1024)
    for i in range(60)
)


GEMMA_3_4B = tuple(
    Layer("global", 8, 4, 256, 256) if i % 6 == 5 else Layer("sliding", 8, 4, 256, 256, window=1024)
    for i in range(34)
)


def _gemma(name: str, n_bytes: float) -> tuple[Geometry, Experts | None]:
    return _dense(name, GEMMA_31B, 5376, 262_144, 30.7e9, n_bytes, tied=True)


def _mixture(
    name: str,
    layers: tuple[Layer, ...],
    hidden: int,
    vocabulary: int,
    width: int,
    total: int,
    chosen: int,
    rest: float,
    expert_bits: float,
    n_bytes: float,
    types: tuple[str, ...] = (),
) -> tuple[Geometry, Experts | None]:
    """`rest`: weights that every token passes, the output matrix included."""
    n_expert = total * 3 * hidden * width * len(layers)
    expert_bytes = n_expert * expert_bits / 8
    embedding = hidden * vocabulary
    each = (n_bytes - expert_bytes) / (rest + embedding)
    share = chosen / total
    weights = Weights(
        int(n_bytes),
        int(n_expert + rest + embedding),
        int(rest * each + share * expert_bytes),
        int(rest + share * n_expert),
        "published",
        dict.fromkeys(types, 0),
    )
    geometry = Geometry(name, "", layers, hidden, 0, vocabulary, 0, weights)
    return geometry, Experts(total, chosen, int(expert_bytes))


def _gpt_oss(name: str, n: int, experts: int, n_bytes: float) -> tuple[Geometry, Experts | None]:
    pair = (Layer("sliding", 64, 8, 64, 64, window=128), Layer("global", 64, 8, 64, 64))
    attention = (2880 * 4096 * 2 + 2880 * 512 * 2) * n
    rest = attention + 2880 * 201_088
    layers = pair * (n // 2)
    return _mixture(name, layers, 2880, 201_088, 2880, experts, 4, rest, 4.25, n_bytes, ("mxfp4",))


def models() -> dict[str, tuple[Geometry, Experts | None]]:
    """Every model of the file, by its name there."""
    llama3, llama2 = _plain(32, 32, 8), _plain(32, 32, 32)
    big = _plain(80, 64, 8)
    qwen_rest = (2048 * 4096 * 2 + 2048 * 512 * 2 + 2048 * 128) * 48 + 2048 * 151_936
    found = [
        _gemma("gemma-4-31b-qat-q4", 16.09 * GIB),
        _gemma("gemma-4-31b-q4-k-m", 19e9),
        _gemma("gemma-4-31b-q6-k", 30.7e9 * 6.5625 / 8),
        _gemma("gemma-4-31b-bf16", 61.4e9),
        _dense("llama-3-8b-q4-k-m", llama3, 4096, 128_256, 8.03e9, 4.58 * GIB),
        _dense("llama-3-8b-q4-0", llama3, 4096, 128_256, 8.03e9, 4.33 * GIB),
        _dense("llama-3-8b-f16", llama3, 4096, 128_256, 8.03e9, 14.96 * GIB),
        _dense("llama-3-70b-q4-k-m", big, 8192, 128_256, 70.55e9, 39.59 * GIB),
        _dense("llama-3-70b-f16", big, 8192, 128_256, 70.55e9, 131.42 * GIB),
        # 38.50 GB of layers and 2.10 GB of output matrix are read for each token, embedding apart.
        _dense("llama-3-70b-nvfp4", big, 8192, 128_256, 70.55e9, 41.2e9, types=("nvfp4",)),
        _dense("llama-2-7b-q4-0", llama2, 4096, 32_000, 6.74e9, 3.56 * GIB),
        _dense("llama-2-7b-f16", llama2, 4096, 32_000, 6.74e9, 12.55 * GIB),
        _dense("llama-2-70b-q4-0", big, 8192, 32_000, 68.98e9, 36.37 * GIB),
        _dense("qwen3-8b-q4-k-m", _plain(36, 32, 8), 4096, 151_936, 8.19e9, 5.03e9),
        _dense("qwen2.5-coder-7b-q8-0", _plain(28, 28, 4), 3584, 152_064, 7.62e9, 7.54 * GIB),
        _dense("devstral-small-2-q4-k-m", _plain(40, 32, 8), 5120, 131_072, 23.57e9, 14.33e9),
        _dense("gemma-3-4b-qat-q4", GEMMA_3_4B, 2560, 262_144, 3.88e9, 2.35 * GIB, tied=True),
        _dense("tinyllama-1.1b-q4-k-m", _plain(22, 32, 4, 64), 2048, 32_000, 1.1e9, 636.18 * 2**20),
        _dense("llama-3.2-3b-q4-k-m", _plain(28, 24, 8), 3072, 128_256, 3.21e9, 1.87 * GIB, True),
        _dense("llama-2-13b-q4-k-m", _plain(40, 40, 40), 5120, 32_000, 13.02e9, 7.33 * GIB),
        _dense("qwen3-4b-q4-k-m", _plain(36, 32, 8), 2560, 151_936, 4.02e9, 2.5e9, tied=True),
        _gpt_oss("gpt-oss-20b", 24, 32, 11.27 * GIB),
        _gpt_oss("gpt-oss-120b", 36, 128, 59.02 * GIB),
        _mixture(
            "qwen3-coder-30b-a3b-q8-0", _plain(48, 32, 4), 2048, 151_936, 768, 128, 8,
            qwen_rest, 8.5, 30.25 * GIB,
        ),
    ]  # fmt: skip
    return {geometry.name: (geometry, experts) for geometry, experts in found}
