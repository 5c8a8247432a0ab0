"""`nybble measure`: what KV settings cost in quality on one model, or on two side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from nybble.cli import console
from nybble.engines.server.http import check_url
from nybble.environment import command_line
from nybble.errors import NybbleError
from nybble.formats import KVSetting, expand, parse, rotations
from nybble.report.files import write_report
from nybble.scoring.corpora import CATEGORIES
from nybble.scoring.measure import PlannedCell, Result, plan_cells
from nybble.scoring.measure import measure as run_measure
from nybble.scoring.request import (
    DEFAULT_CONTEXT,
    DEFAULT_SETTINGS,
    DEFAULT_TOP_K,
    DEVICES,
    ENGINES,
    FRAMINGS,
    SERVED,
    VIAS,
    WEIGHTS,
    MeasureRequest,
)

_PATH = click.Path(path_type=Path)
_EXAMPLES = """\b
Examples:
  nybble measure                                        the demo model, under 4 minutes
  nybble measure model.gguf --kv q8_0/q4_0,q4_0/q4_0
  nybble measure model.gguf --k q8_0,q5_1 --v q4_0 --rotation on,off
  nybble measure model.gguf --context 2048,8192 --documents 8
  nybble measure model.gguf --text notes/*.txt --fail-over 0.02
  nybble measure qat.gguf --against base.gguf --kv q4_0/q4_0
  nybble measure model.gguf --tasks all --context 4096  does it still find, track, call?
  nybble measure model.gguf --generate 256              where do answers part?
  nybble measure MODEL --engine vllm --url f16/f16=http://127.0.0.1:8000 \\
      --url fp8_e4m3/fp8_e4m3=http://127.0.0.1:8001     through running servers
"""
# What --generate has a use for; every other option is refused beside it.
_GENERATE = {
    "model", "generate", "prompts", "prompt_tokens", "kv", "k", "v", "rotation", "categories",
    "text", "jsonl", "weights", "framing", "engine", "device", "calibration", "out", "fresh",
    "dry_run", "threads", "seed", "timeout", "form", "quiet",
}  # fmt: skip


def _integers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    return () if value is None else console.integers(param.opts[0], value)


def _urls(values: tuple[str, ...]) -> tuple[tuple[KVSetting, str], ...]:
    found = []
    for value in values:
        setting, equals, url = value.partition("=")
        if not (equals and setting.strip() and url.strip()):
            raise NybbleError("--url takes a KV setting and an address", seen=value,
                              hint="--url f16/f16=http://127.0.0.1:8000")  # fmt: skip
        found.append((parse(setting), check_url(url)))
    return tuple(found)


@click.command(epilog=_EXAMPLES)
@click.argument("model", required=False, type=_PATH)
@click.option("--against", type=_PATH, help="A second model with the same vocabulary: four cells.")
@click.option("--kv", help=f"Settings K/V, with commas.  [default: {','.join(DEFAULT_SETTINGS)}]")
@click.option("--k", help="K types, crossed with --v.")
@click.option("--v", help="V types, crossed with --k.")
@click.option("--rotation", default="on", show_default=True, help="on, off, or on,off for both.")
@click.option("--split-kv", is_flag=True, help="Also K alone and V alone of every setting.")
@click.option("--by", help="Also every layer or head of each setting alone: layer, head.")
@click.option("--budget", type=float, metavar="BITS",
              help="Spread so many bits over layers and sides, and measure that.")  # fmt: skip
@click.option("--tasks",
              help="Long-context tasks instead of KLD: all, names with commas, or FILE.jsonl.",
              )  # fmt: skip
@click.option("--queries", type=int, default=8, show_default=True,
              help="Questions about one context of --tasks.")  # fmt: skip
@click.option("--generate", type=int, metavar="TOKENS",
              help="Greedy answers of up to so many tokens instead of KLD.")  # fmt: skip
@click.option("--prompts", type=int, default=8, show_default=True, help="Of --generate.")
@click.option("--prompt-tokens", type=int, default=512, show_default=True,
              help="Of each prompt of --generate, at most.")  # fmt: skip
@click.option("--context", callback=_integers, help=f"Tokens.  [default: {DEFAULT_CONTEXT}]")
@click.option("--memory-at", callback=_integers, help="Also state cache bytes at these contexts.")
@click.option("--categories", help=f"Of {', '.join(CATEGORIES)}.  [default: all]")
@click.option("--documents", type=int, help="Documents per category.  [default: 1; own text 8]")
@click.option("--draw", type=int, default=0, show_default=True,
              help="Which documents: 0 the first of a category, 1 the next as many.")  # fmt: skip
@click.option("--text", multiple=True, type=_PATH, metavar="FILE...", help="Your UTF-8 text.")
@click.option("--jsonl", type=_PATH, help="Your conversations or texts, one JSON object a line.")
@click.option("--score-from", type=float, default=0.5, show_default=True,
              help="Fraction of the context that is not scored.")  # fmt: skip
@click.option("--via", default="prefill", show_default=True, help=" or ".join(VIAS) + ".")
@click.option("--weights", default="f16", show_default=True,
              help=f"{', '.join(WEIGHTS)}: what quantized weights are scored as.")  # fmt: skip
@click.option("--engine", default="auto", show_default=True,
              help=f"{', '.join(ENGINES)}: auto is llama.cpp for what it can do.")  # fmt: skip
@click.option(
    "--url",
    "urls",
    multiple=True,
    metavar="SETTING=URL",
    help=f"A running server with this setting ({', '.join(SERVED)}); one is 16-bit.",
)
@click.option("--top-k", type=int, default=DEFAULT_TOP_K, show_default=True,
              help="Tokens of each position that servers are asked for.")  # fmt: skip
@click.option("--device", default="auto", show_default=True,
              help=f"{', '.join(DEVICES)}: where transformers runs.")  # fmt: skip
@click.option("--calibration", type=_PATH, help="Statistics of the model.  [default: beside it]")
@click.option("--framing", default="auto", show_default=True, help=", ".join(FRAMINGS) + ".")
@click.option("--thresholds", type=_PATH, help="TOML file with the limits of the verdict.")
@click.option("--fail-over", type=float, metavar="KLD",
              help="Exit 1 if a setting's mean KLD is above this.")  # fmt: skip
@click.option("--out", type=_PATH, help="Run folder.  [default: one in ./nybble-results]")
@click.option("--fresh", is_flag=True, help="Score again what is there already.")
@click.option("--dry-run", is_flag=True, help="List the cells with bytes and rough time.")
@click.option("--threads", type=int, help="CPU threads.  [default: all usable]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the bootstrap.")
@click.option("--timeout", type=float, default=1800.0, show_default=True,
              help="Seconds of silence after which the engine counts as hung.")  # fmt: skip
@click.option("--json", "form", flag_value="json", help="The whole record on stdout.")
@click.option("--csv", "form", flag_value="csv", help="One line per row on stdout.")
@click.option("--markdown", "form", flag_value="markdown", help="A table to paste on stdout.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
@click.pass_context
def measure(
    ctx: click.Context,
    /,
    kv: str | None,
    k: str | None,
    v: str | None,
    rotation: str,
    context: tuple[int, ...],
    categories: str | None,
    fail_over: float | None,
    dry_run: bool,
    form: str | None,
    quiet: bool,
    urls: tuple[str, ...],
    tasks: str | None,
    queries: int,
    generate: int | None,
    prompts: int,
    prompt_tokens: int,
    **options: Any,
) -> int:
    """Measure what KV settings cost in quality on MODEL.

    MODEL is a GGUF, a folder with safetensors, or a hub id in the local cache; the demo model
    without one. Every setting is compared token by token with a 16-bit cache on the same weights,
    over the full vocabulary: in llama.cpp itself where it has the types, else simulated bit for
    bit in transformers. The same command again continues where it stopped. With --url, running
    servers are scored by the top tokens that they tell: a lower bound, and marked so. --tasks asks
    questions about long contexts, --generate lets the model write; both pair every setting with
    the 16-bit cache.
    """
    modes = rotations(rotation)
    if fail_over is not None and not fail_over >= 0:
        raise NybbleError("--fail-over is a mean KLD in nat", seen=fail_over, allowed="0 or more")
    if urls and (kv, k, v) != (None, None, None):
        raise NybbleError("the settings of --url are measured", seen="--kv, --k or --v with --url",
                          hint="leave them out")  # fmt: skip
    if (kv, k, v) == (None, None, None):
        kv = ",".join(DEFAULT_SETTINGS)
    served = _urls(urls)
    settings = [s for s, _ in served] or expand(kv, k, v, modes)
    _check_kind(ctx, tasks, generate)
    if generate is not None:
        from nybble.cli.measure_generate import run_generate

        kept = {name: value for name, value in options.items() if name in _GENERATE}
        return run_generate(
            dry_run=dry_run, form=form, quiet=quiet, settings=tuple(settings), limit=generate,
            prompts=prompts, prompt_tokens=prompt_tokens, categories=console.names(categories),
            command=command_line(), **kept,
        )  # fmt: skip
    request = MeasureRequest(
        settings=tuple(settings),
        urls=served,
        contexts=context or (DEFAULT_CONTEXT,),
        categories=console.names(categories),
        command=command_line(),
        **options,
    )
    if tasks is not None:
        from nybble.cli.measure_tasks import run_tasks

        return run_tasks(request, tasks, queries, dry_run=dry_run, form=form, quiet=quiet)
    if dry_run:
        _show_plan(plan_cells(request), form)
        return 0
    with console.BarProgress(quiet) as progress:
        result = run_measure(request, progress)
        progress.stage("writing the report")
        report = write_report(result.folder, result.measurement)
    _show(result, report, form)
    return _gate(result, fail_over)


def _check_kind(ctx: click.Context, tasks: str | None, generate: int | None) -> None:
    """Refuse options that the kind of measurement asked for would not look at.

    Raises:
        NybbleError: names the option.
    """
    given = {
        option.name: option.opts[0]
        for option in ctx.command.params
        if option.name and ctx.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
    }
    if tasks is not None and generate is not None:
        raise NybbleError("one kind of measurement at a time", seen="--tasks and --generate",
                          hint="two commands")  # fmt: skip
    if generate is not None:
        barred = set(given) - _GENERATE
    else:
        barred = {"prompts", "prompt_tokens"} & set(given)
    if tasks is None:
        barred |= {"queries"} & set(given)
    else:
        barred |= {"fail_over", "score_from", "via", "top_k", "draw"} & set(given)
    if barred:
        seen = ", ".join(sorted(given[name] for name in barred))
        kind = "--generate" if generate is not None else "--tasks" if tasks else "a measurement"
        raise NybbleError(f"{kind} has no use for this", seen=seen, hint="leave it out")


def _show(result: Result, report: Path, form: str | None) -> None:
    from nybble.report.parts import rich_parts
    from nybble.report.table import csv_text, markdown, rich_cells, rich_table
    from nybble.results.records import to_json

    measurement = result.measurement
    texts = {"json": to_json, "csv": csv_text, "markdown": markdown}
    if form:
        click.echo(texts[form](measurement).rstrip("\n"))
        return
    out = console.out()
    out.print(rich_table(measurement, out.width))
    out.print()
    if two := rich_cells(measurement):
        out.print(two)
        out.print()
    for found in rich_parts(measurement):
        out.print(found)
        out.print()
    out.print(measurement.recommendation, style="bold", markup=False, highlight=False)
    for warning in measurement.warnings:
        out.print(f"note: {warning}", markup=False, highlight=False)
    click.echo(f"\nreport: {report}\nrows:   {result.folder / 'rows'}")


def _gate(result: Result, fail_over: float | None) -> int:
    code = 0
    for row in result.failed:
        click.echo(f"failed: {row.setting} at context {row.context:,}: {row.error}", err=True)
        code = 1
    if fail_over is None:
        return code
    for row in result.measurement.rows:
        if row.role != "candidate" or row.status != "done" or row.model != row.reference:
            continue
        kld = row.metrics["mean_kld"]
        if not kld.value <= fail_over:
            click.echo(
                f"gate: {row.setting} at context {row.context:,} has mean KLD {kld.value:.4g}, "
                f"over the limit of {fail_over:g}",
                err=True,
            )
            code = 1
    return code


def _show_plan(cells: list[PlannedCell], form: str | None) -> None:
    console.planned(cells, form, "cells to score", {
        "KV type": lambda c: str(c.setting),
        "role": lambda c: str(c.role),
        "context": lambda c: f"{c.context:,}",
        "chunks": lambda c: str(c.chunks),
        "bits": lambda c: f"{c.bits:g}",
        "B/token": lambda c: f"{c.bytes_per_token:,.0f}",
        "cache": lambda c: f"{c.cache_bytes / 2**20:.1f} MiB",
    })  # fmt: skip
