"""`nybble calibrate`: statistics of a model's keys and queries, in a small file beside it."""

from __future__ import annotations

from pathlib import Path

import click

from nybble.cli import console
from nybble.scoring.request import DEVICES

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("model", required=False, type=_PATH)
@click.option("--text", multiple=True, type=_PATH, metavar="FILE...", help="Your UTF-8 text.")
@click.option("--out", type=_PATH, help="The file.  [default: beside the model]")
@click.option("--device", default="auto", show_default=True, help=", ".join(DEVICES) + ".")
@click.option("--fresh", is_flag=True, help="Replace a file that is there.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
def calibrate(
    model: Path | None, text: tuple[Path, ...], out: Path | None, device: str, fresh: bool,
    quiet: bool,
) -> int:  # fmt: skip
    """Take the statistics that nyb4, +mean and +scale need, on up to 4,096 tokens.

    MODEL is a GGUF, a folder with safetensors, or a hub id in the local cache (the demo model
    without one). `nybble measure` does this by itself when a setting needs it.
    """
    from nybble.scoring.calibrate import calibrate as run  # pays for its imports only when used

    with console.BarProgress(quiet) as progress:
        found = run(model, text, out, device, fresh, progress)
    click.echo(f"calibrated on {found.tokens:,} tokens: {found.path}")
    return 0
