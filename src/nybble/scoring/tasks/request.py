"""Which tasks to ask at which lengths, of which caches."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from nybble.errors import NybbleError, unknown
from nybble.scoring.request import MeasureRequest
from nybble.scoring.tasks.base import Task
from nybble.scoring.tasks.own import OwnFile, OwnTask, read_own
from nybble.scoring.tasks.registry import TASKS

DEFAULT_DOCUMENTS = 5  # contexts of a task at a length; fewer have no interval of their own
DEFAULT_QUERIES = 8
MOST_QUERIES = 64  # llama.cpp holds up to 256 sequences
LEAST_LENGTH = 256
_ENGINES = ("auto", "llama.cpp", "transformers")


@dataclass(frozen=True)
class TaskRequest:
    """Everything that defines a run of tasks.

    Attributes:
        measured: model, KV settings, contexts (lengths of context and question together, frame
            included), documents (contexts per task and length; DEFAULT_DOCUMENTS if None),
            weights, framing, engine, urls, device, calibration, out, fresh, threads, seed, timeout
            and command, as a measurement has them; the rest must be left at its defaults.
        tasks: names; None for all, or for those of `own` alone.
        queries: most questions of one context.
        own: a file of questions of the user's, which are asked once, at the longest length.

    Raises:
        NybbleError: names the option, the value and the allowed values.
    """

    measured: MeasureRequest = field(default_factory=MeasureRequest)
    tasks: tuple[str, ...] | None = None
    queries: int = DEFAULT_QUERIES
    own: Path | None = None

    @cached_property
    def file(self) -> OwnFile | None:
        """The user's questions."""
        return read_own(self.own, ("all", *TASKS)) if self.own else None

    def _owner(self, name: str) -> OwnFile | None:
        """The file that a task is of; None for those of the registry."""
        return None if name in TASKS else self.file

    def task(self, name: str) -> Task | OwnTask:
        """A task by its name."""
        file = self._owner(name)
        return file.task(name) if file else TASKS[name]

    @property
    def places(self) -> list[tuple[str, int]]:
        """Every task that is asked at every length."""
        lengths = self.measured.contexts
        made = [(name, length) for length in lengths for name in self.names]
        return made + [(name, max(lengths)) for name in (self.file.contexts if self.file else ())]

    def packed(self, name: str) -> bytes:
        """Contexts of one of the user's tasks, for the child that tokenizes; else nothing."""
        file = self._owner(name)
        return file.pack(name, self.measured.documents) if file else b""

    def n_items(self, name: str) -> int:
        """Contexts of a task at a length, where all of the user's fit."""
        file = self._owner(name)
        return file.items(name, self.measured.documents, self.queries) if file else self.documents

    def n_queries(self, name: str) -> int:
        """Most questions about one context of a task."""
        file = self._owner(name)
        most = max(len(c.queries) for c in file.contexts[name]) if file else self.queries
        return min(self.queries, most)

    @property
    def names(self) -> tuple[str, ...]:
        """Tasks of the registry to run, in its order where all are."""
        if self.tasks is None:
            return () if self.own else tuple(TASKS)
        return self.tasks

    @property
    def documents(self) -> int:
        """Contexts of each task at each length."""
        return self.measured.documents or DEFAULT_DOCUMENTS

    def __post_init__(self) -> None:
        """Check what a measurement does not.

        Raises:
            NybbleError: names the option, the value and the allowed values.
        """
        for name in self.tasks or ():
            if name not in TASKS:
                raise unknown("unknown task", name, ["all", *TASKS])
        _ = self.file  # says now what is wrong with it
        if self.tasks is not None and not self.tasks and self.own is None:
            raise NybbleError("no task named", allowed=["all", *TASKS], hint="--tasks all")
        if not 1 <= self.queries <= MOST_QUERIES:
            raise NybbleError("--queries is out of range", seen=self.queries,
                              allowed=f"1 to {MOST_QUERIES}")  # fmt: skip
        if min(self.measured.contexts) < LEAST_LENGTH:
            raise NybbleError(
                "a context is too short for tasks", seen=f"{min(self.measured.contexts):,} tokens",
                allowed=f"{LEAST_LENGTH} or more", hint="--context 1024",
            )  # fmt: skip
        self._check_unused()
        if not self.measured.urls and self.measured.engine not in _ENGINES:
            raise NybbleError("tasks cannot be asked through this engine",
                              seen=self.measured.engine, allowed=_ENGINES)  # fmt: skip

    def _check_unused(self) -> None:
        m = self.measured
        barred = {
            "--against": m.against, "--by": m.by, "--budget": m.budget, "--split-kv": m.split_kv,
            "--text": m.text, "--jsonl": m.jsonl, "--categories": m.categories,
            "--memory-at": m.memory_at, "--thresholds": m.thresholds,
        }  # fmt: skip
        for name, value in barred.items():
            if value:
                raise NybbleError("this cannot be combined with --tasks", seen=name,
                                  hint="leave it out, or measure without --tasks")  # fmt: skip
