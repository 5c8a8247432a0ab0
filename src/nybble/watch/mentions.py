"""Which entries of an engine's data notes speak of: by a value's name, or by an issue's number."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal

from nybble.engines.known.base import Engine
from nybble.watch.notes import Sentence, match, sentences
from nybble.watch.parse import Release
from nybble.watch.records import Outdated

Issues = tuple[tuple[str, str], ...]  # owner/name in small letters, and number
_Entry = tuple[Literal["choice", "trap"], str, str]  # kind, entry, what was found of it

# owner/name#123, PR #123, #123; a bare number belongs to the repository named before it.
_ISSUE = re.compile(r"(?:\b([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*))?#([0-9]{1,7})\b")
_LINK = re.compile(r"https?://[^\s\"'<>]{1,100}/([\w.-]+/[\w.-]+)/(?:pull|issues)/([0-9]{1,7})\b")


def issues(text: str, repository: str) -> Issues:
    """Issues and pull requests that a text names, as (owner/name in small letters, number)."""
    found, last = [], repository
    for owner, number in _ISSUE.findall(text):
        last = owner or last
        found.append((last.lower(), number))
    found += [(repo.lower(), number) for repo, number in _LINK.findall(text)]
    return tuple(dict.fromkeys(found))


def outdated(engine: Engine, releases: Sequence[Release]) -> tuple[Outdated, ...]:
    """Entries that the notes of these releases mention, newest release first, each pair once."""
    found: dict[tuple[str, str, str], Outdated] = {}
    for one in releases:
        for sentence in sentences(one.notes):
            for entry in _entries(engine, sentence):
                record = Outdated(*entry, one.version, sentence.text)
                found.setdefault((record.kind, record.entry, one.version), record)
    return tuple(found.values())


def _entries(engine: Engine, sentence: Sentence) -> Iterator[_Entry]:
    named = issues(sentence.text, engine.repository)
    concerns = bool(match(sentence.text)[0])
    for choice in engine.choices:
        # Short values ("4", "q8") stand for much else; only long ones are looked for everywhere.
        if (concerns or len(choice.name) > 8) and _word(choice.name, sentence.text):
            yield "choice", choice.name, choice.name
        else:
            for issue in _shared(named, choice.source, engine):
                yield "choice", choice.name, issue
    for trap in engine.traps:
        for issue in _shared(named, trap.source, engine):
            yield "trap", trap.what, issue


def _shared(named: Issues, source: str, engine: Engine) -> Iterator[str]:
    ours = issues(source, engine.repository) if named else ()
    return (f"{repo}#{number}" for repo, number in ours if (repo, number) in named)


def _word(name: str, text: str) -> bool:
    if len(name) < 3 or name.isdigit() or name in ("auto", "none"):
        return False
    return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text, re.IGNORECASE) is not None
