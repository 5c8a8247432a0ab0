"""Category "tools": tool-calling conversations with JSON schemas, calls and results.

Shipped as data/tools.jsonl; made by scripted scenarios over invented data.
"""

from __future__ import annotations

from collections.abc import Iterator

from nybble.scoring.corpora.document import Document
from nybble.scoring.corpora.shipped import shipped


def documents() -> Iterator[Document]:
    """Yield the documents in the order of the file."""
    yield from shipped("tools")
