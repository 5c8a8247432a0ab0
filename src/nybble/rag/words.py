"""A text's words, as BM25 looks them up."""

from __future__ import annotations

import re

_RUN = re.compile(r"\w+")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
# Those of bm25s (its STOPWORDS_EN), which are Lucene's.
_STOP = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then "
    "there these they this to was will with".split()
)


def words(text: str) -> list[str]:
    """Lower-case words without the commonest, plurals cut; identifiers whole and in parts.

    `max_parallel_workers` gives itself, max, parallel and worker; `readTable` gives readtable,
    read and table. So a question finds an option it spells out, and one it quotes.
    """
    found: list[str] = []
    for run in _RUN.findall(text):
        lower = run.lower()
        if lower in _STOP:
            continue
        found.append(singular(lower))
        parts = [h for part in run.split("_") if part for h in _HUMP.split(part)]
        if len(parts) > 1:
            found += [singular(p.lower()) for p in parts if len(p) > 1]
    return found


def singular(word: str) -> str:
    """A lower-case English word without its plural's ending.

    Source: the "S" stemmer of Harman, "How effective is suffixing?", JASIS 42 (1991).
    """
    if len(word) < 4 or not word.endswith("s"):
        return word
    if word.endswith("ies") and not word.endswith(("eies", "aies")):
        return word[:-3] + "y"
    if word.endswith("es") and not word.endswith(("aes", "ees", "oes")):
        return word[:-1]
    return word[:-1] if not word.endswith(("us", "ss")) else word
