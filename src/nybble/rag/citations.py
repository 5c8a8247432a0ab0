"""Citations of an answer held against its sources: do they exist, is what they quote there?"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from nybble.rag.answers import Citation, Source

MOST = 1000  # citations of one answer that are looked at
_WIDEST = 50  # sources that a range may name
_REACH = 200  # characters between a quotation and the citation it belongs to
_LEAST = 12  # letters and digits of a quotation of one word that is checked
_BRACKET = re.compile(
    r"[\[【]\s*(?:sources?\s*)?(\d{1,4}(?:\s*[,;–-]\s*(?:sources?\s*)?\d{1,4})*)\s*[\]】]", re.I
)
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.S)
_QUOTE = re.compile(r'"([^"\n]{1,2000})"|“([^”\n]{1,2000})”|«([^»\n]{1,2000})»')
_CUT = re.compile(r"\.\.\.|…|\[[^\]]*\]")
_SAME = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "‐": "-",
                       "\u00a0": " ", "\u00ad": None, "\u200b": None})  # fmt: skip


@dataclass(frozen=True)
class Checked:
    """What the check found.

    Attributes:
        citations: in order of the answer.
        warnings: what a reader must know, in words.
    """

    citations: tuple[Citation, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Quote:
    start: int
    end: int
    text: str


def check(text: str, sources: Sequence[Source]) -> Checked:
    """Find the citations and quotations of an answer and hold them against its sources.

    A number in square brackets is a citation, also [1, 3], [2-4] and [Source 1], but not within
    code. A quotation belongs to the next citation behind it in its paragraph. It is checked if it
    has two words or 12 letters, and is there if the source has its words: case, white space,
    emphasis and the shape of quotation marks and dashes aside, parts around an ellipsis in order.

    Args:
        text: the answer.
        sources: that it was given.
    """
    code = [m.span() for m in _CODE.finditer(text)]
    by_number = {s.number: plain(s.text) for s in sources}
    quotes = _quotes(text, code)
    citations: list[Citation] = []
    placed: set[int] = set()
    end = 0
    for bracket in _BRACKET.finditer(text):
        if _inside(bracket.start(), code) or len(citations) >= MOST:
            continue
        quote = _before(quotes, end, bracket.start(), text)
        end = bracket.end()
        if quote is not None:
            placed.add(quote.start)
        for number in _numbers(bracket[1]):
            exists = number in by_number
            ok = None if quote is None else exists and supported(quote.text, by_number[number])
            citations.append(Citation(number, exists, ok, bracket.start(), bracket.end(),
                                      quote.text if quote else ""))  # fmt: skip
    loose = [q.text for q in quotes if q.start not in placed
             and not any(supported(q.text, whole) for whole in by_number.values())]  # fmt: skip
    return Checked(tuple(citations), tuple(_warnings(text, citations, loose)))


def supported(quote: str, source: str) -> bool:
    """Whether a source has the words of a quotation.

    Args:
        quote: as written, with or without ellipses.
        source: as `plain` makes it.
    """
    at = 0
    for part in _CUT.split(quote):
        words = plain(part).strip(" .,;:!?'\"")
        if not words:
            continue
        found = source.find(words, at)
        if found < 0:
            return False
        at = found + len(words)
    return True


def plain(text: str) -> str:
    """Text as it is compared: one case, single spaces, plain marks, no emphasis."""
    text = unicodedata.normalize("NFKC", text.translate(_SAME)).casefold()
    return " ".join(re.sub(r"[*_`]+", "", text).split())


def _quotes(text: str, code: Sequence[tuple[int, int]]) -> list[_Quote]:
    found = []
    for m in _QUOTE.finditer(text):
        said = next(g for g in m.groups() if g is not None).strip()
        letters = sum(c.isalnum() for c in said)
        if not _inside(m.start(), code) and letters and (len(said.split()) > 1
                                                         or letters >= _LEAST):  # fmt: skip
            found.append(_Quote(m.start(), m.end(), said))
    return found


def _before(quotes: Sequence[_Quote], after: int, at: int, text: str) -> _Quote | None:
    """The quotation that a citation at `at` supports; none from before the citation before."""
    near = [q for q in quotes if after <= q.start and q.end <= at and at - q.end <= _REACH]
    if not near or "\n\n" in text[near[-1].end : at]:
        return None
    return near[-1]


def _numbers(inside: str) -> list[int]:
    found: list[int] = []
    for part in re.split(r"[,;]", inside):
        numbers = [int(n) for n in re.findall(r"\d+", part)]
        if len(numbers) == 2 and 0 <= numbers[1] - numbers[0] <= _WIDEST:
            numbers = list(range(numbers[0], numbers[1] + 1))
        found += numbers
    return list(dict.fromkeys(found))


def _inside(at: int, spans: Sequence[tuple[int, int]]) -> bool:
    return any(a <= at < b for a, b in spans)


def _warnings(text: str, citations: Sequence[Citation], loose: Sequence[str]) -> list[str]:
    if not text.strip():
        return ["the answer is empty"]
    said = []
    if not citations:
        said.append("the answer cites no source: nothing says where it is from")
    unknown = sorted({c.number for c in citations if not c.exists})
    if unknown:
        named = ", ".join(f"[{n}]" for n in unknown)
        said.append(f"cited, but no such source: {named}")
    for c in citations:
        if c.exists and c.quote_ok is False:
            said.append(f"quoted, but not in source [{c.number}]: {_short(c.quote)}")
    said += [f"quoted, but in no source: {_short(quote)}" for quote in loose]
    return list(dict.fromkeys(said))


def _short(text: str) -> str:
    return f'"{text if len(text) <= 80 else text[:79] + "…"}"'
