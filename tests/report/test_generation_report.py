"""Tables and page of a run of free generation, with hostile names in it."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import re

import pytest
from report_builders import ERROR, IMAGE, SCRIPT, model

from nybble.report import generation as tables
from nybble.report import generation_charts
from nybble.report.charts import canvas
from nybble.report.generation_html import generation_html
from nybble.results.records import Estimate
from nybble.results.tasks import Divergence, GenerationRun, from_json, to_json

LIMIT = 1024
CUTS = ("1-64", "65-256", "257-1024")
FINE = [f"{a + 1}-{2 * a}" for a in (4, 8, 16, 32, 64, 128, 256, 512)]


def spread(value: float) -> Estimate:
    return Estimate(value, 0.7 * value, 1.4 * value)


def row(setting: str, kld: float, firsts: list[int], role: str = "candidate") -> Divergence:
    n = len(firsts)
    share = {str(p): sum(f == 0 or f > p for f in firsts) / n for p in (64, 256, 1024)}
    return Divergence(
        setting, role, n,
        first_median=Estimate(float(sorted(firsts)[n // 2]), 9, None),
        first_at=firsts,
        same_at={p: Estimate(v, 0.5 * v, min(1, v + 0.3)) for p, v in share.items()},
        agreement_at={p: spread(0.6 * v) for p, v in share.items()},
        agreement_change=Estimate(-0.2, -0.31, -0.1),
        kld_at={c: spread(kld * (i + 1)) for i, c in enumerate(CUTS)},
        kld_along={"1-4": spread(kld)} | {c: spread(kld * (i + 1)) for i, c in enumerate(FINE)},
        trend=Estimate(0.31, 0.11, 0.52), mean_length=Estimate(800.0, 700, 900),
        length_ratio=Estimate(1.12, 0.97, 1.4), ended=Estimate(0.75, 0.4, 0.9),
        failed_to_stop=Estimate(0.125, 0, 0.4), looped=Estimate(0.125, 0, 0.4),
    )  # fmt: skip


@pytest.fixture
def run() -> GenerationRun:
    rows = [
        row("q8_0/q4_0", 0.004, [12, 80, 300, 0, 0, 0]),
        row("q4_0/q4_0", 0.05, [3, 5, 9, 44, 70, 600]),
        Divergence("q5_1/q5_1", "candidate", status="failed", error=ERROR),
        dataclasses.replace(row("bf16/bf16", 1e-5, [100, 0, 0, 0, 0, 0], "floor"),
                            first_median=None, agreement_change=None),
        Divergence("f16/f16", "identity", 1, first_at=[0],
                   kld_at=dict.fromkeys(CUTS, Estimate(0.0))),
        Divergence("f16/f16", "reference", 6, ended=Estimate(1.0, 0.6, 1.0)),
    ]  # fmt: skip
    protocol = {"limit": LIMIT, "prompts": ["head of a text"], "seed": 0, "text": [
        {"category": IMAGE, "title": "your text", "licence": "yours", "source": SCRIPT,
         "prompts": 6}]}  # fmt: skip
    return GenerationRun(
        model(name=f"Gemma {SCRIPT}"), rows, f"It parts early. {IMAGE}", [f"a warning {SCRIPT}"],
        f"nybble measure {SCRIPT}", "2026-01-01T00:00:00+00:00", protocol, {"nybble": "0.1.0"},
        {"cpu": IMAGE, "memory_gib": None},
    )  # fmt: skip


def test_what_the_tables_say(run: GenerationRun) -> None:
    part, error, end = tables.grids(run)
    assert part.header[:4] == ("KV type", "prompts", "first difference ↑", "same until 64 ↑")
    by_name = {r[0]: r for r in part.rows}
    assert by_name["q4_0/q4_0"][2] == "44 [9, >1,024]"
    assert by_name["q4_0/q4_0"][-1] == "-20 [-31, -10]"
    assert by_name["bf16/bf16 (noise floor)"][2] == "none"
    assert by_name["q5_1/q5_1"][1] == "failed"
    assert by_name["f16/f16 (16-bit cache)"][2] == "–"
    assert error.header[1:4] == ("KLD 1-64 ↓", "KLD 65-256 ↓", "KLD 257-1,024 ↓")
    assert {r[0]: r for r in error.rows}["q4_0/q4_0"][-1] == "0.31 [0.11, 0.52]"
    assert {r[0]: r for r in end.rows}["q4_0/q4_0"][1:4] == (
        "800 [700, 900]", "75% [40, 90]", "1.12 [0.97, 1.40]",
    )  # fmt: skip
    assert all(len(r) == len(g.header) for g in (part, error, end) for r in g.rows)


def test_stretches_stay_in_order_through_json(run: GenerationRun) -> None:
    again = from_json(GenerationRun, to_json(run))
    assert again == run
    assert list(tables.by_number(again.rows[0].kld_along))[:3] == ["1-4", "5-8", "9-16"]
    assert tables.grids(again) == tables.grids(run)


def test_foreign_text_stays_text_everywhere(run: GenerationRun) -> None:
    page, text = generation_html(run), tables.markdown(run)
    assert "<script>alert" not in page + text and "<img" not in page + text
    assert "\x1b" not in page + text + tables.csv_text(run)
    assert html.escape(SCRIPT) in page
    assert "|" not in re.sub(r"\\\|", "", text.split("- It parts")[1])


def test_a_spreadsheet_runs_nothing(run: GenerationRun) -> None:
    rows = [dataclasses.replace(run.rows[0], setting="=1+1"), run.rows[2]]
    lines = list(csv.DictReader(io.StringIO(
        tables.csv_text(dataclasses.replace(run, rows=rows)))))  # fmt: skip
    assert {x["setting"] for x in lines} == {"'=1+1", "q5_1/q5_1"}
    assert [x["what"] for x in lines if x["setting"] == "q5_1/q5_1"] == ["failed"]


def test_the_page_is_whole_and_fetches_nothing(run: GenerationRun) -> None:
    page = generation_html(run)
    found = re.search(r'<script type="application/json" id="generation">(.*?)</script>', page, re.S)
    assert found and "<" not in found[1] and from_json(GenerationRun, found[1]) == run
    rest = page.replace(found[1], "")
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?\s*(?:https?:)?//|url\(\s*[\"']?(?!#)|@import",
                         rest)  # fmt: skip
    assert page.count("<svg") == 2 and "default-src 'none'" in page
    for words in ("Where answers part", "Answers that have not parted yet", "along the answer",
                  "What the columns mean", "Reproduce", "16-bit rounding"):  # fmt: skip
        assert words in page


@pytest.mark.parametrize("keep", [(), (2,), (4, 5)])
def test_nothing_to_draw(run: GenerationRun, keep: tuple[int, ...]) -> None:
    bare = dataclasses.replace(run, rows=[run.rows[i] for i in keep])
    with canvas.style("test"):
        assert generation_charts.survival(bare, canvas.PRINT) is None
        assert generation_charts.along(bare, canvas.PRINT) is None
    assert "<svg" not in generation_html(bare)
    assert tables.markdown(bare)


def test_the_survival_curve_falls_where_answers_part(run: GenerationRun) -> None:
    with canvas.style("test"):
        picture = generation_charts.survival(run, canvas.PRINT)
        assert picture is not None
        axes = picture.figure.axes[0]
        line = axes.lines[0]
    assert list(line.get_xdata()) == [1, 12, 80, 300, 1024]
    assert list(line.get_ydata()) == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 3 / 6])
    assert picture.rows[0][2] == "12, 80, 300, 0, 0, 0"


def test_the_terminal(run: GenerationRun) -> None:
    from rich.console import Console

    console = Console(width=120, file=io.StringIO(), record=True)
    for table in tables.rich_tables(run):
        console.print(table)
    shown = console.export_text()
    assert "q8_0/q4_0" in shown and max(map(len, shown.splitlines())) <= 120
