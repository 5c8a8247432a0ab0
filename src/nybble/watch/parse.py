"""Reads what feeds answer: PyPI's JSON and GitHub's Atom. Every byte counts as hostile.

Sources: docs.pypi.org/api/json (GET /pypi/PROJECT/json), RFC 4287 (Atom). XML is read with expat
itself: a document type, and with it every entity of its own, is refused at its first byte, so
there is nothing to expand and nothing to fetch; depth, entries and text are bounded.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from urllib.parse import unquote, urlsplit
from xml.parsers import expat

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from nybble.errors import NybbleError

_MAX_RELEASES = 20_000
_MAX_ENTRIES = 500
_MAX_DEPTH = 64
_MAX_TEXT = 1 << 18  # characters of one element; the longest notes of vLLM have about 80,000
_ATOM = "http://www.w3.org/2005/Atom"


@dataclass(frozen=True)
class Release:
    """A release as its source tells it.

    Attributes:
        version: of the package, or the tag.
        published: ISO date, empty where not told.
        url: of its page, empty without.
        notes: HTML; empty on the package index, which has none.
    """

    version: str
    published: str = ""
    url: str = ""
    notes: str = ""


def parse_index(body: bytes, package: str) -> tuple[Release, ...]:
    """Releases of a package with at least one file that was not withdrawn, as PyPI's JSON.

    Raises:
        NybbleError: it is no such answer, or one about another package.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise NybbleError(
            "the package index did not answer with JSON", seen=_start(body)
        ) from error
    info = found.get("info") if isinstance(found, dict) else None
    if not isinstance(info, dict) or not isinstance(info.get("name"), str):
        raise NybbleError("the package index answered with other JSON", seen=_start(body),
                          allowed="info.name, info.version and releases")  # fmt: skip
    if canonicalize_name(info["name"]) != canonicalize_name(package):
        raise NybbleError("the package index answered for another package",
                          seen=plain(info["name"], 80), allowed=package)  # fmt: skip
    files = found.get("releases")
    if not isinstance(files, dict):  # an index may leave it out: then the newest is all there is
        files = {info.get("version"): found.get("urls")}
    if len(files) > _MAX_RELEASES:
        raise NybbleError("the package index names too many releases", seen=f"{len(files):,}",
                          allowed=f"up to {_MAX_RELEASES:,}")  # fmt: skip
    releases = (_release(version, listed) for version, listed in files.items())
    return tuple(r for r in releases if r is not None)


def _release(version: Any, files: Any) -> Release | None:
    if not isinstance(version, str) or len(version) > 64 or not isinstance(files, list):
        return None
    try:
        Version(version)
    except InvalidVersion:
        return None
    kept = [f for f in files if isinstance(f, dict) and not f.get("yanked")]
    if not kept:
        return None
    days = sorted(filter(None, (day(f.get("upload_time_iso_8601")) for f in kept)))
    return Release(version, days[0] if days else "")


def parse_releases(body: bytes) -> tuple[Release, ...]:
    """Releases of an Atom feed, as GitHub writes it: the tag is the end of the entry's link or id.

    Raises:
        NybbleError: it is no Atom feed, is damaged, or declares a document type.
    """
    reader = _Atom()
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    parser.StartDoctypeDeclHandler = _refuse_doctype
    try:
        parser.Parse(body, True)
    except (expat.ExpatError, ValueError, LookupError) as error:  # encodings raise the others
        raise NybbleError("the release feed is no XML", seen=_start(body)) from error
    if not reader.atom:
        raise NybbleError("the release feed is no Atom feed", seen=_start(body),
                          allowed=f"feed of {_ATOM}")  # fmt: skip
    return tuple(reader.found)


def _refuse_doctype(name: str, *_: object) -> None:
    raise NybbleError("the release feed declares a document type, and may define entities with it",
                      seen=f"<!DOCTYPE {plain(name, 40)}", allowed="XML without one")  # fmt: skip


class _Atom:
    """Collects the entries of a feed while expat reads it."""

    def __init__(self) -> None:
        self.atom = False
        self.found: list[Release] = []
        self._depth = 0
        self._entry: dict[str, str] | None = None
        self._field = ""
        self._pieces: list[str] = []
        self._length = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise NybbleError("the release feed is nested too deeply",
                              allowed=f"{_MAX_DEPTH} elements")  # fmt: skip
        space, _, tag = name.rpartition(" ")
        if self._depth == 1:
            self.atom = space == _ATOM and tag == "feed"
        elif self._depth == 2 and tag == "entry" and self.atom:
            if len(self.found) >= _MAX_ENTRIES:
                raise NybbleError("the release feed has too many entries",
                                  allowed=f"up to {_MAX_ENTRIES}")  # fmt: skip
            self._entry = {}
        elif self._entry is not None and self._depth == 3:
            self._field, self._pieces, self._length = tag, [], 0
            if tag == "link" and attributes.get("rel", "alternate") == "alternate":
                self._entry.setdefault("link", attributes.get("href", ""))
        elif self._entry is not None and self._depth > 3:
            self._pieces.append("\n")  # XHTML inside: keep its words apart

    def text(self, data: str) -> None:
        if self._entry is not None and self._depth >= 3 and self._length < _MAX_TEXT:
            self._pieces.append(data[: _MAX_TEXT - self._length])
            self._length += len(data)

    def end(self, name: str) -> None:
        if self._entry is not None and self._depth == 3 and self._field != "link":
            self._entry.setdefault(self._field, "".join(self._pieces))
        elif self._entry is not None and self._depth == 2:
            self._keep(self._entry)
            self._entry = None
        self._depth -= 1

    def _keep(self, entry: dict[str, str]) -> None:
        link = web_address(entry.get("link", ""))
        _, tree, tag = urlsplit(link).path.rpartition("/releases/tag/")
        if not tree:
            tag = entry.get("id", "").rpartition("/")[2]
        tag = plain(unquote(tag), 64)
        if tag:
            # `updated` is when it was last edited: GitHub's feed carries no other date.
            when = day(entry.get("published") or entry.get("updated"))
            self.found.append(Release(tag, when, link, entry.get("content", "")))


def day(text: object) -> str:
    """The day of an ISO time; empty where it is none."""
    if not isinstance(text, str) or len(text) > 64:
        return ""
    try:
        found: date = datetime.fromisoformat(text.strip())
    except ValueError:
        return ""
    return f"{found:%Y-%m-%d}"


def web_address(text: str) -> str:
    """An http or https address fit to be shown; empty where it is none."""
    text = text.strip()
    fit = len(text) <= 500 and text.isascii() and text.isprintable() and " " not in text
    try:
        return text if fit and urlsplit(text).scheme in ("http", "https") else ""
    except ValueError:
        return ""


def plain(text: str, most: int = 1000) -> str:
    """Text without control and format characters (a terminal would obey them), on one line."""
    kept = "".join(" " if c.isspace() else c for c in text[: 4 * most])
    kept = "".join(c for c in kept if unicodedata.category(c)[0] != "C")
    kept = " ".join(kept.split())
    return kept if len(kept) <= most else kept[: most - 3] + "..."


def _start(body: bytes) -> str:
    return plain(body[:80].decode("utf-8", "replace")) or "nothing"
