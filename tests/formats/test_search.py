"""Block scales chosen by least error."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

torch = pytest.importorskip("torch")
import numpy as np  # noqa: E402

from nybble.errors import NybbleError  # noqa: E402
from nybble.formats.codec import Layer, layer_stores  # noqa: E402
from nybble.formats.kvtype import KVType  # noqa: E402
from nybble.formats.registry import KV_TYPES, kv_type  # noqa: E402
from nybble.formats.search import Searched  # noqa: E402
from nybble.formats.setting import parse  # noqa: E402

# Of every family that takes a scale from a block's extremes.
SEARCHED = ("q4_0", "iq4_nl", "q8_0", "mlx_4", "nvfp4", "exl3_4", "quanto_4")


def error(kind: KVType, x: torch.Tensor) -> torch.Tensor:
    """Squared error of every block."""
    return (kind.roundtrip(x) - x).double().square().unflatten(-1, (-1, kind.block)).sum(-1)


def gaussian(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, n, 128, generator=torch.Generator().manual_seed(seed))


VALUES = st.floats(-1e4, 1e4, width=32) | st.sampled_from([0.0, 1.0, -1.0, 30.0])


@pytest.mark.parametrize("name", SEARCHED)
class TestNeverWorse:
    @settings(max_examples=10, deadline=None)
    @given(data=st.data())
    def test_in_any_block(self, name: str, data: st.DataObject) -> None:
        rows = data.draw(arrays(np.float32, (3, 128), elements=VALUES))
        kind, x = kv_type(name), torch.from_numpy(rows)
        assert (error(Searched.of(kind), x) <= error(kind, x) * (1 + 1e-6)).all()

    def test_better_on_gaussians(self, name: str) -> None:
        """Four bits gain some percent; exl3 turns channels after clipping; eight bits gain none."""
        kind, x = kv_type(name), gaussian(64)
        share = error(Searched.of(kind), x).sum() / error(kind, x).sum()
        assert share <= (1 if name in ("q8_0", "exl3_4") else 0.96)

    def test_bytes_are_the_types_own(self, name: str) -> None:
        kind = kv_type(name)
        found = Searched.of(kind)
        data = found.quantize(gaussian(3))
        assert data.dtype == torch.uint8 and data.shape == (2, 3, kind.row_bytes(128))
        assert torch.equal(kind.dequantize(data, 128), found.roundtrip(gaussian(3)))
        assert (found.bits, found.block, found.fits(128)) == (kind.bits, kind.block, kind.fits(128))
        assert found.bytes_stored(7, 128) == kind.bytes_stored(7, 128)

    def test_edges(self, name: str) -> None:
        """Zeros stay zeros; what cannot be measured is stored as the type would."""
        kind = kv_type(name)
        found = Searched.of(kind)
        assert (
            found.roundtrip(torch.zeros(1, 2, 128)).abs().max()
            == kind.roundtrip(torch.zeros(1, 2, 128)).abs().max()
        )
        assert found.roundtrip(torch.zeros(2, 0, 128)).shape == (2, 0, 128)
        for bad in (torch.inf, -torch.inf, torch.nan):
            x = gaussian(2)
            x[0, 0, 5] = bad
            assert torch.equal(found.quantize(x)[1], found.quantize(gaussian(2))[1])
            block = slice(0, kind.block)
            plain, ours = kind.roundtrip(x)[0, 0, block], found.roundtrip(x)[0, 0, block]
            assert torch.equal(plain.nan_to_num(), ours.nan_to_num())


def test_an_outlier_is_clipped() -> None:
    """31 values in one step's width and one just above: clipping it serves all others."""
    x = torch.full((1, 1, 32), 0.6)
    x[..., ::2] = -0.6
    x[..., 0] = -8.0  # q4_0's step is 1: 0.6 reads as 1 or 0
    x = x * torch.linspace(0.5, 1, 32)
    kind = kv_type("q4_0")
    assert error(Searched.of(kind), x) < error(kind, x)


REFUSED = [name for name, kind in KV_TYPES.items() if kind.block < 2 or kind.tokens > 1]


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    with pytest.raises(NybbleError, match="needs a type with blocks of channels") as caught:
        Searched.of(kv_type(name))
    assert caught.value.seen == name and "q4_0" in str(caught.value.allowed)


def test_what_is_refused() -> None:
    """Plain floats, one scale for a head, and keys in groups of tokens."""
    assert {
        "f16",
        "fp8_e4m3",
        "int4_per_token_head",
        "turboquant_v4",
        "lmdeploy_int4",
        "kivi_k4",
    } <= set(REFUSED)
    with pytest.raises(NybbleError, match="blocks of channels"):
        layer_stores(parse("kivi4+search"), Layer(0, 1, 1, 64, 64))


def test_nyb4_searches_by_itself() -> None:
    with pytest.raises(NybbleError):
        Searched.of(kv_type("nyb4"))
