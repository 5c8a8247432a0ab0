"""The value and tensor types of GGUF files, and what a header is read into.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, `ggml/include/ggml.h` (ids) and
`ggml/src/ggml-common.h` (block sizes).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import TypeAlias

# Value types: id -> (name, struct code); their sizes are those of struct's standard mode.
SCALARS: Mapping[int, tuple[str, str]] = MappingProxyType({
    0: ("uint8", "B"), 1: ("int8", "b"), 2: ("uint16", "H"), 3: ("int16", "h"),
    4: ("uint32", "I"), 5: ("int32", "i"), 6: ("float32", "f"), 7: ("bool", "?"),
    10: ("uint64", "Q"), 11: ("int64", "q"), 12: ("float64", "d"),
})  # fmt: skip
STRING, ARRAY = 8, 9

# Tensor types: id -> (name, elements per block, bytes per block). Source: ggml.h and ggml-common.h.
# A table of our own because gguf 0.19 (GGML_QUANT_SIZES) lacks Q2_0, which llama.cpp loads.
TENSOR_TYPES: Mapping[int, tuple[str, int, int]] = MappingProxyType({
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4),
    27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
})  # fmt: skip

# general.file_type -> its name. Source: enum llama_ftype of llama.cpp's llama.h.
FILE_TYPES = MappingProxyType(dict(
    [(0, "F32"), (1, "F16"), (2, "Q4_0"), (3, "Q4_1")]
    + list(enumerate(("Q8_0 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K "
                      "IQ2_XXS IQ2_XS Q2_K_S IQ3_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ3_M IQ2_S IQ2_M "
                      "IQ4_XS IQ1_M BF16").split(), start=7))
    + list(enumerate("TQ1_0 TQ2_0 MXFP4_MOE NVFP4 Q1_0 Q2_0".split(), start=36))
))  # fmt: skip


@dataclass(frozen=True)
class ArraySummary:
    """A long array (or one very long text) that was skipped and hashed instead of kept.

    `type` is the entry type ("string", "float32", ...) and `count` the number of entries; for one
    text they are "text" and its bytes. `sha256` is the hash of the raw entries as stored, string
    lengths included.
    """

    type: str
    count: int
    sha256: str


Value: TypeAlias = "bool | int | float | str | ArraySummary | tuple[Value, ...]"


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: `shape` in ggml order (the row length first), `n_bytes` its size in the file.

    `offset` is in bytes from `GGUFHeader.data_offset`.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    n_bytes: int
    offset: int

    @property
    def n_elements(self) -> int:
        """Number of weights in the tensor."""
        return prod(self.shape)


@dataclass(frozen=True)
class GGUFHeader:
    """What a GGUF file says about itself. Offsets and `file_size` are in bytes.

    `infos_offset` is where the key/value section ends and the tensor infos start.
    """

    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...]
    alignment: int
    infos_offset: int
    data_offset: int
    file_size: int

    @property
    def split_count(self) -> int:
        """Number of files the model is split into; 1 when it is whole."""
        count = self.metadata.get("split.count", 1)
        return max(count, 1) if isinstance(count, int) else 1

    def tokenizer_hash(self) -> str | None:
        """Return a SHA-256 equal for two files with the same vocabulary; None without tokens.

        It covers the tokens, merges, scores, token types, the tokenizer model and its
        pre-tokenizer; not the special token ids or the chat template.
        """
        if "tokenizer.ggml.tokens" not in self.metadata:
            return None
        digest = hashlib.sha256()
        for name in ("model", "pre", "tokens", "merges", "scores", "token_type"):
            value = self.metadata.get(f"tokenizer.ggml.{name}")
            digest.update(f"{name}={value!r}\n".encode())
        return digest.hexdigest()
