"""hqq_4 and hqq_8 against hqq 0.2.8.post1 through transformers 5.23.0, on a CPU."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from nybble.formats.hqq import TYPES, Hqq  # noqa: E402
from nybble.formats.reads import Reads  # noqa: E402

HQQ_4, HQQ_8 = TYPES

_I = torch.arange(128)
TOKENS = torch.stack([(_I * 37 % 128 - 50) / 16, (_I * _I * 29 % 128 - 60) / 32 * (1 + _I % 3)])
# HQQQuantizedLayer(nbits=b, axis_key=1, axis_value=1).update(x, x) with x = a token, float16
# [1, 1, 1, 128]: the packed data, the scales and the zero points of its two groups.
ENGINE = {
    (0, 4): "074c91d52a7eb3085c91e63a7fc4185da2e63b8fc4195da2e63b80c4196da2f74b80d5296eb3f74c91d52a"
    "7eb3085c91d63a7eb3085c91e63a7fc4185da2e63b 33382b38 f745c045",
    (1, 4): "5253f9539ab864428776aa77996477bc308777bca8acaae9889936649a98acbb059ade989943368988e999"
    "dea8aa768752df77759a779965876342b89931f965 cd39403a c2473247",
    (0, 8): "004b96e12873be06519ce72f79c40c57a2ed3580ca125da8f33b86d01863aef9418cd71e69b4ff4792dd24"
    "6fba024d98e32b75c008539ee9317bc60e59a4ef377eca105ca7f33985d01662adf93f8bd61d68b4ff4591dc236e"
    "ba004b97e22974c006529de92f7ac60c58a3ef3581cc125ea9f53b87d21864affb418dd81f6ab6"
    " e827d827 53561f56",
    (1, 8): "5857ff5ca1bb673f8d79a775936272b42c867ec0b0aea7f0879d2c67a198adb4009cd698934b2c908af096"
    "d8b0a2788658e37273a175966e8d6249bb9333ff6d293ba130a38b441b7d66ab76964c75d3007b70ce88c8ab9c80"
    "9d5f45a381c7be52a7ed81962b5f92839c9bef88b26a7b29ff755ba3769b5c7d3b298b960aa150"
    " 7529e229 2058a857",
}


@pytest.mark.parametrize(("token", "width"), ENGINE)
def test_bytes_are_the_engines(token: int, width: int) -> None:
    kind = HQQ_4 if width == 4 else HQQ_8
    got = bytes(kind.quantize(TOKENS[token][None])[0].tolist()).hex()
    assert got == ENGINE[token, width].replace(" ", "")


def test_two_tokens_stored_at_once() -> None:
    # The same with x = both tokens: scales and zero points of all four groups.
    data = HQQ_4.quantize(TOKENS)[:, 64:]
    assert bytes(data[:, :4].flatten().tolist()).hex() == "33382b38" + "cd39403a"
    assert bytes(data[:, 4:].flatten().tolist()).hex() == "f745c045" + "c2473247"
    back = HQQ_4.roundtrip(TOKENS)[0, :4].tolist()
    assert back == [-3.130859375, -1.03125, 1.5927734375, 3.693359375]


def test_the_range_of_a_flat_group() -> None:
    # A range up to 1e-4 has scale 1: the value is its own zero point, and comes back in fp16.
    x = torch.full((1, 64), 0.25)
    assert bytes(HQQ_4.quantize(x)[0].tolist()).hex() == "00" * 32 + "003c" + "00b4"
    assert torch.equal(HQQ_4.roundtrip(x), x)


def test_steps_beat_min_max() -> None:
    # What hqq is for: with an outlier the error of the rest falls, in the norm it looks at.
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(4))
    x[:, 0] = 6
    w = x.half().float()
    low, high = w.amin(-1, keepdim=True), w.amax(-1, keepdim=True)
    scale = (high - low) / 15
    plain = ((w - low) / scale).round() * scale + low
    assert (HQQ_4.roundtrip(x) - w).abs().pow(0.7).mean() < (plain - w).abs().pow(0.7).mean()


@pytest.mark.parametrize("kind", TYPES, ids=lambda t: t.name)
@pytest.mark.parametrize("size", [1e-2, 1.0, 1e3])
def test_error(kind: Hqq, size: float) -> None:
    x = torch.randn(2, 40, 128, generator=torch.Generator().manual_seed(5)) * size
    groups = x.unflatten(-1, (2, 64))
    step = (groups.amax(-1) - groups.amin(-1)) / (2**kind.width - 1)
    error = (kind.roundtrip(x) - x).unflatten(-1, (2, 64)).abs()
    # The zero point may move by a step and more, and is worth up to 2^-11 of itself in fp16.
    assert (error.mean(-1) <= step * 0.5).all()
    assert (error.amax(-1) <= step * 2).all()


def test_window() -> None:
    assert all(t.reads == Reads("residual", 128) for t in TYPES)
