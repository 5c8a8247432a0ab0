"""Generate the missing cells, and survive what the engine does.

A cell is one prompt in one lane. Lanes answer the prompt first, each on its own; then all of them
read the 16-bit answer in lockstep (scoring/lockstep.py), and every place of it is compared. When
the child dies in a candidate's lane, that lane is given up with its error, the child is started
again without it, and the prompt is done anew. Without the reference the run ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from nybble.engines.child import EngineCrashError, EngineProcess, Frame
from nybble.errors import CacheNotReadError, EngineError
from nybble.results.store import RunStore
from nybble.scoring.compare import ROW
from nybble.scoring.generation import cells
from nybble.scoring.generation.backend import Backend
from nybble.scoring.generation.cells import CellNames, Kept, LaneSpec, applies
from nybble.scoring.generation.gather import Prompt, Prompts
from nybble.scoring.generation.request import GenerateRequest
from nybble.scoring.prepare import PreparedModel
from nybble.scoring.request import Progress


@dataclass
class Outcome:
    """What the run left besides its cells: lanes given up, with the error."""

    failed: dict[LaneSpec, str] = field(default_factory=dict)


class GenerationRunner:
    """Answers prompts with a child that is restarted when it dies.

    Args:
        model: prepared.
        request: the run.
        lanes: every lane, the reference first.
        store: where cells go.
        progress: told of tokens generated, summed over lanes.
        backend: the engine.
        prompts: what is answered.
    """

    def __init__(
        self, model: PreparedModel, request: GenerateRequest, lanes: Sequence[LaneSpec],
        store: RunStore, progress: Progress, backend: Backend, prompts: Prompts,
    ) -> None:  # fmt: skip
        self._model, self._request, self._store = model, request, store
        self._progress, self._backend, self._prompts = progress, backend, prompts
        self._lanes = list(lanes)
        self._threads = request.measured().cpu_threads
        self._names = CellNames(model, request.limit, request.context, self._threads, backend)
        self._child: EngineProcess | None = None
        self._made: list[LaneSpec] = []  # lanes of the living child
        self._known: dict[str, Kept] = {}  # cells read or written, by name
        self.outcome = Outcome()

    def missing(self) -> list[list[LaneSpec]]:
        """For every prompt, the lanes whose cell is not in the store yet, or is damaged."""
        fresh = self._request.fresh
        return [
            [
                lane
                for lane in self._lanes
                if applies(lane, i) and (fresh or self.kept(lane, p) is None)
            ]
            for i, p in enumerate(self._prompts.all)
        ]

    def run(self, todo: Sequence[list[LaneSpec]]) -> None:
        """Generate what `missing` found.

        Raises:
            EngineError: the engine cannot run the reference.
            NybbleError: results cannot be written.
        """
        needed = {lane for lanes in todo for lane in lanes}
        self._progress.begin("generating", sum(map(len, todo)) * self._request.limit)
        for prompt, lanes in zip(self._prompts.all, todo, strict=True):
            one_by_one = False
            while wanted := [x for x in lanes if x not in self.outcome.failed]:
                try:
                    self._ensure(needed)
                    wanted = [x for x in wanted if x not in self.outcome.failed]  # refused there
                    if wanted:
                        self._prompt(prompt, wanted, one_by_one)
                    break
                except EngineError as error:
                    where = self._child.where if self._child else {}
                    # Lanes work beside each other; only alone does an error name its lane.
                    if where.get("step") == "decode" and not one_by_one:
                        self._progress.note(f"{error.what}; answering this prompt lane by lane")
                        self.close()
                        one_by_one = True
                        continue
                    self._give_up(where.get("lane"), error)

    def _give_up(self, lane: object, error: EngineError) -> None:
        self.close()
        if not isinstance(lane, int) or lane >= len(self._made):
            raise error
        self._fail(self._made[lane], error)

    def _fail(self, lane: LaneSpec, error: EngineError) -> None:
        if lane == self._lanes[0]:
            raise error
        self.outcome.failed[lane] = str(error)
        self._progress.note(f"{lane.setting} given up: {error}")

    def _ensure(self, needed: set[LaneSpec]) -> None:
        """A child with a context for every lane that is needed, the reference first."""
        if self._child is None:
            self._child = self._backend.open(self._model, self._progress)
            self._made = []
        while True:
            lanes = [
                x for i, x in enumerate(self._lanes)
                if i == 0 or (x in needed and x not in self.outcome.failed)
            ]  # fmt: skip
            if self._made == lanes:
                return
            self._made = lanes
            try:
                self._ask(
                    {
                        "op": "lanes",
                        "context": self._request.context,
                        "via": "prefill",
                        "lanes": [[0, str(x.setting)] for x in lanes],
                        "parallel": self._backend.at_once,
                    }
                )
            except EngineCrashError:
                raise
            except EngineError as error:
                # Refused, not crashed: the child lives, only this lane is given up.
                self._made = []
                self._fail(lanes[self._child.where["lane"]], error)

    def _ask(self, header: dict[str, object], payload: bytes = b"") -> Frame:
        assert self._child is not None
        return self._child.request(header, payload)

    def _prompt(self, prompt: Prompt, lanes: Sequence[LaneSpec], one_by_one: bool) -> None:
        reference = self._lanes[0]
        known = None if reference in lanes else self.kept(reference, prompt)
        asked = list(lanes)
        if known is None and reference not in asked:
            asked.insert(0, reference)  # its cell is damaged
        found = self._generate(prompt, asked, one_by_one)
        known = found.get(reference, known)
        assert known is not None
        compared = [x for x in asked if x != reference]
        rows = self._replay(prompt, known, compared, one_by_one)
        for lane in asked:
            kept = found[lane]
            if lane != reference:
                kept = replace(kept, rows=rows[lane])
                if lane.setting.quantized and len(kept.rows) and not kept.rows["kld"].any():
                    self._not_read(lane, len(kept.rows))
                    continue
            self._write(lane, prompt, kept)

    def _not_read(self, lane: LaneSpec, n: int) -> None:
        self.outcome.failed[lane] = str(
            CacheNotReadError(
                "the quantized cache was not read: not one token differs from the reference",
                seen=f"{lane.setting}, {n:,} tokens with KLD exactly 0",
                allowed="some drift; a quantized cache never gives identical logits",
            )
        )

    def _generate(
        self, prompt: Prompt, lanes: Sequence[LaneSpec], one_by_one: bool
    ) -> dict[LaneSpec, Kept]:
        assert self._child is not None
        reply = self._child.request(
            {
                "op": "generate",
                "lanes": [self._made.index(x) for x in lanes],
                "limit": self._request.limit,
                "ends": self._prompts.ends,
                "one_by_one": one_by_one,
            },
            np.ascontiguousarray(prompt.tokens, dtype="<i4").tobytes(),
            on_event=lambda e: self._progress.advance(e.get("done", 0)),
        )
        every = np.frombuffer(reply.payload, dtype="<i4").astype(np.int32)
        parts = np.split(every, np.cumsum(reply.header["lengths"])[:-1])
        nothing = np.zeros(0, dtype=ROW)
        return {
            lane: Kept(tokens, ended, nothing)
            for lane, tokens, ended in zip(lanes, parts, reply.header["ended"], strict=True)
        }

    def _replay(
        self, prompt: Prompt, reference: Kept, lanes: Sequence[LaneSpec], one_by_one: bool
    ) -> dict[LaneSpec, np.ndarray[tuple[int], np.dtype[np.void]]]:
        """Compare lanes with the reference where all read its answer."""
        if not lanes:
            return {}
        first = len(prompt.tokens) - 1  # this position predicts the answer's first token
        reply = self._ask(
            {
                "op": "score",
                "first": first,
                "one_by_one": one_by_one,
                "comparisons": [[self._made.index(x), 0] for x in lanes],
            },
            np.concatenate([prompt.tokens, reference.tokens]).astype("<i4").tobytes(),
        )
        every = np.frombuffer(reply.payload, dtype=ROW).copy()
        every["position"] -= first
        parts = np.split(every, np.cumsum(reply.header["rows"])[:-1])
        return dict(zip(lanes, parts, strict=True))

    def _write(self, lane: LaneSpec, prompt: Prompt, kept: Kept) -> None:
        name = self._names.name(lane, prompt)
        self._known[name] = kept
        cells.write(
            self._store,
            name,
            kept,
            {
                "setting": str(lane.setting),
                "role": lane.role,
                "category": prompt.category,
                "document": prompt.document,
                "prompt_tokens": len(prompt.tokens),
            },
        )

    def kept(self, lane: LaneSpec, prompt: Prompt) -> Kept | None:
        """A finished cell."""
        name = self._names.name(lane, prompt)
        found = self._known.get(name) or cells.read(self._store, name)
        if found is not None:
            self._known[name] = found
        return found

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.close()
            self._child = None
