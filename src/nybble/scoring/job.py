"""A measurement taken apart: prepared once, scored whole or in portions, collected at any time.

`measure` does all of it in one go. A sweep scores portions in several processes, each with the
model loaded once, into one store, and collects when all are there.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from nybble.environment import hardware, versions
from nybble.formats import unique
from nybble.results.records import Measurement, ModelRecord, Row
from nybble.results.store import RunStore, content_key
from nybble.scoring import prepare as prep
from nybble.scoring.backend import Backend, Parts
from nybble.scoring.budget import with_budget
from nybble.scoring.cells import Series, lanes_of, part_series, wanted_series
from nybble.scoring.choose import choose_backend
from nybble.scoring.collect import Collector
from nybble.scoring.request import MeasureRequest, Progress, Silent
from nybble.scoring.run import CellRunner, Outcome, Runner
from nybble.scoring.server_backend import Servers
from nybble.scoring.server_run import ServerRunner
from nybble.scoring.statistics import DRAWS, MIN_DOCUMENTS
from nybble.scoring.text import gather, sources
from nybble.scoring.verdict import load_thresholds, recommend

RESULTS = Path("nybble-results")


@dataclass(frozen=True, order=True)
class Portion:
    """What can be scored apart from the rest: one category at one context length."""

    context: int
    category: str


class Job:
    """One measurement; a context manager that ends the engine.

    Args:
        request: model, settings, text and protocol.
        progress: told how far the run is; silent without one.

    Attributes:
        folder: the run folder it belongs in.

    Raises:
        NybbleError: something in the request, the model or the text cannot be used.
    """

    def __init__(self, request: MeasureRequest, progress: Progress | None = None) -> None:
        self._progress = progress = progress or Silent()
        self._limits = load_thresholds(request.thresholds)
        paths = [prep.locate(request.model), *([request.against] if request.against else [])]
        named = sources(request)
        self._backend = backend = choose_backend(request, paths)
        if isinstance(backend, Servers):
            request = backend.request  # with `via` as the settings need it
        self._runner: Runner | None = None
        try:
            self._warnings = backend.check(paths)
            self._models = models = [
                backend.prepare(label, path, progress)
                for label, path in zip("ab", paths, strict=False)
            ]
            self._text = gather(models[0], named, request, progress, backend)
            if isinstance(backend, Parts):
                backend.start(models, progress)
                window = backend.record(models[0]).sliding_window
                self._warnings += prep.window_warnings(request.contexts, window)
                if request.budget is not None:
                    request = with_budget(request, backend, models, self._text, progress)
            self._request = request
            self.folder = request.out or default_folder(backend, models, request)
            self._series = self._all_series()
            self._sizes = self._all_sizes()  # what cannot be sized is refused before it is scored
        except BaseException:
            backend.close()
            raise

    def __enter__(self) -> Job:
        """The job."""
        return self

    def __exit__(self, *exc: object) -> None:
        """End the engine."""
        self.close()

    def close(self) -> None:
        """End the engine."""
        if self._runner is not None:
            self._runner.close()
        self._backend.close()

    def _all_series(self) -> list[Series]:
        backend, request = self._backend, self._request
        if isinstance(backend, Servers):
            return backend.series(self.folder)
        series = wanted_series(request)
        if request.by and isinstance(backend, Parts):
            quantized = [s for s in request.settings if s.quantized and not s.around.at]
            series += [
                p for m in self._models for s in quantized
                for p in part_series(s, backend.layers[m.label], request.by, m.label)
            ]  # fmt: skip
        return series

    @property
    def outcome(self) -> Outcome:
        """What scoring left besides the cells: failures, notes, time."""
        return self._runner.outcome if self._runner is not None else Outcome()

    @property
    def portions(self) -> list[Portion]:
        """All that the text gave; a category too short for a context has none there."""
        found = [Portion(c, x.category) for c, chunks in self._text.chunks.items() for x in chunks]
        return list(dict.fromkeys(found))

    def incomplete(self, store: RunStore) -> list[Portion]:
        """Portions with cells that are not in the store, given up ones left out."""
        runner = self._ready(store)
        found = [
            Portion(context, chunk.category)
            for context, chunks in self._text.chunks.items()
            for chunk, missing in zip(chunks, runner.missing(self._series, chunks), strict=True)
            if any((s, context) not in runner.outcome.failed for s in missing)
        ]
        return list(dict.fromkeys(found))

    def score(self, store: RunStore, only: Portion | None = None) -> int:
        """Score the cells that are missing, of one portion or of all.

        Returns:
            Cells (documents under a setting) that were missing.

        Raises:
            EngineError: the engine cannot run the reference.
            NybbleError: results cannot be written.
        """
        runner = self._ready(store)
        todo: dict[int, list[list[Series]]] = {}
        for context, chunks in self._text.chunks.items():
            if only is not None and only.context != context:
                continue
            missing = runner.missing(self._series, chunks)
            todo[context] = [
                series if only is None or chunk.category == only.category else []
                for chunk, series in zip(chunks, missing, strict=True)
            ]
        work = sum(
            len(lanes_of(wanted)) * (context - 1)
            for context, per_chunk in todo.items()
            for wanted in per_chunk
        )
        if not work:
            self._progress.note("every cell is there already; --fresh scores them again")
            return 0
        self._progress.begin("scoring", work)
        for context, per_chunk in todo.items():
            if any(per_chunk):
                runner.run(per_chunk, self._text.chunks[context])
        return sum(len(wanted) for per_chunk in todo.values() for wanted in per_chunk)

    def collect(
        self, store: RunStore, failed: Mapping[tuple[str, int], str] | None = None
    ) -> Measurement:
        """Rows with intervals from the cells in the store.

        Args:
            store: where they are.
            failed: errors of other processes, by setting and context.
        """
        runner = self._ready(store)
        self.know(store, failed or {})
        collector = Collector(runner, self._request, self._sizes, self._limits)
        self._progress.stage("computing intervals")
        rows = [
            r for chunks in self._text.chunks.values() for r in collector.rows(self._series, chunks)
        ]
        runner.close()  # a runner of servers tells their notes then; scoring opens it again
        measurement = self._record(rows, runner)
        measurement.warnings.extend(
            [*self._warnings, *self._text.warnings, *collector.warnings, *runner.outcome.notes]
        )
        return measurement

    def know(self, store: RunStore, failed: Mapping[tuple[str, int], str]) -> None:
        """Take over errors of other processes, by setting and context."""
        outcome = self._ready(store).outcome
        for s in self._series:
            for context in self._text.chunks:
                if error := failed.get((str(s.lane.setting), context)):
                    outcome.failed.setdefault((s, context), error)

    def _ready(self, store: RunStore) -> Runner:
        if self._runner is None:
            self._runner = self._new_runner(store)
        return self._runner

    def _new_runner(self, store: RunStore) -> Runner:
        request, progress, backend = self._request, self._progress, self._backend
        if isinstance(backend, Servers):
            return ServerRunner(self._models[0], request, store, progress, backend)
        return CellRunner(self._models, request, store, progress, backend)

    def _all_sizes(self) -> prep.Sizes:
        # Of one model only: another may not have the layers that a part names.
        request = self._request
        settings = {
            m.label: unique(s.lane.setting for s in self._series if s.lane.model == m.label)
            for m in self._models
        }
        contexts = [*request.contexts, *request.memory_at]
        return self._backend.sizes(self._models, settings, contexts, self._progress)

    def _record(self, rows: list[Row], runner: Runner) -> Measurement:
        request, backend, text = self._request, self._backend, self._text
        outcome = runner.outcome
        spent = outcome.decode_s + outcome.compare_s
        records = [backend.record(m) for m in self._models]
        known = backend.versions()
        protocol = {
            "reference": "f16/f16 cache on the same weights",
            **backend.protocol,
            "simulated": backend.simulated,
            "via": request.via,
            "score_from": request.score_from,
            "contexts": list(request.contexts),
            "text": text.sources,
            "text_sha256": text.sha256(),
            "framing": sorted(text.how),
            "seed": request.seed,
            **({"draw": request.draw} if request.draw else {}),
            "bootstrap_draws": DRAWS,
            "min_documents_for_interval": MIN_DOCUMENTS,
            "thresholds": {k: asdict(v) for k, v in self._limits.items()},
        }
        return Measurement(
            models=records,
            rows=rows,
            recommendation=" ".join(
                _whose(record, records) + recommend([r for r in rows if r.model == record.label])
                for record in records
            ),
            warnings=[],
            command=request.command,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            protocol=protocol,
            versions={**versions(), **{k: v for k, v in known.items() if k != "features"}},
            hardware={
                **hardware(),
                "threads": request.cpu_threads,
                "engine_features": known["features"],
            },
            timing={
                "decode_s": round(outcome.decode_s, 2),
                "compare_s": round(outcome.compare_s, 2),
                "compare_share": round(outcome.compare_s / spent, 4) if spent else 0.0,
            },
        )


def default_folder(
    backend: Backend, models: Sequence[prep.PreparedModel], request: MeasureRequest
) -> Path:
    """One folder per model, weights, text and protocol; settings and documents add to it."""
    key = content_key(
        [
            [(m.sha256, m.record.scored_weights, m.template is None) for m in models],
            request.via,
            request.score_from,
            sorted(str(p.resolve()) for p in request.text),
            str(request.jsonl.resolve()) if request.jsonl else None,
            *([request.draw] if request.draw else []),
        ]
    )
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", models[0].stem)[:60]
    return RESULTS / f"{name}-{key[:8]}"


def _whose(record: ModelRecord, records: Sequence[ModelRecord]) -> str:
    """Whom a sentence is about, where there are two; a model and its hardened copy share a name."""
    if len(records) == 1:
        return ""
    same = len({r.name for r in records}) == 1
    return f"{record.name} (model {record.label}): " if same else f"{record.name}: "
