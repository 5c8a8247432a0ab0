"""`bench`: one server under load, or two in turns, and what came of it."""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from nybble.environment import hardware, package_version, versions
from nybble.errors import EngineError, NybbleError
from nybble.results.loads import LoadBlock, LoadRatio, LoadReport, LoadRequest, LoadRun, read
from nybble.serving.load import summary
from nybble.serving.load.drive import Driver
from nybble.serving.load.prepare import api_key, base_url, connect, prepare
from nybble.serving.load.profile import BenchProfile
from nybble.serving.load.summary import Limits

_LATE = 0.01  # seconds that the client's clock may tick late, 99th percentile
_BUSY = 0.9  # of a core: a Python program has no second one
_TEMPLATE = 64  # tokens of a chat template, which all prompts have in common
_SHORT = 0.02  # share of short answers likewise
_OFF = 0.1  # how far lengths may lie from what was asked before a note says so


class Progress(Protocol):
    """Where a run tells how far it is; the CLI draws it, the library stays silent."""

    def stage(self, text: str) -> None:
        """A new step without a known length."""

    def begin(self, text: str, total: float) -> None:
        """A new step of `total` units."""

    def advance(self, done: float) -> None:
        """Units done since the last call."""

    def note(self, text: str) -> None:
        """Something the user must know now."""


@dataclass(frozen=True)
class BenchRequest:
    """Everything that defines a load test.

    Attributes:
        urls: of one server, or of two that take turns.
        profile: what they are asked.
        model: name; None for the only one a server has.
        names: of the servers, for the tables; () for their addresses.
        api_key_env: variable that holds the key; None for the usual ones.
        timeout: seconds of a request.
        limits: of a good answer.
        against: a stored run to compare with.
    """

    urls: tuple[str, ...]
    profile: BenchProfile = BenchProfile()
    model: str | None = None
    names: tuple[str, ...] = ()
    api_key_env: str | None = None
    timeout: float = 600.0
    limits: Limits = Limits()
    against: Path | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.urls) <= 2:
            raise NybbleError("a load test drives one server, or two in turns",
                              seen=f"{len(self.urls)} addresses", allowed="1 or 2")  # fmt: skip
        if self.names and len(set(self.names)) != len(self.urls):
            raise NybbleError("each server has a name of its own", seen=", ".join(self.names),
                              allowed=f"{len(self.urls)} different names")  # fmt: skip
        if not 0 < self.timeout < 1e7:
            raise NybbleError("the time-out is a number of seconds above 0", seen=self.timeout,
                              hint="--timeout 600")  # fmt: skip


def bench(request: BenchRequest, progress: Progress | None = None) -> LoadReport:
    """Drive one or two servers and sum up what they did.

    Raises:
        MissingExtraError: the official client is not installed.
        EngineError: a server does not answer, or not a single request of a run succeeded.
        NybbleError: an address, a key or a stored run cannot be used.
    """
    urls = [base_url(url) for url in request.urls]
    keys = [api_key(url, request.api_key_env) for url in urls]
    profile = request.profile
    shape = profile.shape(len(urls))
    stored: tuple[LoadRun, ...] = ()
    if request.against is not None:  # before minutes are spent
        before = read(request.against)
        summary.check_same(shape, before.shape, str(request.against))
        stored = before.runs
    runs = _finish(_drive(request, urls, keys, progress))
    for run in runs:
        if not run.numbers.answered:
            why = "; ".join(f"{f.count} x {f.error}: {f.detail}" for f in run.numbers.failures)
            raise EngineError("not one request was answered", seen=f"{run.url}: {why or 'none'}",
                              hint="a lower --concurrency or --rate, shorter --prompt, or the "
                                   "server's own log")  # fmt: skip
    together = (*_renamed(stored, [r.name for r in runs]), *runs)
    return LoadReport(
        shape=shape,
        runs=together,
        ratios=_ratios(together),
        hardware=hardware(),
        versions={**versions(), "openai": package_version("openai") or "unknown"},
    )


def _finish(work: Coroutine[Any, Any, list[LoadRun]]) -> list[LoadRun]:
    """Run to the end, also where a loop is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def _ratios(runs: Sequence[LoadRun]) -> tuple[LoadRatio, ...]:
    """Every later run divided by the first; those of one test, begun together, took turns."""
    first, *rest = runs
    return tuple(
        summary.ratio(
            run,
            first,
            in_turns=run.created == first.created and len(run.blocks) == len(first.blocks),
        )
        for run in rest
    )


def _renamed(stored: Sequence[LoadRun], taken: Sequence[str]) -> list[LoadRun]:
    """Stored runs under names that no other run has."""
    return [replace(r, name=f"{r.name} (stored)") if r.name in taken else r for r in stored]


async def _drive(
    request: BenchRequest, urls: Sequence[str], keys: Sequence[str | None],
    progress: Progress | None,
) -> list[LoadRun]:  # fmt: skip
    profile, total = request.profile, _expected(request.profile, len(urls))
    names = request.names or _names(urls)

    def told(done: LoadRequest) -> None:
        if progress is not None:
            progress.advance(1)

    async with AsyncExitStack() as stack:
        drivers = []
        for i, (url, key) in enumerate(zip(urls, keys, strict=True)):
            client = connect(url, key)
            stack.push_async_callback(client.close)
            if progress is not None:
                progress.stage(f"{names[i]}: looking at the server")
            target = await prepare(client, names[i], url, profile, request.model, request.timeout,
                                   "ab"[i])  # fmt: skip
            drivers.append(Driver(target, profile, request.timeout, told))
        for driver in drivers:
            if progress is not None:
                progress.stage(f"{driver.target.name}: {profile.n_warmup} warm-up requests")
            await driver.warm_up()
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        if progress is not None:
            progress.begin("requests", total)
        test = time.perf_counter()
        n = profile.n_blocks(len(urls))
        for block in range(n):
            for driver in drivers:
                count = None if profile.requests is None else _part(profile.requests, block, n)
                seconds = None if profile.duration is None else profile.duration / n
                await driver.block(block, count, seconds, test)
        return [_run(driver, created, request.limits) for driver in drivers]


def _expected(profile: BenchProfile, servers: int) -> float:
    """Requests that progress is counted in; a guess where time alone ends the run."""
    if profile.requests is not None:
        return float(servers * profile.requests)
    return servers * max(1.0, (profile.rate or profile.concurrency) * (profile.duration or 1.0))


def _part(total: int, block: int, n: int) -> int:
    return (block + 1) * total // n - block * total // n


def _names(urls: Sequence[str]) -> list[str]:
    """Short names: the address, or a letter where both are the same."""
    found = [url.split("://", 1)[1].removesuffix("/v1") for url in urls]
    same = len(set(found)) < len(found)
    return (
        [f"{name} {letter}" for name, letter in zip(found, "AB", strict=False)] if same else found
    )


def _run(driver: Driver, created: str, limits: Limits) -> LoadRun:
    target = driver.target
    # By number: runs of the same requests are then drawn alike.
    requests = sorted(driver.requests, key=lambda r: (r.block, r.index))
    numbers = summary.numbers(requests, driver.blocks, limits)
    return LoadRun(
        name=target.name,
        url=target.url,
        model=target.model,
        server=target.server,
        created=created,
        mark=target.prompts.mark,
        blocks=tuple(driver.blocks),
        requests=tuple(requests),
        numbers=numbers,
        notes=(*target.notes, *_notes(driver, requests, driver.blocks)),
    )


def _notes(
    driver: Driver, requests: Sequence[LoadRequest], blocks: Sequence[LoadBlock]
) -> list[str]:
    """What a reader must know of this run before believing it."""
    found, done = [], [r for r in requests if r.error is None]
    if driver.gave_up:
        found.append("stopped early: too many requests in a row failed")
    if done:
        found += _about_lengths(driver, done)
    late = max((b.client_late for b in blocks), default=0.0)
    busy = max((b.client_busy for b in blocks), default=0.0)
    if late > _LATE or busy > _BUSY:
        found.append(
            f"the client was busy ({busy:.0%} of a core, its clock up to {1000 * late:.0f} ms "
            "late): times may be too long; fewer requests at once, or another machine"
        )
    return found


def _about_lengths(driver: Driver, done: Sequence[LoadRequest]) -> list[str]:
    """Whether prompts and answers were what was asked for."""
    found = []
    short = sum(r.tokens_out < r.asked_out for r in done) / len(done)
    if short > _SHORT and driver.target.dialect.usage:
        found.append(f"{short:.0%} of the answers ended before the asked length")
    counted = [r for r in done if r.tokens_in is not None]
    total = sum(r.tokens_in or 0 for r in counted)
    if not total:
        return found
    asked, cached = sum(r.asked_in for r in counted), sum(r.cached or 0 for r in counted)
    if abs(total / asked - 1) > _OFF:
        found.append(f"prompts had {total / len(counted):,.0f} tokens on average, "
                     f"{asked / len(counted):,.0f} were asked for")  # fmt: skip
    more = cached > max(_OFF * total, _TEMPLATE * len(counted))
    if not driver.profile.shared and more:
        found.append(f"the server had {cached / total:.0%} of the prompts in its cache, unasked")
    return found
