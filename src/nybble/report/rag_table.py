"""An evaluation of retrieval and answers as tables: terminal, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nybble.report import format as fmt
from nybble.report.spreadsheet import ends, safe
from nybble.results.rag import DEPTHS, RagAnswer, RagRow, RagRun, Retrieval
from nybble.results.records import Estimate

if TYPE_CHECKING:
    from rich.table import Table

RETRIEVAL = ("retrieval", *(f"recall@{n} ↑" for n in DEPTHS), "MRR@10 ↑", "search")
ANSWERS = ("KV type", "right ↑", "change", "lost", "gained", "p", "same text", "cites it ↑",
           "cites nothing ↓", "an answer")  # fmt: skip
EXPLAINED = (
    ("recall@n", "Share of questions with a passage that answers among the first n hits."),
    ("MRR@10", "Mean of 1/rank of the first such passage; 0 where it is not among ten."),
    ("right", "Share of answers that have the expected one in them, by letters and digits."),
    ("change", "That share less the 16-bit cache's on the same questions, in percentage points."),
    ("lost, gained", "Answers that only the 16-bit cache, or only this one, has right."),
    ("p", "Exact McNemar test of lost against gained, corrected for the settings tested (Holm)."),
    ("same text", "Share of answers that are the 16-bit cache's to the letter."),
    ("cites it", "Share of answers that cite, by its number, a source with the answer."),
    ("cites nothing", "Share of answers without a citation."),
)


@dataclass(frozen=True)
class Changed:
    """An answer beside the 16-bit cache's to the same question.

    Attributes:
        question: number in the run.
        setting: whose answer it is.
        before: the 16-bit cache's answer.
        after: this setting's.
        word: "lost", "gained", "both right" or "both wrong".
    """

    question: int
    setting: str
    before: RagAnswer
    after: RagAnswer
    word: str


def share(estimate: Estimate | None) -> str:
    """`42.0% [30.0%, 55.0%]`."""
    return fmt.with_interval(estimate, fmt.percent, lambda x: fmt.percent(min(1.0, max(0.0, x))))


def points(estimate: Estimate | None) -> str:
    """`-4.0 [-10.0, +2.0]`, percentage points."""
    return fmt.with_interval(estimate, lambda x: f"{100 * x:+.1f}")


def setting(row: RagRow) -> str:
    """A row's KV setting, with its role where it is no candidate."""
    ends = {"reference": " (reference)", "floor": " (noise floor)"}
    return fmt.setting(row.setting) + ends.get(row.role, "")


def scale(run: RagRun) -> str:
    """`50 questions about 43 documents, 37 of them with an answer`."""
    documents = len({q.document for q in run.questions})
    answers = sum(bool(q.answers) for q in run.questions)
    text = (f"{fmt.plural(len(run.questions), 'question')} about "
            f"{fmt.plural(documents, 'document')}")  # fmt: skip
    return text if answers == len(run.questions) else f"{text}, {answers} with an answer to judge"


def retrieval_lines(found: Sequence[Retrieval]) -> list[tuple[str, ...]]:
    """Rows under `RETRIEVAL`."""
    return [
        (
            fmt.clean(r.mode, 20),
            *(share(r.recall.get(str(n))) for n in DEPTHS),
            _mean(r.mrr),
            f"{1000 * r.seconds:.0f} ms",
        )
        for r in found
    ]


def answer_lines(run: RagRun) -> list[tuple[str, ...]]:
    """Rows under `ANSWERS`; of a failed one the reason in place of its numbers."""
    return [_failed(r) if r.status == "failed" else _line(r) for r in run.rows]


def _line(r: RagRow) -> tuple[str, ...]:
    paired = r.change is not None
    return (
        setting(r),
        share(r.accuracy),
        points(r.change),
        fmt.count(r.lost) if paired else fmt.NONE,
        fmt.count(r.gained) if paired else fmt.NONE,
        fmt.NONE if r.p is None else f"{r.p:.2g}",
        share(r.identical),
        share(r.cites_source),
        share(r.cites_nothing),
        fmt.NONE if r.seconds is None else f"{r.seconds:.1f} s",
    )


def _failed(r: RagRow) -> tuple[str, ...]:
    why = fmt.clean((r.error or "").splitlines()[0] if r.error else "", 120)
    return (setting(r), f"failed: {why}", *("",) * (len(ANSWERS) - 2))


def _mean(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def kinds(run: RagRun) -> list[str]:
    """Kinds of question that retrieval is told apart by."""
    return list(dict.fromkeys(r.kind for r in run.retrieval if r.kind))


def kind(run: RagRun, name: str) -> str:
    """`cloze, 25 questions`."""
    n = next(r.n_questions for r in run.retrieval if r.kind == name)
    return f"{fmt.clean(name, 20)}, {fmt.plural(n, 'question')}"


def changes(run: RagRun) -> list[Changed]:
    """Every answer that reads otherwise than the 16-bit cache's; lost and gained ones first."""
    reference = next((r for r in run.rows if r.role == "reference"), None)
    if reference is None:
        return []
    before = {a.question: a for a in run.of(reference.setting)}
    found = []
    for row in run.rows:
        if row is reference:
            continue
        for after in run.of(row.setting):
            old = before.get(after.question)
            if old is not None and old.text != after.text:
                word = ("both right" if after.right else "lost") if old.right else (
                    "gained" if after.right else "both wrong")  # fmt: skip
                found.append(Changed(after.question, row.setting, old, after, word))
    order = ("lost", "gained", "both right", "both wrong")
    return sorted(found, key=lambda c: (order.index(c.word), c.question))


def rich_retrieval(run: RagRun) -> Table:
    """Retrieval for a terminal, over all questions."""
    rows = [r for r in run.retrieval if not r.kind]
    return _rich(RETRIEVAL, retrieval_lines(rows), scale(run))


def rich_answers(run: RagRun) -> Table | None:
    """Answers for a terminal; None without any."""
    if not run.rows:
        return None
    # Six columns fit 100 characters; the others are in every other output.
    shown = [i for i, name in enumerate(ANSWERS) if name not in ("cites nothing ↓", "an answer")]
    lines = [tuple(line[i] for i in shown) for line in answer_lines(run)]
    # Why is on stderr and among the notes; a narrow cell is no place for it.
    lines = [(x[0], "failed", *x[2:]) if x[1].startswith("failed: ") else x for x in lines]
    return _rich(tuple(ANSWERS[i] for i in shown), lines, "answers, by KV setting")


def _rich(header: Sequence[str], lines: Sequence[tuple[str, ...]], title: str) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, title=Text(title),
                  title_justify="left", title_style="bold")  # fmt: skip
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left", overflow="fold")
    for line in lines:
        table.add_row(*(Text(cell.replace(" [", "\n[")) for cell in line))
    return table


def notes(run: RagRun) -> list[str]:
    """Warnings, fit to be printed."""
    return [fmt.clean(text, 400) for text in run.warnings]


def markdown(run: RagRun) -> str:
    """The tables to paste."""
    lines = [
        f"**{_md(run.title)}** · {_md(scale(run))}",
        "",
        _md(f"{run.said} {run.worded}".rstrip()),
        "",
    ]
    lines += _md_table(RETRIEVAL, retrieval_lines([r for r in run.retrieval if not r.kind]))
    if run.rows:
        lines += ["", *_md_table(ANSWERS, answer_lines(run))]
    lines += ["", *(f"- {_md(text)}" for text in notes(run))] if run.warnings else []
    if run.command:
        lines += ["", f"`{fmt.clean(run.command).replace('`', '')}`"]
    return "\n".join(lines) + "\n"


def _md_table(header: Sequence[str], rows: Sequence[tuple[str, ...]]) -> list[str]:
    found = ["| " + " | ".join(header) + " |", "|---" + "|--:" * (len(header) - 1) + "|"]
    return found + ["| " + " | ".join(map(_md, row)) + " |" for row in rows]


def _md(text: str) -> str:
    """Foreign text that neither ends a cell nor starts HTML, a link or code."""
    line = fmt.clean(text)
    for sign, plain in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("`", "\\`"), ("](", "]\\(")):
        line = line.replace(sign, plain)
    return line


def csv_text(run: RagRun) -> str:
    """One line for each number, full precision: of retrieval by mode and kind, and of each row."""
    out = io.StringIO()
    write = csv.writer(out, lineterminator="\n").writerow
    write(
        ["part", "name", "kind", "n_questions", "what", "value", "low", "high", "status", "error"]
    )
    for r in run.retrieval:
        who = ["retrieval", safe(r.mode), safe(r.kind), r.n_questions]
        for n, estimate in r.recall.items():
            write([*who, f"recall_{n}", *ends(estimate), "done", ""])
        write([*who, "mrr_10", *ends(r.mrr), "done", ""])
        write([*who, "seconds", r.seconds, "", "", "done", ""])
    for row in run.rows:
        who = ["answers", safe(row.setting), safe(row.role), row.n_questions]
        end = [row.status, safe(row.error or "")]
        for name in ("accuracy", "change", "identical", "cites_source", "cites_unknown",
                     "cites_nothing"):  # fmt: skip
            found: Estimate | None = getattr(row, name)
            if found is not None:
                write([*who, name, *ends(found), *end])
        for name in ("gained", "lost", "p", "seconds", "tokens"):
            write([*who, name, getattr(row, name), "", "", *end])
    return out.getvalue()
