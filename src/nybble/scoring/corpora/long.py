"""Category "long": documents of 100 KB and more (about 32K tokens each), for long contexts.

The reference volumes repeat text of "prose": the split asks about length, not about text.
"""

from __future__ import annotations

from collections.abc import Iterator

from nybble.scoring.corpora.document import Document
from nybble.scoring.corpora.prose import repeated_topics
from nybble.scoring.corpora.stdlib import no_sources, origin, read_module, read_topics

MIN_BYTES = 100_000
VOLUMES = 2

# Families of modules that belong together and that category "code" does not use.
FAMILIES: dict[str, tuple[str, ...]] = {
    "decimal": ("_pydecimal",),
    "email": (
        "email.message",
        "email.parser",
        "email.feedparser",
        "email.generator",
        "email.header",
        "email.headerregistry",
        "email.charset",
        "email.utils",
        "email._header_value_parser",
    ),
    "asyncio": (
        "asyncio.base_events",
        "asyncio.events",
        "asyncio.locks",
        "asyncio.queues",
        "asyncio.streams",
        "asyncio.tasks",
    ),
    "inspection": ("inspect", "typing", "pydoc"),
}


def documents() -> Iterator[Document]:
    """Yield the volumes of the language reference, then one document a module family."""
    for number, text in enumerate(_volumes(), start=1):
        yield Document(
            id=f"long/reference-{number}",
            category="long",
            text=text,
            source=origin(f"pydoc topics, volume {number} of {VOLUMES}"),
            licence="PSF-2.0",
        )
    found = False
    for name, modules in FAMILIES.items():
        parts = [text for text in map(read_module, modules) if text is not None]
        text = "\n\n".join(parts)
        if len(text.encode()) < MIN_BYTES:
            continue
        found = True
        yield Document(
            id=f"long/{name}",
            category="long",
            text=text,
            source=origin("modules " + ", ".join(modules)),
            licence="PSF-2.0",
        )
    if not found:
        raise no_sources("long")


def _volumes() -> list[str]:
    """Return the topics in alphabetical order, joined into `VOLUMES` texts of like length."""
    topics = read_topics()
    repeats = repeated_topics(topics, longest_first=True)
    kept = {name: text for name, text in topics.items() if name not in repeats}
    share = sum(map(len, kept.values())) / VOLUMES
    volumes: list[list[str]] = [[] for _ in range(VOLUMES)]
    before = 0
    for text in kept.values():
        # The volume that the middle of the topic falls into.
        volumes[min(VOLUMES - 1, int((before + len(text) / 2) / share))].append(text)
        before += len(text)
    return ["\n\n".join(parts) for parts in volumes]
