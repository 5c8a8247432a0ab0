"""`nybble engines`: what each engine's KV cache takes, and what works for a model on a card."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from nybble.cli import console

_PATH = click.Path(path_type=Path)
_EXAMPLES = """\b
Examples:
  nybble engines
  nybble engines vllm --model gemma-4-31b --gpu rtx-4090
  nybble engines llama.cpp --model model.gguf --gpu rtx-3090
  nybble engines --probe
  nybble engines --probe --python /opt/vllm/bin/python
"""


@click.command(epilog=_EXAMPLES)
@click.argument("name", required=False)
@click.option("--model", help="A GGUF, a folder, or a known name: what works with it.")
@click.option("--file", help="Which published file of a known model.")
@click.option("--gpu", metavar="CARD", help="What works on it.")
@click.option("--engine-version", metavar="VERSION", help="Of the engine.  [default: newest read]")
@click.option("--probe", is_flag=True, help="Look at what is installed here; exit code 1 on drift.")
@click.option("--python", "pythons", multiple=True, type=_PATH, metavar="PROGRAM",
              help="With --probe: an interpreter of another environment to look into.")  # fmt: skip
@click.option("--json", "form", flag_value="json", help="Everything on stdout.")
def engines(
    name: str | None,
    model: str | None,
    file: str | None,
    gpu: str | None,
    engine_version: str | None,
    probe: bool,
    pythons: tuple[Path, ...],
    form: str | None,
) -> int:
    """Print what engines' KV caches take: the matrix, or engine NAME in full.

    With --model or --gpu each value says whether it works there, or why not.
    """
    if probe:
        return _probe(name, pythons, form)
    from nybble.engines.known import registry
    from nybble.errors import NybbleError

    if name is None:
        if model or gpu or engine_version:
            raise NybbleError("a model or card is held against one engine", seen="no engine",
                              allowed=registry.NAMES, hint="nybble engines vllm --model "
                              f"{model or 'MODEL'}")  # fmt: skip
        _all(form)
    else:
        _one(name, model, file, gpu, engine_version, form)
    return 0


def _all(form: str | None) -> None:
    from nybble.engines.known import registry
    from nybble.report.engines_table import matrix
    from nybble.serving.matrix import engine_line

    lines = [engine_line(engine) for engine in registry.engines()]
    if form == "json":
        _json([dataclasses.asdict(line) for line in lines])
        return
    console.out().print(matrix(lines))


def _one(
    name: str, model: str | None, file: str | None, gpu: str | None, version: str | None,
    form: str | None,
) -> None:  # fmt: skip
    from nybble.engines.known.registry import engine as known_engine
    from nybble.models.found import find
    from nybble.planning.request import CardChoice
    from nybble.planning.seats import cards_of
    from nybble.report.engines_table import choices
    from nybble.serving.matrix import choice_lines, notes

    engine = known_engine(name)
    found = find(model, file) if model else None
    seats = cards_of(CardChoice(name=gpu)) if gpu else None
    lines = choice_lines(engine, found, seats, version)
    told = notes(engine, found, seats, version)
    if form == "json":
        _json({"engine": engine.name, "version": version or engine.version,
               "read_on": engine.read_on, "choices": [dataclasses.asdict(x) for x in lines],
               "notes": told, "sources": engine.sources})  # fmt: skip
        return
    out = console.out()
    where = " on ".join(text for text in (found.geometry.name if found else "",
                                          seats.card.name if seats else "") if text)  # fmt: skip
    head = f"{engine.name} {version or engine.version}" + (f": {where}" if where else "")
    out.print(f"{head}  ({engine.flags}; read {engine.read_on})", style="bold", markup=False,
              highlight=False)  # fmt: skip
    out.print(choices(lines))
    for text in told:
        out.print(f"note: {text}", markup=False, highlight=False)


def _probe(name: str | None, pythons: tuple[Path, ...], form: str | None) -> int:
    from nybble.engines.known import registry
    from nybble.engines.known.probe import probe as look
    from nybble.report.engines_table import probed
    from nybble.results.engines import ProbedLine

    if name is not None:
        registry.engine(name)
    found = [
        ProbedLine(p.engine, p.installed, p.read, p.found, p.missing, p.gone, str(p.where),
                   p.note or "", p.drifted)
        for p in look(pythons) if name is None or p.engine == name
    ]  # fmt: skip
    if form == "json":
        _json([dataclasses.asdict(p) for p in found])
    else:
        console.out().print(probed(found))
    return 1 if any(p.drifted for p in found) else 0


def _json(value: Any) -> None:
    import json

    click.echo(json.dumps(value, indent=1, default=str))
