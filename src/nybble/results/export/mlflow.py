"""Cells as runs of MLflow, on a tracking server or in a folder.

One MLflow run a cell. Exporting again adds what is new, replaces what has other numbers now, and
leaves the rest. mlflow-skinny, which the extra installs, speaks to a server and to a folder; a
database address (sqlite:///...) needs the whole `mlflow`.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator, Sequence
from typing import Any

from nybble.errors import NybbleError
from nybble.results.base.cell import Cell
from nybble.results.base.refresh import Progress
from nybble.results.export.target import (
    Exported,
    cell_key,
    environment,
    load,
    numbers,
    parameters,
    place_key,
)

EXPERIMENT = "nybble"
FOLDER = "mlruns"  # where neither --tracking-uri nor MLFLOW_TRACKING_URI is given
_PLACE, _CELL = "nybble.place", "nybble.cell"  # tags
_LONGEST = 500  # characters of a tag or parameter
_VARIABLES = {
    "MLFLOW_ALLOW_FILE_STORE": "true",  # MLflow 3 refuses folders without it
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # its own seven take minutes to say "not there"
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def export_mlflow(
    cells: Sequence[Cell],
    tracking_uri: str | None,
    progress: Progress,
    experiment: str = EXPERIMENT,
) -> Exported:
    """Export cells.

    Args:
        cells: of a base.
        tracking_uri: address of a server, or a folder; None for MLFLOW_TRACKING_URI, else
            `FOLDER`.
        progress: told of cells.
        experiment: name of the MLflow experiment, made if missing.

    Raises:
        MissingExtraError: mlflow is not installed.
        NybbleError: MLflow refuses, or its server is not there.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or FOLDER
    with environment(_VARIABLES):
        mlflow = load("mlflow", "mlflow")
        try:
            client = mlflow.MlflowClient(tracking_uri=uri)
            return _export(client, cells, uri, progress, experiment)
        except (mlflow.exceptions.MlflowException, OSError) as error:
            hint = "--tracking-uri http://HOST:5000, or a folder"
            if uri.split(":")[0] in ("sqlite", "postgresql", "mysql", "mssql"):
                hint += "; a database needs pip install mlflow"
            raise NybbleError("MLflow refused the export", seen=f"{uri}: {_line(error)}",
                              hint=hint) from error  # fmt: skip


def _export(
    client: Any, cells: Sequence[Cell], uri: str, progress: Progress, experiment: str
) -> Exported:
    found = client.get_experiment_by_name(experiment)
    number = found.experiment_id if found else client.create_experiment(experiment)
    known = {place: (run, key) for run, place, key in _known(client, number)}
    new = kept = 0
    progress.begin(f"exporting {len(cells):,} cells", len(cells))
    for cell in cells:
        run, key = known.get(place_key(cell), ("", ""))
        if key == cell_key(cell):
            kept += 1
        else:
            _write(client, number, cell)
            if run:  # parameters of an MLflow run cannot be changed
                client.delete_run(run)
            new += 1
        progress.advance(1)
    show = f"MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri {uri}"
    hint = "" if "://" in uri else f"pip install mlflow; {show}"
    return Exported(new, kept, f"experiment {experiment} in {uri}", hint)


def _known(client: Any, experiment: str) -> Iterator[tuple[str, str, str]]:
    """Id, place and key of finished exports; one that was cut off has no key and is made again."""
    token = None
    while True:
        page = client.search_runs([experiment], max_results=1000, page_token=token)
        for run in page:
            if _PLACE in run.data.tags:
                yield run.info.run_id, run.data.tags[_PLACE], run.data.tags.get(_CELL, "")
        token = page.token
        if not token:
            return


def _write(client: Any, experiment: str, cell: Cell) -> None:
    from mlflow.entities import Metric, Param, RunTag

    begun = _milliseconds(cell.created)
    tags = {_PLACE: place_key(cell), "nybble.run": cell.run, "nybble.command": cell.command,
            "verdict": cell.verdict, "reason": cell.reason, "error": cell.error}  # fmt: skip
    run = client.create_run(
        experiment, start_time=begun, tags={k: v[:_LONGEST] for k, v in tags.items() if v},
        run_name=f"{cell.model} {cell.setting} {cell.context}"[:_LONGEST],
    )  # fmt: skip
    client.log_batch(
        run.info.run_id,
        metrics=[Metric(name, value, begun, 0) for name, value in numbers(cell).items()],
        params=[Param(name, text[:_LONGEST]) for name, text in parameters(cell).items()],
        tags=[RunTag(_CELL, cell_key(cell))],
    )
    status = "FAILED" if cell.status == "failed" else "FINISHED"
    client.set_terminated(run.info.run_id, status=status, end_time=begun)


def _milliseconds(created: str) -> int:
    try:
        return int(datetime.datetime.fromisoformat(created).timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        return 0


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
