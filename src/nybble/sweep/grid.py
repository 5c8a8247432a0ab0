"""From grids to runs, groups and cells, each with a key that says what it is.

A run is one model under one protocol; its folder is what `nybble measure --out` would make. A
group is what is scored at once: one context length and one corpus of a run under every setting,
so that its 16-bit reference is computed once. A cell is one setting of a group.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nybble.environment import cache_dir
from nybble.errors import NybbleError
from nybble.formats import parse
from nybble.models.demo import demo_model
from nybble.results.store import content_key
from nybble.scoring.request import MeasureRequest
from nybble.scoring.text import sources
from nybble.sweep.spec import Grid, Spec

_BLOCKS, _BLOCK = 16, 1 << 16  # of a file that are hashed, and bytes of each
DEMO = "demo"  # stands for the demo model


@dataclass(frozen=True)
class Run:
    """One model under one protocol, in plain values: a worker on another machine reads it.

    Attributes:
        name: of its folder.
        model: path or hub id.
        settings: KV settings.
        contexts: tokens.
        corpora: categories, built in or of the user's text.
        documents: of each; 0 for the default.
        seed: draw of documents.
        grid: everything else that its grid says.
        threads: CPU threads.
        timeout: seconds of silence after which the engine counts as hung.
    """

    name: str
    model: str
    settings: tuple[str, ...]
    contexts: tuple[int, ...]
    corpora: tuple[str, ...]
    documents: int
    seed: int
    grid: dict[str, Any]
    threads: int
    timeout: float

    def request(self) -> MeasureRequest:
        """The measurement that this run is."""
        g = self.grid
        return MeasureRequest(
            model=Path(self.model),
            settings=tuple(parse(s) for s in self.settings),
            contexts=self.contexts,
            categories=tuple(g["categories"]) or None,
            text=tuple(Path(p) for p in g["text"]),
            jsonl=Path(g["jsonl"]) if g["jsonl"] else None,
            documents=self.documents or None,
            draw=self.seed,
            engine=g["engine"], device=g["device"], via=g["via"], weights=g["weights"],
            framing=g["framing"], score_from=g["score_from"], split_kv=g["split_kv"],
            thresholds=Path(g["thresholds"]) if g["thresholds"] else None,
            threads=self.threads, timeout=self.timeout, command=self.command(),
        )  # fmt: skip

    def command(self) -> str:
        """The `nybble measure` command that makes the same run; paths without folders."""
        g, words = self.grid, ["nybble", "measure", Path(self.model).name]
        words += ["--kv", ",".join(self.settings), "--context", ",".join(map(str, self.contexts))]
        if g["categories"]:
            words += ["--categories", ",".join(g["categories"])]
        words += [w for t in g["text"] for w in ("--text", Path(t).name)]
        for option, value, usual in (
            ("--jsonl", Path(g["jsonl"]).name if g["jsonl"] else "", ""),
            ("--documents", self.documents, 0), ("--draw", self.seed, 0),
            ("--engine", g["engine"], "auto"), ("--device", g["device"], "auto"),
            ("--via", g["via"], "prefill"), ("--weights", g["weights"], "f16"),
            ("--framing", g["framing"], "auto"), ("--score-from", g["score_from"], 0.5),
        ):  # fmt: skip
            if value != usual:
                words += [option, str(value)]
        return shlex.join([*words, *(["--split-kv"] if g["split_kv"] else [])])


@dataclass(frozen=True)
class Group:
    """One context length and one corpus of a run under every setting.

    Attributes:
        run: whose.
        context: tokens.
        corpus: category.
        key: hash of all that decides its numbers but the engine's build, which the names of its
            cells hold. The other corpora are part of it: they decide which documents the floor
            and the identity are scored on.
    """

    run: Run
    context: int
    corpus: str

    @property
    def key(self) -> str:
        """Sixteen hex digits."""
        return content_key([self.run.name, self.context, self.corpus, self.run.documents,
                            self.run.corpora, sorted(self.run.settings)])  # fmt: skip

    @property
    def marker(self) -> str:
        """Path in the place of the record that it leaves."""
        return f"runs/{self.run.name}/groups/{self.key}.json"

    def cells(self) -> Iterator[tuple[str, str]]:
        """Setting and key of each cell."""
        for setting in self.run.settings:
            yield setting, content_key([self.run.name, self.context, self.corpus,
                                        self.run.documents, setting])  # fmt: skip


def runs_of(spec: Spec, threads: int) -> list[Run]:
    """Every run of a sweep, models in the order of the file.

    Args:
        spec: the sweep.
        threads: of each worker.

    Raises:
        NybbleError: what `measure` would refuse, or two grids that would share a folder.
    """
    found: dict[str, Run] = {}
    for grid in spec.grids:
        for model in grid.model:
            for seed in grid.seeds:
                run = _run(grid, model, seed, threads, spec.running.timeout)
                if run.name in found:
                    raise NybbleError(
                        "two grids measure one model alike, so they would share a folder",
                        seen=f"{model}, {run.name}",
                        hint='put them into one grid, or give one of them name = "..."',
                    )
                found[run.name] = run
    return list(found.values())


def groups_of(run: Run) -> list[Group]:
    """All groups of a run, short contexts first."""
    return [Group(run, c, corpus) for c in sorted(run.contexts) for corpus in run.corpora]


def _run(grid: Grid, model: str, seed: int, threads: int, timeout: float) -> Run:
    path = str(demo_model(cache_dir())) if model == DEMO else model
    local = Path(path)
    if local.exists():
        path = str(local.resolve())
    settings = tuple(map(str, grid.settings))
    kept = asdict(grid)
    for name in ("model", "kv", "k", "v", "rotation", "context", "documents", "seeds", "name"):
        del kept[name]
    for name in ("jsonl", "thresholds"):
        kept[name] = str(Path(kept[name]).resolve()) if kept[name] else ""
    kept["text"] = [str(Path(t).resolve()) for t in grid.text]
    kept["categories"] = list(grid.categories)
    run = Run(
        _name(grid, path, seed, kept), path, settings, tuple(dict.fromkeys(grid.context)), (),
        grid.documents, seed, kept, threads, timeout,
    )  # fmt: skip
    corpora = tuple(dict.fromkeys(s.category for s in sources(run.request())))
    return Run(**{**vars(run), "corpora": corpora})


def _name(grid: Grid, model: str, seed: int, kept: dict[str, Any]) -> str:
    """Of the run's folder: what it is in front, a hash of the protocol behind."""
    path = Path(model)
    protocol = {k: v for k, v in kept.items() if k not in ("categories", "thresholds", "device")}
    protocol["text"] = [Path(t).name for t in kept["text"]]
    protocol["jsonl"] = Path(kept["jsonl"]).name if kept["jsonl"] else ""
    # The same file in another folder, or on another machine, is the same model.
    identity = [path.name, _sampled(path)] if path.exists() else [model]
    key = content_key([*identity, seed, protocol, grid.name])
    stem = path.stem if path.suffix == ".gguf" else path.name
    readable = "-".join(filter(None, [stem, grid.name, f"seed{seed}" if seed else ""]))
    return re.sub(r"[^A-Za-z0-9._-]+", "-", readable)[:60] + f"-{key[:8]}"


def _sampled(path: Path) -> str:
    """Hash of a model's sizes and of blocks all over its files: other weights show, in no time."""
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".json"))
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name if path.is_dir() else ''}:{size};".encode())
        with file.open("rb") as stream:
            for i in range(_BLOCKS):
                stream.seek(max(0, (size - _BLOCK) * i // (_BLOCKS - 1)))
                digest.update(stream.read(_BLOCK))
    return digest.hexdigest()
