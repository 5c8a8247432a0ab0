"""cards.csv line by line, names as people and drivers write them, cards that do not exist."""

from __future__ import annotations

import csv
import math
import re
from importlib import resources

import pytest

from nybble.errors import NybbleError
from nybble.planning.cards import Card, card, cards, change, known, plain
from nybble.planning.interval import Interval

ROWS = list(
    csv.DictReader(
        resources.files("nybble.planning").joinpath("cards.csv").read_text("utf-8").splitlines()
    )
)
GIB = 2**30


def test_every_line_is_a_card() -> None:
    assert [c.name for c in cards()] == [row["name"] for row in ROWS]
    assert len(ROWS) >= 29
    assert not any(None in row or None in row.values() for row in ROWS)  # as many cells as names


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_units_are_sane(row: dict[str, str]) -> None:
    found = card(row["name"])
    # MiB, not MB or GB: the driver shows up to 10 % less than the box says.
    assert 8 <= found.memory_gib <= 512
    size = re.search(r"-(\d+)gb", found.name)
    if size:
        assert 0.74 * int(size[1]) <= found.memory_gib <= int(size[1])
    assert found.bandwidth_gbs is not None
    assert 200 <= found.bandwidth_gbs <= 10_000
    fp16 = found.fp16_tflops
    assert fp16 is None or 20 <= fp16 <= 3000
    for faster, most in ((found.int8_tops, 4.01), (found.fp8_tflops, 2.03),
                         (found.fp4_tflops, 8.05)):  # fmt: skip
        if faster is not None:
            assert fp16 is not None
            assert 0.99 <= faster / fp16 <= most
    # Operations a byte: neither a sparse rate nor TB/s for GB/s.
    if fp16 is not None:
        assert 40 <= fp16 * 1e12 / (found.bandwidth_gbs * 1e9) <= 500
    assert found.tdp_w is None or 50 <= found.tdp_w <= 1500
    if found.idle_w is not None and found.tdp_w is not None:
        assert 0 < found.idle_w < found.tdp_w / 4
    assert found.vendor in ("nvidia", "amd", "intel", "apple")
    assert row["unified"] in ("", "1")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_numbers_have_sources(row: dict[str, str]) -> None:
    assert row["memory_source"]
    assert row["source"]
    for what, low, high in (("price", 100, 50_000), ("rent", 0.1, 10)):
        numbers = [row[f"{what}_low"], row[f"{what}_high"]]
        assert len(set(map(bool, numbers))) == 1
        assert bool(numbers[0]) == bool(row[f"{what}_source"]) == bool(row[f"{what}_date"])
        if numbers[0]:
            assert low <= float(numbers[0]) <= float(numbers[1]) <= high
            assert re.fullmatch(r"20\d\d(-\d\d){0,2}", row[f"{what}_date"])
            found = card(row["name"])
            assert row[f"{what}_date"] in (found.price_from if what == "price" else found.rent_from)


def test_names_are_unique() -> None:
    owners: dict[str, str] = {}
    for row in ROWS:
        assert row["name"] == plain(row["name"])
        for name in (row["name"], *filter(None, row["aliases"].split(";"))):
            assert owners.setdefault(plain(name), row["name"]) == row["name"]
            assert card(name).name == row["name"]


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA GeForce RTX 3090", "rtx-3090"),
        ("nvidia_geforce_rtx_3090", "rtx-3090"),
        ("NVIDIA GeForce RTX 4060 Ti", "rtx-4060-ti-16gb"),
        ("NVIDIA RTX A6000", "rtx-a6000"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "rtx-pro-6000"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb-pcie"),
        ("NVIDIA A100-PCIE-40GB", "a100-40gb"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA GB10", "dgx-spark"),
        ("AMD Instinct MI300X OAM", "mi300x"),
        ("AMD Radeon RX 7900 XTX", "rx-7900-xtx"),
        ("Intel(R) Arc(TM) B580 Graphics", "arc-b580"),
        ("Apple M4 Max", "m4-max-128gb"),
    ],
)
def test_drivers_names(driver: str, name: str) -> None:
    assert card(driver).name == name


def test_other_cards_are_not_taken_for_known_ones() -> None:
    for name in ("NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A10G", "NVIDIA H100 NVL", ""):
        assert known(name) is None


@pytest.mark.parametrize(
    ("name", "near"), [("rtx-4900", "rtx-4090"), ("RTX 3090 Ti", "rtx-3090"), ("h10", "h100-sxm")]
)
def test_unknown_card_names_the_nearest(name: str, near: str) -> None:
    with pytest.raises(NybbleError, match="unknown card") as caught:
        card(name)
    assert caught.value.seen == name
    assert caught.value.hint == f"--gpu {near}"
    assert "rtx-5090" in str(caught.value.allowed)


def test_nothing_near() -> None:
    with pytest.raises(NybbleError) as caught:
        card("zzzz")
    assert "24GiB@936GBps" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "n_bytes", "bandwidth", "tflops"),
    [
        ("24GB@1000GB/s", 24 * 10**9, 1000, None),
        ("24GiB@936GBps", 24 * GIB, 936, None),
        ("  24gib @ 1.792 TB/s ", 24 * GIB, 1792, None),
        ("49140MiB@768gbps@154.8TFLOPS", 49140 * 2**20, 768, 154.8),
        ("1.5GB@50GBps@2.5 tflops", 1_500_000_000, 50, 2.5),
    ],
)
def test_what_if(text: str, n_bytes: int, bandwidth: float, tflops: float | None) -> None:
    found = card(text)
    assert (found.memory_bytes, found.bandwidth_gbs, found.fp16_tflops) == (
        n_bytes, pytest.approx(bandwidth), tflops,
    )  # fmt: skip
    assert found.vendor == "what-if"
    assert found.name == text.strip()
    assert found.origin("bandwidth_gbs") == "given"
    assert found.price is None
    assert found.rent is None


@pytest.mark.parametrize(
    "text",
    ["24@1000", "24GB@1000", "GB@1000GB/s", "24GB@GB/s", "24GB@-1GB/s", "24GB@1000GB/s@x",
     "rtx-3090@1000GB/s", "24GB@1000GB/s@5TFLOPS@2", "0GB@1000GB/s", "24GB@0GB/s",
     "24GB@1000GB/s@0TFLOPS", "@"],
)  # fmt: skip
def test_wrong_what_if_is_refused(text: str) -> None:
    with pytest.raises(NybbleError) as caught:
        card(text)
    assert caught.value.allowed


def test_overrides() -> None:
    old = card("rtx-3090")
    new = change(
        old, memory_gib=23.5, bandwidth_gbs=900, fp16_tflops=70, int8_tops=280, tdp_w=280,
        idle_w=0, price=700, rent=Interval(0.2, 0.3),
    )  # fmt: skip
    assert new.memory_bytes == int(23.5 * GIB)
    assert (new.bandwidth_gbs, new.fp16_tflops, new.int8_tops) == (900, 70, 280)
    assert (new.tdp_w, new.idle_w) == (280, 0)
    assert (new.price, new.rent) == (Interval(700, 700), Interval(0.2, 0.3))
    assert new.memory_from == new.price_from == new.rent_from == "given"
    assert change(old) == old
    assert card("rtx-3090") == old


def test_a_given_rate_is_not_said_to_be_of_the_datasheet() -> None:
    new = change(change(card("rtx-3090"), bandwidth_gbs=900), tdp_w=280)
    assert new.origin("bandwidth_gbs") == new.origin("tdp_w") == "given"
    assert new.origin("fp16_tflops") == card("rtx-3090").source
    assert Card("x", "cpu", 1).origin("tdp_w") == "given"


@pytest.mark.parametrize(
    "field",
    ["memory_gib", "bandwidth_gbs", "fp16_tflops", "int8_tops", "tdp_w", "idle_w", "price", "rent"],
)
def test_wrong_overrides_are_refused(field: str) -> None:
    for bad in (-1.0, math.nan, math.inf, *([] if field == "idle_w" else [0.0])):
        with pytest.raises(NybbleError):
            change(card("rtx-3090"), **{field: bad})  # type: ignore[arg-type]
