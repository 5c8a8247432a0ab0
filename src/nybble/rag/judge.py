"""Whether an answer is right, and whether it cites what it rests on.

An answer is right where it has one of the accepted answers in it, after both are reduced to their
letters and digits in lower case: `tb_next`, `TB next` and "tb_next." are the same; `1,024` is
`1024`. So one that names several things, the right one among them, counts as right; and one that
says the right thing in other words counts as wrong. Both err alike under every KV setting, and
settings are compared on the same questions.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from nybble.rag.passages import Passage
from nybble.rag.questions import Question

_CITED = re.compile(r"\[\s*\d+(?:\s*[,;–-]\s*\d+)*\s*\]")
_THOUSANDS = re.compile(r"(?<=\d)[,\u2009\u202f'](?=\d{3}(?!\d))")
_RUN = re.compile(r"[^\W_]+")
_ARTICLES = frozenset(("a", "an", "the"))


def reduced(text: str) -> str:
    """Letters and digits in lower case, one space between; articles and citations left out."""
    plain = unicodedata.normalize("NFKC", _CITED.sub(" ", text)).casefold()
    words = _RUN.findall(_THOUSANDS.sub("", plain))
    return " ".join(w for w in words if w not in _ARTICLES)


def right(text: str, accepted: Iterable[str]) -> bool:
    """Whether a text has one of the accepted answers in it, as whole words."""
    said = f" {reduced(text)} "
    for answer in accepted:
        wanted = reduced(answer)
        # An answer of signs only, such as "//", has nothing left to compare.
        if f" {wanted} " in said if wanted else answer.strip() in text:
            return True
    return False


def accepted(question: Question) -> tuple[str, ...]:
    """All right answers; empty where only retrieval is tested."""
    return tuple(a for a in (question.answer, *question.answers) if a)


def answers(question: Question, passage: Passage) -> bool:
    """Whether a passage is one that answers a question: its own, or one of the named source."""
    if question.passage_id >= 0:
        return passage.id in question.accepted
    if passage.document != question.document:
        return False
    return not question.heading or reduced(passage.heading) == reduced(question.heading)
