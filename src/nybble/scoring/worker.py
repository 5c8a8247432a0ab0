"""The child process that owns the engine: `python -m nybble.scoring.worker`.

It reads requests from stdin and answers on stdout (engines/child.py). Everything that touches
llama.cpp happens here: the float copy, sizes, tokenization and lockstep scoring.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np

from nybble.engines.child import Frame
from nybble.engines.llamacpp.ffi import engine_info
from nybble.engines.llamacpp.floatcopy import write_float_copy
from nybble.engines.llamacpp.layout import CacheProbe
from nybble.engines.llamacpp.model import Context, Model
from nybble.engines.worker import BaseWorker, serve
from nybble.formats import parse
from nybble.scoring.lockstep import Comparison, block_rows, score_chunk
from nybble.scoring.pieces import chunks

MAX_PARALLEL = 4  # lanes at one time; more only wait for memory bandwidth


class Worker(BaseWorker):
    """State of the child: loaded models and the lanes over them."""

    def __init__(self, out: IO[bytes]) -> None:
        super().__init__(out)
        self._models: list[Model] = []
        self._lanes: list[Context] = []
        self._parallel = 1
        self._rows = 1
        self._threads = 1
        self._sequences = 1

    def do_copy(self, request: Frame) -> Frame:
        """Write a float copy of a model."""
        h = request.header
        write_float_copy(
            Path(h["source"]), Path(h["target"]), h["kind"], lambda f: self.event(fraction=f)
        )
        return Frame({})

    def do_sizes(self, request: Frame) -> Frame:
        """Cache bytes of every setting at every context, without loading weights."""
        h = request.header
        probe = CacheProbe(Model(Path(h["path"]), no_alloc=True))
        sizes = [
            {"setting": s, "context": c, "total": z.total, "per_token": z.per_token, "bits": z.bits}
            for s in h["settings"]
            for c in h["contexts"]
            for z in [probe.size(parse(s), c)]
        ]
        return Frame({"sizes": sizes})

    def do_open(self, request: Frame) -> Frame:
        """Load one or two models; `vocabulary` leaves the weights out (for do_chunks)."""
        self._threads = request.header.get("threads", 1)
        for path in request.header["paths"]:
            self.event(step="load", path=path)
            self._models.append(Model(Path(path), no_alloc=request.header.get("vocabulary", False)))
        return Frame({"info": engine_info()})

    def do_chunks(self, request: Frame) -> Frame:
        """Render, tokenize and cut one category; the answer's payload is the tokens."""
        return chunks(self._models[0], request.header, self.event)

    def do_lanes(self, request: Frame) -> Frame:
        """Make the contexts, replacing those there were."""
        h = request.header
        for lane in self._lanes:
            lane.close()
        self._lanes = []
        n_vocab = self._models[0].vocabulary.n_tokens
        self._rows = block_rows(n_vocab, h["via"])
        # Who must have equal threads in every run asks for `parallel` whatever lanes there are.
        lanes_at_once = h.get("parallel", len(h["lanes"]))
        self._parallel = min(MAX_PARALLEL, self._threads, lanes_at_once)
        threads = self._threads // self._parallel
        sequences = self._sequences = h.get("sequences", 1)
        applied = []
        for i, (model, setting) in enumerate(h["lanes"]):
            self.event(step="context", lane=i)
            self._lanes.append(
                self._models[model].context(
                    parse(setting),
                    h["context"],
                    rows=self._rows,
                    threads=threads,
                    sequences=sequences,
                )
            )
            cache = self._lanes[-1].applied
            applied.append(
                {
                    "subcaches": [vars(s) for s in cache.subcaches],
                    "rotation_k": cache.rotation_k,
                    "rotation_v": cache.rotation_v,
                }
            )
        return Frame({"applied": applied})

    def do_score(self, request: Frame) -> Frame:
        """Score one chunk in the lanes; the payload is ROW records, comparison by comparison."""
        h = request.header
        comparisons = [Comparison(*pair) for pair in h["comparisons"]]
        used = sorted({i for c in comparisons for i in (c.lane, c.reference)})
        place = {lane: i for i, lane in enumerate(used)}
        scored = score_chunk(
            [self._lanes[i] for i in used],
            [Comparison(place[c.lane], place[c.reference]) for c in comparisons],
            np.frombuffer(request.payload, dtype=np.int32),
            h["first"],
            self._rows,
            1 if h["one_by_one"] else self._parallel,
            lambda lane, done: self.event(step="decode", lane=used[lane], done=done),
        )
        header = {"rows": [len(r) for r in scored.rows], **vars(scored.timing)}
        return Frame(header, b"".join(r.tobytes() for r in scored.rows))


if __name__ == "__main__":
    serve(Worker)
