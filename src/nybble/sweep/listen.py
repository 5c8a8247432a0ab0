"""What becomes of tasks, as progress and as a list for the result."""

from __future__ import annotations

from typing import Any

from nybble.errors import NybbleError
from nybble.scoring.request import Progress
from nybble.sweep.executor import Task


class Groups:
    """Listens to groups being scored; their rough seconds are the units of progress.

    Args:
        progress: told how far the sweep is.
        total: rough seconds of all groups.
    """

    def __init__(self, progress: Progress, total: float) -> None:
        self._progress, self.total = progress, max(total, 1e-6)
        self._shares: dict[str, float] = {}
        self.replies: dict[str, dict[str, Any]] = {}
        self.errors: dict[str, NybbleError] = {}

    def advanced(self, task: Task, share: float) -> None:
        """Part of a group."""
        before = self._shares.get(task.key, 0.0)
        if share > before:
            self._shares[task.key] = share
            self._progress.advance((share - before) * task.seconds)

    def done(self, task: Task, reply: dict[str, Any]) -> None:
        """A group; some of its cells may have failed."""
        self.advanced(task, 1.0)
        self.replies[task.key] = reply
        for setting, error in reply["failed"].items():
            self._progress.note(f"{task.name}, {setting}: {str(error).splitlines()[0]}")

    def failed(self, task: Task, error: NybbleError) -> None:
        """A group without any cell."""
        self.advanced(task, 1.0)
        self.errors[task.key] = error
        self._progress.note(f"{task.name} failed: {error.what}; the sweep goes on")

    def note(self, text: str) -> None:
        """Passed on."""
        self._progress.note(text)


class Merges:
    """Listens to runs being merged.

    Args:
        progress: told what must be known.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.runs: list[str] = []
        self.damaged: list[str] = []
        self.errors: dict[str, NybbleError] = {}

    def advanced(self, task: Task, share: float) -> None:
        """Nothing: a merge takes seconds."""

    def done(self, task: Task, reply: dict[str, Any]) -> None:
        """A run has its summary."""
        self.runs.append(task.key)
        self.damaged += reply["damaged"]

    def failed(self, task: Task, error: NybbleError) -> None:
        """A run without one."""
        self.errors[task.key] = error

    def note(self, text: str) -> None:
        """Passed on."""
        self._progress.note(text)
