"""Exports to MLflow and Weights & Biases, with the real packages and no network."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nybble.errors import MissingExtraError, NybbleError
from nybble.results.base.base import open_base
from nybble.results.base.cell import Cell
from nybble.results.export.mlflow import export_mlflow
from nybble.results.export.target import cell_key, environment, numbers, parameters, place_key
from nybble.results.export.wandb import export_wandb
from nybble.results.records import Estimate
from run_folders import write_run


class Quiet:
    """No progress."""

    def begin(self, text: str, total: float) -> None: ...
    def advance(self, done: float) -> None: ...


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[Cell]:
    root = tmp_path_factory.mktemp("base")
    for name in ("a", "b"):
        write_run(root / name, settings={"q4_0/q4_0": 0.1}, categories=("code",), tokens=16,
                  guards=False, model=name)  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NYBBLE_CACHE", str(root / ".cache"))
        with open_base(root) as base:
            return base.cells


def changed(cell: Cell) -> Cell:
    return dataclasses.replace(cell, metrics={**cell.metrics, "mean_kld": Estimate(0.5)})


class TestTarget:
    def test_numbers_have_their_intervals(self, cells: list[Cell]) -> None:
        cell = dataclasses.replace(cells[0], metrics={"mean_kld": Estimate(2.0, 1.0, 3.0)})
        found = numbers(cell)
        assert (found["mean_kld"], found["mean_kld_low"], found["mean_kld_high"]) == (2, 1, 3)
        assert found["bits"] == 4.5 and "context" not in found
        assert parameters(cell)["context"] == "1024"

    def test_keys(self, cells: list[Cell]) -> None:
        assert place_key(cells[0]) == place_key(changed(cells[0])) != place_key(cells[1])
        assert cell_key(cells[0]) != cell_key(changed(cells[0]))

    def test_environment_is_put_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NYBBLE_A", "own")
        with environment({"NYBBLE_A": "x", "NYBBLE_B": "y"}):
            assert (os.environ["NYBBLE_A"], os.environ["NYBBLE_B"]) == ("own", "y")
        assert "NYBBLE_B" not in os.environ


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_not_installed(
    cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError) as caught:
        if name == "mlflow":
            export_mlflow(cells, str(tmp_path), Quiet())
        else:
            export_wandb(cells, "p", tmp_path, Quiet())
    assert caught.value.hint == f'pip install "nybble[{name}]"'


class TestMlflow:
    @pytest.fixture
    def client(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        mlflow = pytest.importorskip("mlflow")
        yield mlflow.MlflowClient(tracking_uri=str(tmp_path / "runs"))

    def runs(self, client: Any) -> list[Any]:
        experiment = client.get_experiment_by_name("nybble")
        return list(client.search_runs([experiment.experiment_id]))

    def test_one_run_a_cell(self, client: Any, cells: list[Cell], tmp_path: Path) -> None:
        done = export_mlflow(cells, str(tmp_path / "runs"), Quiet())
        assert (done.new, done.kept) == (2, 0)
        found = {run.data.tags["nybble.run"]: run for run in self.runs(client)}
        assert set(found) == {"a", "b"}
        run, cell = found["a"], cells[0]
        assert run.data.params["setting"] == "q4_0/q4_0" and run.data.params["model"] == "a"
        assert run.data.metrics["mean_kld"] == cell.metrics["mean_kld"].value
        assert run.data.tags["nybble.command"] == cell.command
        assert run.info.status == "FINISHED"

    def test_again_adds_nothing_and_new_numbers_replace(
        self, client: Any, cells: list[Cell], tmp_path: Path
    ) -> None:
        uri = str(tmp_path / "runs")
        export_mlflow(cells, uri, Quiet())
        before = {run.info.run_id for run in self.runs(client)}
        assert export_mlflow(cells, uri, Quiet()).kept == 2
        assert {run.info.run_id for run in self.runs(client)} == before
        done = export_mlflow([changed(cells[0]), cells[1]], uri, Quiet())
        assert (done.new, done.kept) == (1, 1)
        assert len(self.runs(client)) == 2
        assert 0.5 in {run.data.metrics["mean_kld"] for run in self.runs(client)}

    def test_a_failed_cell(self, client: Any, cells: list[Cell], tmp_path: Path) -> None:
        bad = dataclasses.replace(cells[0], status="failed", error="out of memory", metrics={})
        export_mlflow([bad], str(tmp_path / "runs"), Quiet())
        (run,) = self.runs(client)
        assert run.info.status == "FAILED" and run.data.tags["error"] == "out of memory"

    def test_no_server(
        self, client: Any, cells: list[Cell], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(NybbleError, match="MLflow refused"):
            export_mlflow(cells, "http://127.0.0.1:1", Quiet())


class TestWandb:
    def test_a_run_for_each_folder_once(
        self, cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("wandb")
        monkeypatch.setenv("WANDB_MODE", "offline")
        done = export_wandb(cells, "p", tmp_path, Quiet())
        assert (done.new, done.kept) == (2, 0) and done.hint.startswith("wandb sync")
        tables = sorted((tmp_path / "wandb").glob("offline-run-*/files/media/table/*.json"))
        assert len(tables) == 2
        assert all("mean_kld_high" in path.read_text() for path in tables)
        assert export_wandb(cells, "p", tmp_path, Quiet()).kept == 2
        done = export_wandb([changed(cells[0]), cells[1]], "p", tmp_path, Quiet())
        assert (done.new, done.kept) == (1, 1)

    def test_a_folder_that_is_a_file(
        self, cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("wandb")
        monkeypatch.setenv("WANDB_MODE", "offline")
        (tmp_path / "out").write_text("")
        with pytest.raises(NybbleError, match="W&B refused"):
            export_wandb(cells, "p", tmp_path / "out", Quiet())
