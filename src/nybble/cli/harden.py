"""`nybble harden`: a copy of a model that survives a 4-bit cache, verified before it is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from nybble.cli import console
from nybble.environment import command_line
from nybble.errors import NybbleError
from nybble.formats import expand
from nybble.hardening.train.request import LOGS, PRECISIONS, SCOPES, STORED, TrainRequest
from nybble.scoring.corpora import CATEGORIES
from nybble.scoring.request import DEVICES, WEIGHTS

if TYPE_CHECKING:
    from nybble.hardening.harden import HardenRequest

_PATH = click.Path(path_type=Path)
_EXAMPLES = """\b
Examples:
  nybble harden model.gguf -o hardened.gguf              minutes, any engine reads it
  nybble harden model.gguf -o hardened.gguf --report before-after.html
  nybble harden model.gguf -o hardened.gguf --text mine/*.txt --kv q4_0/q4_0
  nybble harden model.gguf -o trained.gguf --train --steps 500 --precision bf16
  accelerate launch -m nybble harden folder -o out --train --scope all
"""
_F = TypeVar("_F", bound=Callable[..., Any])

# In the order of --help.
_TRAINING = (
    click.option("--scope", default="kv", show_default=True, help=", ".join(SCOPES) + "."),
    click.option("--lora", type=int, default=0, metavar="RANK",
                 help="Train updates of this rank instead of whole matrices."),
    click.option("--steps", type=int, default=200, show_default=True, help="Optimizer steps."),
    click.option("--batch", type=int, default=4, show_default=True, help="Texts of a pass."),
    click.option("--accumulate", type=int, default=1, show_default=True, help="Passes of a step."),
    click.option("--context", type=int, default=1024, show_default=True,
                 help="Tokens of a text; more than the model's sliding window."),
    click.option("--shares", metavar="N,N...", help="How often each of --kv is drawn."),
    click.option("--lr", multiple=True, metavar="GROUP=RATE",
                 help="Peak learning rate of scales, norms, matrices, experts or 'low rank'."),
    click.option("--stored", metavar="TYPE",
                 help=f"Train the weights as stored in this too: {', '.join(STORED)}."),
    click.option("--eval-every", type=int, default=20, show_default=True,
                 help="Steps between two looks at the held-out text."),
    click.option("--patience", type=int, default=5, show_default=True,
                 help="Looks without 1 % gain before it stops; 0 for never."),
    click.option("--precision", default="auto", show_default=True,
                 help=", ".join(PRECISIONS) + ": auto is bf16 on a GPU."),
    click.option("--log", default="csv", show_default=True, help=" or ".join(LOGS) + "."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of every draw."),
    click.option("--run", type=_PATH,
                 help="Folder of checkpoints and logs; run again to go on.  [default: OUT.train]"),
    click.option("--restart", is_flag=True,
                 help="Train from the start, without the checkpoints that are there."),
)  # fmt: skip


_GROUPS = ("scales", "norms", "matrices", "experts", "low rank")  # RATES of train/parameters.py
_NAMES = ("scope", "lora", "steps", "batch", "accumulate", "context", "shares", "lr", "stored",
          "eval_every", "patience", "precision", "log", "seed", "run", "restart")  # fmt: skip


def _training(command: _F) -> _F:
    for option in reversed(_TRAINING):
        command = option(command)
    return command


def _numbers(text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise NybbleError(
            "--shares takes a number for each of --kv, with commas between", seen=text,
            hint="--shares 3,1",
        ) from error  # fmt: skip


def _rates(texts: tuple[str, ...]) -> tuple[tuple[str, float], ...]:
    found = []
    for text in texts:
        name, _, rate = (part.strip() for part in text.partition("="))
        try:
            if name not in _GROUPS:
                raise ValueError(name)
            found.append((name, float(rate)))
        except ValueError as error:
            raise NybbleError(
                "--lr takes a group and its rate", seen=text,
                allowed=f"GROUP=RATE, GROUP one of {', '.join(_GROUPS)}",
                hint="--lr matrices=1e-5",
            ) from error  # fmt: skip
    return tuple(found)


def _refuse_without_train(context: click.Context) -> None:
    for name in _NAMES:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = f"--{name.replace('_', '-')}"
            raise NybbleError(f"{option} is about training", seen=f"{option} without --train",
                              hint=f"--train {option} ...")  # fmt: skip


@click.command(epilog=_EXAMPLES)
@click.argument("model", required=False, type=_PATH)
@click.option("--out", "-o", type=_PATH, required=True, help="The GGUF or folder to make.")
@click.option("--kv", default="q4_0/q4_0,q8_0/q8_0", show_default=True,
              help="KV settings that must get better.")  # fmt: skip
@click.option("--text", multiple=True, type=_PATH, metavar="FILE...",
              help="Calibrate (and train) on these.")  # fmt: skip
@click.option("--tokens", type=int, default=2048, show_default=True, help="To calibrate on.")
@click.option("--statistics", default="auto", show_default=True,
              help="auto, llama.cpp, transformers: what shows keys and queries.")  # fmt: skip
@click.option("--train", is_flag=True, help="Go on from the fold by training.")
@_training
@click.option("--weights", default="f16", show_default=True,
              help=", ".join(WEIGHTS) + ": what verification scores on.")  # fmt: skip
@click.option("--documents", type=int, default=1, show_default=True,
              help="Of each category, to verify on.")  # fmt: skip
@click.option("--categories", help=f"Of {', '.join(CATEGORIES)}.  [default: all]")
@click.option("--report", type=_PATH, help="Write before and after as one HTML file.")
@click.option("--again", is_flag=True, help="Harden a model that already is.")
@click.option("--device", default="auto", show_default=True, help=", ".join(DEVICES) + ".")
@click.option("--threads", type=int, help="CPU threads.  [default: all cores]")
@click.option("--fresh", is_flag=True, help="Replace an output that is there.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
@click.pass_context
def harden(
    context: click.Context, /, model: Path | None, out: Path, kv: str, categories: str | None,
    report: Path | None, train: bool, quiet: bool, **options: Any,
) -> int:  # fmt: skip
    """Change a model so that a quantized KV cache hurts it less, and prove it.

    MODEL is a GGUF, a folder with safetensors, or a hub id in the local cache (the demo model
    without one). A scale is folded into queries and keys, which leaves the 16-bit output as it
    is; --train goes on from there. The copy is measured on held-out text before it gets its name,
    and not kept unless every setting of --kv got better.
    """
    from nybble.hardening.harden import HardenRequest  # pays for its imports only when used
    from nybble.hardening.harden import harden as fold
    from nybble.hardening.train.packages import need
    from nybble.report.hardened import hardened_html, rich_hardened

    training = {name: options.pop(name) for name in _NAMES}
    settings = tuple(expand(kv, None, None))
    request = HardenRequest(
        out=out,
        model=model,
        settings=settings,
        categories=console.names(categories),
        by="layer" if report else None,
        command=command_line(),
        **options,
    )
    with console.BarProgress(quiet) as progress:
        if train:
            wanted = _train_request(request, training)
            need(wanted, gguf=True, weights=wanted.stored is not None)
            from nybble.hardening.train.run import harden_by_training

            found = harden_by_training(request, wanted, progress)
        else:
            _refuse_without_train(context)
            found = fold(request, progress)
    if found is None:  # not the main process of a distributed run
        return 0
    shown = console.out()
    for part in rich_hardened(found):
        shown.print(part, markup=False, highlight=False)
    if report is not None:
        from nybble.results.store import write_text

        click.echo(f"report: {write_text(report, hardened_html(found))}")
    click.echo(f"hardened: {out}")
    return 0


def _train_request(request: HardenRequest, given: dict[str, Any]) -> TrainRequest:
    run, shares, rates, restart = (given.pop(n) for n in ("run", "shares", "lr", "restart"))
    return TrainRequest(
        out=run or request.out.with_name(f"{request.out.name}.train"),
        settings=tuple(map(str, request.settings)), weights=_numbers(shares), lr=_rates(rates),
        patience=given.pop("patience") or None, threads=request.threads, device=request.device,
        resume=not restart, positions=max(1, min(TrainRequest.positions, given["context"])),
        **given,
    )  # fmt: skip
