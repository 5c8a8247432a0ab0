"""Questions of the page, one at a time: others wait, and one whose asker hangs up is ended.

One at a time, since each answer wants the whole context that the server was started with, and
a prefix that is read from a file goes into one slot.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from nybble.errors import NybbleError

MOST_WAITING = 16  # questions; one more would wait for many minutes

Event = dict[str, Any]


class HungUp(Exception):
    """The asker is gone; raised where the answer tells something, so that it ends there."""


class Turn:
    """One question that waits, is answered, or is done.

    Args:
        loop: that its events are read on.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._gone = threading.Event()

    def tell(self, event: Event) -> None:
        """Hand an event to the asker, from any thread.

        Raises:
            HungUp: who asked is gone.
        """
        if self._gone.is_set():
            raise HungUp
        self._put(event)

    def place(self, ahead: int) -> None:
        """Tell how many questions are before it; nothing where the asker is gone."""
        self._put({"kind": "queued", "ahead": ahead})

    def hang_up(self) -> None:
        """End it at its next event, or before it begins; nothing more is heard of it."""
        self._gone.set()
        self.end()

    def gone(self) -> bool:
        """Whether the asker hung up."""
        return self._gone.is_set()

    def end(self) -> None:
        """No event comes after this."""
        self._put(None)

    async def events(self, pause: float) -> AsyncIterator[Event | None]:
        """What is told, in order; None after each `pause` seconds without an event."""
        while True:
            try:
                event = await asyncio.wait_for(self._events.get(), pause)
            except TimeoutError:
                yield None
                continue
            if event is None:
                return
            yield event

    def _put(self, event: Event | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)


class Turns:
    """The questions that wait, and the thread that answers them."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="nybble-ask")
        self._line: list[Turn] = []

    @property
    def waiting(self) -> int:
        """Questions that are not answered yet, the running one included."""
        return sum(not turn.gone() for turn in self._line)

    def put(self, work: Callable[[Turn], None]) -> Turn:
        """Let a question wait for its turn; call it on the server's event loop.

        Args:
            work: answers it, on the thread; tells what happens through the turn.

        Raises:
            NybbleError: too many wait.
        """
        if (before := self.waiting) >= MOST_WAITING:
            raise NybbleError("too many questions wait", seen=before,
                              allowed=f"up to {MOST_WAITING}", hint="ask again later")  # fmt: skip
        loop = asyncio.get_running_loop()
        turn = Turn(loop)
        self._line.append(turn)
        self._tell_places()
        done = loop.run_in_executor(self._thread, self._run, work, turn)
        done.add_done_callback(lambda _: self._done(turn))
        return turn

    def close(self) -> None:
        """End what runs and what waits."""
        for turn in self._line:
            turn.hang_up()
        self._thread.shutdown(wait=False)

    def _run(self, work: Callable[[Turn], None], turn: Turn) -> None:
        try:
            turn.tell({"kind": "begun"})
            work(turn)
        except HungUp:
            pass
        finally:
            turn.end()

    def _done(self, turn: Turn) -> None:
        self._line.remove(turn)
        self._tell_places()

    def _tell_places(self) -> None:
        for ahead, turn in enumerate(t for t in self._line if not t.gone()):
            if ahead:
                turn.place(ahead)
