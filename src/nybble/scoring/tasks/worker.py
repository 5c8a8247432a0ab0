"""The child that makes items and asks llama.cpp: `python -m nybble.scoring.tasks.worker`."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from nybble.engines.child import Frame
from nybble.engines.llamacpp.branches import Branches
from nybble.engines.worker import serve
from nybble.scoring.tasks.asking import Answered, Writing, ask
from nybble.scoring.tasks.frames import unpack
from nybble.scoring.tasks.making import make
from nybble.scoring.worker import Worker


class TaskWorker(Worker):
    """A scoring child (models, lanes) that also makes tasks and asks their questions."""

    @functools.cached_property
    def _pieces(self) -> list[bytes]:
        return self._models[0].pieces()

    @functools.cached_property
    def _writing(self) -> Writing:
        pieces = self._pieces
        return Writing(
            lambda ids: b"".join(pieces[i] for i in ids).decode("utf-8", "replace"),
            frozenset(self._models[0].ends()),
        )

    def do_make(self, request: Frame) -> Frame:
        """Items of one task at one length, in texts and ids."""
        return make(self._models[0], request.header, request.payload)

    def do_pieces(self, request: Frame) -> Frame:
        """What each token adds to a text, behind their lengths; and the ids that end an answer."""
        header = {"lengths": [len(p) for p in self._pieces], "ends": self._models[0].ends()}
        return Frame(header, b"".join(self._pieces))

    def do_ask(self, request: Frame) -> Frame:
        """Ask one item (the payload) in the lanes named, side by side."""
        h = request.header
        asked = unpack(h["lengths"], request.payload)
        writing = self._writing

        def run(lane: int) -> list[Answered]:
            self.event(step="decode", lane=lane, done=0)
            tree = Branches(self._lanes[lane], self._sequences, self._rows)
            return ask(
                tree, asked, writing, lambda done: self.event(step="decode", lane=lane, done=done)
            )

        with ThreadPoolExecutor(1 if h["one_by_one"] else self._parallel) as pool:
            found = list(pool.map(run, h["lanes"]))
        return Frame({"answered": [[asdict(a) for a in lane] for lane in found]})


if __name__ == "__main__":
    serve(TaskWorker)
