"""What is written behind a setting's types with plus signs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nybble.errors import NybbleError
from nybble.formats import KV_TYPES, KVSetting, make, parse
from nybble.formats.around import Around, At, join_layers, parse_around, split_layers

COUNTS = st.integers(1, 1 << 20)
LAYERS = st.lists(st.integers(-130, 130), min_size=1, max_size=12, unique=True).map(
    lambda found: tuple(sorted(found, key=lambda n: (n < 0, n)))
)
K = st.sampled_from([name for name, kind in KV_TYPES.items() if "K" in kind.sides])
V = st.sampled_from([name for name, kind in KV_TYPES.items() if "V" in kind.sides])
AT = st.builds(At, LAYERS, K, V, st.none() | st.integers(0, 40))
AROUND = st.builds(
    Around,
    first=st.none() | st.just(0) | COUNTS,
    recent=st.just(0) | COUNTS,
    chunk=st.just(0) | COUNTS,
    skip=st.just(()) | LAYERS,
    mean=st.booleans(),
    scale=st.booleans(),
    search=st.booleans(),
    rotate=st.sampled_from(["", "32", "random", "llama"]),
    latent=st.booleans(),
    at=st.lists(AT, max_size=3).map(tuple),
)


@st.composite
def settings(draw: st.DrawFn) -> KVSetting:
    """Any setting that may be written: one window at most, none around grouped tokens."""
    around = draw(AROUND)
    kind, rotation = (draw(K), draw(V)), draw(st.booleans())
    window = st.sampled_from([{"chunk": 0}, {"recent": 0}])
    around = replace(around, **draw(window))
    try:
        return make(*kind, rotation, around)
    except NybbleError:
        return make(*kind, rotation, replace(around, chunk=0, recent=0, latent=False))


SETTINGS = settings()


@given(SETTINGS)
def test_round_trip_of_settings(setting: KVSetting) -> None:
    assert parse(str(setting)) == setting
    assert parse(f" {str(setting).upper()}  ") == setting


@given(AROUND)
def test_round_trip_of_what_surrounds(around: Around) -> None:
    text = str(around)
    assert parse_around(text.split("+")[1:], text) == around
    assert (text == "") == (around == Around())


@given(AROUND, st.randoms())
def test_any_order_is_read(around: Around, random: object) -> None:
    """Only overrides have an order: a later one wins."""
    parts = str(around).split("+")[1:]
    rest = [p for p in parts if not p.startswith("at")]
    random.shuffle(rest)  # type: ignore[attr-defined]
    assert parse_around([*rest, *(p for p in parts if p.startswith("at"))], "") == around
    assert parse_around([p for p in parts if p.startswith("at")] + rest, "") == around


@given(AROUND, AROUND)
def test_merging_is_writing_behind(a: Around, b: Around) -> None:
    text = str(a) + str(b)
    assert parse_around(text.split("+")[1:], text) == a.merged(b)


@given(LAYERS)
def test_round_trip_of_layers(layers: tuple[int, ...]) -> None:
    assert split_layers(join_layers(layers)) == layers


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ((0,), "0"),
        ((0, 1), "0.1"),
        ((0, 1, 2, 7, -1), "0-2.7.-1"),
        ((5, 6, 7, -3, -2, -1), "5-7.-3--1"),
        ((0, -1), "0.-1"),
        ((-2, -1), "-2.-1"),
    ],
)
def test_layers_by_hand(layers: tuple[int, ...], text: str) -> None:
    assert join_layers(layers) == text
    assert split_layers(text) == layers


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("q4_0+mean+first4", "q4_0/q4_0+first4+mean"),
        ("q4_0+skip3.1.2.3", "q4_0/q4_0+skip1-3"),
        ("q4_0+skip-1.0", "q4_0/q4_0+skip0.-1"),
        ("q4_0+skip-2--1", "q4_0/q4_0+skip-2.-1"),
        ("q4_0+at0-1h1:Q8_0/f16", "q4_0/q4_0+at0.1h1:q8_0/f16"),
        ("q4_0+first4+first8", "q4_0/q4_0+first8"),
        ("q4_0-norot+search", "q4_0/q4_0-norot+search"),
        ("q8_0/q4_0+at0:f16/f16+latent+rot32", "q8_0/q4_0+rot32+latent+at0:f16/f16"),
        ("q4_0+at1:q8_0/q8_0+at0:f16/f16", "q4_0/q4_0+at1:q8_0/q8_0+at0:f16/f16"),
        ("turboquant_4bit_nc", "turboquant_k4/turboquant_v4+skip0.1.-2.-1"),
        ("turboquant_4bit_nc+skip0", "turboquant_k4/turboquant_v4+skip0"),
        ("kivi4+first4", "kivi_k4/kivi_v4+first4"),
    ],
)
def test_canonical_names(text: str, canonical: str) -> None:
    assert str(parse(text)) == canonical


VALUES = {
    "first": ["", "-1", "4.5", "x", "2000000"],
    "recent": ["", "0", "-3", "1e3", "1048577"],
    "chunk": ["", "0", "512k"],
    "skip": ["", "x", "1,2", "3-1", "-1--3", "0..1", "12345", "0-", "."],
    "mean": ["1", "ed"],
    "scale": ["2"],
    "search": ["ed"],
    "rot": ["", "64", "none", "ate"],
    "latent": ["1", "s"],
    "at": ["", "0", "0:q4_0", "0:q4_0/", "0/q4_0/q4_0", "h1:q4_0/q4_0", "0h:q4_0/q4_0",
           "0h-1:f16/f16", "0:q4_0/q4_0/q4_0", "x:q4_0/q4_0", "2-1:q4_0/q4_0"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in VALUES.items() for v in vs])
def test_a_value_that_cannot_be(name: str, value: str) -> None:
    text = f"q4_0/q4_0+{name}{value}"
    with pytest.raises(NybbleError, match="a value it cannot have") as caught:
        parse(text)
    assert caught.value.seen == f"+{name}{value} in {text}".lower()
    assert str(caught.value.allowed).startswith(f"+{name}")  # an example of how it is written


@pytest.mark.parametrize(
    ("text", "near"),
    [("frist4", "first"), ("serch", "search"), ("means", None), ("scal", "scale"), ("zzz", None),
     ("", None), ("4", None)],
)  # fmt: skip
def test_unknown_parts(text: str, near: str | None) -> None:
    with pytest.raises(NybbleError) as caught:
        parse(f"q4_0+{text}")
    error = caught.value
    if text == "means":  # +mean with something behind it
        assert "a value it cannot have" in error.what and error.allowed == "+mean"
        return
    assert error.what == "unknown part of a KV setting" + (
        f"; did you mean +{near}?" if near else ""
    )
    assert f"+{text} in q4_0+{text}" == error.seen
    for name in VALUES:
        assert f"+{name}" in str(error.allowed)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("q4_0+at0:q4/q4_0", "unknown KV type; did you mean q4_"),
        ("f16+at0:kivi_v4/f16", "kivi_v4 is made for V and cannot store K"),
        ("f16+at0h1:f16/kivi_k4", "kivi_k4 is made for K and cannot store V"),
    ],
)
def test_types_in_overrides(text: str, match: str) -> None:
    with pytest.raises(NybbleError, match=match):
        parse(text)


class TestAtLayer:
    def test_later_ones_win(self) -> None:
        setting = parse("q4_0+at0-2:q8_0/f16+at1h0:f16/q4_1+skip2.-1")
        assert setting.at_layer(0, 6) == [(None, "q4_0", "q4_0"), (None, "q8_0", "f16")]
        assert setting.at_layer(1, 6)[-1] == (0, "f16", "q4_1")
        assert setting.at_layer(2, 6)[-1] == (None, "f16", "f16")
        assert setting.at_layer(3, 6) == [(None, "q4_0", "q4_0")]
        assert setting.at_layer(5, 6)[-1] == (None, "f16", "f16")

    @given(LAYERS, st.integers(1, 100))
    def test_negative_layers_count_from_the_end(self, layers: tuple[int, ...], n: int) -> None:
        setting = make("q4_0", "q4_0", True, Around(skip=layers))
        skipped = [i for i in range(n) if setting.at_layer(i, n)[-1][1] == "f16"]
        names = {layer % n for layer in layers if -n <= layer < n}
        assert skipped == sorted(names)
        covered = [i for i in range(n) if At(layers, "f16", "f16").covers(i, n)]
        assert covered == skipped


def test_types_and_flags_see_overrides() -> None:
    setting = parse("f16+at0:q8_0/nyb4")
    assert setting.types == ("f16", "q8_0", "nyb4")
    assert setting.quantized and setting.calibrated and not setting.llamacpp
    assert not parse("f16").calibrated and parse("q4_0+mean").calibrated
    assert parse("q4_0/q8_0-norot").llamacpp and not parse("q4_0+first4").llamacpp
    assert not parse("f16+skip0").quantized


def test_no_rotation_to_switch_off_under_one_of_its_own() -> None:
    with pytest.raises(NybbleError, match="no rotation that could be switched off"):
        parse("q4_0-norot+rot32")
    assert parse("f16-norot+at0:q4_0/q4_0").rotation is False


def test_a_latent_is_a_value() -> None:
    setting = parse("q8_0/q4_0+skip0+latent")
    assert setting.around.latent and not setting.llamacpp and setting.quantized
    assert str(setting.apart) == "q8_0/q4_0+skip0" and setting.apart.apart == setting.apart
    assert [str(h) for h in setting.halves()] == ["q8_0/f16+skip0", "f16/q4_0+skip0"]
    for text in ("turboquant_k4/turboquant_v4+latent", "q4_0+latent+at3:kivi_k4/f16"):
        with pytest.raises(NybbleError, match="a latent is a value, and .* made for keys"):
            parse(text)


def test_halves_have_one_quantized_side() -> None:
    k, v = parse("q4_0+at0:q8_0/q5_1").halves()
    assert [name for a in k.around.at for name in (a.v,)] == ["f16"]
    assert [name for a in v.around.at for name in (a.k,)] == ["f16"]
