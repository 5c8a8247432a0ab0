"""The child process that owns the engine: `python -m nybble.scoring.worker`.

It reads requests from stdin and answers on stdout (engines/child.py). Everything that touches
llama.cpp happens here: the float copy, sizes, tokenization and lockstep scoring.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from nybble.engines.child import Frame, error_header, read_frame, write_frame
from nybble.engines.llamacpp.ffi import engine_info
from nybble.engines.llamacpp.floatcopy import write_float_copy
from nybble.engines.llamacpp.layout import CacheProbe
from nybble.engines.llamacpp.model import Context, Model
from nybble.errors import NybbleError
from nybble.formats import parse
from nybble.scoring.chunks import Chunk, Piece, cut
from nybble.scoring.corpora import CATEGORIES, Document, request_for
from nybble.scoring.corpora.render import framed, plain
from nybble.scoring.lockstep import Comparison, block_rows, score_chunk

MAX_PARALLEL = 4  # lanes at one time; more only wait for memory bandwidth
_SPLIT = "nybble7f3c1e5a9b"  # stands for the text while the template's frame is taken apart


class Worker:
    """State of the child: loaded models and the lanes over them."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._models: list[Model] = []
        self._lanes: list[Context] = []
        self._lock = threading.Lock()
        self._parallel = 1
        self._rows = 1
        self._threads = 1

    def event(self, **fields: Any) -> None:
        """Tell the parent where the work is; lanes call this from their own threads."""
        with self._lock:
            write_frame(self._out, Frame({"event": True, **fields}))

    def answer(self, request: Frame) -> Frame:
        """Dispatch one request to its `do_` method."""
        handler = getattr(self, f"do_{request.header['op']}")
        result: Frame = handler(request)
        return result

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
        h = request.header
        model = self._models[0]
        given = h["documents"]
        documents = (
            CATEGORIES[h["category"]].load()
            if given is None
            else iter(Document(**{**d, "messages": tuple(d["messages"]),
                                  "tools": tuple(d["tools"])}) for d in given)
        )  # fmt: skip
        how: set[str] = set()
        seen = [0]

        def pieces() -> Iterator[Piece]:
            for document in documents:
                piece = self._piece(model, document, h["template"], how)
                seen[0] += len(piece.head) + len(piece.body)
                self.event(step="tokenize", document=document.id)
                yield piece

        bos = model.vocabulary.bos if model.vocabulary.add_bos else None
        chunks: list[Chunk] = cut(h["category"], pieces(), h["context"], h["wanted"], bos)
        meta = [{"document": c.document, "index": c.index} for c in chunks]
        payload = b"".join(c.tokens.tobytes() for c in chunks)
        return Frame({"chunks": meta, "how": sorted(how), "tokens": seen[0]}, payload)

    def _piece(
        self, model: Model, document: Document, template: str | None, how: set[str]
    ) -> Piece:
        vocabulary = model.vocabulary
        nothing = np.empty(0, dtype=np.int32)
        if template is None:
            how.add("raw text")
            body = model.tokenize(plain(document), special=False)
            return Piece(document.id, nothing, body, cuttable=not document.messages)
        names = {"bos": vocabulary.bos_text, "eos": vocabulary.eos_text}
        request = request_for(document.category)
        if document.messages:
            rendered = framed(document, template, request=request, **names)
            how.add(rendered.how)
            body = self._without_bos(model, rendered.text)
            return Piece(document.id, nothing, body, cuttable=False)
        # Every chunk of a text gets the template's frame, so cut the text, not the rendering.
        stand_in = Document(document.id, document.category, text=_SPLIT)
        rendered = framed(stand_in, template, request=request, **names)
        how.add(rendered.how)
        head = self._without_bos(model, rendered.text.split(_SPLIT)[0])
        return Piece(document.id, head, model.tokenize(document.text, special=False), True)

    @staticmethod
    def _without_bos(model: Model, text: str) -> Any:
        """Template text with its control tokens; BOS is put in front of chunks, not pieces."""
        tokens = model.tokenize(text, special=True)
        has_bos = model.vocabulary.add_bos and len(tokens) and tokens[0] == model.vocabulary.bos
        return tokens[1:] if has_bos else tokens

    def do_lanes(self, request: Frame) -> Frame:
        """Make the contexts, replacing those there were."""
        h = request.header
        for lane in self._lanes:
            lane.close()
        self._lanes = []
        n_vocab = self._models[0].vocabulary.n_tokens
        self._rows = block_rows(n_vocab, h["via"])
        self._parallel = min(MAX_PARALLEL, self._threads, len(h["lanes"]))
        threads = self._threads // self._parallel
        applied = []
        for i, (model, setting) in enumerate(h["lanes"]):
            self.event(step="context", lane=i)
            self._lanes.append(
                self._models[model].context(
                    parse(setting), h["context"], rows=self._rows, threads=threads
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


def main() -> None:
    """Answer requests until the parent closes the pipe."""
    # The engine may print to stdout; keep the frames on a descriptor of their own.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    worker = Worker(out)
    while (request := read_frame(sys.stdin.buffer)) is not None:
        try:
            reply = worker.answer(request)
        except NybbleError as error:
            reply = Frame(error_header(error))
        except OSError as error:
            reply = Frame(error_header(NybbleError("reading or writing failed", seen=str(error))))
        try:
            write_frame(out, reply)
        except BrokenPipeError:
            return


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # the parent was killed; there is nobody to tell
        os._exit(1)
