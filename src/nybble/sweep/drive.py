"""Run a sweep: what is missing goes to an executor, what is finished is merged."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import filelock

from nybble.environment import VERSION, usable_cpus
from nybble.errors import NybbleError
from nybble.results.store import content_key
from nybble.results.sweeps import FailedCell, PlannedGroup, SweepResult
from nybble.scoring.request import Progress, Silent
from nybble.sweep.estimate import Estimate, estimate
from nybble.sweep.executor import Executor, Needs, Task
from nybble.sweep.grid import Group, Run, groups_of, runs_of
from nybble.sweep.listen import Groups, Merges
from nybble.sweep.place import FolderPlace, Place, open_place, read_json, write_json
from nybble.sweep.spec import Spec, check
from nybble.sweep.work import MERGED

DEFAULT_PLACE = "nybble-results/sweep"
_THREADS = 4  # of a worker by default: more of llama.cpp's threads wait for each other
_MERGE = 60.0  # seconds, for the order of tasks


@dataclass
class Known:
    """A group and what is known of it.

    Attributes:
        group: it.
        gpus: that it asks for.
        record: what it left when it was last run.
        todo: whether it is to be run.
    """

    group: Group
    gpus: float
    record: dict[str, Any] | None
    todo: bool

    @functools.cached_property
    def guess(self) -> Estimate:
        """What it needs; reads the model's header."""
        return estimate(self.group, self.gpus)


class Sweep:
    """A sweep's groups and the place its results go to.

    Args:
        spec: the sweep.
        retry_failed: also run the groups again that left failed cells, for those cells.

    Raises:
        NybbleError: what the sweep asks for cannot be.
    """

    def __init__(self, spec: Spec, retry_failed: bool = False) -> None:
        check(spec)
        self.spec = spec
        self.place = open_place(spec.place or DEFAULT_PLACE)
        self._before = read_json(self.place, "sweep.json") or {}
        self.threads, self.workers = self._sizes()
        self.runs = runs_of(spec, self.threads)
        self.groups = [self._look(g, retry_failed) for run in self.runs for g in groups_of(run)]

    def _sizes(self) -> tuple[int, int]:
        """Threads of a worker, and workers here. Threads stay what they were when it began."""
        run, cores = self.spec.running, usable_cpus()
        kept = self._before.get("threads")
        threads = run.threads or (kept if isinstance(kept, int) and kept > 0 else 0)
        threads = threads or (max(1, cores // run.workers) if run.workers else min(_THREADS, cores))
        return threads, run.workers or max(1, cores // threads)

    def _look(self, group: Group, retry_failed: bool) -> Known:
        record = read_json(self.place, group.marker)
        todo = record is None or (retry_failed and bool(record.get("failed")))
        wanted = self.spec.running.gpus
        gpus = wanted if wanted >= 0 else float(group.run.grid["device"] == "cuda")
        return Known(group, gpus, record, todo)

    def planned(self, fits: Callable[[Needs], str | None]) -> list[PlannedGroup]:
        """What a run would do."""
        price = self.spec.running.price_per_hour
        return [
            PlannedGroup(
                g.group.run.name, g.group.run.model, g.group.corpus, g.group.context,
                len(g.group.run.settings), not g.todo, g.guess.needs.memory,
                g.guess.seconds, g.guess.seconds / 3600 * price, fits(g.guess.needs) or "",
                g.guess.note,
            )
            for g in self.groups
        ]  # fmt: skip

    def run(self, executor: Executor, progress: Progress | None = None) -> SweepResult:
        """Score what is missing and merge every run.

        Raises:
            NybbleError: the place cannot be written, or another sweep is writing to it.
        """
        progress = progress or Silent()
        self.place.check()
        with _held(self.place):
            self._begin()
            skipped = {
                g.group.key: why for g in self.groups
                if g.todo and (why := executor.fits(g.guess.needs))
            }  # fmt: skip
            todo = [g for g in self.groups if g.todo and g.group.key not in skipped]
            for why in dict.fromkeys(skipped.values()):
                count = sum(x == why for x in skipped.values())
                progress.note(f"{count} groups are skipped: {why}")
            watch = Groups(progress, sum(g.guess.seconds for g in todo))
            begun = time.monotonic()
            if todo:
                progress.begin(f"{len(todo)} groups", watch.total)
                executor.run([self._task(g) for g in todo], watch)
            seconds = time.monotonic() - begun
            watch.errors.update(self._unseen(todo, watch))
            self._keep(watch.errors)
            merged = self._merge(executor, progress, skipped)
            return self._result(watch, skipped, merged, seconds, executor)

    def _begin(self) -> None:
        """Keep what was asked first; a later command may ask for more."""
        if not self._before:
            asked = dataclasses.asdict(self.spec)
            write_json(self.place, "sweep.json",
                       {"nybble": VERSION, "threads": self.threads, "spec": asked})  # fmt: skip

    def _task(self, known: Known) -> Task:
        g, guess = known.group, known.guess
        payload = {**_payload("score", self.place, g.run),
                   "context": g.context, "corpus": g.corpus}  # fmt: skip
        name = f"{g.run.name}, {g.corpus} at {g.context:,}"
        return Task(g.key, name, payload, guess.needs, g.run.name, guess.seconds)

    def _unseen(self, todo: list[Known], watch: Groups) -> dict[str, NybbleError]:
        """Groups that a worker says it finished and that are not here: it wrote elsewhere."""
        found = {}
        for known in todo:
            reply = watch.replies.get(known.group.key)
            if reply is not None and not self._appears(known):
                found[known.group.key] = NybbleError(
                    "a worker's results are not in the place that this machine sees",
                    seen=f"{self.place.address} on {reply['node']}",
                    allowed="a folder that all nodes share, or an address such as s3://bucket/x",
                    hint="--place",
                )
        return found

    def _appears(self, known: Known) -> bool:
        """Whether a group's record is here; a network's file system may be seconds late."""
        for wait in (0.0, 1.0, 5.0):
            time.sleep(wait)
            known.record = read_json(self.place, known.group.marker)
            if known.record is not None:
                return True
        return False

    def _keep(self, failed: dict[str, NybbleError]) -> None:
        """Leave the error of a group whose worker could not."""
        for known in self.groups:
            g = known.group
            error = failed.get(g.key)
            if error is not None:
                names = [*g.run.settings, "bf16/bf16", "f16/f16"]
                known.record = {
                    "context": g.context, "corpus": g.corpus, "settings": list(g.run.settings),
                    "scored": 0, "empty": False, "failed": {name: str(error) for name in names},
                    "notes": [], "seconds": 0.0, "node": "", "hardware": {},
                    "threads": g.run.threads,
                }  # fmt: skip
                write_json(self.place, g.marker, known.record)

    def _merge(self, executor: Executor, progress: Progress, skipped: dict[str, str]) -> Merges:
        tasks: list[Task] = []
        merged = Merges(progress)
        for run in self.runs:
            groups = [g for g in self.groups if g.group.run == run]
            never = [(setting, g.group.context, skipped[g.group.key])
                     for g in groups if g.group.key in skipped
                     for setting in run.settings]  # fmt: skip
            # Of all that decides a summary: what is asked, and what every group left.
            key = content_key([VERSION, dataclasses.asdict(run), never, [g.record for g in groups]])
            if self._merged(run, key):
                continue
            needs = max((g.guess.needs for g in groups), key=lambda n: n.memory)
            if executor.fits(needs):  # what does not fit anywhere is not loaded for the merge
                needs = Needs(run.threads)
            payload = {**_payload("collect", self.place, run), "skipped": never, "key": key}
            tasks.append(Task(run.name, run.name, payload, needs, run.name, _MERGE))
            self._tidy(run)
        if tasks:
            progress.stage("merging")
            executor.run(tasks, merged)
        return merged

    def _tidy(self, run: Run) -> None:
        """Remove what workers that were killed left half written; none is writing now."""
        if isinstance(self.place, FolderPlace):
            for stale in (self.place.folder / "runs" / run.name / "rows").glob("*.tmp"):
                stale.unlink(missing_ok=True)

    def _merged(self, run: Run, key: str) -> bool:
        found = read_json(self.place, f"runs/{run.name}/{MERGED}") or {}
        there = self.place.read(f"runs/{run.name}/summary.json") is not None
        return there and found.get("key") == key

    def _result(
        self, watch: Groups, skipped: dict[str, str], merged: Merges, seconds: float,
        executor: Executor,
    ) -> SweepResult:  # fmt: skip
        failed: list[FailedCell] = []
        for known in self.groups:
            g, errors = known.group, (known.record or {}).get("failed", {})
            for setting, key in g.cells():
                error = skipped.get(g.key) or errors.get(setting)
                if error:
                    failed.append(FailedCell(g.run.name, key, setting, g.context, g.corpus, error,
                                             g.key in skipped))  # fmt: skip
        cells = sum(len(known.group.run.settings) for known in self.groups)
        bad = {f.key for f in failed}
        ran = {key for key, reply in watch.replies.items() if reply["scored"]}
        good = [k.group.key for k in self.groups for _, key in k.group.cells() if key not in bad]
        scored = sum(key in ran for key in good)
        return SweepResult(
            place=self.place.address,
            runs=[r.name for r in self.runs if r.name not in merged.errors],
            merged=merged.runs,
            cells=cells, scored=scored, found=len(good) - scored, failed=failed,
            unmerged={n: str(e) for n, e in merged.errors.items()}, damaged=merged.damaged,
            groups=len(watch.replies),
            seconds=round(seconds, 3),
            busy_seconds=round(sum(r["seconds"] for r in watch.replies.values()), 3),
            executor=executor.name, workers=executor.workers,
        )  # fmt: skip


def _payload(op: str, place: Place, run: Run) -> dict[str, Any]:
    return {"op": op, "place": place.address, "run": dataclasses.asdict(run)}


@contextmanager
def _held(place: Place) -> Iterator[None]:
    """Keep a second sweep out of a folder. Behind an address it would only work twice.

    Raises:
        NybbleError: another sweep holds it.
    """
    if not isinstance(place, FolderPlace):
        yield
        return
    place.folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(place.folder / ".lock", blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise NybbleError("another sweep is writing to this place", seen=place.address,
                          hint="wait for it, or --place ANOTHER") from error  # fmt: skip
    try:
        yield
    finally:
        lock.release()
