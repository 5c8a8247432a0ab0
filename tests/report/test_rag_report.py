"""An evaluation on the terminal, as Markdown, as CSV and on the page, hostile names included."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import re
from html.parser import HTMLParser

import pytest
from report_builders import IMAGE, SCRIPT
from rich.console import Console

from nybble.report import rag_table as table
from nybble.report.rag_html import rag_html
from nybble.results.rag import RagAnswer, RagQuestion, RagRow, RagRun, Retrieval, from_json
from nybble.results.records import Estimate

MODES = ("hybrid", "dense", "lexical")
VOID = {"meta", "br", "wbr", "path", "use", "rect"}


def retrieval(mode: str, kind: str = "") -> Retrieval:
    recall = {n: Estimate(v, v - 0.1, v + 0.1) for n, v in (("1", 0.5), ("5", 0.8), ("10", 0.9))}
    return Retrieval(mode, kind, 4, recall, Estimate(0.625, 0.5, 0.75), 0.0123)


def answer(setting: str, question: int, text: str, right: bool) -> RagAnswer:
    return RagAnswer(setting, question, text, right, [1], right, not right, "h", True,
                     [f"a {IMAGE}.md, {SCRIPT}", "b.md"], "stop", 7, 0.5)  # fmt: skip


@pytest.fixture
def found() -> RagRun:
    """Four questions; q4_0 loses one, gains one and says one otherwise; q8_0 failed."""
    questions = [
        RagQuestion(f"Question {i} {SCRIPT}?", [f"answer {i}", "=cmd()"], f"d{i}.md", "cloze",
                    {"hybrid": 1, "dense": None if i == 3 else 2, "lexical": 1})
        for i in range(4)
    ]  # fmt: skip
    f16 = [answer("f16/f16", i, f"said {i}", i != 1) for i in range(4)]
    texts = ("other 0", "answer 1", "other 2", "said 3")
    q4 = [answer("q4_0/q4_0", i, t, i != 0) for i, t in enumerate(texts)]
    numbers = {"accuracy": Estimate(0.75, 0.3, 1.0), "cites_source": Estimate(0.75, 0.3, 1.0),
               "cites_unknown": Estimate(0.25), "cites_nothing": Estimate(0.0)}  # fmt: skip
    rows = [
        RagRow("f16/f16", "reference", "m.gguf", n_questions=4, seconds=0.5, **numbers),
        RagRow("q8_0/q8_0", "candidate", "m.gguf", n_questions=2, status="failed",
               error=f"the server is gone {IMAGE}\n  seen: x"),
        RagRow("q4_0/q4_0", "candidate", "m.gguf", n_questions=4, change=Estimate(0.0, -0.3, 0.3),
               gained=1, lost=1, p=1.0, identical=Estimate(0.25), seconds=0.4, **numbers),
    ]  # fmt: skip
    return RagRun(
        f"towns {SCRIPT}", f"No change of right answers {IMAGE}.", f"Worded {IMAGE}.",
        [*(retrieval(m) for m in MODES), *(retrieval(m, "cloze") for m in MODES)],
        rows, questions, [*f16, *q4], [f"a warning | {IMAGE}"], f"nybble rag eval {IMAGE}",
        "2026-01-02T03:04:05+00:00",
        {"questions": f"4 generated {SCRIPT}", "kinds": {"cloze": 4}, "k": 8, "engines": ["x 1"],
         "models": {"m.gguf": "ab" * 32}},
        {"nybble": "0.1.0"}, {"cpu": f"cpu {IMAGE}"},
    )  # fmt: skip


def terminal(run: RagRun, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(table.rich_retrieval(run))
    console.print(table.rich_answers(run) or "")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_cells(found: RagRun) -> None:
    (f16, q8, q4) = table.answer_lines(found)
    assert f16[:3] == ("f16/f16 (reference)", "75.0% [30.0%, 100%]", "–")
    assert q8[1] == f"failed: the server is gone {IMAGE}" and len(q8) == len(table.ANSWERS)
    assert q4 == ("q4_0/q4_0", "75.0% [30.0%, 100%]", "+0.0 [-30.0, +30.0]", "1", "1", "1",
                  "25.0%", "75.0% [30.0%, 100%]", "0", "0.4 s")  # fmt: skip
    assert table.retrieval_lines(found.retrieval[:1]) == [
        ("hybrid", "50.0% [40.0%, 60.0%]", "80.0% [70.0%, 90.0%]", "90.0% [80.0%, 100%]",
         "0.62 [0.50, 0.75]", "12 ms")
    ]  # fmt: skip


def test_changed_answers(found: RagRun) -> None:
    """Lost and gained first; the same text is no change."""
    assert [(c.word, c.question, c.setting) for c in table.changes(found)] == [
        ("lost", 0, "q4_0/q4_0"), ("gained", 1, "q4_0/q4_0"), ("both right", 2, "q4_0/q4_0"),
    ]  # fmt: skip
    assert table.changes(dataclasses.replace(found, rows=[])) == []


def test_terminal(found: RagRun) -> None:
    text = terminal(found)
    assert max(map(len, text.splitlines())) <= 100
    for words in ("hybrid", "recall@10", "q4_0/q4_0", "failed", "4 questions about 4 documents"):
        assert words in text
    assert table.rich_answers(dataclasses.replace(found, rows=[])) is None


def test_markdown(found: RagRun) -> None:
    text = table.markdown(found)
    assert "<" not in text.rpartition("\n`")[0].replace("&lt;", "")  # but in the command's code
    assert "- a warning \\|" in text and "| q4_0/q4_0 | 75.0%" in text
    for line in text.splitlines():
        if line.startswith("| q") or line.startswith("| f"):
            assert len(re.findall(r"(?<!\\)\|", line)) == len(table.ANSWERS) + 1


def test_csv(found: RagRun) -> None:
    rows = list(csv.DictReader(io.StringIO(table.csv_text(found))))
    assert {len(r) for r in rows} == {10} and None not in rows[0]
    (one,) = [r for r in rows if (r["name"], r["what"]) == ("q4_0/q4_0", "change")]
    assert (one["value"], one["low"], one["high"]) == ("0.0", "-0.3", "0.3")
    (mrr,) = [r for r in rows if (r["name"], r["kind"], r["what"]) == ("dense", "", "mrr_10")]
    assert float(mrr["value"]) == 0.625
    evil = dataclasses.replace(found.rows[1], error="=cmd()")
    text = table.csv_text(dataclasses.replace(found, rows=[evil]))
    assert "'=cmd()" in text and ",=cmd()" not in text


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def embedded(page: str) -> str:
    found = re.search(r'<script type="application/json" id="rag">(.*?)</script>', page, re.S)
    assert found
    return found[1]


def test_page_is_escaped_and_fetches_nothing(found: RagRun) -> None:
    page = rag_html(found)
    assert "<script>alert" not in page and "<img" not in page
    assert html.escape(SCRIPT, quote=False) in page or html.escape(SCRIPT) in page
    assert from_json(embedded(page)) == found
    rest = page.replace(embedded(page), "")
    assert not re.search(r"""(?:src|href|action)\s*=\s*["']?\s*(?:https?:)?//|@import""", rest)
    tags = Tags(page)
    assert tags.open == []
    assert not {t for t, _ in tags.found} & {"link", "img", "iframe", "object", "embed", "base"}
    assert [a for t, a in tags.found if t == "script"] == [
        {"type": "application/json", "id": "rag"}, {},
    ]  # fmt: skip
    assert not [a for _, attrs in tags.found for a in attrs if a.startswith("on")]


def test_page_is_complete(found: RagRun) -> None:
    text = html.unescape(rag_html(found))
    for words in (
        found.said, found.worded, "cloze, 4 questions",
        "Answers by KV setting", "Retrieval", "said 0", "other 0", "expected: answer 0",
        "cites what is not there", "[2] b.md", "1 question without a passage", "4 generated",
        f"a warning | {IMAGE}", "failed: the server is gone", "Right answers, right citations",
        "cpu",
    ):  # fmt: skip
        assert words in text, words
    assert text.index("word-lost") < text.index("word-gained") < text.index("word-both-right")


def test_page_of_retrieval_alone(found: RagRun) -> None:
    page = rag_html(dataclasses.replace(found, rows=[], answers=[], warnings=[], command=""))
    rest = page.replace(embedded(page), "")
    for words in ("Answers by KV setting", "Answers that changed", "Reproduce", "Warnings</h2>"):
        assert words not in rest
    assert "Retrieval</h2>" in rest and Tags(page).open == []


def test_page_where_nothing_changed(found: RagRun) -> None:
    same = [a for a in found.answers if a.setting == "f16/f16"]
    answers = [*same, *(dataclasses.replace(a, setting="q4_0/q4_0") for a in same)]
    page = rag_html(dataclasses.replace(found, answers=answers))
    assert "every answer is the 16-bit cache's to the letter" in html.unescape(page)


def test_page_where_every_row_failed(found: RagRun) -> None:
    rows = [dataclasses.replace(r, status="failed", error=None) for r in found.rows]
    page = rag_html(dataclasses.replace(found, rows=rows, answers=[]))
    assert "<svg" not in page and Tags(page).open == []
