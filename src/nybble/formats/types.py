"""The KV types: how one side of the cache is stored, in bits and blocks.

Sizes follow ggml's block layouts (ggml-common.h of llama.cpp): a block of 32 elements holds the
codes, an fp16 scale and, for the _1 types, an fp16 minimum. The codecs themselves arrive with
one file per type; this table is what planning, engines and the CLI need of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from nybble.errors import NybbleError, nearest


@dataclass(frozen=True)
class KVType:
    """One way to store K or V.

    Attributes:
        name: the name users write, for example "q4_0".
        ggml_id: the enum value in ggml.h, or None for a type ggml does not have.
        block: elements that share one scale; a head's dimension must be a multiple of it.
        block_bytes: bytes a block takes, scales included.
        layout: how a block's bits are spent, in words.
        engines: engines that accept the type for a KV cache.
    """

    name: str
    ggml_id: int | None
    block: int
    block_bytes: int
    layout: str
    engines: tuple[str, ...] = ("llama.cpp",)

    @property
    def bits(self) -> float:
        """Bits an element, scales included."""
        return self.block_bytes * 8 / self.block

    @property
    def quantized(self) -> bool:
        """Whether codes share a scale; False for plain floats."""
        return self.block > 1


_OLLAMA = ("llama.cpp", "ollama")

KV_TYPES: dict[str, KVType] = {
    t.name: t
    for t in (
        KVType("f32", 0, 1, 4, "32-bit float; flash attention on the CPU reads it as f16"),
        KVType("f16", 1, 1, 2, "16-bit float: 5-bit exponent, 10-bit mantissa", _OLLAMA),
        KVType("bf16", 30, 1, 2, "16-bit float: 8-bit exponent, 7-bit mantissa"),
        KVType("q8_0", 8, 32, 34, "32 x int8 + fp16 scale", _OLLAMA),
        KVType("q5_1", 7, 32, 24, "32 x 5 bits + fp16 scale + fp16 minimum"),
        KVType("q5_0", 6, 32, 22, "32 x 5 bits + fp16 scale"),
        KVType("q4_1", 3, 32, 20, "32 x 4 bits + fp16 scale + fp16 minimum"),
        KVType("q4_0", 2, 32, 18, "32 x 4 bits + fp16 scale", _OLLAMA),
        KVType("iq4_nl", 20, 32, 18, "32 x 4 bits into a fixed non-linear table + fp16 scale"),
    )
}


def kv_type(name: str) -> KVType:
    """Look a KV type up by name.

    Raises:
        NybbleError: unknown name; names the nearest match and all known ones.
    """
    found = KV_TYPES.get(name.strip().lower())
    if found is None:
        near = nearest(name, KV_TYPES)
        raise NybbleError(
            "unknown KV type" + (f"; did you mean {near}?" if near else ""),
            seen=name,
            allowed=KV_TYPES,
            hint="nybble formats",
        )
    return found
