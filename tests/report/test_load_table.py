"""A load test as tables: numbers with units, ratios, notes; foreign text cannot break them."""

from __future__ import annotations

import csv
import io

import pytest
from rich.console import Console

from load_builders import answer, in_blocks, report_of, run_of
from nybble.report import load_table as table
from nybble.results.records import Estimate
from nybble.serving.load.summary import Limits

ONE = run_of(in_blocks(5, 8), blocks=5, limits=Limits(ttft=0.2))
TWO = run_of(in_blocks(5, 8, lambda b: 1.25), "two", blocks=5, limits=Limits(ttft=0.12))


def shown(report: object) -> str:
    out = Console(width=120, file=io.StringIO())
    out.print(table.rich_table(report))  # type: ignore[arg-type]
    return out.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_one_run() -> None:
    text = shown(report_of(ONE))
    assert "55.0 [" in text and "100 ms [100, 100]" in text and "10.0 ms" in text
    assert "40 of 40" in text and "100 + 11" in text and "first text within 200 ms" in text
    assert "ratio" not in text


def test_two_runs() -> None:
    text = shown(report_of(ONE, TWO))
    assert "0.80 [0.80, 0.80]" in text and "1.25 [1.25, 1.25]" in text and "ratio" in text
    assert "in turns" in table.heading(report_of(ONE, TWO)) or ONE.blocks[0].index == 0


def test_markdown_and_notes() -> None:
    broken = run_of([answer(0), answer(1, error="HTTP 500", detail="a|b <b>\x1b[31m")], "bad|name",
                    notes=("mind this",))  # fmt: skip
    text = table.markdown(report_of(ONE, broken))
    lines = [x for x in text.splitlines() if x.startswith("|")]
    assert len({x.replace("\\|", "").count("|") for x in lines}) == 1
    assert "1 x HTTP 500: a\\|b &lt;b>" in text and "\x1b" not in text and "mind this" in text


def test_csv() -> None:
    report = report_of(ONE, run_of(in_blocks(5, 8, lambda b: 1.25), "=two()", blocks=5))
    rows = list(csv.DictReader(io.StringIO(table.csv_text(report))))
    by = {(r["run"], r["against"], r["what"], r["level"]): r for r in rows}
    assert float(by["one", "", "ttft", "p50"]["value"]) == 0.1
    assert by["one", "", "answered", ""]["value"] == "40"
    assert float(by["'=two()", "one", "ttft", "p90"]["value"]) == pytest.approx(1.25)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0 ms"), (0.0000512, "0.0512 ms"), (0.0399, "39.9 ms"), (0.99949, "999 ms"),
     (0.9996, "1.00 s"), (12.34, "12.3 s"), (1234.5, "1,234 s")],
)  # fmt: skip
def test_seconds(value: float, text: str) -> None:
    assert table.seconds(value) == text


def test_the_unit_stands_once() -> None:
    assert table.cell(Estimate(0.9, 0.5, 1.5), table.seconds) == "900 ms [500, 1,500]"
    assert table.cell(Estimate(1.1, 0.5, 1.5), table.seconds) == "1.10 s [0.5, 1.50]"
    assert table.cell(None, table.seconds) == "–"
