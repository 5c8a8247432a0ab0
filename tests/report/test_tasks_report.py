"""Tables and page of a run of tasks: numbers, marks, and nothing foreign that acts."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console

from nybble.errors import NybbleError
from nybble.report import tasks as tables
from nybble.report.tasks_html import tasks_html
from nybble.results.records import Estimate, ModelRecord
from nybble.results.tasks import TaskCell, TaskRun, from_json, to_json

HOSTILE = '</script><script>alert(1)</script><img src=x onerror=alert(2)>|`*_"\x1b[31m'


def _cell(setting: str, role: str, task: str, length: int, share: float, **more: Any) -> TaskCell:
    change = Estimate(share - 0.9, share - 0.95, share - 0.85)
    base: dict[str, Any] = {
        "n_items": 5, "n_queries": 40, "chance": 0.25, "exact": Estimate(share, share - 0.1, share),
        "choice": Estimate(share, share - 0.1, share),
    }  # fmt: skip
    if role != "reference":
        base |= {"exact_change": change, "choice_change": change, "p": 0.5,
                 "answer_nll": Estimate(0.123, 0.1, 0.2)}  # fmt: skip
    return TaskCell(setting, role, task, length, **{**base, **more})


def _run(name: str = "a model", n_candidates: int = 2) -> TaskRun:
    cells: list[TaskCell] = []
    for length in (1024, 4096):
        for task in ("all", "needle", "copy"):
            cells += [_cell("f16/f16", "reference", task, length, 0.9),
                      _cell("bf16/bf16", "floor", task, length, 0.9)]  # fmt: skip
            for i in range(n_candidates):
                cells.append(_cell(f"q{i}_0/q4_0", "candidate", task, length, 0.9, lost=1, gained=1,
                                   p_corrected=1.0))  # fmt: skip
    cells.append(_cell("broken", "candidate", "copy", 4096, 0.4, lost=21, gained=1,
                       p=1e-5, p_corrected=0.0004, by="choice"))  # fmt: skip
    cells.append(TaskCell("gone", "candidate", "needle", 1024, status="failed", error=HOSTILE))
    deep = [
        _cell("broken", "candidate", "copy", 4096, 0.2, depth=d, lost=n, n_queries=10)
        for d, n in (("0-25 %", 8), ("75-100 %", 0))
    ]
    model = ModelRecord("a", name, "a.gguf", "0" * 64, "llama", 1, "Q4_K", "f16 copy", 8192, None,
                        "raw text")  # fmt: skip
    return TaskRun(
        model, cells + deep, ["a warning"], ["broken: copy at 4,096 tokens breaks first."],
        f"nybble measure '{name}' --tasks all", "2026-01-01T00:00:00",
        {"engine": "llama.cpp", "seed": 0, "tasks": [
            {"name": "needle", "title": "Needles", "source": "RULER, https://example.org"}]},
        {"nybble": "1"}, {"cpu": None},
    )  # fmt: skip


def _texts(run: TaskRun) -> dict[str, list[str]]:
    grid = tables.grid(run)
    return {f"{r[0]} {r[1]}": dict(zip(grid.header, r, strict=True)) for r in grid.rows}  # type: ignore


def test_grid_has_tasks_by_length_and_all_last() -> None:
    grid = tables.grid(_run())
    assert [r[:2] for r in grid.rows] == [
        ("needle", "1,024"), ("needle", "4,096"), ("copy", "1,024"), ("copy", "4,096"),
        ("all", "1,024"), ("all", "4,096"),
    ]  # fmt: skip
    assert grid.header[4:] == (
        "f16/f16", "bf16/bf16", "q0_0/q4_0", "q1_0/q4_0", "broken", "gone",
    )  # fmt: skip


def test_cells_show_share_moves_and_significance() -> None:
    found: Any = _texts(_run())
    assert found["copy 4,096"]["broken"] == "40.0% +1 −21 !"
    assert found["copy 4,096"]["q0_0/q4_0"] == "90.0% +1 −1"
    assert found["copy 4,096"]["f16/f16"] == "90.0%"
    assert found["needle 1,024"]["gone"] == "failed"
    assert found["needle 4,096"]["gone"] == "–"
    better = _cell("x", "candidate", "copy", 1, 0.9, lost=0, gained=9, p_corrected=0.001)
    assert not tables.significant(better)


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(-0.0625, -0.11, 0.0), "−6.2 [−11.0, 0]"),
        (Estimate(0.0004), "0"),
        (Estimate(0.1), "+10.0"),
        (None, "–"),
    ],
)
def test_points(estimate: Estimate | None, text: str) -> None:
    assert tables.points(estimate) == text


def test_csv_holds_every_cell_and_every_number() -> None:
    run = _run()
    rows = list(csv.DictReader(io.StringIO(tables.csv_text(run))))
    assert len(rows) == len(run.cells)
    broken = next(r for r in rows if r["setting"] == "broken" and not r["depth"])
    assert float(broken["choice_change"]) == run.cells[-4].choice_change.value  # type: ignore[union-attr]
    assert (broken["lost"], broken["p_corrected"], broken["by"]) == ("21", "0.0004", "choice")
    assert {r["depth"] for r in rows} == {"", "0-25 %", "75-100 %"}


def test_csv_runs_no_formula() -> None:
    rows = list(csv.reader(io.StringIO(tables.csv_text(_run("=1+1")))))
    assert rows[1][0] == "'=1+1"


def test_terminal_fits_its_width_whatever_the_settings() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    for table in tables.rich_tables(_run(n_candidates=9), 100):
        console.print(table)
    text = console.export_text()
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 100
    for i in range(9):
        assert f"q{i}_0/q4_0" in text
    assert "40.0% +1 −21 !" in text


def test_markdown_escapes_and_says_all() -> None:
    text = tables.markdown(_run(HOSTILE))
    body, fence, command = text.partition("\n```\n")
    assert "<script" not in body and "\x1b" not in text
    assert fence and command.count("`") == 3  # a code block shows what is in it, to its end
    assert "broken: copy at 4,096 tokens breaks first" in text
    assert "a warning" in text and "| copy | 4,096 |" in text


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attrs: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attrs += attrs


def test_page_holds_the_run_and_nothing_foreign_that_acts() -> None:
    run = _run(HOSTILE)
    page = tasks_html(run)
    found = _Page()
    found.feed(page)
    assert found.tags.count("script") == 2 and "img" not in found.tags
    assert not any(name.startswith("on") or name in ("src", "href") and str(v).startswith("http")
                   for name, v in found.attrs)  # fmt: skip
    data = re.search(r'<script type="application/json" id="tasks">(.*?)</script>', page, re.S)
    assert data is not None
    assert from_json(TaskRun, data[1]) == run
    assert "default-src 'none'" in page


def test_page_shows_depth_darker_where_more_is_lost() -> None:
    page = tasks_html(_run())
    assert "color-mix(in srgb, var(--broken) 56%, transparent)" in page  # 70 % of 8 of 10
    assert page.count("color-mix(") == 1
    assert "20.0% −8" in page


def test_picture_has_a_mark_for_each_candidate_task_and_length() -> None:
    from nybble.report.charts import canvas
    from nybble.report.charts import tasks as chart

    run = _run()
    with canvas.style("test"):
        picture = chart.draw(run, canvas.MARKED)
    assert picture is not None
    assert len(picture.tips) == 6 * 2 + 1
    assert "broken copy at 4,096 tokens −50.0" in picture.summary
    assert len(picture.rows) == 6 * 3 + 1
    references = dataclasses.replace(run, cells=[c for c in run.cells if c.role == "reference"])
    with canvas.style("test"):
        assert chart.draw(references, canvas.MARKED) is None
    assert "<h2" in tasks_html(references)


def test_record_round_trip_and_refusals() -> None:
    run = _run()
    assert from_json(TaskRun, to_json(run)) == run
    newer = json.dumps({**json.loads(to_json(run)), "schema_version": 99})
    with pytest.raises(NybbleError, match="newer nybble"):
        from_json(TaskRun, newer)
    for text in ("", "[]", "{}", '{"schema_version": 1, "cells": 3}', "[" * 100_000):
        with pytest.raises(NybbleError):
            from_json(TaskRun, text)
