"""Category "scripts": one text in languages of different non-Latin scripts.

The Universal Declaration of Human Rights, shipped as data/scripts.jsonl.
"""

from __future__ import annotations

from collections.abc import Iterator

from nybble.scoring.corpora.document import Document
from nybble.scoring.corpora.shipped import shipped


def documents() -> Iterator[Document]:
    """Yield the documents in the order of the file."""
    yield from shipped("scripts")
