"""An evaluation of retrieval and answers as one HTML file."""

from __future__ import annotations

from dataclasses import dataclass

from nybble.report import describe
from nybble.report import format as fmt
from nybble.report import rag_table as table
from nybble.report.page import Grid, Page, drawn, render
from nybble.results.rag import RagAnswer, RagRun, to_json

MOST_SHOWN = 200  # answers side by side; all are in the JSON
_EYEBROW = "retrieval and answers by KV setting"
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
    from nybble.report import rag_chart

    name = fmt.clean(run.title, 120) or "documents"
    page = Page(
        id="rag",
        json=to_json(run),
        title=f"{name}: {_EYEBROW}",
        eyebrow=_EYEBROW,
        name=name,
        sub=f"{table.scale(run)} · {fmt.clean(run.created, 40)}",
        how=_how(run),
        setup=[describe.Entry(fmt.clean(k, 40), fmt.clean(v, 120))
               for k, v in {**run.versions, **run.hardware}.items()],
        warnings=table.notes(run),
        command=fmt.clean(run.command).split(),
        version=fmt.clean(run.versions.get("nybble", ""), 40),
        styles=("rag.css",),
    )  # fmt: skip
    found = table.changes(run)
    return render(
        "rag.html.j2", page,
        said=fmt.clean(run.said),
        worded=fmt.clean(run.worded),
        answers=Grid(table.ANSWERS, table.answer_lines(run)) if run.rows else None,
        chart=drawn(rag_chart.chart(run)),
        retrieval=Grid(table.RETRIEVAL, _retrieval(run, "")),
        kinds=[(table.kind(run, k), Grid(table.RETRIEVAL, _retrieval(run, k)))
               for k in table.kinds(run)],
        glossary=[describe.Entry(*entry) for entry in table.EXPLAINED],
        pairs=[_pair(run, c) for c in found[:MOST_SHOWN]],
        n_pairs=len(found),
        misses=_misses(run),
        left=("KV type", "retrieval"),
    )  # fmt: skip


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
