"""Numbers and foreign text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nybble.report import format as fmt
from nybble.results.records import Estimate


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.0054, "0.0054"),
        (0.006, "0.0060"),
        (4.4e-05, "4.4e-05"),
        (0.0001, "0.00010"),
        (0.0999, "0.10"),
        (1.0, "1.0"),
        (9.94, "9.9"),
        (9.96, "10"),
        (123.4, "123"),
        (-0.012, "-0.012"),
        (float("inf"), "not finite"),
        (None, "–"),
    ],
)
def test_kld(value: float | None, text: str) -> None:
    assert fmt.kld(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.0, "100%"),
        (0.999999, ">99.99%"),
        (0.9977, "99.77%"),
        (0.971, "97.1%"),
        (0.0042, "0.42%"),
        (0.00001, "<0.01%"),
        (None, "–"),
    ],
)
def test_percent_never_claims_all_or_nothing(value: float | None, text: str) -> None:
    assert fmt.percent(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (512, "512 B"),
        (13.8 * 1024, "13.8 KiB"),
        (1024**2, "1.00 MiB"),
        (5.5 * 1024**3, "5.50 GiB"),
        (None, "–"),
    ],
)
def test_size(value: float | None, text: str) -> None:
    assert fmt.size(value) == text


def test_other_numbers() -> None:
    assert [fmt.bits(v) for v in (16.0, 8.5, 6.25, 0.0)] == ["16", "8.5", "6.25", "–"]
    assert [fmt.ratio(v) for v in (1.0, 1.0176, 4321.0)] == ["1", "1.0176", "4.32e+03"]
    assert [fmt.mib(v) for v in (0, 2**19, 104 * 2**20, 1234 * 2**20)] == [
        "0",
        "0.50",
        "104",
        "1,234",
    ]


def test_interval_needs_both_ends() -> None:
    assert fmt.kld_with_interval(Estimate(0.0054, 0.0049, 0.006)) == "0.0054 [0.0049, 0.0060]"
    assert fmt.kld_with_interval(Estimate(0.0054)) == "0.0054"
    assert fmt.kld_with_interval(None) == "–"


def test_clean_disarms_control_characters_and_keeps_scripts() -> None:
    assert fmt.clean("a\x1b[31m\nb\t c") == "a\ufffd[31m b c"
    assert fmt.clean("x\u202egpj\ud800\uffff") == "x\ufffdgpj\ufffd\ufffd"
    assert fmt.clean("می\u200cخواهم") == "می\u200cخواهم"
    assert fmt.clean("abcdef", 4) == "abc…"


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("q8_0/q4_0", 24, ["q8_0/q4_0"]),
        ("", 24, [""]),
        (
            "exl3_3/exl3_3+at0.5-7:exl3_5/exl3_4+at3:exl3_6/exl3_3",
            24,
            ["exl3_3/exl3_3", "+at0.5-7:exl3_5/exl3_4", "+at3:exl3_6/exl3_3"],
        ),
        (
            "turboquant_k4/turboquant_v4+skip0.1.-2.-1",
            24,
            ["turboquant_k4/", "turboquant_v4", "+skip0.1.-2.-1"],
        ),
        (
            "int4_per_token_head/int4_per_token_head *",
            17,
            ["int4_per_token_", "head/", "int4_per_token_", "head *"],
        ),
        ("fp8_e4m3/fp8_e4m3 *", 18, ["fp8_e4m3/", "fp8_e4m3 *"]),
        ("aaaaaaaa", 3, ["aaa", "aaa", "aa"]),
    ],
)
def test_pieces(text: str, width: int, lines: list[str]) -> None:
    assert fmt.pieces(text, width) == lines


@given(st.text("ab/+_. ", max_size=80), st.integers(1, 30))
def test_pieces_join_and_fit(text: str, width: int) -> None:
    found = fmt.pieces(text, width)
    assert "".join(found) == text and all(len(line) <= width for line in found)


def test_labels_are_short_and_settings_whole() -> None:
    long = "exl3_3/exl3_3+at0.5-7:exl3_5/exl3_4"
    assert fmt.label(long) == "exl3_3/exl3_3+at0.5-7:e…" and fmt.setting(long) == long


@pytest.mark.parametrize(
    ("factor", "text"),
    [
        (0.066, "0.07"), (1.0, "1.00"), (1.994, "1.99"), (1.996, "2.0"), (4.26, "4.3"),
        (99.4, "99.4"), (99.6, "100"), (1234.5, "1234"), (None, "–"), (float("inf"), "–"),
    ],
)  # fmt: skip
def test_times(factor: float | None, text: str) -> None:
    assert fmt.times(factor) == text
