"""A worker of the local pool: `python -m nybble.sweep.worker` (engines/child.py has the frames)."""

from __future__ import annotations

import os

from nybble.engines.child import Frame
from nybble.engines.worker import BaseWorker, serve
from nybble.sweep.work import perform


class Worker(BaseWorker):
    """Performs tasks one after the other, with the last model left open."""

    def do_perform(self, request: Frame) -> Frame:
        """One task; `card` is the GPU that this worker may use."""
        if (card := request.header.get("card")) is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = str(card)
        return Frame({"reply": perform(request.header["payload"], lambda e: self.event(**e))})


if __name__ == "__main__":
    serve(Worker)
