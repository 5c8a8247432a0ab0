"""Where it hurts: settings taken apart, in every output."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import re
import xml.etree.ElementTree as ET

import pytest
from report_builders import DRIFT, measurement, parts, references, row
from rich.console import Console

from nybble.report import parts as report_parts
from nybble.report import plots, table, view
from nybble.report.html import html_report
from nybble.results.records import Estimate, Measurement, Row


def terminal(m: Measurement, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    for found in report_parts.rich_parts(m):
        console.print(found)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_parts_stay_out_of_everything_else(taken_apart: Measurement) -> None:
    alone = dataclasses.replace(taken_apart, rows=[r for r in taken_apart.rows if r.role != "part"])
    assert view.groups(taken_apart) == view.groups(alone)
    assert view.colours(taken_apart) == view.colours(alone)
    assert plots.charts(taken_apart) == plots.charts(alone)
    console = Console(width=100, file=io.StringIO())
    console.print(table.rich_table(taken_apart, 100))
    assert isinstance(console.file, io.StringIO)
    assert "+at" not in console.file.getvalue()
    assert report_parts.splits(alone) == [] and terminal(alone) == ""
    assert report_parts.TITLE not in html_report(alone) + table.markdown(alone)


def test_splits(taken_apart: Measurement) -> None:
    first, second = report_parts.splits(taken_apart)
    assert (first.of, second.of) == ("q4_0/q4_0", "q8_0/q4_0")
    assert len(first.rows) == 36 and not first.by_head and not first.failed
    assert [report_parts.where(r) for r in first.rows[:3]] == [
        "layer 0 K",
        "layer 0 V",
        "layer 1 K",
    ]
    assert first.total == pytest.approx(0.9 * DRIFT["q4_0/q4_0"])
    assert report_parts.where(first.worst(1)[0]) == "layer 3 K"
    assert sum(first.share(r) or 0 for r in first.rows) == pytest.approx(1)


def split_of(values: list[float], whole: float | None) -> report_parts.Split:
    """A setting whose layers have these KLDs, K only."""
    base = [r for r in parts("q4_0/f16", 1.0, layers=len(values)) if r.part and r.part.side == "K"]
    rows = [
        dataclasses.replace(r, metrics={"mean_kld": Estimate(v)})
        for r, v in zip(base, values, strict=True)
    ]
    more = [row("q4_0/f16", whole)] if whole is not None else []
    return report_parts.splits(measurement([*rows, *more, *references(4096)]))[0]


@pytest.mark.parametrize(
    ("values", "whole", "said"),
    [
        ([0.01, 0.03], 0.04, "0.040, 1.00 times the 0.040 of the whole: errors roughly add up"),
        ([0.01, 0.01], 0.04, "0.50 times the 0.040 of the whole: together they do more than one"),
        ([0.04, 0.04], 0.04, "2.00 times the 0.040 of the whole: together they do less than one"),
        ([0.01, 0.03], None, "The 2 parts sum to a mean KLD of 0.040; the whole was not measured."),
        ([0.0, 0.0], 0.04, "The 2 parts sum to a mean KLD of 0; the whole was not measured."),
    ],
)
def test_sentence_says_how_far_parts_add_up(
    values: list[float], whole: float | None, said: str
) -> None:
    if not sum(values):
        whole = None
    assert said in report_parts.sentence(split_of(values, whole))


def test_sentence_names_the_worst_part_and_side(taken_apart: Measurement) -> None:
    said = report_parts.sentence(report_parts.splits(taken_apart)[0])
    assert said.startswith("Layer 3 K alone is 31.2% of the sum, all of K 89.2%. The 36 parts sum")
    assert "all of K" not in report_parts.sentence(split_of([0.1, 0.2], 0.3)), "K is all there is"


def test_terminal_lists_the_worst_eight(taken_apart: Measurement, by_head: Measurement) -> None:
    text = terminal(taken_apart)
    assert max(map(len, text.splitlines())) <= 80
    assert "Where it hurts: q4_0/q4_0, the worst 8 of 36 parts" in text
    lines = [s.split() for s in text.splitlines() if re.match(r" +\d+  [KV] ", s)]
    assert len(lines) == 16 and lines[0] == [
        "3",
        "K",
        "0.012",
        "[0.0099,0.015]",
        "31.2%",
        "96.2%",
        "0.44%",
    ]
    text = terminal(by_head)
    assert "head" in text and "the worst 8 of 48 parts" in text and "[" not in text


def test_few_parts_are_all_listed() -> None:
    m = measurement([*parts("q8_0/q8_0", 0.001, layers=2), *references(4096)])
    assert "q8_0/q8_0, 4 parts" in terminal(m)


def test_markdown_has_every_part(taken_apart: Measurement) -> None:
    text = table.markdown(taken_apart)
    assert text.count("**Where it hurts: ") == 2
    after = text[text.index("**Where it hurts: q4\\_0") :] if "q4\\_0" in text else text
    rows = re.findall(r"^\| \d+ \| [KV] \|", after, re.M)
    assert len(rows) == 72
    assert text.index("f16/f16 (identity)") < text.index("**Where it hurts")
    assert text.rstrip().endswith("```")


def test_csv_has_the_places(by_head: Measurement) -> None:
    lines = list(csv.DictReader(io.StringIO(table.csv_text(by_head))))
    first, last = lines[0], lines[-1]
    assert (first["part_of"], first["layer"], first["side"], first["head"]) == (
        "q4_0/q4_0", "0", "K", "0",
    )  # fmt: skip
    assert (last["part_of"], last["layer"], last["side"], last["head"]) == ("", "", "", "")


def test_page_has_a_section_with_picture_and_table(taken_apart: Measurement) -> None:
    page = html_report(taken_apart)
    section = page[page.index('id="h-parts"') : page.index('id="h-how"')]
    figures = re.findall(r"<figure.*?</figure>", section, re.S)
    assert len(figures) == 2
    for figure in figures:
        assert 'role="img"' in figure and "aria-label=" in figure
        assert figure.count("<tr>") == 37
    assert "errors roughly add up here" in html.unescape(section)
    assert page.count("at3:q4_0/f16") == page.count('"setting": "f16/f16+at3:q4_0/f16"')


@pytest.mark.parametrize("name", ["taken_apart", "by_head"])
def test_picture(name: str, request: pytest.FixtureRequest) -> None:
    m: Measurement = request.getfixturevalue(name)
    for i, split in enumerate(report_parts.splits(m)):
        chart = plots.part_chart(split, f"parts{i}")
        assert chart is not None and chart == plots.part_chart(split, f"parts{i}")
        root = ET.fromstring(chart.svg)
        tips = [t.text or "" for t in root.findall(".//title")]
        assert sum(t.startswith("layer ") for t in tips) == len(split.rows) == len(chart.rows)
        assert any(t.startswith("noise floor") for t in tips)
        assert all(len(r) == len(chart.header) for r in chart.rows)
        assert ("head" in chart.header) == split.by_head
        texts = {t.text for t in root.iter("text")}
        assert {"K", "V", "layer"} <= texts and "#0101" not in chart.svg


def test_failed_and_odd_parts(taken_apart: Measurement) -> None:
    def broken(r: Row) -> Row:
        return dataclasses.replace(r, metrics={}, status="failed", error="out of memory\nline 2")

    some = [broken(r) if r.part and r.part.layer == 3 else r for r in taken_apart.rows]
    m = dataclasses.replace(taken_apart, rows=some)
    assert "the worst 8 of 34 parts" in terminal(m)
    flat = " ".join(terminal(m).split())
    assert "2 parts failed and count nothing: layer 3 K: out of memory." in flat
    assert "failed" not in "".join(view.notes(m)) and view.failures(m) == []
    assert "out of memory" in html_report(m)

    none = [broken(r) if r.part else r for r in taken_apart.rows]
    m = dataclasses.replace(taken_apart, rows=none)
    assert "Not one part of q4_0/q4_0 could be measured." in " ".join(terminal(m).split())
    page = html_report(m)
    assert "Not one part of q4_0/q4_0" in page and 'id="chart-parts0"' not in page

    zero = [
        dataclasses.replace(r, metrics={"mean_kld": Estimate(0.0)}) if r.part else r
        for r in taken_apart.rows
    ]
    html_report(dataclasses.replace(taken_apart, rows=zero))
    single = [r for r in taken_apart.rows if r.part is None or r.part.layer == 0]
    html_report(dataclasses.replace(taken_apart, rows=single))
