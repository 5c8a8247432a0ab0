"""One answer at a time: requests wait in the order they came, on one thread that runs the model.

transformers' continuous batching has a paged cache of its own and takes no other, so answers are
not batched. The cache of the last answer is kept: a request that goes on from it, as every next
turn of a chat does, reads only what is new.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from nybble.runtime.generate import Limits, Runtime, Session
from nybble.runtime.generate_report import Report
from nybble.runtime.sampling import Sampling
from nybble.runtime.server.errors import ApiError
from nybble.runtime.text import Stops, Text

MOST_WAITING = 64  # requests; one more would wait for most of an hour

_Event = str | Report | BaseException
_Tell = Callable[[_Event], None]


@dataclass(eq=False)
class Job:
    """One request that waits, runs or is done.

    Attributes:
        ids: the prompt.
        new_tokens: most tokens of the answer, or None.
        sampling: how tokens are drawn.
        stops: texts that end it.
    """

    ids: list[int]
    new_tokens: int | None
    sampling: Sampling
    stops: tuple[str, ...]
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _events: asyncio.Queue[_Event] = field(default_factory=asyncio.Queue)

    def cancel(self) -> None:
        """End it before the next token; nothing happens where it is done."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether it is to end."""
        return self._cancelled.is_set()

    async def events(self) -> AsyncIterator[str | Report]:
        """The answer's text as it comes, and its report at the end.

        Raises:
            BaseException: what the generation raised.
        """
        while True:
            event = await self._events.get()
            if isinstance(event, BaseException):
                raise event
            yield event
            if isinstance(event, Report):
                return


class Line:
    """The requests that wait for the model, and the thread that answers them.

    Args:
        runtime: the model and its KV setting.
        text: its tokenizer.
    """

    def __init__(self, runtime: Runtime, text: Text) -> None:
        self._runtime, self._text = runtime, text
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="nybble-generate")
        self._jobs: set[Job] = set()
        self._session: Session | None = None

    @property
    def waiting(self) -> int:
        """Requests that are not answered yet, the running one included."""
        return len(self._jobs)

    def put(self, job: Job) -> None:
        """Let a request wait for its turn; call it on the server's event loop.

        Raises:
            ApiError: too many wait.
        """
        if len(self._jobs) > MOST_WAITING:
            raise ApiError(503, f"{MOST_WAITING} requests are waiting; this server answers one at "
                           "a time", "overloaded")  # fmt: skip
        loop = asyncio.get_running_loop()

        def tell(event: _Event) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(job._events.put_nowait, event)

        self._jobs.add(job)
        done = loop.run_in_executor(self._thread, self._run, job, tell)
        done.add_done_callback(lambda _: self._jobs.discard(job))

    def close(self) -> None:
        """End what runs and what waits."""
        for job in list(self._jobs):
            job.cancel()
        self._thread.shutdown(wait=False)

    def _run(self, job: Job, tell: _Tell) -> None:
        try:
            tell(self._answer(job, tell))
        except BaseException as error:
            self._session = None  # its cache may hold a token in some layers only
            tell(error)

    def _answer(self, job: Job, tell: _Tell) -> Report:
        if job.cancelled:
            return Report()
        session = self._session_for(job.ids)
        rest = session.rest(job.ids)
        assert rest is not None
        session.pending = []
        limits = Limits(job.new_tokens, self._text.ends, lambda: job.cancelled)
        decoder, stops = self._text.decoder(job.ids), Stops(job.stops)
        stream = session.stream(rest, limits, job.sampling)
        for token in stream:
            if shown := stops.add(decoder.add(token)):
                tell(shown)
            if stops.found:
                stream.close()
        if shown := stops.add(decoder.end()) + stops.end():
            tell(shown)
        return replace(session.report, finish="stop") if stops.found else session.report

    def _session_for(self, ids: list[int]) -> Session:
        """The last answer's where this prompt goes on from it, else a new one."""
        if self._session is None or self._session.rest(ids) is None:
            self._session = None  # two caches at once need not fit
            self._session = self._runtime.session()
        return self._session
