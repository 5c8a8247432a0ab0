"""`nybble sweep`: a grid of models, KV settings, contexts and text, here or on a cluster."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nybble.cli import console
from nybble.errors import NybbleError
from nybble.sweep import spec as specs
from nybble.sweep.drive import DEFAULT_PLACE, Sweep

if TYPE_CHECKING:
    from nybble.results.sweeps import PlannedGroup, SweepResult
    from nybble.sweep.executor import Executor

_PATH = click.Path(path_type=Path)
_NAMED = 2  # cells that a line about a failure names
_EXAMPLES = """\b
Examples:
  nybble sweep sweep.toml --dry-run                     cells, memory, time and cost
  nybble sweep sweep.toml                               here; again: what is missing
  nybble sweep sweep.toml --ray                         on the Ray cluster this is part of
  nybble sweep sweep.toml --ray ray://head:10001 --place s3://bucket/first
  nybble sweep --model a.gguf,b.gguf --kv q8_0/q8_0,q4_0/q4_0 --context 1024,4096
  nybble sweep sweep.toml --retry-failed                the failed cells alone

\b
sweep.toml:
  place = "sweeps/first"
  [run]
  workers = 2                     # threads, memory_gib, gpus, attempts, price_per_hour
  [[grid]]
  model = ["a.gguf", "b.gguf"]    # demo is the demo model
  kv = ["q8_0/q8_0", "q8_0/q4_0", "q4_0/q4_0"]
  context = [1024, 4096]
  categories = ["prose", "code"]  # text, jsonl, documents, seeds, engine, via, weights, ...
"""
_GRID = {"model": "--model", "kv": "--kv", "k": "--k", "v": "--v", "context": "--context",
         "categories": "--categories", "documents": "--documents", "seeds": "--seeds",
         "engine": "--engine"}  # fmt: skip


@click.command(epilog=_EXAMPLES)
@click.argument("file", required=False, type=_PATH)
@click.option("--model", help="Models, with commas, in place of a file.")
@click.option("--kv", help="Settings K/V, with commas.")
@click.option("--k", help="K types, crossed with --v.")
@click.option("--v", help="V types, crossed with --k.")
@click.option("--context", help="Tokens, with commas.")
@click.option("--categories", help="Of text, with commas.")
@click.option("--documents", type=int, help="Of each category.")
@click.option("--seeds", help="Draws of documents, with commas.")
@click.option("--engine", help="auto, llama.cpp or transformers.")
@click.option("--place", metavar="FOLDER|ADDRESS",
              help=f"Where results go, for all to see.  [default: {DEFAULT_PLACE}]")  # fmt: skip
@click.option("--ray", is_flag=False, flag_value="auto", metavar="[ADDRESS]",
              help="On Ray: this node's cluster, or the one at ADDRESS.")  # fmt: skip
@click.option("--workers", type=int, help="Groups at once on this machine.")
@click.option("--threads", type=int, help="CPU threads of each worker.")
@click.option("--retry-failed", is_flag=True, help="Also what failed before.")
@click.option("--dry-run", is_flag=True, help="List groups with memory, rough time and cost.")
@click.option("--json", "form", flag_value="json", help="The whole record on stdout.")
@click.option("--csv", "form", flag_value="csv", help="With --dry-run: one line per group.")
@click.option("--markdown", "form", flag_value="markdown", help="With --dry-run: a table to paste.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
def sweep(
    file: Path | None, place: str | None, ray: str | None, workers: int | None,
    threads: int | None, retry_failed: bool, dry_run: bool, form: str | None, quiet: bool,
    **grid: Any,
) -> int:  # fmt: skip
    """Measure a grid of models, KV settings, contexts and text.

    Every model is loaded once by a worker and every 16-bit reference is computed once. Results go
    to one place, cell by cell; the same command again goes on where it stopped, with any number of
    workers, here or on Ray, to the same results. The place is a result base: nybble results and
    nybble report read it.
    """
    if form not in (None, "json") and not dry_run:
        raise NybbleError("a sweep's own record is JSON", seen=f"--{form}",
                          hint="--json, or nybble results query for its numbers")  # fmt: skip
    spec = _spec(file, place, workers, threads, grid)
    made = Sweep(spec, retry_failed)
    executor = _executor(ray, made)
    try:
        if dry_run:
            _show_plan(made.planned(executor.fits), form)
            return 0
        with console.BarProgress(quiet) as progress:
            result = made.run(executor, progress)
            _reports(result, progress)
    finally:
        executor.close()
    return _show(result, form)


def _spec(
    file: Path | None, place: str | None, workers: int | None, threads: int | None,
    grid: dict[str, Any],
) -> specs.Spec:  # fmt: skip
    given = {k: v for k, v in grid.items() if v is not None}
    if file is not None and given:
        raise NybbleError("a sweep comes from a file or from options", hint="leave one out",
                          seen=f"{file} and {', '.join(_GRID[k] for k in given)}")  # fmt: skip
    if file is not None:
        spec = specs.read(file)
    elif "model" in given:
        table: dict[str, Any] = {
            k: v if k in ("documents", "engine") else _list(k, v) for k, v in given.items()
        }
        spec = specs.Spec((specs.Grid(**table),))
    else:
        raise NybbleError("a sweep needs a file or models", hint="nybble sweep sweep.toml, or "
                          "--model model.gguf; nybble sweep --help shows a file")  # fmt: skip
    running = spec.running
    if workers is not None:
        running = dataclasses.replace(running, workers=workers)
    if threads is not None:
        running = dataclasses.replace(running, threads=threads)
    return dataclasses.replace(spec, place=place or spec.place, running=running)


def _list(name: str, value: str) -> tuple[Any, ...]:
    if name in ("context", "seeds"):
        return console.integers(f"--{name}", value)
    return console.names(value) or ()


def _executor(ray: str | None, made: Sweep) -> Executor:
    running = made.spec.running
    if ray is not None:
        from nybble.sweep.ray_executor import RayExecutor

        return RayExecutor(ray, attempts=running.attempts)
    from nybble.sweep.local import LocalExecutor

    memory = int(running.memory_gib * 2**30)
    return LocalExecutor(made.workers, memory, running.attempts, running.timeout)


def _reports(result: SweepResult, progress: console.BarProgress) -> None:
    """The report of every run, beside its summary, where the place is a folder here."""
    if "://" in result.place:
        return
    from nybble.report.files import write_report
    from nybble.results.records import from_json

    for name in result.runs:
        folder = Path(result.place) / "runs" / name
        if (folder / "report.html").exists() and name not in result.merged:
            continue
        progress.stage(f"writing the report of {name}")
        text = (folder / "summary.json").read_text(encoding="utf-8")
        write_report(folder, from_json(text))


def _show(result: SweepResult, form: str | None) -> int:
    if form == "json":
        click.echo(json.dumps(result.as_dict(), indent=1))
    else:
        spent = f" ({result.groups} groups in {result.seconds:.0f} s)" if result.groups else ""
        click.echo(
            f"{result.cells:,} cells: {result.scored:,} scored now{spent}, "
            f"{result.found:,} there already, {len(result.failed):,} without numbers\n"
            f"results: {result.place}"
        )
        if "://" not in result.place:
            click.echo(f"next:    nybble results query --base {result.place}")
    for (run, word, error), cells in _by_error(result).items():
        named = ", ".join(cells[:_NAMED]) + (" and more" if len(cells) > _NAMED else "")
        click.echo(f"{word}: {run}: {error} ({len(cells)} cells: {named})", err=True)
    for run, error in result.unmerged.items():
        click.echo(f"not merged: {run}: {error.splitlines()[0]}", err=True)
    if any(not c.skipped for c in result.failed):
        click.echo("try: the same command with --retry-failed", err=True)
    for name in result.damaged:
        click.echo(f"damaged: {name} could not be read or is not there; "
                   "the same command scores it again", err=True)  # fmt: skip
    return 1 if result.failed or result.unmerged or result.damaged else 0


def _by_error(result: SweepResult) -> dict[tuple[str, str, str], list[str]]:
    """Names of failed cells by run, kind and first line of the error: one mistake, one line."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for cell in result.failed:
        key = (cell.run, "skipped" if cell.skipped else "failed", cell.error.splitlines()[0])
        found.setdefault(key, []).append(f"{cell.setting} on {cell.corpus} at {cell.context:,}")
    return found


def _show_plan(groups: list[PlannedGroup], form: str | None) -> None:
    todo = [g for g in groups if not g.done]
    if not todo and form is None:
        click.echo("every group is finished; nothing was run")
        return
    priced = any(g.cost for g in groups)
    columns = {
        "model": lambda g: Path(g.model).name,
        "text": lambda g: str(g.corpus),
        "context": lambda g: f"{g.context:,}",
        "cells": lambda g: str(g.cells),
        "memory": lambda g: f"{g.memory_bytes / 2**30:.1f} GiB" if g.memory_bytes else "?",
        **({"cost": lambda g: f"{g.cost:.2f}"} if priced else {}),
    }
    console.planned(todo if form is None else groups, form, "groups to score", columns)
    if form is not None:
        return
    cells = sum(g.cells for g in todo)
    click.echo(f"{cells:,} cells in {len(todo)} groups; {len(groups) - len(todo)} are finished; "
               "time is one worker's")  # fmt: skip
    if priced:
        click.echo(f"about {sum(g.cost for g in todo):.2f} at the price of [run]")
    for why in dict.fromkeys(g.skipped for g in todo if g.skipped):
        click.echo(f"skipped: {sum(g.skipped == why for g in todo)} groups: {why}", err=True)
    for note in dict.fromkeys(g.note for g in todo if g.note):
        click.echo(f"note: {note}", err=True)
