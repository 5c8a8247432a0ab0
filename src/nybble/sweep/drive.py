"""Run a sweep: what is missing goes to an executor, what is finished is merged."""

from __future__ import annotations

import dataclasses
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


@dataclass(frozen=True)
class Waiting:
    """A group, what it needs, and whether a worker has finished it."""

    group: Group
    guess: Estimate
    record: dict[str, Any] | None


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
        self.waiting = [self._look(g, retry_failed) for run in self.runs for g in groups_of(run)]

    def _sizes(self) -> tuple[int, int]:
        """Threads of a worker, and workers here. Threads stay what they were when it began."""
        run, cores = self.spec.running, usable_cpus()
        kept = self._before.get("threads")
        threads = run.threads or (kept if isinstance(kept, int) and kept > 0 else 0)
        threads = threads or (max(1, cores // run.workers) if run.workers else min(_THREADS, cores))
        return threads, run.workers or max(1, cores // threads)

    def _look(self, group: Group, retry_failed: bool) -> Waiting:
        record = read_json(self.place, _marker(group))
        if record is not None and record.get("failed") and retry_failed:
            record = None
        wanted = self.spec.running.gpus
        gpus = wanted if wanted >= 0 else float(group.run.grid["device"] == "cuda")
        return Waiting(group, estimate(group, gpus), record)

    def planned(self, fits: Callable[[Needs], str | None]) -> list[PlannedGroup]:
        """What a run would do."""
        price = self.spec.running.price_per_hour
        return [
            PlannedGroup(
                w.group.run.name, w.group.run.model, w.group.corpus, w.group.context,
                len(w.group.run.settings), w.record is not None, w.guess.needs.memory,
                w.guess.seconds, w.guess.seconds / 3600 * price, fits(w.guess.needs) or "",
                w.guess.note,
            )
            for w in self.waiting
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
                w.group.key: why for w in self.waiting
                if w.record is None and (why := executor.fits(w.guess.needs))
            }  # fmt: skip
            todo = [w for w in self.waiting if w.record is None and w.group.key not in skipped]
            for why in dict.fromkeys(skipped.values()):
                count = sum(x == why for x in skipped.values())
                progress.note(f"{count} groups are skipped: {why}")
            watch = Groups(progress, sum(w.guess.seconds for w in todo))
            begun = time.monotonic()
            if todo:
                progress.begin(f"{len(todo)} groups", watch.total)
                executor.run([self._task(w) for w in todo], watch)
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

    def _task(self, w: Waiting) -> Task:
        payload = {**_payload("score", self.place, w.group.run),
                   "context": w.group.context, "corpus": w.group.corpus}  # fmt: skip
        name = f"{w.group.run.name}, {w.group.corpus} at {w.group.context:,}"
        return Task(w.group.key, name, payload, w.guess.needs, w.group.run.name, w.guess.seconds)

    def _unseen(self, todo: list[Waiting], watch: Groups) -> dict[str, NybbleError]:
        """Groups that a worker says it finished and that are not here: it wrote elsewhere."""
        found = {}
        for w in todo:
            reply = watch.replies.get(w.group.key)
            if reply is not None and not self._appears(w.group):
                found[w.group.key] = NybbleError(
                    "a worker's results are not in the place that this machine sees",
                    seen=f"{self.place.address} on {reply['node']}",
                    allowed="a folder that all nodes share, or an address such as s3://bucket/x",
                    hint="--place",
                )
        return found

    def _appears(self, group: Group) -> bool:
        """Whether a group's record is here; a network's file system may be seconds late."""
        for wait in (0.0, 1.0, 5.0):
            time.sleep(wait)
            if self.place.read(_marker(group)) is not None:
                return True
        return False

    def _keep(self, failed: dict[str, NybbleError]) -> None:
        """Leave the error of a group whose worker could not."""
        for w in self.waiting:
            error = failed.get(w.group.key)
            if error is not None:
                names = [*w.group.run.settings, "bf16/bf16", "f16/f16"]
                write_json(self.place, _marker(w.group), {
                    "context": w.group.context, "corpus": w.group.corpus,
                    "settings": list(w.group.run.settings), "scored": 0, "empty": False,
                    "failed": {name: str(error) for name in names}, "notes": [], "seconds": 0.0,
                    "node": "", "hardware": {}, "threads": w.group.run.threads,
                })  # fmt: skip

    def _merge(self, executor: Executor, progress: Progress, skipped: dict[str, str]) -> Merges:
        tasks: list[Task] = []
        merged = Merges(progress)
        for run in self.runs:
            groups = groups_of(run)
            never = [(s, g.context, skipped[g.key])
                     for g in groups if g.key in skipped for s, _ in g.cells()]  # fmt: skip
            needs = max((w.guess.needs for w in self.waiting if w.group.run == run),
                        key=lambda n: n.memory)  # fmt: skip
            if executor.fits(needs):  # what does not fit anywhere is not loaded for the merge
                needs = Needs(run.threads)
            payload = {**_payload("collect", self.place, run), "skipped": never,
                       "key": self._merge_key(run, never)}  # fmt: skip
            if self._merged(run, payload["key"]):
                continue
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

    def _merge_key(self, run: Run, never: list[tuple[str, int, str]]) -> str:
        """Of all that decides a summary: what is asked, and what every group left."""
        left = [read_json(self.place, _marker(g)) for g in groups_of(run)]
        return content_key([VERSION, dataclasses.asdict(run), never, left])

    def _merged(self, run: Run, key: str) -> bool:
        found = read_json(self.place, f"runs/{run.name}/{MERGED}") or {}
        there = self.place.read(f"runs/{run.name}/summary.json") is not None
        return there and found.get("key") == key

    def _result(
        self, watch: Groups, skipped: dict[str, str], merged: Merges, seconds: float,
        executor: Executor,
    ) -> SweepResult:  # fmt: skip
        failed: list[FailedCell] = []
        for w in self.waiting:
            g = w.group
            errors = (read_json(self.place, _marker(g)) or {}).get("failed", {})
            for setting, key in g.cells():
                error = skipped.get(g.key) or errors.get(setting)
                if error:
                    failed.append(FailedCell(g.run.name, key, setting, g.context, g.corpus, error,
                                             g.key in skipped))  # fmt: skip
        cells = sum(len(w.group.run.settings) for w in self.waiting)
        bad = {f.key for f in failed}
        ran = {key for key, reply in watch.replies.items() if reply["scored"]}
        good = [w for w in self.waiting for _, key in w.group.cells() if key not in bad]
        scored = sum(w.group.key in ran for w in good)
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


def _marker(group: Group) -> str:
    return f"runs/{group.run.name}/groups/{group.key}.json"


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
