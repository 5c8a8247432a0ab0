"""The job: long-context tasks, asked of a model at 16 bits and at each KV setting."""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nybble.environment import hardware, versions
from nybble.errors import NybbleError
from nybble.formats import KVSetting
from nybble.models.summary import summarise
from nybble.results.store import RunStore, check_folder, content_key, write_text
from nybble.results.tasks import ALL_TASKS, TaskCell, TaskRun, to_json
from nybble.scoring import prepare as prep
from nybble.scoring.measure import matrix_speed
from nybble.scoring.prepare import PreparedModel
from nybble.scoring.request import Progress, Silent
from nybble.scoring.statistics import DRAWS, MIN_DOCUMENTS
from nybble.scoring.tasks import cells
from nybble.scoring.tasks.backend import Backend, LlamaTasks, choose, wanted_settings
from nybble.scoring.tasks.collect import OWN_WORDS, collect, conclusions
from nybble.scoring.tasks.making import MadeItem, read
from nybble.scoring.tasks.request import TaskRequest
from nybble.scoring.tasks.run import TaskRunner

_RESULTS = Path("nybble-results")
RECORD = "tasks.json"


@dataclass(frozen=True)
class TaskResult:
    """A run of tasks and the folder it is in: tasks.json, and cells in tasks/."""

    run: TaskRun
    folder: Path

    @property
    def failed(self) -> list[TaskCell]:
        """Cells without numbers, each with its error, once for a setting and length."""
        found = {(c.setting, c.length): c for c in reversed(self.run.cells) if c.status == "failed"}
        return list(reversed(found.values()))


def measure_tasks(request: TaskRequest, progress: Progress | None = None) -> TaskResult:
    """Ask long-context tasks at 16 bits and at each KV setting, on the same questions.

    The same request again continues where it stopped: finished cells are read, not asked.

    Args:
        request: model, settings, tasks, lengths.
        progress: told how far the run is; silent without one.

    Raises:
        NybbleError: something in the request or the model cannot be used.
        EngineError: the engine cannot run the reference.
    """
    progress = progress or Silent()
    measured = request.measured
    check_folder(measured.out or _RESULTS)
    path = prep.locate(measured.model)
    backend = choose(measured, path)
    warnings = backend.check(path)
    model = backend.prepare(path, progress)
    items = make_items(request, backend, model, progress, warnings)
    folder = measured.out or _default_folder(request, model)
    with RunStore(folder, cells.CELLS) as store:
        runner = TaskRunner(model, request, store, progress, backend)
        try:
            runner.run(items)
        finally:
            runner.close()
        progress.stage("computing intervals")
        found = collect(runner, items, measured.seed)
        run = _record(request, backend, model, items, found, warnings, runner.reference)
        write_text(folder / RECORD, to_json(run))
    return TaskResult(run, folder)


def make_items(
    request: TaskRequest, backend: Backend, model: PreparedModel, progress: Progress,
    warnings: list[str],
) -> list[MadeItem]:  # fmt: skip
    """All items, by length and task; a task that a length has no room for is left out there.

    Raises:
        NybbleError: no task fits any length, or the template cannot hold a question.
    """
    places = request.places
    progress.begin("making tasks", len(places))
    child, extra = backend.maker(model)
    items: list[MadeItem] = []
    errors: list[NybbleError] = []
    try:
        for name, length in places:
            header = {
                "op": "make", "task": name, "length": length, "items": request.documents,
                "queries": request.queries, "seed": request.measured.seed,
                "template": model.template, **extra,
            }  # fmt: skip
            own = request.packed(name)
            try:
                made = read(child.request(header, own), name, length)
                _all_there(made, request, name, length, warnings)
                items += made
            except NybbleError as error:
                if not child.alive:
                    raise
                errors.append(error)
                seen = f" ({error.seen})" if error.seen else ""
                warnings.append(f"{name} at {length:,} tokens left out: {error.what}{seen}")
            progress.advance(1)
    finally:
        child.close()
    if not items:
        raise errors[0]
    return items


def _all_there(
    made: Sequence[MadeItem], request: TaskRequest, name: str, length: int, warnings: list[str]
) -> None:
    """Say which of the user's contexts are too long.

    Raises:
        NybbleError: all of them are.
    """
    lost = request.n_items(name) - len(made)
    if not made:
        raise NybbleError("every context is too long", seen=f"{lost}, for {length:,} tokens",
                          hint="a larger --context")  # fmt: skip
    if lost > 0:
        warnings.append(f"{name}: {lost} of {request.n_items(name)} contexts left out, longer than "
                        f"{length:,} tokens; a larger --context takes them")  # fmt: skip


def _default_folder(request: TaskRequest, model: PreparedModel) -> Path:
    """One folder per model, weights and framing; tasks, settings and lengths add to it."""
    key = content_key(["tasks", model.sha256, model.record.scored_weights, model.template is None])
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", model.stem)[:60]
    return _RESULTS / f"{name}-tasks-{key[:8]}"


def _record(
    request: TaskRequest, backend: Backend, model: PreparedModel, items: Sequence[MadeItem],
    found: list[TaskCell], warnings: Sequence[str], reference: KVSetting,
) -> TaskRun:  # fmt: skip
    measured = request.measured
    known = backend.versions()
    digest = hashlib.sha256("".join(i.asked.sha256() for i in items).encode()).hexdigest()
    notes = list(warnings)
    fewest = min((c.n_items for c in found if c.n_items and not c.depth), default=MIN_DOCUMENTS)
    if fewest < MIN_DOCUMENTS:
        option = "--documents " if request.names else ""
        notes.append(
            f"intervals resample contexts, and {fewest} of a task at a length are too few for "
            f"that: {option}{MIN_DOCUMENTS} or more"
        )
    notes += _weak(found)
    return TaskRun(
        model=backend.record(model),
        cells=found,
        warnings=notes,
        conclusions=conclusions(found),
        command=measured.command,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        protocol={
            "reference": f"{reference} cache on the same weights",
            **backend.protocol,
            "tasks": [
                {"name": task.name, "title": task.title, "source": task.source}
                for task in map(request.task, dict.fromkeys(i.task for i in items))
            ],
            **({"own": f"{own.name}, sha256 {own.sha256[:16]}"} if (own := request.file) else {}),
            "lengths": list(dict.fromkeys(i.length for i in items)),
            **({"contexts_each": request.documents} if request.names else {}),
            "queries_each": request.queries,
            "seed": measured.seed,
            "framing": "chat template" if model.template else "plain text",
            "generation": "greedy, until an end token, an empty line or the question's limit",
            "own_words_from": OWN_WORDS,
            "bootstrap_draws": DRAWS,
            "min_contexts_for_interval": MIN_DOCUMENTS,
            "items_sha256": digest,
        },
        versions={**versions(), **{k: v for k, v in known.items() if k != "features"}},
        hardware={
            **hardware(), "threads": measured.cpu_threads,
            "engine_features": known.get("features", ""),
        },
    )  # fmt: skip


def _weak(found: Sequence[TaskCell]) -> list[str]:
    """Tasks that even the 16-bit cache does not solve, where nothing can be lost."""
    weak: dict[int, list[str]] = {}
    for c in found:
        if c.role != "reference" or c.depth or c.choice is None or c.by == "exact":
            continue
        low = c.choice.low if c.choice.low is not None else c.choice.value
        if low <= c.chance and c.task != ALL_TASKS:
            weak.setdefault(c.length, []).append(c.task)
    return [
        f"at {length:,} tokens the 16-bit cache itself is not clearly above chance in "
        f"{', '.join(tasks)}: little can be lost there"
        for length, tasks in weak.items()
    ]


@dataclass(frozen=True)
class PlannedTask:
    """One line of a dry run.

    Attributes:
        task: name.
        length: tokens of context and question.
        contexts: items.
        queries: most questions of each.
        settings: lanes, the 16-bit ones included.
        cache_bytes: of all lanes' caches at this length together.
        seconds: rough time on this machine for all lanes, good to a factor of two.
    """

    task: str
    length: int
    contexts: int
    queries: int
    settings: int
    cache_bytes: int
    seconds: float


def plan_tasks(request: TaskRequest) -> list[PlannedTask]:
    """What `measure_tasks` would do, from the header alone; nothing is made.

    Raises:
        NybbleError: whatever `measure_tasks` would refuse before it starts.
    """
    measured = request.measured
    path = prep.locate(measured.model)
    backend = choose(measured, path)
    if not isinstance(backend, LlamaTasks):
        raise NybbleError("--dry-run plans runs in llama.cpp only", seen=f"engine {backend.name}",
                          hint="leave --dry-run out: what is done is kept")  # fmt: skip
    backend.check(path)
    settings = wanted_settings(measured.settings)
    sizes = prep.cache_sizes(path, settings, measured.contexts, measured.timeout)
    n_params, speed = summarise(path).n_params, matrix_speed()
    found = []
    for name, length in request.places:
        contexts, queries = request.n_items(name), request.n_queries(name)
        # A question costs some 30 tokens of its own, its options as much, its answer 32.
        tokens = length + queries * 100
        seconds = contexts * len(settings) * tokens * 2 * n_params / speed
        found.append(
            PlannedTask(
                name, length, contexts, queries, len(settings), _bytes(sizes, settings, length),
                seconds,
            )
        )  # fmt: skip
    return found


def _bytes(
    sizes: dict[KVSetting, prep.SettingSize], settings: Sequence[KVSetting], length: int
) -> int:
    return sum(sizes[s].total[length] for s in settings)
