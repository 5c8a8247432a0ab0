"""`nybble results export`: a result base as CSV, Markdown, or runs of MLflow or W&B."""

from __future__ import annotations

from pathlib import Path

import click

from nybble.cli import console
from nybble.cli.results_query import base_option, report_damage
from nybble.errors import NybbleError
from nybble.results.base.base import Base, open_base

TARGETS = ("csv", "markdown", "mlflow", "wandb")
_ONLY = {"tracking_uri": "mlflow", "experiment": "mlflow", "project": "wandb"}
_EXAMPLES = """\b
Examples:
  nybble results export --to csv --out cells.csv
  nybble results export --to mlflow --tracking-uri http://localhost:5000
  nybble results export --to wandb --project kv-cache
"""


@click.command(epilog=_EXAMPLES)
@click.option("--to", "target", type=click.Choice(TARGETS), required=True,
              help="csv: every cell with every metric.")  # fmt: skip
@base_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="File for csv and markdown, folder for wandb.  [default: stdout, .]",
)
@click.option(
    "--tracking-uri",
    metavar="ADDRESS",
    help="Server or folder.  [default: MLFLOW_TRACKING_URI, else ./mlruns]",
)
@click.option("--experiment", help="Of MLflow.  [default: nybble]")
@click.option("--project", help="Of Weights & Biases.  [default: nybble]")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def export(
    target: str,
    base: Path,
    out: Path | None,
    tracking_uri: str | None,
    experiment: str | None,
    project: str | None,
    quiet: bool,
) -> int:
    """Write the cells of a result base where others can use them.

    MLflow gets a run for each cell, Weights & Biases one for each run folder with a table of its
    cells; doing it again duplicates nothing. Both are extras of the installation. Numbers of other
    harnesses are not exported.
    """
    given = {"tracking_uri": tracking_uri, "experiment": experiment, "project": project}
    for name, value in given.items():
        if value is not None and target != _ONLY[name]:
            raise NybbleError(f"--{name.replace('_', '-')} is of --to {_ONLY[name]}",
                              seen=f"--to {target}", hint=f"--to {_ONLY[name]}")  # fmt: skip
    if out is not None and target == "mlflow":
        raise NybbleError("MLflow writes to its tracking address", seen=f"--out {out}",
                          hint=f"--tracking-uri {out}")  # fmt: skip
    with console.BarProgress(quiet) as progress, open_base(base, progress) as opened:
        if target in ("csv", "markdown"):
            _text(opened, target, out)
        else:
            _service(opened, target, out, given, progress)
        return report_damage(opened)


def _text(base: Base, target: str, out: Path | None) -> None:
    from nybble.report import cells_table as table
    from nybble.results.store import write_text

    if target == "csv":
        text = table.csv_text(base.cells)
    else:
        text = table.markdown(base.candidates())
    if out is None:
        click.echo(text.rstrip("\n"))
    else:
        click.echo(f"written: {write_text(out, text)}", err=True)


def _service(
    base: Base, target: str, out: Path | None, given: dict[str, str | None],
    progress: console.BarProgress,
) -> None:  # fmt: skip
    from nybble.results.export import mlflow, wandb

    if target == "mlflow":
        done = mlflow.export_mlflow(base.cells, given["tracking_uri"], progress,
                                    given["experiment"] or mlflow.EXPERIMENT)  # fmt: skip
    else:
        done = wandb.export_wandb(base.cells, given["project"] or wandb.PROJECT,
                                  out or Path("."), progress)  # fmt: skip
    click.echo(f"{done.new:,} new, {done.kept:,} there already: {done.where}")
    if done.hint:
        click.echo(f"next: {done.hint}", err=True)
