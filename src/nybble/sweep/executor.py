"""What a sweep asks of whoever runs its tasks: this machine's processes or a Ray cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nybble.errors import NybbleError


@dataclass(frozen=True)
class Needs:
    """What one task holds while it runs.

    Attributes:
        cpus: threads.
        gpus: cards; a fraction shares one.
        memory: bytes; 0 where the plan could not tell.
    """

    cpus: int
    gpus: float = 0.0
    memory: int = 0


@dataclass(frozen=True)
class Task:
    """One thing to do, in plain values.

    Attributes:
        key: names it among all tasks.
        name: for people.
        payload: for `work.perform`, JSON.
        needs: what it holds.
        model: tasks of one model go to the same worker where that costs no time.
        seconds: rough time, for the order and the time left.
    """

    key: str
    name: str
    payload: dict[str, Any]
    needs: Needs
    model: str
    seconds: float


class Listener(Protocol):
    """Told what becomes of tasks, one call at a time."""

    def advanced(self, task: Task, share: float) -> None:
        """`share` of the task is done, 0 to 1."""

    def done(self, task: Task, reply: dict[str, Any]) -> None:
        """A task is done."""

    def failed(self, task: Task, error: NybbleError) -> None:
        """A task has failed for good; the others go on."""

    def note(self, text: str) -> None:
        """Something the user must know now."""


class Executor(Protocol):
    """Runs tasks until none is left."""

    name: str

    @property
    def workers(self) -> int:
        """Tasks at once on this machine; CPUs of a cluster."""

    def fits(self, needs: Needs) -> str | None:
        """None where a task with these needs can run, else why it never will."""

    def run(self, tasks: Sequence[Task], listener: Listener) -> None:
        """Run all tasks; returns when each is done or failed."""

    def close(self) -> None:
        """End what was started."""
