"""The text models are trained on when the user names none; nothing of it is ever scored.

Modules of the standard library that no category has, whose docstrings and comments are English
prose beside the code, and the documents that are reserved for calibration, in many scripts. A base
text for a first result: a model for one use should be trained on that use's text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from nybble.scoring.corpora import chat, code, long, scripts, tools
from nybble.scoring.corpora.calibration import RESERVED
from nybble.scoring.corpora.document import Document
from nybble.scoring.corpora.stdlib import module_names, no_sources, origin, read_module

_SCORED = frozenset((*code.MODULES, *(name for names in long.FAMILIES.values() for name in names)))
# Tables, tests, generated files, and prose that category "prose" reads.
_LEFT_OUT = {
    "test", "tests", "idlelib", "lib2to3", "encodings", "pydoc_data", "turtledemo", "ensurepip",
}  # fmt: skip
_LEAST = 8_000  # characters
_MOST = 24_000  # of one module, or a few large ones would be most of the text


def documents() -> Iterator[Document]:
    """Yield the reserved documents, then one document a module, sorted by name.

    Raises:
        NybbleError: a Python without its library's sources.
    """
    for category in (chat, tools, scripts):
        for document in category.documents():
            if document.id in RESERVED:
                yield replace(document, category="training")
    found = False
    for name in module_names():
        if name in _SCORED or _LEFT_OUT & set(name.split(".")):
            continue
        text = read_module(name)
        if text is None or len(text) < _LEAST:
            continue
        found = True
        yield Document(
            id=f"training/{name}", category="training", text=text[:_MOST],
            source=origin(f"module {name}"), licence="PSF-2.0",
        )  # fmt: skip
    if not found:
        raise no_sources("training")
