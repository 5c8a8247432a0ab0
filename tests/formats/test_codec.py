"""What surrounds a type in one layer: means, scales, order, rotation, first tokens, bytes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from nybble.errors import NybbleError  # noqa: E402
from nybble.formats.calibration import Calibration, LayerCalibration  # noqa: E402
from nybble.formats.codec import (  # noqa: E402
    Codec,
    Layer,
    SideStore,
    cache_bytes,
    gguf_order,
    layer_stores,
)
from nybble.formats.reads import ALL, Reads  # noqa: E402
from nybble.formats.registry import KV_TYPES, kv_type  # noqa: E402
from nybble.formats.rotation import hadamard, rotate, signs, unrotate  # noqa: E402
from nybble.formats.search import Searched  # noqa: E402
from nybble.formats.setting import parse  # noqa: E402

HEADS, DIM = 2, 64
LAYER = Layer(1, 4, HEADS, DIM, DIM)


def sample(n: int = 40, dim: int = DIM, seed: int = 0) -> torch.Tensor:
    """Keys with an offset and an outsized channel, [HEADS, n, dim]."""
    x = torch.randn(HEADS, n, dim, generator=torch.Generator().manual_seed(seed))
    x[..., 3] *= 8
    return x + torch.linspace(-2, 2, dim)


def statistics(dim: int = DIM) -> LayerCalibration:
    x = sample(200, dim, seed=9)
    return LayerCalibration(
        mean=x.mean(1), scale=x.std(1), basis=torch.eye(dim).expand(HEADS, dim, dim),
        weight=torch.ones(HEADS, dim), value_mean=x.mean(1), value_size=x.std((1, 2)),
    )  # fmt: skip


CALIBRATION = Calibration({1: statistics()})


def stores(text: str, **options: Any) -> tuple[SideStore, SideStore]:
    return layer_stores(parse(text), LAYER, calibration=CALIBRATION, **options)


def codec(text: str, side: int = 0, **options: Any) -> Codec:
    return stores(text, **options)[side].codecs[0][1]


FLOAT = kv_type("f32")
WRAPPED = {
    "mean": dict(mean=statistics().mean[:, None]),
    "scale": dict(scale=statistics().scale[:, None]),
    "order": dict(order=gguf_order(DIM)),
    "rotated": dict(rotation=64),
    "rotated by 32": dict(rotation=32),
    "random": dict(rotation=64, random=True),
}
WRAPPED["all"] = {k: v for part in reversed(WRAPPED.values()) for k, v in part.items()}


class TestAround:
    @pytest.mark.parametrize("around", WRAPPED.values(), ids=WRAPPED)
    def test_floats_come_back(self, around: dict[str, Any]) -> None:
        """Whatever is done before storing is undone after reading."""
        x = sample()
        found = Codec(FLOAT, ALL, **around).roundtrip(x)
        assert found.dtype == torch.float32 and found.shape == x.shape
        assert torch.allclose(found, x, atol=2e-5, rtol=1e-6)

    @pytest.mark.parametrize("around", WRAPPED.values(), ids=WRAPPED)
    def test_eight_bits_come_close(self, around: dict[str, Any]) -> None:
        x = sample()
        found = Codec(kv_type("q8_0"), ALL, **around).roundtrip(x)
        # Half a step of absmax / 127 in the stored domain, which may be scaled by e.
        assert (found - x).abs().max() < x.abs().max() * 0.02
        assert not torch.equal(found, x)

    @pytest.mark.parametrize("first", [0, 1, 4, 40, 100])
    def test_first_tokens_are_f16_and_others_as_without(self, first: int) -> None:
        x = sample() * 1.001
        plain = Codec(kv_type("q4_0"), ALL, rotation=64).roundtrip(x)
        found = Codec(kv_type("q4_0"), ALL, rotation=64, first=first).roundtrip(x)
        assert torch.equal(found[:, :first], x[:, :first].half().float())
        assert torch.equal(found[:, first:], plain[:, first:])

    @pytest.mark.parametrize("name", KV_TYPES)
    def test_every_type_takes_every_length(self, name: str) -> None:
        kind = KV_TYPES[name].of_side("K").bind(statistics(), "K", "cpu")
        for n in (0, 1, 33):
            x = sample(n)
            found = Codec(kind, ALL, first=4).roundtrip(x)
            assert found.shape == x.shape and found.isfinite().all()

    def test_half_floats_in(self) -> None:
        x = sample().bfloat16()
        found = codec("q4_0+mean+scale").roundtrip(x)
        assert found.dtype == torch.float32
        assert torch.equal(found, codec("q4_0+mean+scale").roundtrip(x.float()))

    def test_order_of_steps(self) -> None:
        """Mean, e, order, rotation; then the type, whose bytes these are."""
        x, stats = sample(), statistics()
        stored = codec("q4_0+mean+scale+rotrandom", gguf=True)
        y = ((x - stats.mean[:, None]) / stats.scale[:, None])[..., gguf_order(DIM)]
        y = (y * signs(DIM)) @ hadamard(DIM)
        y = kv_type("q4_0").roundtrip(y)
        y = (y @ hadamard(DIM)) * signs(DIM)
        back = torch.empty_like(y)
        back[..., gguf_order(DIM)] = y
        right = back * stats.scale[:, None] + stats.mean[:, None]
        assert torch.allclose(stored.roundtrip(x), right, atol=1e-5)

    def test_each_helps_where_it_should(self) -> None:
        """Keys with an offset store better without it, uneven channels better evened out."""
        x = sample(400)

        def error(text: str, x: torch.Tensor = x) -> float:
            return float((codec(text).roundtrip(x) - x).square().mean())

        assert error("q4_0-norot+mean") < error("q4_0-norot")
        assert error("q4_0+mean") < error("q4_0")
        assert error("q4_0+search") < error("q4_0")
        spike = torch.zeros_like(x)
        spike[..., 3] = 5.0
        offset = sample(400) - statistics().mean[:, None]
        offset[..., 3] /= 8
        assert error("q4_0+rot32", offset + spike) < error("q4_0-norot", offset + spike)


class TestOrder:
    def test_pairs_side_by_side(self) -> None:
        assert gguf_order(8).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]

    @given(st.integers(1, 64))
    def test_a_permutation(self, half: int) -> None:
        assert sorted(gguf_order(2 * half).tolist()) == list(range(2 * half))


class TestFromSettings:
    def test_plain(self) -> None:
        k, v = stores("q8_0/q4_0")
        assert [c.kind.name for c in (k.codecs[0][1], v.codecs[0][1])] == ["q8_0", "q4_0"]
        assert k.reads == v.reads == ALL
        assert codec("q4_0").rotation == 64 and codec("q4_0-norot").rotation == 0

    @pytest.mark.parametrize(
        ("text", "dims", "widths"),
        [
            ("q4_0", (128, 128), (128, 64)),  # llama.cpp turns all of K, V by 64
            ("q4_0", (96, 96), (0, 0)),  # 64 does not divide 96
            ("q4_0", (192, 192), (64, 64)),
            ("q4_0+rot32", (96, 96), (32, 32)),
            ("q4_0+rotrandom", (96, 128), (32, 128)),
            ("q4_0+rotllama", (128, 128), (128, 64)),
            ("exl3_4", (128, 128), (0, 0)),  # its Hadamard is built in
            ("exl3_4+rotllama", (128, 128), (128, 64)),
            ("f16+rot32", (128, 128), (0, 0)),
        ],
    )
    def test_rotation(self, text: str, dims: tuple[int, int], widths: tuple[int, int]) -> None:
        found = layer_stores(parse(text), Layer(0, 1, HEADS, *dims))
        assert tuple(store.codecs[0][1].rotation for store in found) == widths
        assert all(s.codecs[0][1].random == (text == "q4_0+rotrandom") for s in found)

    def test_means_and_scales_are_of_keys(self) -> None:
        k, v = (codec("q4_0+mean+scale", side) for side in (0, 1))
        assert k.mean is not None and k.mean.shape == (HEADS, 1, DIM)
        assert k.scale is not None and k.scale.shape == (HEADS, 1, DIM)
        assert v.mean is None and v.scale is None
        assert codec("q4_0").mean is None and codec("q4_0+mean").scale is None

    def test_no_calibration_where_one_is_needed(self) -> None:
        for text in ("q4_0+mean", "q4_0+scale", "nyb4"):
            with pytest.raises(NybbleError, match="needs a calibration") as caught:
                layer_stores(parse(text), LAYER)
            assert caught.value.hint == "nybble calibrate MODEL"
        layer_stores(parse("f16/q4_0+mean"), LAYER)  # no quantized key, nothing to centre
        layer_stores(parse("q4_0+mean+skip1"), LAYER)

    @pytest.mark.parametrize("sizing", [False, True])
    def test_a_latent_is_not_simulated(self, sizing: bool) -> None:
        with pytest.raises(NybbleError, match="the runtime's own") as caught:
            layer_stores(parse("q4_0+latent"), LAYER, sizing=sizing)
        assert caught.value.allowed == "q4_0/q4_0"
        layer_stores(parse("q4_0+latent").apart, LAYER, sizing=sizing)

    @pytest.mark.parametrize(
        ("text", "k", "v"),
        [
            ("q4_0", ALL, ALL),
            ("q4_0+recent8", Reads("recent", 8), Reads("recent", 8)),
            ("q4_0+chunk64", Reads("chunk", 64), Reads("chunk", 64)),
            ("q4_0/f16+recent8", Reads("recent", 8), ALL),
            ("kivi4", Reads("residual", 128), Reads("recent", 129)),
            ("exl2_q4", Reads("chunk", 512), Reads("chunk", 512)),
            ("exl2_q4+chunk64", Reads("chunk", 64), Reads("chunk", 64)),
            ("f16+recent8", ALL, ALL),
        ],
    )
    def test_read_rules(self, text: str, k: Reads, v: Reads) -> None:
        assert [s.reads for s in stores(text)] == [k, v]
        assert [s.reads for s in stores(text, decode=True)] == [k.at_decode(), v.at_decode()]

    def test_search_wraps_the_type(self) -> None:
        found = codec("q4_0+search").kind
        assert isinstance(found, Searched) and found.name == "q4_0"
        assert isinstance(codec("q4_0+search", 1).kind, Searched)
        assert not isinstance(codec("f16/q4_0+search").kind, Searched)

    def test_heads(self) -> None:
        """A head with a type of its own is stored so, all others as before."""
        x = sample()
        k, v = stores("q4_0+at1h1:q8_0/f16")
        q4, q8, f16 = (codec(t).roundtrip(x) for t in ("q4_0", "q8_0", "f16"))
        assert torch.equal(k.roundtrip(x)[0], q4[0]) and torch.equal(k.roundtrip(x)[1], q8[1])
        v4 = codec("q4_0", 1).roundtrip(x)
        assert torch.equal(v.roundtrip(x)[0], v4[0]) and torch.equal(v.roundtrip(x)[1], f16[1])
        assert torch.equal(stores("q4_0+at2h1:q8_0/f16")[0].roundtrip(x), q4)

    def test_a_rule_for_the_layer_hides_earlier_heads(self) -> None:
        k, _ = stores("f16+at1h0:q4_0/q4_0+at1:q8_0/q8_0+at1h1:q5_0/q5_0")
        assert [(h, c.kind.name) for h, c in k.codecs] == [(None, "q8_0"), (1, "q5_0")]

    def test_no_such_head(self) -> None:
        with pytest.raises(NybbleError, match="layer 1 has no such KV head") as caught:
            stores("f16+at1h2:q4_0/q4_0")
        assert caught.value.allowed == "0 to 1"
        stores("f16+at0h2:q4_0/q4_0")  # of another layer


class TestBytes:
    @pytest.mark.parametrize(
        ("text", "n", "size"),
        [
            # A row of 64: q4_0 36 bytes, q8_0 68, f16 128.
            ("q4_0", 100, 100 * 36),
            ("q4_0", 0, 0),
            ("f16", 100, 100 * 128),
            ("q4_0+first4", 100, 4 * 128 + 96 * 36),
            ("q4_0+first4", 3, 3 * 128),
            ("q4_0+recent8", 100, 8 * 128 + 92 * 36),
            ("q4_0+recent8", 5, 5 * 128),
            ("q4_0+first4+recent8", 100, 12 * 128 + 88 * 36),
            ("q4_0+first4+recent8", 10, 10 * 128),
            ("q4_0+chunk64", 100, 100 * 36),  # a chunk is stored, only not read so
            ("f16+first4+recent8", 100, 100 * 128),
            ("q4_0+search+rot32+mean+scale", 100, 100 * 36),
            # quanto_4: 32 bytes of codes, 4 of scale and shift; beside them a buffer of up to
            # 128 tokens in f16 that is there whether it is full or not.
            ("quanto_4", 127, 127 * 128),
            ("quanto_4", 128, 128 * 36 + 128 * 128),
            ("quanto_4", 300, 256 * 36 + 128 * 128),
            ("quanto_4+first4", 300, 4 * 128 + 256 * 36 + 128 * 128),
        ],
    )
    def test_by_hand(self, text: str, n: int, size: int) -> None:
        assert codec(text).bytes_stored(n, DIM) == size
        k, _ = stores(text)
        assert k.bytes_stored(n, HEADS, DIM) == HEADS * size

    def test_kivi(self) -> None:
        """K: 32 tokens of 64 channels are 64 x (16 + 4) bytes. V: a token is 2 x (16 + 4)."""
        k, v = stores("kivi4")
        assert k.bytes_stored(300, 1, DIM) == 256 // 32 * 64 * 20 + 128 * 128
        assert v.bytes_stored(300, 1, DIM) == (300 - 129) * 40 + 129 * 128

    def test_heads_apart(self) -> None:
        k, v = stores("q4_0+at1h1:q8_0/f16")
        assert k.bytes_stored(10, HEADS, DIM) == 10 * (36 + 68)
        assert v.bytes_stored(10, HEADS, DIM) == 10 * (36 + 128)
        k, _ = stores("q4_0+at1h0:q8_0/f16")
        assert k.bytes_stored(10, HEADS, DIM) == 10 * (68 + 36)

    def test_a_whole_cache(self) -> None:
        """Layers of their own sizes and lengths: 2 heads of 64, then 1 head of 128 / 64."""
        layers = [LAYER, Layer(2, 4, 1, 128, 64)]
        found = [layer_stores(parse("q8_0/q4_0"), layer) for layer in layers]
        assert cache_bytes(found, layers, [8, 100]) == 8 * 2 * (68 + 36) + 100 * (136 + 36)
        with pytest.raises(ValueError):
            cache_bytes(found, layers, [8])

    @given(
        st.integers(0, 400), st.sampled_from(["q4_0+first4", "quanto_4+first3", "kivi4", "mlx_8"])
    )
    def test_one_more_token_at_a_time(self, n: int, text: str) -> None:
        """Never less with a token more, nor less than the type's own bytes, whatever the length."""
        for store in stores(text):
            size = store.bytes_stored(n, 1, DIM)
            assert size <= store.bytes_stored(n + 1, 1, DIM)
            assert n * store.codecs[0][1].kind.bits_at(DIM) * DIM / 8 <= size


@pytest.mark.parametrize("text", ["kivi4+recent8", "kivi4+chunk8"])
def test_no_setting_reads_ahead(text: str) -> None:
    """Keys that are stored in groups of tokens are read so only when the group is complete."""
    try:
        found = codec(text)
    except NybbleError:
        return  # refused: as good
    group = found.kind.tokens
    first_raw = found.reads.first_raw(torch.arange(300))
    assert (first_raw // group * group >= first_raw).all() or (first_raw % group == 0).all()


class TestQueries:
    """llama.cpp's kernels round queries to 8 bits before they meet codes."""

    def test_rounded_as_q8_0_in_the_rotated_order(self) -> None:
        q = torch.randn(4, 5, DIM, generator=torch.Generator().manual_seed(1))
        (k, v) = layer_stores(parse("q4_0"), Layer(0, 1, 2, DIM, DIM), gguf=True)
        found = k.round_queries(q, 2)
        order = torch.arange(DIM).view(2, DIM // 2).T.reshape(-1)
        n = k.codecs[0][1].rotation
        turned = rotate(q[..., order], n)
        back = unrotate(kv_type("q8_0").roundtrip(turned), n)[..., order.argsort()]
        assert torch.equal(found, back)
        assert 1e-4 < ((found - q).norm() / q.norm()).item() < 0.01
        assert torch.equal(v.round_queries(q, 2), q)

    @pytest.mark.parametrize("text", ["f16", "exl3_4", "q4_0+recent8", "q4_0+first4", "f16/q4_0"])
    def test_left_alone(self, text: str) -> None:
        q = torch.randn(4, 5, DIM)
        k, _ = layer_stores(parse(text), Layer(0, 1, 2, DIM, DIM))
        assert k.round_queries(q, 2) is q

    def test_by_head(self) -> None:
        q = torch.randn(4, 5, DIM)
        k, _ = layer_stores(parse("f16+at0h1:q8_0/f16"), Layer(0, 1, 2, DIM, DIM))
        found = k.round_queries(q, 2)
        assert torch.equal(found[:2], q[:2]) and not torch.equal(found[2:], q[2:])
