"""`nybble plan`: which context fits which card, in which KV setting, at what quality."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nybble.cli import console

if TYPE_CHECKING:
    from nybble.planning.request import PlanRequest
    from nybble.results.plans import Plan

_PATH = click.Path(path_type=Path)
_EXAMPLES = """\b
Examples:
  nybble plan gemma-4-31b-qat --gpu rtx-4090
  nybble plan model.gguf --this-machine --explain
  nybble plan gemma-4-31b-qat --gpu rtx-4090 --context 131072 --users 2
  nybble plan model.gguf --gpu 2xrtx-3090 --max-kld 0.02 --results nybble-results
  nybble plan hf:org/repo/model.gguf --gpu 24GiB@936GBps --engine all
  nybble plan gemma-4-31b-qat --gpu rtx-4090 --picture memory.svg
"""


@click.command(epilog=_EXAMPLES)
@click.argument("model")
@click.option("--gpu", metavar="CARD", help="A card, NxCARD for several, or 24GiB@936GBps.")
@click.option("--this-machine", is_flag=True, help="The cards here, or its memory.")
@click.option("--cards", "count", type=int, help="How many.")
@click.option("--engine", help="Names with commas, or all.  [default: those that load the model]")
@click.option("--kv", help="Settings K/V, with commas.  [default: each engine's own]")
@click.option("--context", type=int, metavar="TOKENS", help="Must fit; picks the KV setting.")
@click.option("--users", type=int, default=1, show_default=True, help="Sequences held at once.")
@click.option("--max-kld", type=float, metavar="KLD", help="Only settings measured within this.")
@click.option("--results", multiple=True, type=_PATH, metavar="FOLDER",
              help="Runs of nybble measure.  [default: ./nybble-results]")  # fmt: skip
@click.option("--file", help="Which published file of a known model, e.g. Q4_K_M.")
@click.option("--split", help="layer or tensor: how cards share it.  [default: the engine's]")
@click.option("--ubatch", type=int, help="Tokens of a micro-batch.  [default: the engine's]")
@click.option("--memory", "memory_gib", type=float, metavar="GIB", help="Of one card.")
@click.option("--bandwidth", "bandwidth_gbs", type=float, metavar="GB/S", help="Of its memory.")
@click.option("--tflops", type=float, help="Its dense FP16 rate.")
@click.option("--reserve", "reserve_gib", type=float, metavar="GIB",
              help="Left free on each card.  [default: 0.5; 4 of shared memory]")  # fmt: skip
@click.option("--explain", is_flag=True, help="Where each byte is, with the formula.")
@click.option("--picture", type=_PATH, metavar="FILE", help="Memory against context, .svg or .png.")
@click.option("--calibrate", is_flag=True, help="Measure speed here first, with MODEL (a GGUF).")
@click.option("--calibration", type=_PATH, metavar="FILE", help="Rates measured before.")
@click.option("--json", "form", flag_value="json", help="The whole record on stdout.")
@click.option("--csv", "form", flag_value="csv", help="One line per row and context on stdout.")
@click.option("--markdown", "form", flag_value="markdown", help="Tables to paste on stdout.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
def plan(
    engine: str | None,
    kv: str | None,
    explain: bool,
    picture: Path | None,
    calibrate: bool,
    form: str | None,
    quiet: bool,
    **options: Any,
) -> int:
    """Plan which context MODEL holds on a card, in every KV type.

    MODEL is a GGUF (local, hf:org/repo/file.gguf or a URL), a folder with config.json, or a known
    name such as gemma-4-31b-qat. Only headers are read. Exit code 1 when it does not fit.
    """
    from nybble.planning.memory.registry import ENGINES
    from nybble.planning.plan import plan as make
    from nybble.planning.request import CardChoice, PlanRequest

    if options["gpu"] is None and not options["this_machine"] and calibrate:
        options["this_machine"] = True
    choice = CardChoice(
        name=options.pop("gpu"),
        here=options.pop("this_machine"),
        **{n: options.pop(n)
           for n in ("count", "memory_gib", "bandwidth_gbs", "tflops", "reserve_gib")},
    )  # fmt: skip
    engines = console.names(engine) or ()
    if engines == ("all",):
        engines = tuple(ENGINES)
    request = PlanRequest(
        cards=choice,
        engines=engines,
        settings=_settings(kv),
        curve=picture is not None,
        brief=form is None and not engines and options["context"] is None,
        **options,
    )
    if calibrate:
        request = _calibrated(request, quiet)
    made = make(request)
    if picture is not None:
        from nybble.report.plan_plots import save_memory

        save_memory(made, picture)
    _show(made, engines, explain, form)
    if picture is not None:
        click.echo(f"picture: {picture}", err=True)
    return _code(made)


def _settings(kv: str | None) -> tuple[Any, ...]:
    if kv is None:
        return ()
    from nybble.formats import expand

    return tuple(expand(kv, None, None))


def _calibrated(request: PlanRequest, quiet: bool) -> PlanRequest:
    """Measure this machine with the model, keep the rates, and plan with them."""
    from dataclasses import replace

    from nybble.environment import cache_dir
    from nybble.planning.measured import calibrate_model, save

    path = request.calibration or cache_dir() / "calibration.json"
    with console.BarProgress(quiet) as progress:
        found = calibrate_model(request, progress.stage)
    save(found, path)
    click.echo(f"rates of this machine: {path} (--calibration uses them again)", err=True)
    return replace(request, calibration=path)


def _show(made: Plan, engines: tuple[str, ...], explain: bool, form: str | None) -> None:
    from nybble.report import plan_table as table

    usable = list(dict.fromkeys(f.engine for f in made.fits if not f.refused))
    # Unasked, one engine in full and the others in a line each.
    shown = [e for e in usable if e in engines] or usable[:1]
    if form == "json":
        import json

        click.echo(json.dumps(made.as_dict(), indent=1))
        return
    if form:
        text = table.csv_text(made) if form == "csv" else table.markdown(made, shown)
        click.echo(text.rstrip("\n"))
        return
    out = console.out()
    out.print(table.heading(made), style="bold", markup=False, highlight=False)
    for engine in shown:
        out.print()
        if len(usable) > 1:
            out.print(engine, style="bold", markup=False, highlight=False)
        out.print(table.rich_table(made, engine))
    if others := table.other_engines(made, shown):
        what = "largest context" if made.card else "bytes"
        out.print(f"\nother engines, {what} by KV type (--engine NAME shows more):",
                  markup=False, highlight=False)  # fmt: skip
        for engine, text in others:
            out.print(f"  {engine}: {text}", markup=False, highlight=False)
    if explain:
        for fit in made.fits:
            if fit.engine in shown and not fit.refused:
                out.print()
                out.print(table.explain(fit, made.sequences))
    chosen = [made.choice.engine] if made.choice is not None and made.choice.engine else []
    said = table.notes(made, list(dict.fromkeys([*shown, *chosen])))
    if engines or explain:
        said += [f"not planned: {text}" for text in table.refusals(made)]
    if said:
        out.print()
    for text in said:
        out.print(f"note: {text}", markup=False, highlight=False)
    if explain:
        for text in made.about:
            out.print(f"model: {text}", markup=False, highlight=False)
        _assumptions(made)
    if made.choice is not None:
        out.print(f"\n{made.choice.why}.", style="bold", markup=False, highlight=False)
        for change in made.choice.changes:
            out.print(f"  or: {change}", markup=False, highlight=False)


def _assumptions(made: Plan) -> None:
    out = console.out()
    if made.assumptions:
        out.print("\nspeeds rest on:", markup=False, highlight=False)
    for a in made.assumptions:
        text = f"  {a.name}: {a.value} {a.unit}".rstrip() + f" ({a.source})"
        out.print(text, markup=False, highlight=False)


def _code(made: Plan) -> int:
    if made.choice is not None:
        return 0 if made.choice.setting else 1
    if made.card is None:
        return 0
    fits = any(f.largest_context for f in made.fits)
    if not fits:
        click.echo(f"{made.model} does not fit: no KV type leaves room for a context", err=True)
    return 0 if fits else 1
