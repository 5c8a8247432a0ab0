"""Ask the missing cells, and survive what the engine does.

A cell is one context with its questions under one setting. Settings are asked side by side; a
finished context is written at once. When the child dies in a candidate's lane, that lane is given
up with its error, the child is started again without it, and the context is asked anew. Without
the reference there is nothing to compare with, and the run ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nybble.engines.child import EngineCrashError, Frame
from nybble.errors import CacheNotReadError, EngineError
from nybble.formats import KVSetting
from nybble.results.store import RunStore
from nybble.scoring.prepare import PreparedModel
from nybble.scoring.request import Progress
from nybble.scoring.tasks import cells
from nybble.scoring.tasks.asking import Answered
from nybble.scoring.tasks.backend import Backend, Child
from nybble.scoring.tasks.cells import CellNames, Rows
from nybble.scoring.tasks.making import MadeItem
from nybble.scoring.tasks.request import TaskRequest
from nybble.scoring.worker import MAX_PARALLEL


@dataclass
class Outcome:
    """What the run left besides its cells: settings given up at a length, with the error."""

    failed: dict[tuple[KVSetting, int], str] = field(default_factory=dict)


class TaskRunner:
    """Asks items with a child that is restarted when it dies.

    Args:
        model: prepared.
        request: the run.
        store: where cells go.
        progress: told of tokens decoded, summed over lanes.
        backend: the engine.
    """

    def __init__(
        self, model: PreparedModel, request: TaskRequest, store: RunStore, progress: Progress,
        backend: Backend,
    ) -> None:  # fmt: skip
        self._model, self._request, self._store = model, request.measured, store
        self._task = request.task
        self._progress, self._backend = progress, backend
        self.settings = backend.settings(store.folder)
        self.reference = self.settings[0]
        self._names = CellNames(model, request.measured.cpu_threads, backend)
        self._kept: dict[str, Rows] = {}
        self._child: Child | None = None
        self._made: tuple[list[KVSetting], int, int] = ([], 0, 0)  # lanes, their cells, sequences
        self.outcome = Outcome()

    def missing(self, item: MadeItem) -> list[KVSetting]:
        """Settings whose cell is not in the store yet."""
        fresh = self._request.fresh
        return [s for s in self.settings if fresh or self.rows(s, item) is None]

    def rows(self, setting: KVSetting, item: MadeItem) -> Rows | None:
        """A finished cell; None where there is none that can be read."""
        name = self._names.name(setting, item)
        if name not in self._kept and (found := cells.read(self._store, name)) is not None:
            self._kept[name] = found
        return self._kept.get(name)

    def run(self, items: Sequence[MadeItem]) -> None:
        """Ask what is missing.

        Raises:
            EngineError: the engine cannot run the reference.
            NybbleError: results cannot be written.
        """
        todo = [(item, self.missing(item)) for item in items]
        todo = [(item, settings) for item, settings in todo if settings]
        if not todo:
            self._progress.note("every cell is there already; --fresh asks them again")
            return
        self._child = self._backend.open(self._model, self._progress)
        total = sum(item.asked.work * len(settings) for item, settings in todo)
        self._progress.begin("asking", total)
        for length in dict.fromkeys(item.length for item, _ in todo):
            self._length([t for t in todo if t[0].length == length], length)

    def _length(self, todo: Sequence[tuple[MadeItem, list[KVSetting]]], length: int) -> None:
        n_cells = max(item.asked.cells for item, _ in todo)
        sequences = max(item.asked.sequences for item, _ in todo)
        needed = [s for s in self.settings if any(s in settings for _, settings in todo)]
        for item, settings in todo:
            one_by_one = False
            while wanted := [s for s in settings if (s, length) not in self.outcome.failed]:
                try:
                    self._ensure(needed, n_cells, sequences, length)
                    wanted = [s for s in wanted if (s, length) not in self.outcome.failed]
                    self._item(item, wanted, one_by_one)
                    break
                except EngineError as error:
                    where = self._child.where if self._child else {}
                    # Lanes work beside each other; only alone does an error name its lane.
                    if where.get("step") == "decode" and not one_by_one:
                        self._progress.note(f"{error.what}; asking this context lane by lane")
                        self.close()
                        one_by_one = True
                        continue
                    self._give_up(where.get("lane"), length, error)

    def _give_up(self, lane: object, length: int, error: EngineError) -> None:
        self.close()
        if not isinstance(lane, int) or lane >= len(self._made[0]):
            raise error
        self._fail(self._made[0][lane], length, error)

    def _fail(self, setting: KVSetting, length: int, error: EngineError) -> None:
        if setting == self.reference:
            raise error
        self.outcome.failed[setting, length] = str(error)
        self._progress.note(f"{setting} at {length:,} tokens given up: {error}")

    def _ensure(
        self, needed: Sequence[KVSetting], n_cells: int, sequences: int, length: int
    ) -> None:
        """A child with a lane for every setting that is needed, the reference first."""
        if self._child is None:
            self._child = self._backend.open(self._model, self._progress)
            self._made = ([], 0, 0)
        while True:
            lanes = [s for s in needed if (s, length) not in self.outcome.failed]
            if self._made == (lanes, n_cells, sequences):
                return
            self._made = (lanes, n_cells, sequences)
            header = {
                "op": "lanes",
                "context": n_cells,
                "sequences": sequences,
                "via": "prefill",
                "lanes": [[0, str(s)] for s in lanes],
                "parallel": MAX_PARALLEL,
            }
            try:
                self._child.request(header)
            except EngineCrashError:
                raise
            except EngineError as error:
                # Refused, not crashed: the child lives, only this lane is given up.
                self._made = ([], 0, 0)
                self._fail(lanes[self._child.where["lane"]], length, error)

    def _item(self, item: MadeItem, settings: Sequence[KVSetting], one_by_one: bool) -> None:
        if not settings:
            return
        assert self._child is not None
        lengths, ids = item.asked.pack()
        reply: Frame = self._child.request(
            {
                "op": "ask",
                "lanes": [self._made[0].index(s) for s in settings],
                "lengths": lengths,
                "one_by_one": one_by_one,
            },
            ids,
            on_event=lambda e: self._progress.advance(e.get("done", 0)),
        )
        task = self._task(item.task)
        found = {
            setting: cells.make_rows(item, task, [_answered(a) for a in answers])
            for setting, answers in zip(settings, reply.header["answered"], strict=True)
        }
        reference = found.get(self.reference)
        if reference is None:
            reference = self.rows(self.reference, item)
        for setting, rows in found.items():
            if setting.quantized and reference is not None and _same(rows, reference):
                self.outcome.failed[setting, item.length] = _not_read(setting, len(rows))
                continue
            self._write(setting, item, rows)

    def _write(self, setting: KVSetting, item: MadeItem, rows: Rows) -> None:
        name = self._names.name(setting, item)
        self._kept[name] = rows
        self._store.write_cell(
            name,
            rows,
            {
                "setting": str(setting),
                "role": cells.role(setting, self.reference),
                "task": item.task,
                "length": item.length,
                "item": item.index,
            },
        )

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.close()
            self._child = None


def _answered(data: dict[str, Any]) -> Answered:
    return Answered(**{**data, "logprobs": tuple(data["logprobs"])})


def _same(rows: Rows, reference: Rows) -> bool:
    weighed = cells.logprobs(rows)
    return any(weighed) and weighed == cells.logprobs(reference)


def _not_read(setting: KVSetting, n: int) -> str:
    return str(
        CacheNotReadError(
            "the quantized cache was not read: not one option's log-probability differs from the "
            "reference",
            seen=f"{setting}, {n} questions",
            allowed="some drift; a quantized cache never gives identical logits",
        )
    )
