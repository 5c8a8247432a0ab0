"""The main job: what KV settings cost on one model, or on two side by side."""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from nybble.environment import hardware, usable_cpus, versions
from nybble.errors import NybbleError
from nybble.formats import unique
from nybble.models.summary import summarise
from nybble.results.records import Measurement, Row, to_json
from nybble.results.store import RunStore, check_folder, content_key, write_text
from nybble.scoring import prepare as prep
from nybble.scoring.cells import Series, first_scored, lanes_of, wanted_series
from nybble.scoring.collect import Collector, Sizes
from nybble.scoring.request import MOST_CONTEXT, REFERENCE, MeasureRequest, Progress, Silent
from nybble.scoring.run import CellRunner
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
    warnings = _check_all(paths, request)
    models = [
        prep.prepare(label, path, request, progress)
        for label, path in zip("ab", paths, strict=False)
    ]
    series = wanted_series(request)
    sizes = _sizes(models, series, request)
    text = gather(models[0], named, request, progress)
    with RunStore(request.out or _default_folder(models, request)) as store:
        threads = request.threads or usable_cpus()
        runner = CellRunner(models, request, store, progress, threads)
        try:
            _run(runner, series, text, progress)
            collector = Collector(runner, request, sizes, limits)
            progress.stage("computing intervals")
            rows = [r for chunks in text.chunks.values() for r in collector.rows(series, chunks)]
        finally:
            runner.close()
        measurement = _record(request, models, rows, runner, text, limits)
        measurement.warnings.extend([*warnings, *text.warnings, *collector.warnings])
        write_text(store.folder / "summary.json", to_json(measurement))
        return Result(measurement, store.folder)


def _check_all(paths: Sequence[Path], request: MeasureRequest) -> list[str]:
    """Everything that can be refused from headers alone, before any long work."""
    summaries = [summarise(p) for p in paths]
    if len(summaries) == 2:
        first, second = (s.tokenizer_hash for s in summaries)
        if first != second:
            raise NybbleError(
                "the two models have different vocabularies, so their logits cannot be compared",
                seen=f"{paths[0].name} and {paths[1].name}",
                allowed="two models with the same tokenizer, for example a model and its QAT twin",
            )
    return list(dict.fromkeys(w for s in summaries for w in prep.check(s, request)))


def _sizes(
    models: Sequence[prep.PreparedModel], series: Sequence[Series], request: MeasureRequest
) -> Sizes:
    settings = unique([REFERENCE, *(s.lane.setting for s in series)])
    found: Sizes = {}
    for model in models:
        # What a header claims must not decide how much memory the dry run takes.
        longest = min(model.summary.context_length, MOST_CONTEXT)
        contexts = [*request.contexts, *request.memory_at, longest]
        sizes = prep.cache_sizes(model.scored_file, settings, contexts, request.timeout)
        found.update({(model.label, setting): size for setting, size in sizes.items()})
    return found


def _default_folder(models: Sequence[prep.PreparedModel], request: MeasureRequest) -> Path:
    """One folder per model, weights, text and protocol; settings and documents add to it."""
    key = content_key(
        [
            [(m.sha256, m.scored_weights, m.template is None) for m in models],
            request.via,
            request.score_from,
            sorted(str(p.resolve()) for p in request.text),
            str(request.jsonl.resolve()) if request.jsonl else None,
        ]
    )
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", models[0].summary.path.stem)[:60]
    return _RESULTS / f"{name}-{key[:8]}"


def _run(runner: CellRunner, series: Sequence[Series], text: Text, progress: Progress) -> None:
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
    models: Sequence[prep.PreparedModel],
    rows: list[Row],
    runner: CellRunner,
    text: Text,
    limits: dict[str, Limit],
) -> Measurement:
    outcome = runner.outcome
    spent = outcome.decode_s + outcome.compare_s
    records = [m.record() for m in models]
    protocol = {
        "engine": "llama.cpp",
        "reference": "f16/f16 cache on the same weights",
        "hot_cache": "every position attends to stored, quantized K and V",
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
        "flash_attention": "on",
        "sliding_cache": "window-sized, as servers allocate it",
    }
    return Measurement(
        models=records,
        rows=rows,
        recommendation=" ".join(
            (f"{record.name}: " if len(records) > 1 else "")
            + recommend([r for r in rows if r.model == record.label])
            for record in records
        ),
        warnings=[],
        command=request.command,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        protocol=protocol,
        versions={**versions(), "llama.cpp": text.info["llama.cpp"]},
        hardware={
            **hardware(),
            "threads": request.threads or usable_cpus(),
            "engine_features": text.info["features"],
        },
        timing={
            "decode_s": round(outcome.decode_s, 2),
            "compare_s": round(outcome.compare_s, 2),
            "compare_share": round(outcome.compare_s / spent, 4) if spent else 0.0,
        },
    )


def plan_cells(request: MeasureRequest) -> list[PlannedCell]:
    """What `measure` would do: cells, bytes and rough time, from the header alone.

    Raises:
        NybbleError: whatever `measure` would refuse before it starts.
    """
    load_thresholds(request.thresholds)
    path = prep.locate(request.model)
    paths = [path, *([request.against] if request.against else [])]
    total = sum(source.wanted for source in sources(request))
    _check_all(paths, request)
    series = wanted_series(request)
    settings = unique([REFERENCE, *(s.lane.setting for s in series)])
    sizes = prep.cache_sizes(path, settings, request.contexts, request.timeout)
    summary = summarise(path)
    speed = _matrix_speed()
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
                    str(s.lane.setting), s.role, context, chunks, size.bits, size.per_token,
                    size.total[context], seconds,
                )
            )  # fmt: skip
    return found


def _matrix_speed() -> float:
    """FLOP/s of a float32 matrix product here, halved: what llama.cpp reaches of NumPy's."""
    n = 1024
    a = np.ones((n, n), dtype=np.float32)
    best = min(_timed(a) for _ in range(3))
    return n**3 * 2 / best / 2


def _timed(a: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> float:
    start = time.perf_counter()
    a @ a
    return time.perf_counter() - start
