"""Terminal, Markdown and CSV tables."""

from __future__ import annotations

import csv
import dataclasses
import io

import pytest
from report_builders import LONGEST
from rich.console import Console

from nybble.report import table
from nybble.results.records import Measurement

ALL = ("one", "two_models", "two_contexts", "few", "many", "taken_apart", "by_head")


def rendered(m: Measurement, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(table.rich_table(m, width))
    two = table.rich_cells(m)
    if two is not None:
        console.print(two)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("width", [80, 100, 140])
def test_fits_the_terminal(name: str, width: int, request: pytest.FixtureRequest) -> None:
    m: Measurement = request.getfixturevalue(name)
    text = rendered(m, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    whole = "".join(line.partition(" ")[0] for line in text.splitlines())
    for row in m.rows:
        if row.role == "candidate":
            assert row.setting in text or row.setting in whole


@pytest.mark.parametrize("width", [80, 100])
def test_longest_cells_still_fit(one: Measurement, width: int) -> None:
    worst = dataclasses.replace(
        next(r for r in one.rows if r.setting == "q8_0/q4_0"),
        setting="q8_0/q4_0-norot",
        cache_bytes=9_999 * 2**20,
        metrics={
            n: dataclasses.replace(e, value=4.4e-05, low=3.6e-05, high=5.5e-05)
            if n.endswith("kld")
            else e
            for n, e in one.rows[0].metrics.items()
        },
    )
    text = rendered(dataclasses.replace(one, rows=[worst, *one.rows]), width)
    assert max(map(len, text.splitlines())) <= width
    assert "q8_0/q4_0-norot" in text and "[3.6e-5,5.5e-5]" in text


def test_wide_terminal_shows_every_number(one: Measurement) -> None:
    text = rendered(one, 100)
    line = next(s for s in text.splitlines() if s.startswith("q4_0/q4_0"))
    for part in ("4.5", "7.31 KiB", "29.2", "0.043", "[0.035,0.054]", "2.6", "92.7%", "degraded"):
        assert part in line
    assert "bootstrap interval over 24 documents" in text


def test_references_come_last_and_dimmed(one: Measurement) -> None:
    drawn = table.rich_table(one)
    assert [r.style for r in drawn.rows[-2:]] == ["dim", "dim"]
    first = [s.split("  ")[0] for s in rendered(one, 100).splitlines()]
    assert first.index("noise floor") == first.index("identity") - 1
    assert all(first.index("noise floor") > first.index(r.setting) for r in one.rows[:6])


def test_failed_row_says_why_without_escapes(one: Measurement) -> None:
    text = rendered(one, 100)
    assert "q5_1/q5_1 failed: head size 72" in text
    assert "second line" not in text and "\x1b" not in text


def test_few_documents_have_no_interval(few: Measurement) -> None:
    text = rendered(few, 100)
    assert "No intervals: fewer than 5 documents (3)." in text
    assert "0.035," not in text and "high]" not in text
    assert "low, high" not in table.markdown(few)


def test_contexts_are_groups(two_contexts: Measurement) -> None:
    text = rendered(two_contexts, 100)
    assert text.index("context 4,096") < text.index("context 16,384")


def test_simulated_bytes_are_marked(one: Measurement) -> None:
    rows = [dataclasses.replace(r, simulated=r.setting == "q4_0/q4_0") for r in one.rows]
    m = dataclasses.replace(one, rows=rows)
    for text in (rendered(m, 100), table.markdown(m).replace("\\", "")):
        assert "q4_0/q4_0 *" in text and "simulated" in text
        assert "Gemma 3 1B IT" in text and "in llama.cpp" in text


def test_transformers_engine_is_named(many: Measurement) -> None:
    for text in (rendered(many, 100), table.markdown(many)):
        flat = " ".join(text.split())
        assert "Gemma 3 270M" in flat and "(simulated caches)" in flat
        assert "in transformers" in flat and "llama.cpp" not in flat.split("nybble measure")[0]
        assert "went through the type's real bytes and back inside the model" in flat
        assert "sliding layers with one window each" in flat


def test_long_settings_are_whole(many: Measurement) -> None:
    assert f"| {LONGEST} \\* |" in table.markdown(many)
    lines = rendered(many, 100).splitlines()
    first = next(i for i, s in enumerate(lines) if s.startswith("exl3_3/exl3_3 "))
    found = [s.split("  ")[0].strip() for s in lines[first : first + 3]]
    assert found == ["exl3_3/exl3_3", "+at0.5-7:exl3_5/exl3_4", "+at3:exl3_6/exl3_3 *"]
    assert "p99.9" in lines[1] + lines[2] and "KiB" not in lines[5], "bytes/token makes room"


def test_four_cells(two_models: Measurement) -> None:
    text = rendered(two_models, 100)
    assert "What does the cache type cost this model?" in text
    assert "How far is this deployment from the other model in total?" in text
    md = table.markdown(two_models)
    assert "| a | f16/f16 | 0 | 0.012" in md
    assert "| b | q4_0/q4_0 | 0.0095" in md
    assert table.rich_cells(dataclasses.replace(two_models, models=two_models.models[:1])) is None


def test_markdown_is_one_table_with_its_setting(one: Measurement) -> None:
    text = table.markdown(one)
    head = text.splitlines()[0]
    for part in ("Gemma 3 1B IT", "llama.cpp b9637", "code (Python code), chat", "24 documents"):
        assert part in head
    rows = [s for s in text.splitlines() if s.startswith("|")]
    assert len(rows) == 2 + len(one.rows)
    assert {s.count("|") - s.count("\\|") for s in rows} == {len(table.COLUMNS) + 1}
    body = text[: text.index("```")]
    assert "<script" not in body and "<img" not in body
    assert one.command in text[text.index("```") :]


def test_markdown_fence_outlasts_backticks(one: Measurement) -> None:
    text = table.markdown(dataclasses.replace(one, command="nybble measure '````.gguf'"))
    assert "\n`````\nnybble measure" in text


def test_csv_has_every_row_and_metric(one: Measurement) -> None:
    rows = list(csv.DictReader(io.StringIO(table.csv_text(one))))
    assert len(rows) == len(one.rows)
    for text, row in zip(rows, one.rows, strict=True):
        assert text["setting"] == row.setting
        for name, found in row.metrics.items():
            assert float(text[name]) == found.value
            assert text[f"{name}_low"] == ("" if found.low is None else str(found.low))
    assert rows[-3]["status"] == "failed" and rows[-3]["mean_kld"] == ""


def test_csv_holds_no_formula(one: Measurement) -> None:
    model = dataclasses.replace(one.models[0], name="=HYPERLINK(1)")
    m = dataclasses.replace(one, models=[model])
    assert table.csv_text(m).splitlines()[1].startswith("'=HYPERLINK")
