"""Score chunks through servers, one setting after the other, against the reference's top-k rows.

The reference's rows are kept (`tops/` in the run folder), so its server is needed once: where two
do not fit into memory, the same command is run again with the other one up. A finished chunk is
written at once; a candidate that fails keeps what it has, and the others go on.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from nybble.engines.server.base import Identity, Server
from nybble.engines.server.registry import connect
from nybble.errors import CacheNotReadError, EngineError, NybbleError
from nybble.formats import KVSetting
from nybble.results.records import METRICS_VERSION, Served
from nybble.results.store import RunStore, content_key
from nybble.scoring.cells import Series, applies, first_scored
from nybble.scoring.chunks import Chunk
from nybble.scoring.compare import Rows
from nybble.scoring.prepare import PreparedModel
from nybble.scoring.request import MeasureRequest, Progress
from nybble.scoring.run import Outcome
from nybble.scoring.server_backend import TOPS, Servers
from nybble.scoring.server_check import check_server
from nybble.scoring.topk import TOP, TOPK_ROW, Tops, compare, from_records

_KEPT = ("engine", "version", "weights", "read", "reported")


class ServerRunner:
    """The runner of a measurement through servers.

    Args:
        model: the prepared model.
        request: the measurement, `via` as it is scored.
        store: where cells go.
        progress: told of tokens read, summed over settings.
        backend: knows the addresses and the reference.
    """

    simulated = False

    def __init__(
        self,
        model: PreparedModel,
        request: MeasureRequest,
        store: RunStore,
        progress: Progress,
        backend: Servers,
    ) -> None:
        self._model, self._request, self._progress = model, request, progress
        self._store, self._tops = store, RunStore(store.folder, TOPS)
        self._backend = backend
        self._servers: dict[KVSetting, tuple[Server, Identity]] = {}
        self._fresh: set[str] = set()  # cells of this run, under --fresh
        self._shared: dict[str, str] = {}  # version and weights that all rows must agree on
        self.outcome = Outcome()

    def missing(self, series: Sequence[Series], chunks: Sequence[Chunk]) -> list[list[Series]]:
        """For every chunk, the series whose cell is not in the store yet."""
        return [
            [
                s
                for s in series
                if applies(s, chunk, chunks)
                and (self._request.fresh or not self._store.has(self._name(s, chunk)))
            ]
            for chunk in chunks
        ]

    def run(self, todo: Sequence[list[Series]], chunks: Sequence[Chunk]) -> None:
        """Score what `missing` found: the reference of all chunks first, then each setting.

        Raises:
            EngineError: the reference's server fails, and its rows are not there.
            NybbleError: results cannot be written.
        """
        work = [(chunk, wanted) for chunk, wanted in zip(chunks, todo, strict=True) if wanted]
        for chunk, wanted in work:
            self._reference(chunk)
            for series in wanted:
                if series.role == "identity":
                    self._candidate(series, chunk)
        rest = dict.fromkeys(s for _, wanted in work for s in wanted if s.role != "identity")
        for series in rest:
            for chunk, wanted in work:
                if series in wanted and not self._candidate(series, chunk):
                    break

    def rows(self, series: Series, chunk: Chunk) -> Rows | None:
        """A finished cell's rows."""
        return self._store.read_cell(self._name(series, chunk), TOPK_ROW)

    def rotation(self, series: Series, chunks: Sequence[Chunk]) -> tuple[int, int]:
        """No server tells it."""
        return 0, 0

    def served(self, series: Series, chunks: Sequence[Chunk]) -> Served | None:
        """How a row was scored, from its first finished cell."""
        for chunk in chunks:
            kept = self._store.read_constants(self._name(series, chunk), (*_KEPT, "top_k"))
            if kept:
                self._backend.seen.setdefault(self._backend.name, kept["version"])
                return Served(kept["engine"], kept["version"], int(kept["top_k"]), kept["read"],
                              kept["reported"])  # fmt: skip
        return None

    def close(self) -> None:
        """End the connections; the servers go on."""
        for server, _ in self._servers.values():
            self.outcome.notes += [n for n in server.notes if n not in self.outcome.notes]
            server.client.close()
        self._servers = {}

    def _reference(self, chunk: Chunk) -> None:
        """Score the reference unless its rows are kept."""
        setting, name = self._backend.reference, self._top_name(chunk)
        if self._tops.has(name) and (not self._request.fresh or name in self._fresh):
            self._progress.advance(len(chunk.tokens) - 1)
            return
        server, identity = self._server(setting)
        tops = self._ask(server, chunk)
        constants = self._constants(setting, identity, tops, chunk)
        self._tops.write_cell(name, tops.records(), constants)
        self._fresh.add(name)

    def _candidate(self, series: Series, chunk: Chunk) -> bool:
        """Score and compare one chunk; False once the series is given up."""
        context = len(chunk.tokens)
        if (series, context) in self.outcome.failed:
            return False
        try:
            reference = self._kept(chunk)
            server, identity = self._server(series.lane.setting)
            tops = self._ask(server, chunk)
            start = time.perf_counter()
            rows = compare(reference, tops)
            self.outcome.compare_s += time.perf_counter() - start
            self._check_read(series, rows)
        except EngineError as error:
            self.outcome.failed[series, context] = str(error)
        except CacheNotReadError as error:
            self.outcome.failed[series, context] = str(error)
        else:
            constants = self._constants(series.lane.setting, identity, tops, chunk)
            constants.update(role=series.role, top_k=min(reference.k, tops.k))
            self._store.write_cell(self._name(series, chunk), rows, constants)
            return True
        what = str(self.outcome.failed[series, context]).splitlines()[0]
        self._progress.note(f"{series.lane.setting} at context {context:,} given up: {what}")
        return False

    def _check_read(self, series: Series, rows: Rows) -> None:
        same = not rows["kld"].any() and (rows["nll"] == rows["nll_ref"]).all()
        if series.lane.setting.quantized and len(rows) and same:
            raise CacheNotReadError(
                "the quantized cache was not read: not one token differs from the reference",
                seen=f"{series.lane.setting}, {len(rows):,} tokens with equal log-probabilities",
                allowed="some drift; a quantized cache never gives identical logits",
                hint="is this the server with that KV type, or the reference's once more?",
            )

    def _kept(self, chunk: Chunk) -> Tops:
        name = self._top_name(chunk)
        constants = self._tops.read_constants(name, _KEPT)
        rows = self._tops.read_cell(name, TOP) if constants else None
        tops = from_records(rows, constants["read"]) if rows is not None else None
        if tops is None:
            raise NybbleError("the reference's stored rows are damaged", seen=name,
                              hint="--fresh, with its server up")  # fmt: skip
        self._agree(constants["version"], constants["weights"], "the stored reference")
        return tops

    def _agree(self, version: str, weights: str, whose: str) -> None:
        """All rows of a run come from one version and one set of weights."""
        for what, value in (("version", version), ("weights", weights)):
            first = self._shared.setdefault(what, value)
            if value != first:
                raise EngineError(
                    f"{whose} has another {what} than what it is compared with", seen=value,
                    allowed=first,
                    hint="serve both from the same files with the same build; --fresh scores the "
                    "reference again",
                )  # fmt: skip

    def _server(self, setting: KVSetting) -> tuple[Server, Identity]:
        if setting not in self._servers:
            url = self._backend.urls.get(setting)
            if url is None:
                raise EngineError(
                    f"the {setting} server is needed once more: its rows do not cover this text",
                    seen=", ".join(f"{s}={u}" for s, u in self._backend.urls.items()),
                    hint=f"--url {setting}=http://HOST:PORT",
                )
            server = connect(self._backend.name, url, self._request.timeout)
            self._progress.stage(f"asking {url}")
            try:
                identity = check_server(server, setting, self._backend, self._model)
                self._agree(identity.version, identity.weights, f"the {setting} server")
            except BaseException:
                server.client.close()
                raise
            self._backend.seen[self._backend.name] = identity.version
            self._servers[setting] = server, identity
        return self._servers[setting]

    def _ask(self, server: Server, chunk: Chunk) -> Tops:
        first = self._first(chunk)
        start = time.perf_counter()
        try:
            scores = server.score(
                chunk.tokens.tolist(), first, self._request.top_k, self._request.via,
                self._progress.advance,
            )  # fmt: skip
        finally:
            self.outcome.decode_s += time.perf_counter() - start
        return Tops(first, chunk.tokens[first + 1 :].astype(np.int32), scores)

    def _constants(
        self, setting: KVSetting, identity: Identity, tops: Tops, chunk: Chunk
    ) -> dict[str, Any]:
        return {
            "model": "a", "reference": "a", "setting": str(setting),
            "context": len(chunk.tokens), "category": chunk.category, "document": chunk.document,
            "chunk": chunk.index, "engine": identity.engine, "version": identity.version,
            "weights": identity.weights, "reported": identity.kv or "",
            "read": tops.scores.read, "top_k": tops.k,
        }  # fmt: skip

    def _first(self, chunk: Chunk) -> int:
        return first_scored(len(chunk.tokens), self._request.score_from)

    def _key(self, chunk: Chunk, setting: KVSetting, **more: object) -> str:
        tokens = np.ascontiguousarray(chunk.tokens, dtype="<i4").tobytes()
        key = content_key(
            {
                "metrics": METRICS_VERSION,
                "engine": self._backend.identity(setting, "a"),
                "model": self._model.sha256,
                "setting": str(setting),
                "via": self._request.via,
                "top_k": self._request.top_k,
                "first": self._first(chunk),
                "tokens": hashlib.sha256(tokens).hexdigest(),
                **more,
            }
        )
        plain = re.sub(r"[^A-Za-z0-9_.+-]", "-", str(setting))[:80]
        return f"c{len(chunk.tokens)}-{plain}-{key}"

    def _top_name(self, chunk: Chunk) -> str:
        return self._key(chunk, self._backend.reference)

    def _name(self, series: Series, chunk: Chunk) -> str:
        lane = series.lane
        return self._key(chunk, lane.setting, copy=lane.copy, against=str(self._backend.reference))
