"""Reading, crossing and refusing KV settings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nybble.errors import NybbleError
from nybble.formats import KV_TYPES, KVSetting, check_head_size, expand, make, parse, unique

NAMES = st.sampled_from(sorted(KV_TYPES))
SETTINGS = st.builds(make, NAMES, NAMES, st.booleans())


def written(*args: object, **kwargs: object) -> list[str]:
    return [str(s) for s in expand(*args, **kwargs)]  # type: ignore[arg-type]


@given(SETTINGS)
def test_round_trip_of_settings(setting: KVSetting) -> None:
    assert parse(str(setting)) == setting
    assert hash(parse(str(setting))) == hash(setting)


@given(NAMES, NAMES, st.booleans())
def test_round_trip_of_text(k: str, v: str, off: bool) -> None:
    quantized = KV_TYPES[k].quantized or KV_TYPES[v].quantized
    text = f"{k}/{v}" + ("-norot" if off and quantized else "")
    assert str(parse(text)) == text
    assert parse(f"  {text.upper()} ") == parse(text)


@given(NAMES)
def test_one_type_means_both_sides(name: str) -> None:
    assert parse(name) == parse(f"{name}/{name}")


def test_single_type_norot() -> None:
    assert str(parse("q4_0-norot")) == "q4_0/q4_0-norot"


def test_norot_without_a_quantized_side_is_the_same_cache() -> None:
    assert parse("f16/bf16-norot") == parse("f16/bf16")
    assert make("f32", "f16", rotation=False).rotation
    assert not make("f16", "q4_0", rotation=False).rotation


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
            ("q8_0/q4_0", {80}, {80}, "K type q8_0", "no block type fits: keep f16"),
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

    def test_one_layer_is_enough(self) -> None:
        with pytest.raises(NybbleError, match="head size 48, 80"):
            check_head_size(parse("q4_0"), {64, 80, 48}, {64})
