"""The child process that generates: `python -m nybble.scoring.generation.worker`."""

from __future__ import annotations

import functools

import numpy as np

from nybble.engines.child import Frame
from nybble.engines.worker import serve
from nybble.scoring.generation.greedy import answers
from nybble.scoring.generation.prompts import prompts
from nybble.scoring.worker import Worker


class GenerationWorker(Worker):
    """A scoring child (models, lanes, lockstep scores) that also answers prompts."""

    @functools.cached_property
    def _ends(self) -> frozenset[int]:
        """Ids that end an answer; looking through the vocabulary takes a moment."""
        return frozenset(self._models[0].ends())

    def do_prompts(self, request: Frame) -> Frame:
        """Prompts of one category; the answer's payload is their tokens."""
        reply = prompts(self._models[0], request.header, self.event)
        return Frame({**reply.header, "ends": sorted(self._ends)}, reply.payload)

    def do_generate(self, request: Frame) -> Frame:
        """Answer one prompt (the payload) in the lanes named; the payload is their tokens."""
        h = request.header
        lanes = h["lanes"]
        found = answers(
            [self._lanes[i] for i in lanes],
            np.frombuffer(request.payload, dtype="<i4").tolist(),
            h["limit"],
            frozenset(h["ends"]),
            1 if h["one_by_one"] else self._parallel,
            lambda lane, done: self.event(step="decode", lane=lanes[lane], done=done),
        )
        header = {"lengths": [len(a.tokens) for a in found], "ended": [a.ended for a in found]}
        return Frame(header, b"".join(np.array(a.tokens, dtype="<i4").tobytes() for a in found))


if __name__ == "__main__":
    serve(GenerationWorker)
