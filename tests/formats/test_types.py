"""The table of KV types against ggml's own block sizes."""

from __future__ import annotations

import gguf
import pytest
from gguf.constants import GGML_QUANT_SIZES

from nybble.errors import NybbleError
from nybble.formats import KV_TYPES, kv_type

# The types llama.cpp's --cache-type-k takes (kv_cache_types in common/arg.cpp).
NINE = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")


def test_the_nine_types() -> None:
    assert set(KV_TYPES) == set(NINE)
    assert all(name == kind.name for name, kind in KV_TYPES.items())


@pytest.mark.parametrize("name", NINE)
def test_blocks_are_ggmls(name: str) -> None:
    kind = KV_TYPES[name]
    ggml = gguf.GGMLQuantizationType[name.upper()]
    block, size = GGML_QUANT_SIZES[ggml]
    assert kind.ggml_id == ggml.value
    assert (kind.block, kind.block_bytes) == (block, size)
    assert kind.bits == size * 8 / block
    assert kind.quantized == (block > 1)


@pytest.mark.parametrize(
    ("name", "bits"), [("f16", 16), ("q8_0", 8.5), ("q5_1", 6), ("q4_0", 4.5), ("iq4_nl", 4.5)]
)
def test_bits_in_numbers(name: str, bits: float) -> None:
    assert KV_TYPES[name].bits == bits


def test_lookup_forgives_case_and_blanks() -> None:
    assert kv_type(" Q8_0 ") is KV_TYPES["q8_0"]


@pytest.mark.parametrize(("typed", "near"), [("q8", "q8_0"), ("Q4-0", "q4_0"), ("fp16", "f16")])
def test_unknown_names_nearest(typed: str, near: str) -> None:
    with pytest.raises(NybbleError) as caught:
        kv_type(typed)
    assert f"did you mean {near}?" in caught.value.what
    assert caught.value.seen == typed
    assert caught.value.allowed == ", ".join(KV_TYPES)
    assert caught.value.hint == "nybble formats"


def test_unknown_without_anything_near() -> None:
    with pytest.raises(NybbleError) as caught:
        kv_type("xyzzy")
    assert "did you mean" not in caught.value.what
