"""Category "chat": multi-turn conversations with substantive answers, own writing.

Shipped as data/chat.jsonl; nothing was copied from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator

from nybble.scoring.corpora.document import Document
from nybble.scoring.corpora.shipped import shipped


def documents() -> Iterator[Document]:
    """Yield the documents in the order of the file."""
    yield from shipped("chat")
