"""Send the requests of a profile to a server when they are due, and keep what came of each.

Closed loop: `concurrency` callers, each sending its next request when the one before is done.
Open loop: requests arrive at random times (Poisson) that do not wait for the server; what would
be more than `concurrency` at once waits here, and how long is recorded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from nybble.results.loads import LoadBlock, LoadRequest
from nybble.serving.load.client import Ask, ask
from nybble.serving.load.prepare import Target
from nybble.serving.load.profile import BenchProfile

GIVE_UP = 20  # failures in a row, or twice as many as there may be at once
_TICK = 0.02  # seconds between two looks at the client's own clock


@dataclass
class Driver:
    """Drives one server; its blocks are run one after the other.

    Attributes:
        target: the server.
        profile: what is asked.
        timeout: seconds of a request.
        told: called after each request that counts.
        requests: what came so far.
        blocks: finished so far.
        gave_up: whether too many requests failed in a row.
    """

    target: Target
    profile: BenchProfile
    timeout: float
    told: Callable[[LoadRequest], None] = lambda _: None
    requests: list[LoadRequest] = field(default_factory=list)
    blocks: list[LoadBlock] = field(default_factory=list)
    gave_up: bool = False
    _next: int = 0
    _failed: int = 0

    async def warm_up(self) -> None:
        """Requests that do not count, as many at once as later; numbered -1, -2, ..."""
        numbers = iter(range(-1, -self.profile.n_warmup - 1, -1))
        await self._closed(numbers, -1, time.perf_counter(), None)

    async def block(
        self, index: int, count: int | None, seconds: float | None, test: float
    ) -> None:
        """Run one block to its last answer.

        Args:
            index: of the block.
            count: requests of it; None for as many as `seconds` allow.
            seconds: after which no request is sent; None for no limit.
            test: `time.perf_counter()` when the test began.
        """
        if self.gave_up:
            return
        began, cpu = time.perf_counter(), time.process_time()
        late: list[float] = []
        clock = asyncio.create_task(_watch(late))
        until = None if seconds is None else began + seconds
        try:
            numbers = self._numbers(count)
            if self.profile.rate is None:
                await self._closed(numbers, index, began, until)
            else:
                await self._open(numbers, index, began, until)
        finally:
            clock.cancel()
        last = [r.sent + r.total for r in self.requests if r.block == index]
        wall = time.perf_counter() - began
        self.blocks.append(
            LoadBlock(
                index=index,
                began=round(began - test, 6),
                seconds=round(max(last, default=wall), 6),
                client_busy=round((time.process_time() - cpu) / wall, 4),
                client_late=round(float(np.quantile(late, 0.99)) if late else 0.0, 6),
            )
        )

    def _numbers(self, count: int | None) -> Iterator[int]:
        """Numbers of the requests of this block, taken one by one by whoever is free."""
        while count is None or count > 0:
            if self.gave_up:
                return
            self._next += 1
            yield self._next - 1
            count = None if count is None else count - 1

    async def _closed(
        self, numbers: Iterator[int], block: int, began: float, until: float | None
    ) -> None:
        async def caller() -> None:
            while until is None or time.perf_counter() < until:
                number = next(numbers, None)
                if number is None:
                    return
                await self._one(number, block, began, time.perf_counter() - began)

        async with asyncio.TaskGroup() as group:
            for _ in range(self.profile.concurrency):
                group.create_task(caller())

    async def _open(
        self, numbers: Iterator[int], block: int, began: float, until: float | None
    ) -> None:
        room = asyncio.Semaphore(self.profile.concurrency)

        async def late(number: int, due: float) -> None:
            async with room:
                if not self.gave_up:
                    await self._one(number, block, began, due)

        due = 0.0
        async with asyncio.TaskGroup() as group:
            for number in numbers:
                due += self.profile.wait(number)
                if until is not None and began + due > until:
                    self._next -= 1  # it belongs to the next block
                    return
                await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
                group.create_task(late(number, due))

    async def _one(self, number: int, block: int, began: float, due: float) -> None:
        tokens_in, tokens_out = self.profile.asked(number)
        prompt = self.target.prompts.text(number, self.target.fit.words(tokens_in))
        wanted = Ask(number, block, prompt, tokens_in, tokens_out, due)
        made = await ask(self.target.client, self.profile.api, self.target.model,
                         self.target.dialect, wanted, began, self.timeout)  # fmt: skip
        if block < 0:
            return
        self.requests.append(made)
        self._failed = self._failed + 1 if made.error else 0
        self.gave_up = self._failed >= max(GIVE_UP, 2 * self.profile.concurrency)
        self.told(made)


async def _watch(late: list[float]) -> None:
    """How late the event loop is: what it cannot read in time, it cannot time either."""
    while True:
        start = time.perf_counter()
        await asyncio.sleep(_TICK)
        late.append(max(0.0, time.perf_counter() - start - _TICK))
