"""Before and after hardening, in the terminal and on the page."""

from __future__ import annotations

import dataclasses
import html
import io
import json
import re
import xml.etree.ElementTree as ET

import pytest
from report_builders import IMAGE, SCRIPT, hardened_of, split_of_both
from rich.console import Console

from nybble.report import before_after
from nybble.report.hardened import hardened_html, promise, rich_hardened
from nybble.report.html import html_report
from nybble.results.hardened import Gain, Hardened, LayerGain
from nybble.results.records import Estimate, Measurement, Row, from_json

NAMES = ("hardened", "hardened_bare", "hardened_deep")


def terminal(found: Hardened) -> str:
    console = Console(width=100, file=io.StringIO(), force_terminal=False)
    for part in rich_hardened(found):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return " ".join(console.file.getvalue().split())


def embedded(page: str, name: str) -> str:
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.S)
    assert found
    return found[1]


def test_factor() -> None:
    assert Gain("q4_0/q4_0", Estimate(0.12), Estimate(0.03)).factor == pytest.approx(4)
    assert Gain("q4_0/q4_0", Estimate(0.12), Estimate(0.0)).factor == float("inf")


def test_promise_is_the_geometric_mean(hardened: Hardened) -> None:
    layers = (LayerGain(0, 1.0, 2.0), LayerGain(1, 4.0, 8.0), LayerGain(5, 2.0, 4.0))
    said = promise(dataclasses.replace(hardened, layers=layers))
    assert "2.0 times lower, geometric mean of 3 layers (1.00 to 4.0; 4.0 if no" in said


def test_terminal(hardened: Hardened, hardened_bare: Hardened) -> None:
    text = terminal(hardened)
    for words in (
        "q4_0/q4_0", "0.043 [0.035, 0.054]", "16-bit cache: KLD 3.8e-06 to the original (noise "
        "floor 4.4e-05), perplexity 9.9178 before, 9.9176 after",
        "geometric mean of 18 layers (1.10 to 7.9;",
    ):  # fmt: skip
        assert words in text, words
    assert "the formula" not in terminal(hardened_bare)


def test_terminal_reads_no_markup(hardened: Hardened) -> None:
    m = hardened.measurement
    models = [dataclasses.replace(m.models[0], name="[/red] x\x1b[31m [bold]"), m.models[1]]
    found = dataclasses.replace(hardened, measurement=dataclasses.replace(m, models=models))
    assert "[/red] x\ufffd[31m [bold]" in terminal(found)


@pytest.mark.parametrize("name", NAMES)
def test_page_is_escaped_and_complete(name: str, request: pytest.FixtureRequest) -> None:
    found: Hardened = request.getfixturevalue(name)
    page = hardened_html(found)
    assert "<script>alert" not in page and "<img" not in page
    assert html.escape(SCRIPT) in page and page.count("<script") == 3
    assert from_json(embedded(page, "measurement")) == found.measurement
    record = json.loads(embedded(page, "hardened"))
    assert record["family"] == found.family and "measurement" not in record
    assert (record["split"] is None) == (found.split is None)
    text = html.unescape(page)
    for words in (
        "With a q4_0/q4_0 cache it drifts 2.0 times less: mean KLD 0.043 before, 0.021 after.",
        "A scale for every channel was folded into the weights",
        f"Rule for Gemma 3 {SCRIPT}, from keys and queries of 2,048 tokens",
        "KLD 3.8e-06 between hardened and original; noise floor of the original 4.4e-05 [",
        "9.9178 before, 9.9176 after, 16-bit caches",
        f"hard {IMAGE}.gguf",
        "Model a is the original, model b the hardened one.",
        found.measurement.recommendation,
    ):
        assert words in text, words


def test_page_is_the_usual_report_below(hardened: Hardened) -> None:
    """From the results on it is the report of the measurement, to the letter."""
    start, end = '<section aria-labelledby="h-results">', "</main>"
    mine, usual = (
        page[page.index(start) : page.index(end)]
        for page in (hardened_html(hardened), html_report(hardened.measurement))
    )
    assert mine == usual


def test_nothing_to_show_is_left_out(hardened_bare: Hardened) -> None:
    page = hardened_html(hardened_bare)
    for words in ("before-texts", "before-layers", "promises", 'id="command"', "Reproduce"):
        assert words not in page.replace(embedded(page, "measurement"), ""), words


def test_no_gain_at_all(hardened: Hardened) -> None:
    page = hardened_html(dataclasses.replace(hardened, gains=()))
    assert "No KV setting was measured." in page and "before-layers" in page


def test_a_method_that_the_report_does_not_know(hardened: Hardened) -> None:
    page = hardened_html(dataclasses.replace(hardened, method=f"magic{IMAGE}"))
    assert f"Method: magic{IMAGE}." in html.unescape(page) and "<img" not in page


def texts(svg: str) -> list[str]:
    return [t.text or "" for t in ET.fromstring(svg).iter("text")]


def test_pairs_by_kind_of_text(hardened: Hardened) -> None:
    (chart, _) = before_after.charts(hardened)
    assert chart.header == ("KV type", "kind of text", "before", "after", "times lower")
    assert len(chart.rows) == 3 * 6
    prose = next(r for r in chart.rows if r[:2] == ("q4_0/q4_0", "prose"))
    # 1.3 times the whole: 0.043, and 0.043 * 0.22 + 0.012 to the original's cache.
    assert prose[2].startswith("0.056 [") and prose[3].startswith("0.028 [")
    assert prose[4] == "2.0"
    assert {"q8_0/q8_0", "before", "after", "scripts"} <= set(texts(chart.svg))
    assert "promised by the formula" not in texts(chart.svg)


def test_pairs_by_layer(hardened: Hardened) -> None:
    (_, chart) = before_after.charts(hardened)
    assert chart.title == "Layer by layer, K in q4_0"
    assert chart.header == ("layer", "before", "after", "times lower", "promised")
    assert [r[0] for r in chart.rows] == [str(i) for i in range(18)]
    assert {r[3] for r in chart.rows} == {"4.0"}
    tips = [t.text or "" for t in ET.fromstring(chart.svg).findall(".//title")]
    assert len(tips) == 18 * 3 and any(t.startswith("layer 3 before: 0.0") for t in tips)
    # Layer 0 has a gain of 1.1.
    first = chart.rows[0]
    assert float(first[4]) == pytest.approx(float(first[1]) / 1.1, rel=0.05)
    assert "transformers 5.23.0 (simulated caches)" in chart.caption
    assert re.search(
        r"all layers summed: [\d.]+ before, [\d.]+ after, [\d.]+ promised", chart.caption
    )


def test_values_have_no_promise(two_models: Measurement) -> None:
    found = hardened_of(two_models, split_of_both("q8_0/q4_0", 18, "KV"))
    chart = before_after.charts(found)[1]
    assert chart.title == "Layer by layer, K in q8_0, V in q4_0"
    assert {r[-1] == "–" for r in chart.rows if r[0] == "V in q4_0"} == {True}
    assert {r[-1] == "–" for r in chart.rows if r[0] == "K in q8_0"} == {False}


def test_layers_that_only_one_model_has(hardened: Hardened) -> None:
    """A pair needs both; a part that failed makes none."""
    assert hardened.split is not None

    def left(r: Row) -> Row:
        gone = r.part is not None and r.model == "b" and r.part.layer in (2, 3)
        return dataclasses.replace(r, metrics={}, status="failed", error="x") if gone else r

    split = dataclasses.replace(hardened.split, rows=[left(r) for r in hardened.split.rows])
    chart = before_after.charts(dataclasses.replace(hardened, split=split))[1]
    assert [r[0] for r in chart.rows] == [str(i) for i in range(18) if i not in (2, 3)]
    none = [r for r in split.rows if r.part is None or r.model == "a"]
    found = dataclasses.replace(hardened, split=dataclasses.replace(split, rows=none))
    assert [c.key for c in before_after.charts(found)] == ["before-texts"]


def test_zero_drift_is_drawn(hardened: Hardened) -> None:
    assert hardened.split is not None
    rows = [
        dataclasses.replace(r, metrics={**r.metrics, "mean_kld": Estimate(0.0)})
        for r in hardened.split.rows
    ]
    split = dataclasses.replace(hardened.split, rows=rows)
    chart = before_after.charts(dataclasses.replace(hardened, split=split))[1]
    assert {r[3] for r in chart.rows} == {"–"}
