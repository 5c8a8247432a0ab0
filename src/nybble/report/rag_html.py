"""An evaluation of retrieval and answers as one HTML file, which fetches nothing.

Questions, answers and documents' names may be hostile: all of them are escaped by Jinja2. What is
trusted is our style sheet, our script and the rewritten SVG, as in report/html.py.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Any

from nybble.report import describe
from nybble.report import format as fmt
from nybble.report import rag_table as table
from nybble.report.html import Grid, script_json
from nybble.results.rag import RagAnswer, RagRun, to_json

MOST_SHOWN = 200  # answers side by side; all are in the JSON
_MOST_TEXT = 4000  # characters of an answer
_HOW = {
    "questions": "questions", "kinds": "kinds", "folder": "folder", "documents": "documents",
    "passages": "passages", "embedding": "embedding", "mode": "retrieval for answers",
    "k": "passages an answer may rest on", "context": "context",
    "answer_tokens": "answer's longest, tokens", "temperature": "temperature", "seed": "seed",
    "judged": "judged", "engines": "engine", "models": "models",
}  # fmt: skip


@dataclass(frozen=True)
class _Side:
    setting: str
    text: str
    marks: str
    sources: list[str]


@dataclass(frozen=True)
class _Pair:
    word: str
    question: str
    expected: str
    document: str
    before: _Side
    after: _Side


def rag_html(run: RagRun) -> str:
    """The report of an evaluation as one HTML page."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    from nybble.report import rag_chart

    script = _asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    chart = rag_chart.chart(run)
    found = table.changes(run)
    values: dict[str, Any] = {
        "name": fmt.clean(run.title, 120) or "documents",
        "sub": f"{table.scale(run)} · {fmt.clean(run.created, 40)}",
        "said": fmt.clean(run.said),
        "worded": fmt.clean(run.worded),
        "answers": Grid(table.ANSWERS, table.answer_lines(run)) if run.rows else None,
        "chart": vars(chart) | {"svg": Markup(chart.svg)} if chart else None,
        "retrieval": Grid(table.RETRIEVAL, _retrieval(run, "")),
        "kinds": [(table.kind(run, k), Grid(table.RETRIEVAL, _retrieval(run, k)))
                  for k in table.kinds(run)],
        "glossary": [describe.Entry(*entry) for entry in table.EXPLAINED],
        "pairs": [_pair(run, c) for c in found[:MOST_SHOWN]],
        "n_pairs": len(found),
        "misses": _misses(run),
        "how": _how(run),
        "warnings": table.notes(run),
        "command": fmt.clean(run.command).split(),
        "setup": [describe.Entry(fmt.clean(k, 40), fmt.clean(v, 120))
                  for k, v in {**run.versions, **run.hardware}.items()],
        "version": fmt.clean(run.versions.get("nybble", ""), 40),
        "pieces": fmt.pieces,
        "left": ("KV type", "retrieval"),
        "json": Markup(script_json(to_json(run))),
        "css": Markup(_asset("report.css") + _asset("rag.css")),
        "js": Markup(script),
        "script_hash": f"sha256-{digest}",
    }  # fmt: skip
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(_asset("rag.html.j2")).render(values)


def _asset(name: str) -> str:
    return resources.files("nybble.report").joinpath(name).read_text(encoding="utf-8")


def _retrieval(run: RagRun, kind: str) -> list[tuple[str, ...]]:
    return table.retrieval_lines([r for r in run.retrieval if r.kind == kind])


def _pair(run: RagRun, changed: table.Changed) -> _Pair:
    question = run.questions[changed.question]
    return _Pair(
        changed.word,
        fmt.clean(question.text, 600),
        fmt.clean(" / ".join(question.answers), 200),
        fmt.clean(question.document, 200),
        _side(changed.before),
        _side(changed.after),
    )


def _side(answer: RagAnswer) -> _Side:
    marks = ["right" if answer.right else "wrong"]
    marks.append("cites it" if answer.cites_source else "does not cite it")
    if answer.cites_unknown:
        marks.append("cites what is not there")
    if not answer.has_source:
        marks.append("no source that answers was shown")
    sources = [f"[{n}] {fmt.clean(place, 160)}" for n, place in enumerate(answer.sources, 1)]
    return _Side(fmt.setting(answer.setting), fmt.clean(answer.text, _MOST_TEXT) or "(nothing)",
                 ", ".join(marks), sources)  # fmt: skip


def _misses(run: RagRun) -> Grid | None:
    """Questions that no way of retrieval found a passage for, or only some of them."""
    modes = [r.mode for r in run.retrieval if not r.kind]
    rows = [
        (fmt.clean(q.text, 200), fmt.clean(q.document, 120), fmt.clean(q.kind, 20),
         *(fmt.NONE if q.ranks.get(m) is None else str(q.ranks[m]) for m in modes))
        for q in run.questions
        if any(q.ranks.get(m) is None for m in modes)
    ]  # fmt: skip
    return Grid(("question", "document", "kind", *modes), rows[:MOST_SHOWN]) if rows else None


def _how(run: RagRun) -> list[describe.Entry]:
    found = []
    for key, label in _HOW.items():
        value = run.protocol.get(key)
        if value is None:
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{k}: {v}" for k, v in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        found.append(describe.Entry(label, fmt.clean(value, 400)))
    return found
