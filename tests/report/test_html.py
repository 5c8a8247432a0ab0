"""The page as text: self-contained, escaped, complete."""

from __future__ import annotations

import dataclasses
import html
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from nybble.report import describe
from nybble.report.html import html_report
from nybble.results.records import Measurement, from_json

ALL = ("one", "two_models", "two_contexts", "few", "many", "taken_apart", "by_head")
EXTERNAL = re.compile(
    r"""(?:src|href|srcset|data|action|poster)\s*=\s*["']?\s*(?:https?:)?//|url\(\s*["']?(?!\#)|@import""",
    re.IGNORECASE,
)


class Tags(HTMLParser):
    """Collects elements as a browser would see them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def block(page: str) -> str:
    found = re.search(
        r'<script type="application/json" id="measurement">(.*?)</script>', page, re.S
    )
    assert found
    return found[1]


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_fetched(name: str, request: pytest.FixtureRequest) -> None:
    page = html_report(request.getfixturevalue(name))
    rest = page.replace(block(page), "")
    assert not EXTERNAL.search(rest)
    tags = Tags(page)
    assert not {t for t, _ in tags.found} & {"link", "img", "iframe", "object", "embed", "base"}
    assert [a for t, a in tags.found if t == "script"] == [
        {"type": "application/json", "id": "measurement"},
        {},
    ]
    assert not [a for _, attrs in tags.found for a in attrs if a.startswith("on")]


@pytest.mark.parametrize("name", ALL)
def test_measurement_parses_back(name: str, request: pytest.FixtureRequest) -> None:
    m: Measurement = request.getfixturevalue(name)
    text = block(html_report(m))
    assert "<" not in text
    assert from_json(text) == m


def test_names_are_escaped(one: Measurement) -> None:
    page = html_report(one)
    assert "<script>alert" not in page and "<img" not in page
    assert html.escape("</script><script>alert(1)</script>") in page


def test_half_surrogates_can_be_written(one: Measurement) -> None:
    model = dataclasses.replace(one.models[0], file="bad\udce9.gguf", name="x\ud800")
    m = dataclasses.replace(one, models=[model], command="nybble measure bad\udce9.gguf")
    page = html_report(m)
    page.encode()
    assert from_json(block(page)) == m


def test_sections_and_words(one: Measurement) -> None:
    page = html.unescape(html_report(one))
    for words in (
        one.recommendation,
        "How it was measured",
        "Warnings",
        "Reproduce",
        "Versions and hardware",
        "95 % paired bootstrap over documents, 10,000 draws",
        "mean KLD: safe up to 0.01, broken above 0.1",
        "flips: safe up to 0.50%, broken above 5.00%",
        "drift below it cannot be told from 16-bit rounding",
        "PSF-2.0",
        "f16 copy (shipped as Q4_K)",
        "the first 12.5% of each context fills the cache",
        "2 warnings",
        "failed: head size 72",
        "AMD EPYC 7763",
        "15.4 GiB",
        "Python code",
    ):
        assert words in page, words


def test_long_settings_break_where_they_may(many: Measurement) -> None:
    page = html_report(many)
    wanted = ("exl3_3/exl3_3", "+at0.5-7:exl3_5/exl3_4", "+at3:exl3_6/exl3_3 *")
    spans = "<wbr>".join(f'<span class="whole">{line}</span>' for line in wanted)
    assert f'<th scope="row">{spans}</th>' in page
    assert '<span class="whole">q4_0/q4_0 *</span></th>' in page


def test_many_verdicts_are_counted(many: Measurement) -> None:
    page = html_report(many)
    chips = page[page.index('<ul class="chips"') :].partition("</ul>")[0]
    found = [re.sub("<[^>]+>", "", line) for line in re.findall("<li.*?</li>", chips)]
    counts = [int(line.split()[0]) for line in found]
    assert sum(counts) == 40 and found[0].endswith("settings safe") and len(found) <= 5


def test_transformers_engine_is_named(many: Measurement, one: Measurement) -> None:
    page = html.unescape(html_report(many))
    assert "in transformers 5.23.0 (simulated caches) via decode" in page
    assert "K and V went through the type's real bytes and back inside the model" in page
    assert "in llama.cpp b9637 via prefill" in html.unescape(html_report(one))


def test_every_picture_has_its_table(one: Measurement) -> None:
    page = html_report(one)
    figures = re.findall(r"<figure.*?</figure>", page, re.S)
    assert len(figures) == 4
    for figure in figures:
        assert 'role="img"' in figure and "aria-label=" in figure and "<table>" in figure


def test_few_documents_are_said(few: Measurement) -> None:
    page = html_report(few)
    assert "No intervals: fewer than 5 documents (3)." in page
    assert "[low, high]</th>" not in page.split('<h2 id="h-pictures">')[0]
    assert "95 %" not in page


def test_two_models(two_models: Measurement) -> None:
    page = html.unescape(html_report(two_models))
    assert 'id="cells"' in page and "Model a against model b" in page
    assert "What does the cache type cost this model?" in page


def test_bare_measurement_still_reports(one: Measurement) -> None:
    m = dataclasses.replace(
        one, rows=[], warnings=[], protocol={}, versions={}, hardware={}, timing={}
    )
    page = html_report(m)
    assert from_json(block(page)) == m and "Pictures" not in page and "Warnings" not in page


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("prose", [("prose", "", "")]),
        (["a.txt", {"path": "b.txt", "licence": "MIT"}], [("a.txt", "", ""), ("b.txt", "MIT", "")]),
        ({"code": "PSF-2.0"}, [("code", "PSF-2.0", "")]),
        ({"categories": ["code"], "files": []}, [("code", "", "")]),
        (
            {"code": 8, "chat": {"licence": "MIT", "documents": 4}},
            [("code", "", ""), ("chat", "MIT", "")],
        ),
        (None, []),
    ],
)
def test_texts_in_any_shape(
    one: Measurement, text: object, expected: list[tuple[str, str, str]]
) -> None:
    m = dataclasses.replace(one, protocol={"text": text})
    assert [tuple(t) for t in describe.texts(m)] == expected


def test_tables_need_neither_matplotlib_nor_jinja() -> None:
    code = (
        "import sys, nybble.report.table, nybble.report.html;"
        "print([m for m in ('matplotlib', 'jinja2', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
