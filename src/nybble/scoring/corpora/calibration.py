"""The text calibrations are taken on: documents of four categories that are never scored.

Four groups of about 1,024 tokens: Python code, English conversations, tool calls with JSON, and
a passage each of four non-Latin scripts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from nybble.scoring.corpora import chat, code, scripts, tools
from nybble.scoring.corpora.document import Document

_LAST = ("chat/mould-in-the-bedroom", "chat/half-marathon-in-twelve-weeks",
         "chat/milky-way-photo", "chat/salary-talk-by-email", "chat/pendulum-period")  # fmt: skip
_TOOLS = (
    "tools/rename-config-key", "tools/dinner-from-fridge", "tools/flat-with-dog",
    "tools/parcel-to-locker", "tools/training-week", "tools/museum-route-wheelchair",
)  # fmt: skip
_SCRIPTS = ("scripts/udhr-tam", "scripts/udhr-tel", "scripts/udhr-tha", "scripts/udhr-ukr")
_CODE = ("code/xml.dom.minidom",)
_PASSAGE = 900  # characters of each script: a quarter of a group or more

RESERVED = frozenset((*_LAST, *_TOOLS, *_SCRIPTS, *_CODE))


def scored(load: Callable[[], Iterator[Document]]) -> Callable[[], Iterator[Document]]:
    """A category's documents without the reserved ones."""
    return lambda: (d for d in load() if d.id not in RESERVED)


def groups() -> list[list[Document]]:
    """Documents to cut one chunk of each, in the order they are read."""
    passages = [d.text[:_PASSAGE] for d in scripts.documents() if d.id in _SCRIPTS]
    joined = Document(id="calibration/scripts", category="calibration", text="\n\n".join(passages))
    return [
        [d for d in code.documents() if d.id in _CODE],
        [d for d in chat.documents() if d.id in _LAST],
        [d for d in tools.documents() if d.id in _TOOLS],
        [joined],
    ]
