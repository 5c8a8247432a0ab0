"""Run the missing cells of one context length, and survive what the engine does.

Lanes are scored in lockstep chunk by chunk; a finished chunk is written at once. When the
child dies in a candidate's lane, that lane is given up with its error, the child is started
again without it, and the chunk is done anew. When it dies in a reference, there is nothing to
compare with and the run ends with the error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from nybble.engines.child import EngineCrashError, EngineProcess
from nybble.errors import CacheNotReadError, EngineError
from nybble.results.records import Served
from nybble.results.store import RunStore
from nybble.scoring.backend import Backend
from nybble.scoring.cells import CellNames, LaneSpec, Series, applies, first_scored, lanes_of
from nybble.scoring.chunks import Chunk
from nybble.scoring.compare import ROW, Rows
from nybble.scoring.prepare import PreparedModel
from nybble.scoring.request import REFERENCE, MeasureRequest, Progress

_ROTATION = ("rotation_k", "rotation_v")


@dataclass
class Outcome:
    """What the run of all cells left besides the cells: effects, failures, time."""

    applied: dict[LaneSpec, dict[str, Any]] = field(default_factory=dict)
    failed: dict[tuple[Series, int], str] = field(default_factory=dict)
    decode_s: float = 0.0
    compare_s: float = 0.0
    notes: list[str] = field(default_factory=list)


class Runner(Protocol):
    """What scores cells and reads them back."""

    outcome: Outcome
    simulated: bool

    def missing(self, series: Sequence[Series], chunks: Sequence[Chunk]) -> list[list[Series]]:
        """For every chunk, the series whose cell is not in the store yet."""

    def run(self, todo: Sequence[list[Series]], chunks: Sequence[Chunk]) -> None:
        """Score what `missing` found."""

    def rotation(self, series: Series, chunks: Sequence[Chunk]) -> tuple[int, int]:
        """Widths of K's and V's rotation in effect."""

    def rows(self, series: Series, chunk: Chunk) -> Rows | None:
        """A finished cell's rows."""

    def served(self, series: Series, chunks: Sequence[Chunk]) -> Served | None:
        """How a server scored the series; None where logits were compared."""

    def close(self) -> None:
        """End what was started."""


class CellRunner:
    """Scores chunks of any context length with a child that is restarted when it dies.

    Args:
        models: one or two prepared models.
        request: the measurement.
        store: where cells go.
        progress: told of tokens decoded, summed over lanes.
        backend: the engine.
    """

    def __init__(
        self,
        models: Sequence[PreparedModel],
        request: MeasureRequest,
        store: RunStore,
        progress: Progress,
        backend: Backend,
    ) -> None:
        self._models, self._request, self._store = models, request, store
        self._progress = progress
        self._backend = backend
        self._names = CellNames(models, request, backend)
        self._child: EngineProcess | None = None
        self._lanes: list[LaneSpec] = []
        self._lanes_context = 0
        self._dead: set[tuple[LaneSpec, int]] = set()
        self.outcome = Outcome()
        self.simulated = backend.simulated

    def missing(self, series: Sequence[Series], chunks: Sequence[Chunk]) -> list[list[Series]]:
        """For every chunk, the series whose cell is not in the store yet."""
        first = self._first(chunks)
        return [
            [
                s
                for s in series
                if applies(s, chunk, chunks)
                and (self._request.fresh or not self._have(s, chunk, first))
            ]
            for chunk in chunks
        ]

    def _have(self, series: Series, chunk: Chunk, first: int) -> bool:
        return self._store.has(self._names.name(series, chunk, first))

    def _first(self, chunks: Sequence[Chunk]) -> int:
        context = len(chunks[0].tokens) if chunks else 0
        return first_scored(context, self._request.score_from)

    def run(self, todo: Sequence[list[Series]], chunks: Sequence[Chunk]) -> None:
        """Score what `missing` found.

        Raises:
            EngineError: the engine cannot run the reference.
            NybbleError: results cannot be written.
        """
        context = len(chunks[0].tokens)
        for chunk, series in zip(chunks, todo, strict=True):
            one_by_one = False
            while wanted := [s for s in series if not self._given_up(s, context)]:
                try:
                    # All lanes of this context are made once, also those later chunks skip.
                    self._ensure_lanes([s for t in todo for s in t], context)
                    wanted = [s for s in wanted if not self._given_up(s, context)]
                    self._score(wanted, chunk, one_by_one)
                    break
                except EngineError as error:
                    where = self._child.where if self._child else {}
                    # Lanes decode beside each other; only alone does an error name its lane.
                    if where.get("step") == "decode" and not one_by_one:
                        self._progress.note(f"{error.what}; scoring this chunk lane by lane")
                        self.close()
                        one_by_one = True
                        continue
                    self._give_up(where.get("lane"), context, error)

    def _given_up(self, series: Series, context: int) -> bool:
        return (series.lane, context) in self._dead or (series, context) in self.outcome.failed

    def _give_up(self, lane: object, context: int, error: EngineError) -> None:
        self.close()
        if not isinstance(lane, int) or lane >= len(self._lanes):
            raise error
        spec = self._lanes[lane]
        if spec.setting == REFERENCE and spec.copy == 0:
            raise error
        self._dead.add((spec, context))
        self._fail(spec, context, error)

    def _fail(self, spec: LaneSpec, context: int, error: EngineError) -> None:
        for series in self._asked:
            if series.lane == spec:
                self.outcome.failed[series, context] = str(error)
        self._progress.note(f"{spec.setting} at context {context:,} given up: {error}")

    def _ensure_lanes(self, series: Sequence[Series], context: int) -> None:
        self._asked = list(dict.fromkeys(series))
        lanes = [
            lane
            for lane in lanes_of([s for s in self._asked if not self._given_up(s, context)])
            if (lane, context) not in self._dead
        ]
        if self._child is None:
            self._child = self._open()
            self._lanes = []
        if (self._lanes, self._lanes_context) == (lanes, context):
            return
        while True:
            self._lanes, self._lanes_context = lanes, context
            labels = [m.label for m in self._models]
            header = {
                "op": "lanes",
                "context": context,
                "via": self._request.via,
                "lanes": [[labels.index(x.model), str(x.setting)] for x in lanes],
            }
            try:
                reply = self._child.request(header)
                break
            except EngineCrashError:
                raise
            except EngineError as error:
                # Refused, not crashed: the child lives, only this lane is given up.
                spec = lanes[self._child.where["lane"]]
                if spec.setting == REFERENCE:
                    raise
                self._dead.add((spec, context))
                self._fail(spec, context, error)
                lanes = [x for x in lanes if x != spec]
        for lane, applied in zip(lanes, reply.header["applied"], strict=True):
            self.outcome.applied[lane] = applied

    def _open(self) -> EngineProcess:
        return self._backend.open(self._models, self._progress)

    def _score(self, series: Sequence[Series], chunk: Chunk, one_by_one: bool) -> None:
        assert self._child is not None
        if not series:
            return
        place = {lane: i for i, lane in enumerate(self._lanes)}
        first = self._first([chunk])
        reply = self._child.request(
            {
                "op": "score",
                "first": first,
                "one_by_one": one_by_one,
                "comparisons": [[place[s.lane], place[s.reference_lane]] for s in series],
            },
            np.ascontiguousarray(chunk.tokens, dtype=np.int32).tobytes(),
            on_event=lambda e: self._progress.advance(e.get("done", 0)),
        )
        self.outcome.decode_s += reply.header["decode"]
        self.outcome.compare_s += reply.header["compare"]
        rows = np.frombuffer(reply.payload, dtype=ROW)
        start = 0
        for s, count in zip(series, reply.header["rows"], strict=True):
            self._keep(s, chunk, first, rows[start : start + count])
            start += count

    def _keep(self, series: Series, chunk: Chunk, first: int, rows: Rows) -> None:
        context = len(chunk.tokens)
        setting = series.lane.setting
        own = series.lane.model == series.reference
        if own and setting.quantized and len(rows) and not rows["kld"].any():
            self.outcome.failed[series, context] = str(
                CacheNotReadError(
                    "the quantized cache was not read: not one token differs from the reference",
                    seen=f"{setting}, {len(rows):,} tokens with KLD exactly 0",
                    allowed="some drift; a quantized cache never gives identical logits",
                )
            )
            return
        self._store.write_cell(
            self._names.name(series, chunk, first),
            rows,
            {
                "model": series.lane.model,
                "reference": series.reference,
                "role": series.role,
                "setting": str(setting),
                "context": context,
                "category": chunk.category,
                "document": chunk.document,
                "chunk": chunk.index,
                **{side: self.outcome.applied[series.lane][side] for side in _ROTATION},
            },
        )

    def rotation(self, series: Series, chunks: Sequence[Chunk]) -> tuple[int, int]:
        """Widths of K's and V's rotation in effect: of this run, else as a finished cell says."""
        applied = self.outcome.applied.get(series.lane, {})
        names = (self._names.name(series, c, self._first(chunks)) for c in chunks)
        while not applied and (name := next(names, None)):
            applied = self._store.read_constants(name, _ROTATION)
        return applied.get("rotation_k", 0), applied.get("rotation_v", 0)

    def rows(self, series: Series, chunk: Chunk) -> Rows | None:
        """A finished cell's rows."""
        name = self._names.name(series, chunk, self._first([chunk]))
        return self._store.read_cell(name, ROW)

    def served(self, series: Series, chunks: Sequence[Chunk]) -> Served | None:
        """Nothing: logits of the full vocabulary are compared here."""
        return None

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.close()
            self._child = None
