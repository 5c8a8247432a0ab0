"""Tasks in processes of this machine, as many at once as workers and memory allow."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import psutil

from nybble.engines.child import EngineCrashError, EngineProcess
from nybble.errors import NybbleError
from nybble.planning.machine import this_machine
from nybble.sweep.executor import Listener, Needs, Task

WORKER = "nybble.sweep.worker"
_SHARE = 0.9  # of what is free: the estimate is one, and others use the machine


class LocalExecutor:
    """A pool of child processes; one that dies takes nobody with it.

    Args:
        workers: processes.
        memory: bytes that their tasks may need together; 0 for 0.9 of what is free.
        attempts: how often a task is tried whose process died.
        timeout: seconds without a sign of life after which a process counts as hung.
    """

    name = "this machine"

    def __init__(
        self, workers: int, memory: int = 0, attempts: int = 2, timeout: float = 1800.0
    ) -> None:
        self._workers = workers
        self._memory = memory or int(psutil.virtual_memory().available * _SHARE)
        self._attempts, self._timeout = attempts, timeout
        self._cards = sum(card.vendor not in ("cpu", "apple") for card in this_machine())
        self._condition = threading.Condition()
        self._waiting: list[Task] = []
        self._running: dict[str, Task] = {}
        self._loaded: list[str] = [""] * workers
        self._children: list[EngineProcess | None] = [None] * workers
        self._stop = False
        self._bug: BaseException | None = None

    @property
    def workers(self) -> int:
        """Processes."""
        return self._workers

    def fits(self, needs: Needs) -> str | None:
        """Against all the memory that tasks may have, and the cards there are."""
        if needs.memory > self._memory:
            return (
                f"it needs {needs.memory / 2**30:.1f} GiB, "
                f"and {self._memory / 2**30:.1f} GiB are there for workers"
            )
        if needs.gpus > self._cards:
            return f"it needs {needs.gpus:g} GPUs, and {self._cards} are there"
        return None

    def run(self, tasks: Sequence[Task], listener: Listener) -> None:
        """Run all tasks."""
        self._waiting = sorted(tasks, key=lambda t: -t.seconds)
        self._stop, self._bug = False, None
        threads = [
            threading.Thread(target=self._work, args=(i, listener), daemon=True)
            for i in range(min(self._workers, len(tasks)))
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():  # in steps, so that Ctrl-C is heard
                    thread.join(0.2)
        except BaseException:
            self.close()
            raise
        if self._bug is not None:
            raise self._bug

    def close(self) -> None:
        """End the processes."""
        with self._condition:
            self._stop = True
            self._condition.notify_all()
        for i, child in enumerate(self._children):
            if child is not None:
                child.close()
                self._children[i] = None

    def _work(self, index: int, listener: Listener) -> None:
        try:
            while (task := self._take(index)) is not None:
                self._do(index, task, listener)
        except BaseException as error:  # of the listener; the pool must not wait for this thread
            with self._condition:
                self._bug = self._bug or error
                self._stop = True
                self._condition.notify_all()

    def _take(self, index: int) -> Task | None:
        """The next task that fits beside those running; None when none is left."""
        with self._condition:
            while not self._stop:
                if not self._waiting:
                    return None
                if (task := self._choose(index)) is not None:
                    self._waiting.remove(task)
                    self._running[task.key] = task
                    self._loaded[index] = task.model
                    return task
                self._condition.wait()
        return None

    def _choose(self, index: int) -> Task | None:
        used = sum(t.needs.memory for t in self._running.values())
        cards = sum(t.needs.gpus for t in self._running.values())
        fitting = [
            t for t in self._waiting
            if not self._running
            or (used + t.needs.memory <= self._memory and cards + t.needs.gpus <= self._cards)
        ]  # fmt: skip
        # The model that is loaded, then one that no other worker has, then the longest task.
        mine = [t for t in fitting if t.model == self._loaded[index]]
        fresh = [t for t in fitting if t.model not in self._loaded]
        return next(iter(mine or fresh or fitting), None)

    def _do(self, index: int, task: Task, listener: Listener) -> None:
        error: NybbleError | None = None
        reply = None
        for attempt in range(self._attempts):
            try:
                reply = self._ask(index, task, listener)
                error = None
                break
            except EngineCrashError as crash:
                self._drop(index)
                error = crash
                if self._stop:
                    return
                if attempt + 1 < self._attempts:
                    with self._condition:
                        listener.note(f"{task.name}: {crash.what}; trying again")
            except NybbleError as refusal:
                error = refusal
                break
        with self._condition:
            del self._running[task.key]
            if not self._stop:
                if reply is not None:
                    listener.done(task, reply)
                elif error is not None:
                    listener.failed(task, error)
            self._condition.notify_all()

    def _ask(self, index: int, task: Task, listener: Listener) -> dict[str, object]:
        child = self._children[index]
        if child is None or not child.alive:
            child = self._children[index] = EngineProcess(WORKER, timeout=self._timeout)
        card = index % self._cards if task.needs.gpus and self._cards else None

        def told(event: dict[str, object]) -> None:
            share = event.get("share")
            if isinstance(share, (int, float)):
                with self._condition:
                    listener.advanced(task, float(share))

        frame = child.request({"op": "perform", "payload": task.payload, "card": card},
                              on_event=told)  # fmt: skip
        reply: dict[str, object] = frame.header["reply"]
        return reply

    def _drop(self, index: int) -> None:
        child = self._children[index]
        if child is not None:
            child.close()
            self._children[index] = None
        self._loaded[index] = ""
