"""Reading, crossing and refusing KV settings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nybble.errors import NybbleError
from nybble.formats import (
    ALIASES,
    KV_TYPES,
    KVSetting,
    check_head_size,
    expand,
    make,
    parse,
    unique,
)

# What surrounds the types has a test file of its own, test_around.py.
NAMES = {s: [n for n, t in KV_TYPES.items() if s in t.sides] for s in ("K", "V")}
K, V = (st.sampled_from(sorted(NAMES[side])) for side in "KV")
SETTINGS = st.builds(make, K, V, st.booleans())


def written(*args: object, **kwargs: object) -> list[str]:
    return [str(s) for s in expand(*args, **kwargs)]  # type: ignore[arg-type]


@given(SETTINGS)
def test_round_trip_of_settings(setting: KVSetting) -> None:
    assert parse(str(setting)) == setting
    assert hash(parse(str(setting))) == hash(setting)


@given(K, V, st.booleans())
def test_round_trip_of_text(k: str, v: str, off: bool) -> None:
    switchable = any(KV_TYPES[name].rotation == "llama" for name in (k, v))
    text = f"{k}/{v}" + ("-norot" if off and switchable else "")
    assert str(parse(text)) == text
    assert parse(f"  {text.upper()} ") == parse(text)


@given(K.filter(lambda name: KV_TYPES[name].sides == "KV"))
def test_one_type_means_both_sides(name: str) -> None:
    assert parse(name) == parse(f"{name}/{name}")


@pytest.mark.parametrize("side", "KV")
@pytest.mark.parametrize("name", [n for n, t in KV_TYPES.items() if t.sides != "KV"])
def test_a_type_of_one_side_is_refused_on_the_other(name: str, side: str) -> None:
    pair = (name, "f16") if side == "K" else ("f16", name)
    if KV_TYPES[name].sides == side:
        assert str(make(*pair)) == "/".join(pair)
        return
    with pytest.raises(NybbleError, match=f"made for {KV_TYPES[name].sides}") as caught:
        make(*pair)
    assert caught.value.seen == "/".join(pair)
    assert all(
        other in NAMES[side] for other in str(caught.value.allowed).split("example ")[1].split(", ")
    )


@pytest.mark.parametrize("name", ALIASES)
def test_aliases(name: str) -> None:
    """A mode of an engine is its two types, and what follows comes on top."""
    setting = parse(name)
    assert str(setting) == ALIASES[name]
    assert parse(str(setting)) == setting
    assert parse(f"{name}+first8") == make(
        setting.k, setting.v, True, setting.around.merged(parse("f16+first8").around)
    )


@pytest.mark.parametrize("text", ["exl3_4-norot", "f16/mlx_4-norot", "kivi_k4/kivi_v4-norot"])
def test_norot_where_nothing_can_be_switched(text: str) -> None:
    """Their rotation is part of the type, or they have none."""
    with pytest.raises(NybbleError, match="no rotation that could be switched off") as caught:
        parse(text)
    assert caught.value.hint == f"--kv {parse(text.removesuffix('-norot'))}"


def test_single_type_norot() -> None:
    assert str(parse("q4_0-norot")) == "q4_0/q4_0-norot"


def test_norot_without_a_quantized_side_is_the_same_cache() -> None:
    assert parse("f16/bf16-norot") == parse("f16/bf16")
    assert make("f32", "f16", rotation=False).rotation
    assert not make("f16", "q4_0", rotation=False).rotation
    assert make("exl3_4", "f16", rotation=False).rotation


@pytest.mark.parametrize("text", ["", "  ", "/", "q8_0/", "/q8_0", "q8_0/q4_0/f16", "-norot"])
def test_not_a_setting(text: str) -> None:
    with pytest.raises(NybbleError) as caught:
        parse(text)
    assert caught.value.what == "a KV setting is written K/V"
    assert caught.value.seen == text


@pytest.mark.parametrize("text", ["q8_0/q4", "q4/q8_0", "q8_0-norot/q4_0"])
def test_unknown_type_in_a_setting(text: str) -> None:
    with pytest.raises(NybbleError, match="unknown KV type; did you mean q"):
        parse(text)


def test_bits_quantized_and_halves() -> None:
    setting = parse("q8_0/q4_0-norot")
    assert setting.bits == (8.5 + 4.5) / 2
    assert setting.quantized
    assert [str(h) for h in setting.halves()] == ["q8_0/f16-norot", "f16/q4_0-norot"]
    assert not parse("bf16/f32").quantized
    assert parse("f16/q4_0").quantized and parse("q4_0/f16").quantized
    assert [str(h) for h in parse("kivi4").halves()] == ["kivi_k4/f16", "f16/kivi_v4"]
    assert [str(h) for h in parse("q4_0+first4").halves()] == ["q4_0/f16+first4", "f16/q4_0+first4"]


class TestExpand:
    def test_list_keeps_order_and_drops_repeats(self) -> None:
        assert written("q4_0, q8_0/q4_0,,q4_0/q4_0 ", None, None) == ["q4_0/q4_0", "q8_0/q4_0"]

    def test_nothing(self) -> None:
        assert written(None, None, None) == []
        assert written("", "", "") == []

    def test_cross_product_k_outermost(self) -> None:
        assert written(None, "q8_0,q4_0", "f16, q5_1") == [
            "q8_0/f16", "q8_0/q5_1", "q4_0/f16", "q4_0/q5_1",
        ]  # fmt: skip

    def test_a_missing_side_is_f16(self) -> None:
        assert written(None, "q8_0,q4_0", None) == ["q8_0/f16", "q4_0/f16"]
        assert written(None, None, "q8_0") == ["f16/q8_0"]

    def test_list_before_cross(self) -> None:
        assert written("q4_0", "q8_0,q4_0", "q4_0") == ["q4_0/q4_0", "q8_0/q4_0"]

    def test_rotation_both(self) -> None:
        assert written("q8_0/q4_0,f16", None, None, (True, False)) == [
            "q8_0/q4_0", "q8_0/q4_0-norot", "f16/f16",
        ]  # fmt: skip

    def test_rotation_off_only(self) -> None:
        assert written(None, "q8_0,bf16", "f16", (False,)) == ["q8_0/f16-norot", "bf16/f16"]

    def test_rotation_of_types_that_cannot_be_switched(self) -> None:
        """One cache, one row."""
        assert written("exl3_4,mlx_4/q4_0", None, None, (True, False)) == [
            "exl3_4/exl3_4", "mlx_4/q4_0", "mlx_4/q4_0-norot",
        ]  # fmt: skip

    def test_what_surrounds_stays(self) -> None:
        assert written("q4_0+first4+skip0,kivi4", None, None, (True, False)) == [
            "q4_0/q4_0+first4+skip0", "q4_0/q4_0-norot+first4+skip0", "kivi_k4/kivi_v4",
        ]  # fmt: skip

    def test_norot_in_the_name_decides(self) -> None:
        assert written("q4_0-norot", None, None, (True,)) == ["q4_0/q4_0-norot"]
        assert written("q4_0-norot,q4_0", None, None, (True, False)) == [
            "q4_0/q4_0-norot", "q4_0/q4_0",
        ]  # fmt: skip

    def test_unknown_type(self) -> None:
        with pytest.raises(NybbleError, match="did you mean q8_0"):
            expand(None, "q8", None)


@given(st.lists(SETTINGS))
def test_unique_is_an_ordered_set(settings: list[KVSetting]) -> None:
    found = unique(settings)
    assert len(set(found)) == len(found)
    assert sorted(found, key=settings.index) == found
    assert set(found) == set(settings)


class TestHeadSize:
    @pytest.mark.parametrize("heads", [{64}, {128, 256}, {96}, set()])
    def test_fits(self, heads: set[int]) -> None:
        check_head_size(parse("q8_0/q4_0"), heads, heads)

    def test_floats_always_fit(self) -> None:
        check_head_size(parse("f16/bf16"), {80, 7}, {1})

    @pytest.mark.parametrize(
        ("text", "k", "v", "side", "hint"),
        [
            ("q8_0/q4_0", {80}, {64}, "K type q8_0", "--kv f16/q4_0"),
            ("q8_0/q4_0", {64}, {64, 80}, "V type q4_0", "--kv q8_0/f16"),
            ("q8_0/q4_0", {80}, {80}, "K type q8_0", "no type of such blocks fits: keep f16"),
            ("q8_0/bf16", {80}, {80}, "K type q8_0", "--kv f16/bf16"),
        ],
    )
    def test_refused(self, text: str, k: set[int], v: set[int], side: str, hint: str) -> None:
        with pytest.raises(NybbleError) as caught:
            check_head_size(parse(text), k, v)
        error = caught.value
        assert error.what.startswith(side) and "blocks of 32" in error.what
        assert "80" in str(error.seen) and "64" not in str(error.seen)
        assert error.hint == hint

    @pytest.mark.parametrize(
        ("text", "heads", "kind"),
        [("mlx_4", 96, "mlx_4"), ("turboquant_4bit_nc", 96, "turboquant_k4"),
         ("f16+at3:q8_0/f16", 80, "q8_0"), ("f16+at0h1:f16/exl2_q4", 96, "exl2_q4")],
    )  # fmt: skip
    def test_other_engines_types_and_overrides(self, text: str, heads: int, kind: str) -> None:
        with pytest.raises(NybbleError, match=kind):
            check_head_size(parse(text), {heads}, {heads})
        check_head_size(parse(text), {128}, {128})

    def test_one_layer_is_enough(self) -> None:
        with pytest.raises(NybbleError, match="head size 48, 80"):
            check_head_size(parse("q4_0"), {64, 80, 48}, {64})
