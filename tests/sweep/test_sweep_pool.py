"""The pool of this machine, with tasks that only wait: admission, order, retries."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from nybble.engines.child import EngineCrashError
from nybble.errors import NybbleError
from nybble.sweep.executor import Listener, Needs, Task
from nybble.sweep.local import LocalExecutor

GIB = 1 << 30


def task(key: str, memory: int = 0, model: str = "", seconds: float = 1.0, gpus: float = 0) -> Task:
    return Task(key, key, {}, Needs(1, gpus, memory), model or key, seconds)


class Heard:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.finished: list[str] = []
        self.errors: dict[str, NybbleError] = {}
        self.notes: list[str] = []

    def advanced(self, task: Task, share: float) -> None:
        pass

    def done(self, task: Task, reply: dict[str, Any]) -> None:
        self.finished.append(task.key)

    def failed(self, task: Task, error: NybbleError) -> None:
        self.errors[task.key] = error

    def note(self, text: str) -> None:
        self.notes.append(text)


Ask = Callable[[int, Task], dict[str, object]]


def pool(ask: Ask, workers: int = 2, memory: int = GIB, attempts: int = 2) -> LocalExecutor:
    """A pool whose workers call `ask` in place of a child process."""

    class Pool(LocalExecutor):
        def _ask(self, index: int, task: Task, listener: Listener) -> dict[str, object]:
            return ask(index, task)

    return Pool(workers, memory, attempts)


class Watch:
    """Tasks that take a moment, and which of them ran at once."""

    def __init__(self) -> None:
        self._lock, self._now = threading.Lock(), set[str]()
        self.together: set[frozenset[str]] = set()
        self.by: dict[str, int] = {}

    def __call__(self, index: int, task: Task) -> dict[str, object]:
        with self._lock:
            self._now.add(task.key)
            self.by[task.key] = index
            self.together.add(frozenset(self._now))
        time.sleep(0.05)
        with self._lock:
            self._now.remove(task.key)
        return {}


def test_tasks_run_side_by_side_as_far_as_memory_allows() -> None:
    watch, heard = Watch(), Heard()
    tasks = [task("big", 700 << 20), task("wide", 600 << 20), task("small", 100 << 20),
             task("little", 100 << 20)]  # fmt: skip
    pool(watch, workers=4).run(tasks, heard)
    assert sorted(heard.finished) == ["big", "little", "small", "wide"]
    assert max(map(len, watch.together)) > 1  # something did overlap
    assert not any({"big", "wide"} <= now for now in watch.together)


def test_workers_bound_what_runs_at_once() -> None:
    watch, heard = Watch(), Heard()
    pool(watch, workers=2).run([task(str(i)) for i in range(6)], heard)
    assert max(map(len, watch.together)) == 2 and len(heard.finished) == 6


def test_what_fits_never_is_told_with_its_numbers() -> None:
    executor = pool(Watch(), memory=GIB)
    assert executor.fits(Needs(1, 0, GIB)) is None
    assert executor.fits(Needs(1, 0, 3 * GIB)) == (
        "it needs 3.0 GiB, and 1.0 GiB are there for workers"
    )
    assert "GPUs" in str(executor.fits(Needs(1, 64.0)))


def test_a_worker_keeps_its_model() -> None:
    watch = Watch()
    tasks = [task(f"{m}{i}", model=m) for i in range(4) for m in "ab"]
    pool(watch).run(tasks, Heard())
    assert len({watch.by[f"a{i}"] for i in range(3)}) == 1  # the last may be taken by an idle one
    assert {watch.by["a0"], watch.by["b0"]} == {0, 1}


def test_the_longest_comes_first() -> None:
    heard = Heard()
    tasks = [task(str(s), model="m", seconds=s) for s in (1.0, 9.0, 5.0)]
    pool(Watch(), workers=1).run(tasks, heard)
    assert heard.finished == ["9.0", "5.0", "1.0"]


def test_a_process_that_dies_is_tried_again_and_then_given_up() -> None:
    tries: list[str] = []

    def ask(index: int, task: Task) -> dict[str, object]:
        tries.append(task.key)
        if task.key == "dies" or (task.key == "once" and tries.count("once") == 1):
            raise EngineCrashError("the process was ended by SIGKILL", where={})
        return {}

    heard = Heard()
    pool(ask, attempts=3).run([task("dies"), task("once"), task("well")], heard)
    assert sorted(heard.finished) == ["once", "well"]
    assert tries.count("dies") == 3 and tries.count("once") == 2
    assert heard.errors["dies"].what == "the process was ended by SIGKILL"
    assert sum("trying again" in note for note in heard.notes) == 3


def test_a_refusal_is_not_tried_again() -> None:
    tries: list[str] = []

    def ask(index: int, task: Task) -> dict[str, object]:
        tries.append(task.key)
        raise NybbleError("no such model")

    heard = Heard()
    pool(ask, attempts=5).run([task("one"), task("two")], heard)
    assert sorted(tries) == sorted(heard.errors) == ["one", "two"]


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_a_listener_that_raises_ends_the_run(kind: type[BaseException]) -> None:
    class Broken(Heard):
        def done(self, task: Task, reply: dict[str, Any]) -> None:
            raise kind("stop")

    watch = Watch()
    with pytest.raises(kind):
        pool(watch, workers=1).run([task(str(i)) for i in range(20)], Broken())
    assert len(watch.by) < 20
