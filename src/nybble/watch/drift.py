"""Compares what was read of the engines with what is newer, and says what may be outdated here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from packaging.version import Version

from nybble.engines.known.base import Engine
from nybble.engines.known.probe_places import readable
from nybble.environment import cache_dir
from nybble.errors import NybbleError
from nybble.watch import patch, versions
from nybble.watch.cache import FeedCache
from nybble.watch.feeds import (
    Addresses,
    Heard,
    Limits,
    Question,
    about_package,
    about_repository,
    ask,
)
from nybble.watch.mentions import outdated
from nybble.watch.notes import concerning, ranked
from nybble.watch.parse import Release
from nybble.watch.records import EngineDrift, NewRelease, Outdated, Watch


def look(
    engines: Sequence[Engine],
    addresses: Addresses | None = None,
    *,
    limits: Limits | None = None,
    offline: bool = False,
    folder: Path | None = None,
    now: datetime | None = None,
    said: Callable[[Heard], None] | None = None,
) -> Watch:
    """Ask for releases newer than the engines' data, and read their notes.

    Args:
        engines: of `engines.known.registry`.
        addresses: of the index and the release feeds; None for those of the environment.
        limits: of one address.
        offline: ask nobody and use the cache.
        folder: of the cache.
        now: what today is, for the patch.
        said: told every answer as it comes.

    Raises:
        NybbleError: nothing is known of any engine: no address answered, and no copy is kept.
    """
    addresses = addresses or Addresses.chosen()
    now = now or datetime.now(UTC)
    cache = FeedCache(folder or cache_dir() / "watch")
    questions = {q.url: q for e in engines for q in _questions(e, addresses)}
    answers = ask(tuple(questions.values()), cache, limits, offline=offline, said=said)
    heard = dict(zip(questions, answers, strict=True))
    if answers and all(h.source.state == "missing" for h in answers):
        raise NybbleError(
            "no release of any engine is known: no address answered, and no copy is kept",
            seen="; ".join(f"{h.source.address}: {h.source.why}" for h in answers[:3]),
            hint="run it once with a network, or name a mirror: --index-url, --releases-url",
        )  # fmt: skip
    found = [compare(e, [heard[q.url] for q in _questions(e, addresses)], now) for e in engines]
    return Watch(f"{now.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}", tuple(found))


def _questions(engine: Engine, addresses: Addresses) -> list[Question]:
    found = [about_package(addresses, name) for name in engine.packages]
    if engine.repository:
        found.append(about_repository(addresses, engine.repository))
    return found


def compare(engine: Engine, heard: Sequence[Heard], now: datetime) -> EngineDrift:
    """One engine's data against what its sources say.

    Raises:
        NybbleError: the engine's own version does not compare.
    """
    read = versions.read(engine)
    told: dict[Version, dict[str, Release]] = {}
    others = []
    for answer in heard:
        kind, subject = answer.source.kind, answer.source.subject
        apart, compared = [], False
        for one in answer.releases:
            at = (versions.carried(engine, subject, one.version) if kind == "index"
                  else versions.of_tag(engine, one.version))  # fmt: skip
            if at is not None:
                compared = True
                told.setdefault(at, {}).setdefault(kind, one)
            elif kind == "index":
                apart.append(Version(one.version))
        if apart and not compared:
            final = [v for v in apart if not v.is_prerelease]
            others.append((subject, str(max(final or apart))))
    newer = sorted((v for v in told if v > read), reverse=True)
    notes = [told[v]["releases"] for v in newer if "releases" in told[v]]
    final = [v for v in told if not versions.candidate(engine, v)]
    newest = max(final, default=None)
    drifted = newest is not None and newest > read
    may_be = outdated(engine, notes)
    record = EngineDrift(
        engine.name,
        engine.version,
        engine.read_on,
        None if newest is None else versions.written(engine, newest),
        _published(told[newest]) if newest is not None else "",
        releases=tuple(_new(engine, v, told[v]) for v in newer),
        lines=ranked([line for one in notes for line in concerning(one)]),
        outdated=may_be,
        sources=tuple(h.source for h in heard),
        others=tuple(others),
    )
    if not drifted or newest is None:
        return record
    return _with_patch(engine, record, newest, _gap(engine, told, newer), now)


def _published(told: dict[str, Release]) -> str:
    return next((told[k].published for k in ("index", "releases") if k in told), "")


def _new(engine: Engine, version: Version, told: dict[str, Release]) -> NewRelease:
    feed = told.get("releases")
    return NewRelease(
        feed.version if feed else versions.written(engine, version),
        _published(told),
        tuple(kind for kind in ("index", "releases") if kind in told),
        feed.url if feed else "",
        versions.candidate(engine, version),
        bool(feed and feed.notes.strip()),
    )


def _gap(engine: Engine, told: dict[Version, dict[str, Release]], newer: list[Version]) -> str:
    """What was not seen: feeds keep the last ten releases or so."""
    with_notes = [v for v in told if "releases" in told[v]]
    if not engine.repository:
        return "the project has no release feed here: its notes were not seen"
    if not with_notes:
        return f"the release feed of {engine.repository} was not seen: no notes were searched"
    oldest = min(with_notes)
    if oldest > versions.read(engine):
        return (f"the feed begins at {versions.written(engine, oldest)}: notes of the releases "
                f"between {engine.version} and that were not seen")  # fmt: skip
    bare = [versions.written(engine, v) for v in newer
            if not versions.candidate(engine, v)
            and not ("releases" in told[v] and told[v]["releases"].notes.strip())]  # fmt: skip
    return f"without notes in the feed: {', '.join(bare[:10])}" if bare else ""


def _with_patch(engine: Engine, record: EngineDrift, newest: Version, gap: str,
                now: datetime) -> EngineDrift:  # fmt: skip
    to_read = [f"notes of {r.version}: {r.url or 'no address'}"
               for r in record.releases if not r.prerelease and r.has_notes][:20]  # fmt: skip
    to_read += [gap] if gap else []
    to_read += [_sentence(entry) for entry in record.outdated]
    how = (f"nybble engines --probe where {versions.written(engine, newest)} is installed"
           if readable(engine.name) else "in its source or documentation")  # fmt: skip
    to_read.append(f"the values of {engine.flags}: {how}")
    made = ""
    try:
        made = patch.diff(patch.data_file(engine), type(engine).__name__,
                          {"version": versions.written(engine, newest),
                           "read_on": f"{now:%Y-%m-%d}"})  # fmt: skip
    except NybbleError as error:
        to_read.append(f"no patch could be made: {error.what}")
    return dataclasses.replace(record, to_read=tuple(to_read), patch=made)


def _sentence(entry: Outdated) -> str:
    what = f"value {entry.entry}" if entry.kind == "choice" else f'trap "{entry.entry}"'
    return f"{what}: {entry.release} mentions {entry.mention}: {entry.text}"
