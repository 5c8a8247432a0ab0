"""What counts as an answer in a model's own words.

Only the first line that is not blank is read. In it the right answer must be named as a whole word
or number, and before any of the wrong options: whoever lists all that there is has not answered.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_GROUPED = re.compile(r"(?<=\d)[,\u00a0\u202f](?=\d{3}(?:\D|$))")


def said(text: str) -> str:
    """The first line that is not blank, with runs of blanks as one and 1,234 as 1234."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    return " ".join(_GROUPED.sub("", line).split())


def place(line: str, answer: str) -> int:
    """Where `answer` first stands in `line` as a whole word or number; -1 where it does not.

    Case does not matter. A hyphen or a decimal point joins what is on its sides.
    """
    words = r"\s+".join(map(re.escape, answer.split()))
    whole = rf"(?<!\w)(?<!\w-)(?<!\d[.,]){words}(?!\w)(?!-\w)(?![.,]\d)"
    found = re.search(whole, line, re.IGNORECASE)
    return found.start() if found else -1


def names_first(text: str, values: Sequence[str]) -> bool:
    """Whether the first of the values that the answer names is the right one, values[0]."""
    line = said(text)
    places = [place(line, value) for value in values]
    return places[0] >= 0 and all(p < 0 or p > places[0] for p in places[1:])


def sentence(text: str) -> str:
    """The first sentence of `said`."""
    return re.split(r"[.!?](?:\s|$)", said(text))[0]


def copies(answer: str, text: str, then: str = "") -> bool:
    """Whether the text is `answer`, but for white space and for what comes after its end.

    The end is that of the line, a full stop, or `then`, if given.
    """
    words = r"\s+".join(map(re.escape, answer.split()))
    end = rf"\n|$|\.(?=\s|$){'|' + re.escape(then) if then else ''}"
    return re.match(rf"\s*{words}[^\S\n]*(?:{end})", text) is not None
