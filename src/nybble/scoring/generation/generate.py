"""Free-running generation: where answers part from the 16-bit cache's, and how error develops.

Perplexity and KLD score given text, where a model is put right again after every token. Here every
lane goes on from what it said itself, greedily, and the 16-bit answer is then read by all lanes.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nybble.environment import hardware, versions
from nybble.errors import NybbleError
from nybble.models.checkpoint import resolve
from nybble.results.store import RunStore, check_folder, content_key, write_text
from nybble.results.tasks import Divergence, GenerationRun, to_json
from nybble.scoring import prepare as prep
from nybble.scoring.generation.backend import Backend, choose
from nybble.scoring.generation.cells import Kept, LaneSpec, applies, lane_threads, wanted_lanes
from nybble.scoring.generation.collect import change, divergence
from nybble.scoring.generation.gather import Prompt, Prompts, gather
from nybble.scoring.generation.request import GenerateRequest
from nybble.scoring.generation.run import GenerationRunner
from nybble.scoring.generation.words import recommend, warnings_of
from nybble.scoring.prepare import PreparedModel
from nybble.scoring.request import Progress, Silent
from nybble.scoring.statistics import DRAWS, MIN_DOCUMENTS
from nybble.scoring.text import sources

_RESULTS = Path("nybble-results")
CELLS = "generated"  # folder of the cells; a measurement in the same run folder has its own
SUMMARY = "generation.json"


@dataclass(frozen=True)
class Generated:
    """A run and the folder it is in."""

    run: GenerationRun
    folder: Path

    @property
    def failed(self) -> list[Divergence]:
        """Rows without numbers, each with its error."""
        return [r for r in self.run.rows if r.status == "failed"]


def generate(request: GenerateRequest, progress: Progress | None = None) -> Generated:
    """Generate with every KV setting from the same prompts and compare.

    The same request again continues where it stopped: finished cells are read.

    Args:
        request: model, settings, prompts and limit.
        progress: told how far the run is; silent without one.

    Returns:
        The run; also written to its folder as generation.json, cell by cell in generated/.

    Raises:
        NybbleError: something in the request, the model or the text cannot be used.
        EngineError: the engine cannot run the reference.
    """
    progress = progress or Silent()
    check_folder(request.out or _RESULTS)
    path, backend = check(request)
    model = backend.prepare(path, progress)
    prompts = gather(model, request, progress, backend)
    lanes = wanted_lanes(request.settings)
    with RunStore(request.out or default_folder(model, request, backend), CELLS) as store:
        runner = GenerationRunner(model, request, lanes, store, progress, backend, prompts)
        try:
            todo = runner.missing()
            if any(todo):
                runner.run(todo)
            else:
                progress.note("every cell is there already; --fresh generates them again")
            progress.stage("computing intervals")
            rows, notes = _rows(runner, lanes, prompts.all, request)
        finally:
            runner.close()
        run = _record(request, backend, model, prompts, rows)
        run.warnings.extend([*prompts.warnings, *notes, *warnings_of(rows)])
        write_text(store.folder / SUMMARY, to_json(run))
        return Generated(run, store.folder)


def check(request: GenerateRequest) -> tuple[Path, Backend]:
    """Refuse what can be refused before any long work; the model and the engine.

    Raises:
        NybbleError: a model the engine does not read, answers beyond its context, or a type its
            heads do not allow.
    """
    path = prep.locate(request.model)
    sources(request.measured())
    backend = choose(request.measured(), path)
    longest = resolve(path).context_length
    if longest is not None and request.context > longest:
        raise NybbleError(
            "a prompt and its answer are longer than the model was trained for",
            seen=f"{request.prompt_tokens:,} + {request.limit:,} tokens",
            allowed=f"up to {longest:,} for {path.name}",
            hint="a smaller --prompt-tokens or --generate",
        )
    backend.check(path)
    return path, backend


def default_folder(model: PreparedModel, request: GenerateRequest, backend: Backend) -> Path:
    """One folder per model, weights, text and lengths; settings and prompts add to it."""
    key = content_key(
        [
            backend.name, model.sha256, model.record.scored_weights, model.template is None,
            request.limit, request.prompt_tokens,
            sorted(str(p.resolve()) for p in request.text),
            str(request.jsonl.resolve()) if request.jsonl else None,
        ]
    )  # fmt: skip
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", model.stem)[:60]
    return _RESULTS / f"{name}-generate-{key[:8]}"


def _rows(
    runner: GenerationRunner, lanes: Sequence[LaneSpec], prompts: Sequence[Prompt],
    request: GenerateRequest,
) -> tuple[list[Divergence], list[str]]:  # fmt: skip
    """A row for every lane, candidates first, and what went missing."""
    failed, notes = runner.outcome.failed, []
    references = [runner.kept(lanes[0], p) for p in prompts]

    def pairs(lane: LaneSpec) -> dict[int, tuple[Kept, Kept]]:
        found = {}
        for i, prompt in enumerate(prompts):
            reference = references[i]
            kept = runner.kept(lane, prompt) if applies(lane, i) else None
            if kept is not None and reference is not None:
                found[i] = (reference, kept)
        return found

    floor = pairs(lanes[2]) if lanes[2] not in failed else {}
    rows = []
    for lane in [*lanes[3:], *lanes[2:0:-1], lanes[0]]:
        if lane in failed:
            rows.append(
                Divergence(str(lane.setting), lane.role, status="failed", error=failed[lane])
            )
            continue
        own = pairs(lane)
        wanted = sum(applies(lane, i) for i in range(len(prompts)))
        if len(own) < wanted:
            notes.append(f"{lane.setting}: {wanted - len(own):,} cells went missing and "
                         "are left out; the same command again makes them anew")  # fmt: skip
        if not own:
            continue
        row = divergence(lane, list(own.values()), request.limit, request.seed)
        if lane.role == "candidate" and (shared := [i for i in own if i in floor]):
            less = change([own[i] for i in shared], [floor[i] for i in shared],
                          request.limit, request.seed)  # fmt: skip
            row = replace(row, agreement_change=less)
        rows.append(row)
    return rows, notes


def _record(
    request: GenerateRequest, backend: Backend, model: PreparedModel, prompts: Prompts,
    rows: list[Divergence],
) -> GenerationRun:  # fmt: skip
    known = backend.versions()
    threads = request.measured().cpu_threads
    return GenerationRun(
        model=backend.record(model),
        rows=rows,
        recommendation=recommend(rows),
        warnings=[],
        command=request.command,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        protocol={
            **backend.protocol,
            "reference": "f16/f16 cache on the same weights and prompts",
            "generation": "greedy; one prompt at a time in each lane, nothing beside it in a batch",
            "replay": "every lane reads the 16-bit answer in blocks; all K and V it reads are "
            "stored as the setting says",
            "simulated": False,
            "limit": request.limit,
            "prompt_tokens": request.prompt_tokens,
            "n_prompts": len(prompts.all),
            "prompts": sorted(prompts.how),
            "text": prompts.sources,
            "prompts_sha256": prompts.sha256(),
            "seed": request.seed,
            "bootstrap_draws": DRAWS,
            "min_prompts_for_interval": MIN_DOCUMENTS,
        },
        versions={**versions(), **{k: v for k, v in known.items() if k != "features"}},
        hardware={
            **hardware(),
            "threads": threads,
            "threads_of_a_lane": lane_threads(threads, backend),
            "engine_features": known.get("features", ""),
        },
    )
