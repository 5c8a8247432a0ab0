"""Asks the package index and the projects' release feeds, with conditional requests and a cache.

Rules: RFC 9110 section 13 (If-None-Match, If-Modified-Since). Redirects are followed on the same
host only (a renamed repository), never to another. Bodies are asked for uncompressed, so that the
size limit is one of memory too. What does not parse is not cached.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from nybble.environment import VERSION
from nybble.errors import NybbleError
from nybble.watch.cache import Copy, FeedCache
from nybble.watch.parse import Release, parse_index, parse_releases, plain
from nybble.watch.records import Source, SourceKind, State

INDEX_URL = "https://pypi.org/pypi/{package}/json"
RELEASES_URL = "https://github.com/{repository}/releases.atom"
_REDIRECTS = (301, 302, 303, 307, 308)
_ETAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e]{0,200}"')
_DATE = re.compile(r"[A-Za-z0-9,: +-]{1,64}")


@dataclass(frozen=True)
class Addresses:
    """Where to ask; `{package}` and `{repository}` (owner/name) are filled in.

    Raises:
        NybbleError: no http or https address, without its placeholder, or with a password in it.
    """

    index: str = INDEX_URL
    releases: str = RELEASES_URL

    def __post_init__(self) -> None:
        _check("--index-url", "NYBBLE_INDEX_URL", self.index, "{package}", INDEX_URL)
        _check("--releases-url", "NYBBLE_RELEASES_URL", self.releases, "{repository}", RELEASES_URL)

    @classmethod
    def chosen(cls, index: str | None = None, releases: str | None = None) -> Addresses:
        """As given, else as the environment says, else the public ones."""
        return cls(
            index or os.environ.get("NYBBLE_INDEX_URL") or INDEX_URL,
            releases or os.environ.get("NYBBLE_RELEASES_URL") or RELEASES_URL,
        )


def _check(option: str, variable: str, url: str, placeholder: str, example: str) -> None:
    where = f"{option} {example}, or {variable}"
    try:
        parts = urlsplit(url)
        fit = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        fit, parts = False, urlsplit("")
    if parts.username is not None or parts.password is not None:
        raise NybbleError("an address with a user name or password is refused: it would be shown "
                          "in reports", seen=f"{parts.scheme}://...@{parts.hostname}",
                          hint=where)  # fmt: skip
    if not fit or not url.isprintable() or " " in url:
        raise NybbleError("no address of the web", seen=plain(url, 200),
                          allowed="http://... or https://...", hint=where)  # fmt: skip
    if placeholder not in url:
        raise NybbleError(f"this address has no {placeholder} in it", seen=plain(url, 200),
                          allowed=example, hint=where)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What one address may cost.

    Attributes:
        total: seconds, redirects included.
        size: bytes of the answer; PyPI's longest asked for here is about 1 MB.
        redirects: followed.
        at_once: addresses asked at a time.
    """

    total: float = 20.0
    size: int = 16 << 20
    redirects: int = 3
    at_once: int = 6

    def __post_init__(self) -> None:
        if not 0 < self.total <= 3600:
            raise NybbleError("--timeout takes seconds", seen=self.total, allowed="up to 3600",
                              hint="--timeout 20")  # fmt: skip


@dataclass(frozen=True)
class Question:
    """One address to ask, and how its answer is read."""

    kind: SourceKind
    subject: str
    url: str
    parse: Callable[[bytes], tuple[Release, ...]]

    @property
    def address(self) -> str:
        """Without the query, which may hold a token."""
        return self.url.partition("?")[0]


@dataclass(frozen=True)
class Heard:
    """What came of a question; no releases where nothing did."""

    source: Source
    releases: tuple[Release, ...] = ()


class _FailedError(Exception):
    """Why an address could not be used, in words."""


def about_package(addresses: Addresses, package: str) -> Question:
    """The question for a package's releases."""
    url = addresses.index.replace("{package}", quote(package, safe=""))
    return Question("index", package, url, lambda body: parse_index(body, package))


def about_repository(addresses: Addresses, repository: str) -> Question:
    """The question for a project's releases and their notes."""
    url = addresses.releases.replace("{repository}", quote(repository, safe="/"))
    return Question("releases", repository, url, parse_releases)


def ask(
    questions: Sequence[Question],
    cache: FeedCache,
    limits: Limits | None = None,
    *,
    offline: bool = False,
    said: Callable[[Heard], None] | None = None,
) -> tuple[Heard, ...]:
    """Ask all of them, a few at a time; a failure is an answer too.

    Args:
        questions: of any engines.
        cache: used for conditional requests, and where a server does not answer.
        limits: for each.
        offline: ask nobody, use the cache.
        said: told every answer as it comes.

    Raises:
        NybbleError: a proxy or certificates of the environment that cannot be used.
    """
    limits = limits or Limits()

    async def everything() -> tuple[Heard, ...]:
        gate = asyncio.Semaphore(limits.at_once)
        async with _client(limits) as client:

            async def one(question: Question) -> Heard:
                async with gate:
                    heard = await _hear(client, question, cache, limits, offline)
                if said is not None:
                    said(heard)
                return heard

            return tuple(await asyncio.gather(*map(one, questions)))

    return _run(everything())


def _client(limits: Limits) -> httpx.AsyncClient:
    headers = {"User-Agent": f"nybble/{VERSION}", "Accept-Encoding": "identity"}
    try:
        return httpx.AsyncClient(headers=headers, timeout=limits.total)
    except (ImportError, ValueError, OSError, httpx.InvalidURL) as error:
        # Proxies and certificates of the environment: httpx looks at them when it is made.
        raise NybbleError("the proxy or the certificates that the environment names cannot be used",
                          seen=plain(str(error), 200), allowed="HTTPS_PROXY=http://host:port, "
                          "SSL_CERT_FILE=FILE", hint="unset them, or nybble watch --offline"
                          ) from error  # fmt: skip


def _run(work: Coroutine[Any, Any, tuple[Heard, ...]]) -> tuple[Heard, ...]:
    """Run to the end, also where a loop is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


async def _hear(client: httpx.AsyncClient, question: Question, cache: FeedCache, limits: Limits,
                offline: bool) -> Heard:  # fmt: skip
    copy = cache.load(question.url)
    old = _read(question, copy.body) if copy is not None else None
    if isinstance(old, _FailedError):
        copy = old = None  # kept by another version of nybble, or damaged with a right checksum
    if offline:
        return _kept(question, copy, old, "offline: not asked")
    try:
        async with asyncio.timeout(limits.total):
            got = await _get(client, question.url, copy, limits)
    except TimeoutError:
        return _kept(question, copy, old, f"no whole answer within {limits.total:g} s")
    except _FailedError as error:
        return _kept(question, copy, old, str(error))
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, OSError) as error:
        text = plain(str(error), 200) or type(error).__name__
        return _kept(question, copy, old, f"no connection: {text}")
    if got is None:  # the server says that the copy still holds
        assert copy is not None and old is not None
        again = Copy(copy.body, copy.etag, copy.modified, time.time())
        return _heard(question, old, "unchanged", 0.0, cache.save(question.url, again))
    new = _read(question, got.body)
    if isinstance(new, _FailedError):
        return _kept(question, copy, old, str(new))
    return _heard(question, new, "fetched", 0.0, cache.save(question.url, got))


def _read(question: Question, body: bytes) -> tuple[Release, ...] | _FailedError:
    try:
        return question.parse(body)
    except NybbleError as error:
        seen = f": {error.seen}" if error.seen else ""
        return _FailedError(f"{error.what}{seen}")


def _kept(question: Question, copy: Copy | None, old: tuple[Release, ...] | None,
          why: str) -> Heard:  # fmt: skip
    if copy is None or old is None:
        return _heard(question, (), "missing", None, why)
    return _heard(question, old, "cached", round(copy.age(), 1), why)


def _heard(question: Question, releases: tuple[Release, ...], state: State, age: float | None,
           why: str) -> Heard:  # fmt: skip
    return Heard(
        Source(question.kind, question.subject, question.address, state, age, why), releases
    )


async def _get(client: httpx.AsyncClient, url: str, copy: Copy | None,
               limits: Limits) -> Copy | None:  # fmt: skip
    """The answer, or None where the server says that `copy` still holds."""
    headers = {}
    if copy is not None and copy.etag:
        headers["If-None-Match"] = copy.etag
    if copy is not None and copy.modified:
        headers["If-Modified-Since"] = copy.modified
    at = httpx.URL(url)
    for _ in range(limits.redirects + 1):
        async with client.stream("GET", at, headers=headers) as answer:
            if answer.status_code in _REDIRECTS and "location" in answer.headers:
                at = _redirected(at, answer.headers["location"])
                continue
            if answer.status_code == HTTPStatus.NOT_MODIFIED and headers:
                return None
            if answer.status_code != HTTPStatus.OK:
                raise _FailedError(f"HTTP {answer.status_code} {plain(answer.reason_phrase, 60)}")
            if answer.headers.get("content-encoding", "identity").lower() != "identity":
                raise _FailedError("it answers compressed, though it was asked not to")
            return await _whole(answer, limits)
    raise _FailedError(f"it redirects more than {limits.redirects} times")


def _redirected(at: httpx.URL, location: str) -> httpx.URL:
    to = at.join(location)
    secure = (at.scheme, to.scheme) == ("http", "https") and at.port is None and to.port is None
    same = (to.scheme, to.port) == (at.scheme, at.port) or secure
    if to.host != at.host or not same or to.userinfo:
        host = plain(f"{to.scheme}://{to.host}", 100)
        raise _FailedError(f"it redirects to {host}, which is not followed; where you trust that, "
                           "give its address")  # fmt: skip
    return to


async def _whole(answer: httpx.Response, limits: Limits) -> Copy:
    body = bytearray()
    async for piece in answer.aiter_raw():
        body += piece
        if len(body) > limits.size:
            raise _FailedError(f"its answer is larger than {limits.size:,} bytes")
    etag, modified = (answer.headers.get(n, "") for n in ("etag", "last-modified"))
    return Copy(
        bytes(body),
        etag if _ETAG.fullmatch(etag) else "",
        modified if _DATE.fullmatch(modified) else "",
        time.time(),
    )
