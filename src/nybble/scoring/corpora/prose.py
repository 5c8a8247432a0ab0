"""Category "prose": technical prose, the language reference topics of Python's `help()`.

Each longer topic is one document; collections that repeat shorter topics are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from nybble.scoring.corpora.document import Document
from nybble.scoring.corpora.stdlib import origin, read_topics

MIN_CHARACTERS = 1500
_TABLE_OR_CODE = re.compile(r"^\s*(\+[-=+]+\+?|\|.*\||>>>.*|\.\.\. .*|.*::=.*)$")


def documents() -> Iterator[Document]:
    """Yield one document a topic, sorted by name."""
    topics = {
        name: text
        for name, text in read_topics().items()
        if len(text) >= MIN_CHARACTERS and _is_prose(text)
    }
    repeats = repeated_topics(topics, longest_first=False)
    for name, text in topics.items():
        if name not in repeats:
            yield Document(
                id=f"prose/{name}",
                category="prose",
                text=text,
                source=origin(f"pydoc topic {name}"),
                licence="PSF-2.0",
            )


def repeated_topics(topics: dict[str, str], *, longest_first: bool) -> set[str]:
    """Return the topics that consist for more than half of paragraphs of other topics.

    Some topics are whole chapters that contain others. Scoring the same paragraphs twice
    would make the intervals too narrow, so either the chapters go (shortest topics are kept
    first) or the parts go (`longest_first`).
    """
    seen: set[str] = set()
    repeated: set[str] = set()
    sign = -1 if longest_first else 1
    for name in sorted(topics, key=lambda name: (sign * len(topics[name]), name)):
        paragraphs = {re.sub(r"\s+", " ", part) for part in topics[name].split("\n\n")}
        shared = sum(len(part) for part in paragraphs & seen)
        if 2 * shared > sum(len(part) for part in paragraphs):
            repeated.add(name)
        else:
            seen |= paragraphs
    return repeated


def _is_prose(text: str) -> bool:
    lines = [line for line in text.splitlines() if line.strip()]
    return 2 * sum(bool(_TABLE_OR_CODE.match(line)) for line in lines) < len(lines)
