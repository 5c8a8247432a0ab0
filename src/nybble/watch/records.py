"""What a look at the engines' releases found: plain records, as `nybble watch --json` prints."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

WATCH_SCHEMA_VERSION = 1

SourceKind = Literal["index", "releases"]
# "fetched": new from the server. "unchanged": the server says the cached copy still holds.
# "cached": the server did not answer, or was not asked; a copy is used. "missing": neither.
State = Literal["fetched", "unchanged", "cached", "missing"]


@dataclass(frozen=True)
class Source:
    """One address that was asked.

    Attributes:
        kind: the package index or the project's release feed.
        subject: package or repository.
        address: without its query, which may hold a token.
        state: see `State`.
        age: seconds since the server last gave or confirmed what is used; None where missing.
        why: what kept it from being fetched, and what else went wrong; empty if nothing did.
    """

    kind: SourceKind
    subject: str
    address: str
    state: State
    age: float | None = None
    why: str = ""


@dataclass(frozen=True)
class NoteLine:
    """A sentence of release notes that concerns KV caches.

    Attributes:
        release: version it is from, as the project writes it.
        text: the sentence, without markup.
        heading: it stands under; empty at the top.
        topics: names of the patterns that matched, see `notes.TOPICS`.
        matched: the words that did, in the order of the topics.
        score: higher is nearer to the capability data.
        url: of the release; empty where the feed gives none.
    """

    release: str
    text: str
    heading: str
    topics: tuple[str, ...]
    matched: tuple[str, ...]
    score: int
    url: str = ""


@dataclass(frozen=True)
class NewRelease:
    """A release newer than what was read.

    Attributes:
        version: as the project or the index writes it.
        published: ISO date, empty where not told.
        sources: "index", "releases" or both.
        url: of its notes; empty without.
        prerelease: a candidate or a development build: shown, never drift by itself.
        has_notes: whether the feed carries its notes.
    """

    version: str
    published: str
    sources: tuple[SourceKind, ...]
    url: str
    prerelease: bool
    has_notes: bool


@dataclass(frozen=True)
class Outdated:
    """An entry of our data that notes of a newer release speak of.

    Attributes:
        kind: "choice" (a value of the KV flag) or "trap".
        entry: the value's name, or the trap's sentence.
        mention: what of it was found: its name, or an issue number.
        release: whose notes.
        text: the sentence there.
    """

    kind: Literal["choice", "trap"]
    entry: str
    mention: str
    release: str
    text: str


@dataclass(frozen=True)
class EngineDrift:
    """One engine: what was read of it, and what is newer.

    Attributes:
        engine: name.
        read: newest version that was read for its data.
        read_on: ISO date of that.
        newest: newest version known; None where no source could be used.
        published: ISO date of the newest, empty where not told.
        releases: newer than `read`, newest first.
        lines: of their notes, most relevant first.
        outdated: entries of our data they speak of.
        to_read: what a person has to read before the patch is applied; one sentence each.
        sources: asked for it.
        patch: unified diff that moves `version` and `read_on`; empty without drift.
        others: newest version of packages with a numbering of their own, by package.
    """

    engine: str
    read: str
    read_on: str
    newest: str | None
    published: str = ""
    releases: tuple[NewRelease, ...] = ()
    lines: tuple[NoteLine, ...] = ()
    outdated: tuple[Outdated, ...] = ()
    to_read: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()
    patch: str = ""
    others: tuple[tuple[str, str], ...] = ()

    @property
    def drifted(self) -> bool:
        """Whether a final release is newer than what was read (any, where a candidate was read)."""
        return any(not r.prerelease for r in self.releases)


@dataclass(frozen=True)
class Watch:
    """A look at some engines.

    Attributes:
        made_at: ISO time, UTC.
        engines: in the order asked for.
    """

    made_at: str
    engines: tuple[EngineDrift, ...]
    schema_version: int = WATCH_SCHEMA_VERSION

    @property
    def drifted(self) -> bool:
        """Whether any engine has."""
        return any(e.drifted for e in self.engines)

    @property
    def patch(self) -> str:
        """The patches of all engines, one after the other, as `git apply` takes them."""
        return "".join(e.patch for e in self.engines)

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it; `drifted` is written out."""
        found = dataclasses.asdict(self)
        for record, engine in zip(found["engines"], self.engines, strict=True):
            record["drifted"] = engine.drifted
            record["others"] = dict(engine.others)
        return {**found, "drifted": self.drifted}
