"""The main job: what KV settings cost on one model, or on two side by side."""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from nybble.environment import hardware, versions
from nybble.errors import NybbleError
from nybble.formats import unique
from nybble.models.hub_cache import is_hub_id
from nybble.models.summary import summarise
from nybble.results.records import Measurement, ModelRecord, Row, to_json
from nybble.results.store import RunStore, check_folder, content_key, write_text
from nybble.scoring import prepare as prep
from nybble.scoring.backend import Backend, LlamaCpp, Parts
from nybble.scoring.budget import with_budget
from nybble.scoring.cells import Series, first_scored, lanes_of, part_series, wanted_series
from nybble.scoring.collect import Collector
from nybble.scoring.request import REFERENCE, MeasureRequest, Progress, Silent
from nybble.scoring.run import CellRunner, Runner
from nybble.scoring.server_backend import Servers
from nybble.scoring.server_run import ServerRunner
from nybble.scoring.statistics import DRAWS, MIN_DOCUMENTS
from nybble.scoring.text import Text, gather, sources
from nybble.scoring.verdict import Limit, load_thresholds, recommend

_RESULTS = Path("nybble-results")


@dataclass(frozen=True)
class Result:
    """A measurement and the folder it is in."""

    measurement: Measurement
    folder: Path

    @property
    def failed(self) -> list[Row]:
        """Rows without numbers, each with its error."""
        return [r for r in self.measurement.rows if r.status == "failed"]


@dataclass(frozen=True)
class PlannedCell:
    """One line of a dry run.

    Attributes:
        setting: the KV setting.
        role: candidate, floor, identity or cross.
        context: tokens of context.
        chunks: most chunks to score (texts may turn out shorter).
        bits: stored bits an element.
        bytes_per_token: bytes one more token adds.
        cache_bytes: bytes of the cache at this context.
        seconds: rough time for this row on this machine, good to a factor of two.
    """

    setting: str
    role: str
    context: int
    chunks: int
    bits: float
    bytes_per_token: float
    cache_bytes: int
    seconds: float


def measure(request: MeasureRequest, progress: Progress | None = None) -> Result:
    """Measure KV settings against the 16-bit reference on the same weights.

    The same request again continues where it stopped: finished cells are read, not scored.

    Args:
        request: model, settings, text and protocol.
        progress: told how far the run is; silent without one.

    Returns:
        The measurement; also written to its folder as summary.json, cell by cell in rows/.

    Raises:
        NybbleError: something in the request, the model or the text cannot be used.
        EngineError: the engine cannot run the reference.
    """
    progress = progress or Silent()
    limits = load_thresholds(request.thresholds)
    check_folder(request.out or _RESULTS)
    paths = [prep.locate(request.model), *([request.against] if request.against else [])]
    named = sources(request)
    backend = choose_backend(request, paths)
    if isinstance(backend, Servers):
        request = backend.request  # with `via` as the settings need it
    try:
        warnings = backend.check(paths)
        models = [
            backend.prepare(label, path, progress) for label, path in zip("ab", paths, strict=False)
        ]
        text = gather(models[0], named, request, progress, backend)
        if isinstance(backend, Parts):
            backend.start(models, progress)
            window = backend.record(models[0]).sliding_window
            warnings += prep.window_warnings(request.contexts, window)
            if request.budget is not None:
                request = with_budget(request, backend, models, text, progress)
        folder = request.out or default_folder(backend, models, request)
        series = backend.series(folder) if isinstance(backend, Servers) else wanted_series(request)
        if request.by and isinstance(backend, Parts):
            quantized = [s for s in request.settings if s.quantized and not s.around.at]
            series += [
                p for m in models for s in quantized
                for p in part_series(s, backend.layers[m.label], request.by, m.label)
            ]  # fmt: skip
        sizes = _sizes(backend, models, series, request, progress)
        with RunStore(folder) as store:
            runner = _runner(models, request, store, progress, backend)
            try:
                _run(runner, series, text, progress)
                collector = Collector(runner, request, sizes, limits)
                progress.stage("computing intervals")
                rows = [
                    r for chunks in text.chunks.values() for r in collector.rows(series, chunks)
                ]
            finally:
                runner.close()
            measurement = _record(request, backend, models, rows, runner, text, limits)
            measurement.warnings.extend(
                [*warnings, *text.warnings, *collector.warnings, *runner.outcome.notes]
            )
            write_text(store.folder / "summary.json", to_json(measurement))
            return Result(measurement, store.folder)
    finally:
        backend.close()


def choose_backend(request: MeasureRequest, paths: Sequence[Path]) -> Backend:
    """The engine asked for; "auto" is llama.cpp for what it can do itself.

    Raises:
        NybbleError: llama.cpp is asked for a model that is no GGUF.
    """
    wanted = request.engine
    if request.urls:
        return Servers(request, paths[0])
    ggufs = not any(path.is_dir() or _is_hub_id(path) for path in paths)
    if wanted == "auto":
        own = ggufs and all(s.llamacpp for s in request.settings)
        own = own and request.by is None and request.budget is None
        wanted = "llama.cpp" if own else "transformers"
    if wanted == "transformers":
        from nybble.scoring.torch_backend import Transformers  # needs an optional extra

        return Transformers(request)
    if not ggufs:
        raise NybbleError(
            "llama.cpp reads GGUF files only",
            seen=", ".join(map(str, paths)),
            allowed="a .gguf file",
            hint="--engine transformers for folders and hub ids",
        )
    return LlamaCpp(request)


def _runner(
    models: Sequence[prep.PreparedModel],
    request: MeasureRequest,
    store: RunStore,
    progress: Progress,
    backend: Backend,
) -> Runner:
    if isinstance(backend, Servers):
        return ServerRunner(models[0], request, store, progress, backend)
    return CellRunner(models, request, store, progress, backend)


def _is_hub_id(path: Path) -> bool:
    text = str(path)
    return "/" in text and is_hub_id(text) and not text.endswith(".gguf") and not path.exists()


def _sizes(
    backend: Backend,
    models: Sequence[prep.PreparedModel],
    series: Sequence[Series],
    request: MeasureRequest,
    progress: Progress,
) -> prep.Sizes:
    # Of one model only: another may not have the layers that a part names.
    settings = {
        m.label: unique(s.lane.setting for s in series if s.lane.model == m.label) for m in models
    }
    return backend.sizes(models, settings, [*request.contexts, *request.memory_at], progress)


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
        ]
    )
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", models[0].stem)[:60]
    return _RESULTS / f"{name}-{key[:8]}"


def _run(runner: Runner, series: Sequence[Series], text: Text, progress: Progress) -> None:
    todo = {c: runner.missing(series, chunks) for c, chunks in text.chunks.items()}
    work = sum(
        len(lanes_of(wanted)) * (context - 1)
        for context, per_chunk in todo.items()
        for wanted in per_chunk
    )
    if not work:
        progress.note("every cell is there already; --fresh scores them again")
        return
    progress.begin("scoring", work)
    for context, chunks in text.chunks.items():
        if any(todo[context]):
            runner.run(todo[context], chunks)


def _record(
    request: MeasureRequest,
    backend: Backend,
    models: Sequence[prep.PreparedModel],
    rows: list[Row],
    runner: Runner,
    text: Text,
    limits: dict[str, Limit],
) -> Measurement:
    outcome = runner.outcome
    spent = outcome.decode_s + outcome.compare_s
    records = [backend.record(m) for m in models]
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
        "bootstrap_draws": DRAWS,
        "min_documents_for_interval": MIN_DOCUMENTS,
        "thresholds": {k: asdict(v) for k, v in limits.items()},
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


def _whose(record: ModelRecord, records: Sequence[ModelRecord]) -> str:
    """Whom a sentence is about, where there are two; a model and its hardened copy share a name."""
    if len(records) == 1:
        return ""
    same = len({r.name for r in records}) == 1
    return f"{record.name} (model {record.label}): " if same else f"{record.name}: "


def plan_cells(request: MeasureRequest) -> list[PlannedCell]:
    """What `measure` would do: cells, bytes and rough time, from the header alone.

    Raises:
        NybbleError: whatever `measure` would refuse before it starts.
    """
    load_thresholds(request.thresholds)
    path = prep.locate(request.model)
    paths = [path, *([request.against] if request.against else [])]
    total = sum(source.wanted for source in sources(request))
    backend = choose_backend(request, paths)
    if backend.simulated or request.urls:
        raise NybbleError(
            "--dry-run plans runs in llama.cpp only", seen=f"--engine {backend.name}",
            hint="leave --dry-run out: sizes come first, and what is done is kept",
        )  # fmt: skip
    backend.check(paths)
    series = wanted_series(request)
    settings = unique([REFERENCE, *(s.lane.setting for s in series)])
    sizes = prep.cache_sizes(path, settings, request.contexts, request.timeout)
    summary = summarise(path)
    speed = matrix_speed()
    found: list[PlannedCell] = []
    for context in request.contexts:
        for s in series:
            chunks = {"identity": 1, "floor": (total + 1) // 2}.get(s.role, total)
            size = sizes[s.lane.setting]
            # Two FLOPs per weight and token; the output matrix only counts where scored.
            tokens = context + first_scored(context, request.score_from)
            seconds = chunks * tokens * summary.n_params / speed
            found.append(
                PlannedCell(
                    str(s.lane.setting), s.role, context, chunks, size.bits[context],
                    size.per_token, size.total[context], seconds,
                )
            )  # fmt: skip
    return found


def matrix_speed() -> float:
    """FLOP/s of a float32 matrix product here, halved: what llama.cpp reaches of NumPy's."""
    n = 1024
    a = np.ones((n, n), dtype=np.float32)
    best = min(_timed(a) for _ in range(3))
    return n**3 * 2 / best / 2


def _timed(a: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> float:
    start = time.perf_counter()
    a @ a
    return time.perf_counter() - start
