"""What every codec of vLLM, SGLang and LMDeploy must do: shapes, bytes, edges, any device."""

from __future__ import annotations

import pytest
import torch

from nybble.formats import (
    fp4_mx_block16,
    fp8,
    fp8_per_token_head,
    int4_per_token_head,
    int8_per_token_head,
    lmdeploy,
    nvfp4,
    turboquant,
)
from nybble.formats.kvtype import KVType
from nybble.formats.reads import ALL, CHUNK

FILES = (fp8, int8_per_token_head, fp8_per_token_head, int4_per_token_head, nvfp4,
         fp4_mx_block16, lmdeploy, turboquant)  # fmt: skip
TYPES = {t.name: t for file in FILES for t in file.TYPES}

# Bits an element: codes, and the scales of a head of 128 or of a block of 16.
BITS = {
    "fp8_e4m3": 8,
    "fp8_e5m2": 8,
    "int8_per_token_head": 8 + 32 / 128,
    "fp8_per_token_head": 8 + 32 / 128,
    "int4_per_token_head": 4 + 32 / 128,
    "nvfp4": 4 + 8 / 16,
    "nvfp4_4over6": 4 + 8 / 16,
    "fp4_mx_block16": 4 + 8 / 16,
    "lmdeploy_int4": 4 + 32 / 128,
    "lmdeploy_int8": 8 + 32 / 128,
    "turboquant_k4": 4 + 16 / 128,
    "turboquant_v4": 4 + 32 / 128,
}

every = pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)


def test_names_and_bits() -> None:
    assert {name: t.bits for name, t in TYPES.items()} == BITS


@every
def test_attributes(kind: KVType) -> None:
    assert kind.quantized and kind.engines and kind.source and kind.ggml_id is None
    assert kind.sides == {"turboquant_k4": "K", "turboquant_v4": "V"}.get(kind.name, "KV")
    chunked = kind.name in ("fp4_mx_block16", "turboquant_k4", "turboquant_v4")
    assert kind.reads == (CHUNK if chunked else ALL)


@every
@pytest.mark.parametrize("head_dim", [64, 128, 256, 512])
def test_shapes_and_bytes(kind: KVType, head_dim: int) -> None:
    x = torch.randn(2, 3, 5, head_dim, generator=torch.Generator().manual_seed(head_dim))
    data = kind.quantize(x)
    assert kind.fits(head_dim)
    assert data.dtype == torch.uint8
    assert data.shape == (2, 3, 5, kind.row_bytes(head_dim))
    assert kind.bytes_stored(5, head_dim) == data[0, 0].numel()
    back = kind.dequantize(data, head_dim)
    assert back.dtype == torch.float32 and back.shape == x.shape
    assert ((back - x).norm() / x.norm()).item() < 0.15


@every
def test_tokens_are_stored_apart(kind: KVType) -> None:
    x = torch.randn(4, 7, 128, generator=torch.Generator().manual_seed(1))
    data = kind.quantize(x)
    turned = kind.quantize(x.transpose(0, 1))  # not contiguous
    # The matrix product of turboquant_k4 may add in another order for another shape.
    assert (turned.transpose(0, 1) != data).float().mean().item() < 0.001
    one = kind.dequantize(kind.quantize(x[2, 3:4]), 128)
    torch.testing.assert_close(one, kind.dequantize(data, 128)[2, 3:4])


@every
def test_no_tokens(kind: KVType) -> None:
    data = kind.quantize(torch.zeros(2, 0, 128))
    assert data.shape == (2, 0, kind.row_bytes(128))
    assert kind.dequantize(data, 128).shape == (2, 0, 128)


@every
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zeros_stay_zeros(kind: KVType, zero: float) -> None:
    assert (kind.roundtrip(torch.full((2, 3, 128), zero)) == 0).all()


@every
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "3e38", "-3e38", "1e-40", "1e-30"])
def test_any_value_is_taken(kind: KVType, value: str) -> None:
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(2))
    x[0, 5] = float(value)
    x[1] = float(value)
    assert kind.roundtrip(x).shape == x.shape
    # The other token does not notice.
    torch.testing.assert_close(kind.roundtrip(x)[2], kind.roundtrip(x[2:])[0])


def test_head_sizes_that_do_not_fit() -> None:
    fits = {name: [d for d in (16, 24, 36, 80, 96, 128) if t.fits(d)] for name, t in TYPES.items()}
    assert fits["int8_per_token_head"] == [16, 24, 36, 80, 96, 128]
    assert fits["int4_per_token_head"] == [16, 24, 80, 96, 128]  # scale on 4 bytes: 8 divides
    assert fits["nvfp4"] == fits["fp4_mx_block16"] == [16, 80, 96, 128]
    assert fits["turboquant_k4"] == [16, 128]  # a power of two
    assert fits["lmdeploy_int4"] == [16, 24, 36, 80, 96, 128]
    assert not TYPES["turboquant_v4"].fits(63)


@every
def test_other_head_sizes(kind: KVType) -> None:
    for head_dim in filter(kind.fits, (16, 80, 96)):
        x = torch.randn(3, head_dim, generator=torch.Generator().manual_seed(head_dim))
        assert ((kind.roundtrip(x) - x).norm() / x.norm()).item() < 0.2


def test_aliases() -> None:
    assert fp8.ALIASES == {"fp8": "fp8_e4m3/fp8_e4m3"}
    for text in turboquant.ALIASES.values():
        pair, _, skipped = text.partition("+")
        assert all(side in TYPES for side in pair.split("/"))
        assert skipped.removeprefix("chunk512+") == "skip0.1.-2.-1"
