"""A sweep from end to end with tiny models, its tasks performed in this process."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import filelock
import pytest
from sweep_runs import Inline, cells, merged, run, write_sweep

from nybble.errors import NybbleError
from nybble.results.records import from_json
from nybble.scoring.measure import measure
from nybble.scoring.request import MeasureRequest
from nybble.sweep import spec as specs
from nybble.sweep import work
from nybble.sweep.drive import Sweep
from nybble.sweep.executor import Listener, Task
from nybble.sweep.grid import Run
from nybble.sweep.local import LocalExecutor

SMALL_CELLS = 4  # one setting, two contexts, two corpora


@pytest.fixture(scope="module")
def done(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, the small sweep's file and its finished place `out`."""
    folder = tmp_path_factory.mktemp("sweep-done")
    shutil.copy(models / "a.gguf", folder)
    result = run(write_sweep(folder, "out"))
    assert (result.cells, result.scored, result.found, result.groups) == (SMALL_CELLS, 4, 0, 4)
    assert result.failed == [] and result.damaged == []
    return folder


@pytest.fixture
def again(done: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it to spoil."""
    shutil.copytree(done, tmp_path / "again")
    yield tmp_path / "again"


def the_run(folder: Path) -> Path:
    (found,) = (folder / "out" / "runs").iterdir()
    return found


def marks(folder: Path) -> list[Path]:
    return sorted(p for p in the_run(folder).glob("groups/*.json") if p.name != "merged.json")


def test_a_run_is_what_measure_would_write(done: Path, tmp_path: Path) -> None:
    (planned,) = Sweep(specs.read(done / "out.toml")).runs
    request = planned.request()
    alone = measure(MeasureRequest(**{**vars(request), "out": tmp_path / "alone"}))
    ours, theirs = the_run(done), alone.folder
    names = sorted(p.name for p in (theirs / "rows").iterdir())
    assert names == sorted(p.name for p in (ours / "rows").iterdir())
    for name in names:
        assert (ours / "rows" / name).read_bytes() == (theirs / "rows" / name).read_bytes()
    record = from_json((ours / "summary.json").read_text())
    assert record.rows == alone.measurement.rows
    assert record.warnings == alone.measurement.warnings
    assert record.protocol == alone.measurement.protocol
    assert record.created == "" and record.timing == {}
    assert record.command.startswith("nybble measure a.gguf --kv q8_0/q4_0 --context 64,96")


def test_a_finished_sweep_does_nothing(done: Path) -> None:
    before, executor = cells(done / "out"), Inline()
    result = run(done / "out.toml", executor)
    assert executor.performed == [] and cells(done / "out") == before
    assert (result.scored, result.found, result.groups) == (0, SMALL_CELLS, 0)


class Shift(Inline):
    """Two workers that take turns, in one process; each keeps its job open, as workers do."""

    workers = 2

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[work.Open | None] = [None, None]

    def run(self, tasks: Sequence[Task], listener: Listener) -> None:
        for i, task in enumerate(tasks):
            work._open = self._kept[i % 2]
            super().run([task], listener)
            self._kept[i % 2] = work._open

    def close(self) -> None:
        for work._open in self._kept:
            work.close()


def test_a_worker_that_merges_sees_what_others_put_behind_an_address(folder: Path) -> None:
    shift = Shift()
    result = run(write_sweep(folder, f"memory://{folder.name}"), shift)
    assert (len(shift.performed), result.damaged, result.scored) == (5, [], 4)
    assert run(write_sweep(folder, f"memory://{folder.name}")).groups == 0


def test_a_wider_sweep_scores_what_is_new(again: Path) -> None:
    before = cells(again / "out")
    executor = Inline()
    result = run(write_sweep(again, "out", kv='["q8_0/q4_0", "q4_0/q4_0"]'), executor)
    after = cells(again / "out")
    assert before.items() <= after.items() and len(after) > len(before)
    assert result.failed == []
    settings = {r.setting for r in from_json((the_run(again) / "summary.json").read_text()).rows}
    assert {"q8_0/q4_0", "q4_0/q4_0"} <= settings


@pytest.mark.slow
def test_categories_in_another_order_have_their_guards(folder: Path) -> None:
    """The floor is scored on every other document, the identity on the first: order decides."""
    run(write_sweep(folder, "out", context="[64]", documents="1"))
    turned = dict(context="[64]", documents="1", categories='["code", "prose"]')
    run(write_sweep(folder, "out", **turned))
    run(write_sweep(folder, "fresh", **turned))
    ours = from_json((the_run(folder) / "summary.json").read_text())
    fresh = from_json(next((folder / "fresh").glob("runs/*/summary.json")).read_text())
    assert ours.rows == fresh.rows


@pytest.mark.slow
def test_other_weights_under_the_same_name_are_scored(
    folder: Path, make_tiny: Callable[..., Path]
) -> None:
    path = write_sweep(folder, "out", context="[64]")
    run(path)
    size = (folder / "a.gguf").stat().st_size
    make_tiny(folder / "a.gguf", seed=9, name="tiny a")
    assert (folder / "a.gguf").stat().st_size == size
    result = run(path)
    assert (result.scored, result.found) == (2, 0)


@pytest.mark.slow
def test_what_never_fits_is_skipped_with_the_reason(folder: Path) -> None:
    result = run(write_sweep(folder, "out"), Inline(refused="it needs 9 GiB, and 1 is there"))
    assert (result.scored, result.groups, len(result.failed)) == (0, 0, SMALL_CELLS)
    assert all(f.skipped and f.error == "it needs 9 GiB, and 1 is there" for f in result.failed)
    record = from_json((the_run(folder) / "summary.json").read_text())
    rows = [r for r in record.rows if r.role == "candidate"]
    assert len(rows) == 2 and all(r.status == "failed" for r in rows)
    assert all("it needs 9 GiB" in (r.error or "") for r in rows)
    # Where there is more memory the same command scores them, without being told.
    assert run(folder / "out.toml").scored == SMALL_CELLS


@pytest.mark.slow
def test_a_missing_and_a_damaged_model_fail_their_own_groups(folder: Path) -> None:
    (folder / "b.gguf").write_bytes((folder / "b.gguf").read_bytes()[:2000])
    path = write_sweep(folder, "out", model='["a.gguf", "b.gguf", "c.gguf"]')
    result = run(path)
    assert result.scored == SMALL_CELLS
    assert {f.run[:2] for f in result.failed} == {"b-", "c-"}
    assert "no such model file" in next(f.error for f in result.failed if f.run[:2] == "c-")
    cell_errors = [f for f in result.failed if f.key]
    assert len(cell_errors) == 2 * SMALL_CELLS and not any(f.skipped for f in result.failed)
    (good,) = result.runs
    assert good.startswith("a-")


@pytest.mark.slow
def test_failed_cells_keep_their_error_and_are_retried_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nybble.scoring.run import CellRunner

    keep = CellRunner._keep

    def refuse(self: CellRunner, s: Any, chunk: Any, first: int, rows: Any) -> None:
        if str(s.lane.setting) == "q4_0/q4_0" and chunk.category == "code":
            self.outcome.failed[s, len(chunk.tokens)] = "the engine said no"
            return
        keep(self, s, chunk, first, rows)

    path = write_sweep(folder, "out", kv='["q8_0/q4_0", "q4_0/q4_0"]')
    monkeypatch.setattr(CellRunner, "_keep", refuse)
    result = run(path)
    bad = [f for f in result.failed if f.corpus == "code"]
    assert {(f.setting, f.context) for f in bad} == {("q4_0/q4_0", 64), ("q4_0/q4_0", 96)}
    assert all(f.error == "the engine said no" for f in bad)
    before = cells(folder / "out")
    executor = Inline()
    assert len(run(path, executor).failed) == len(result.failed)
    assert executor.performed == []  # failed cells are not tried again unasked
    monkeypatch.setattr(CellRunner, "_keep", keep)
    retried = run(path, Inline(), retry_failed=True)
    assert retried.failed == []
    after = cells(folder / "out")
    assert before.items() <= after.items()
    assert all("q4_0-q4_0" in name for name in after.keys() - before.keys())
    fresh = write_sweep(folder, "fresh", kv='["q8_0/q4_0", "q4_0/q4_0"]')
    run(fresh)
    assert merged(folder / "out") == merged(folder / "fresh")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["middle", "cut"])
def test_a_damaged_cell_is_named_set_aside_and_mended(again: Path, how: str) -> None:
    whole = merged(again / "out")
    victim = next(p for p in the_run(again).glob("rows/*.parquet") if "q8_0" in p.name)
    data = victim.read_bytes()
    broken = data[:30] + bytes(len(data) - 60) + data[-30:] if how == "middle" else data[:100]
    victim.write_bytes(broken)
    # Nothing says that a cell was spoiled since it was merged; a new merge reads all cells.
    (the_run(again) / "summary.json").unlink()
    result = run(again / "out.toml")
    assert result.damaged == [f"runs/{the_run(again).name}/rows/{victim.name}"]
    assert victim.with_suffix(".damaged").read_bytes() == broken and not victim.exists()
    mended = run(again / "out.toml")
    assert mended.failed == [] and mended.damaged == []
    found = merged(again / "out")
    assert {k: v for k, v in found.items() if not k.endswith(".damaged")} == whole


def test_records_that_are_damaged_are_made_again(again: Path) -> None:
    whole = merged(again / "out")
    first, second, *_ = marks(again)
    first.write_text("{", encoding="utf-8")
    second.write_text("[]", encoding="utf-8")
    (again / "out" / "sweep.json").write_bytes(b"\xff")
    before, executor = cells(again / "out"), Inline()
    result = run(again / "out.toml", executor)
    assert len([n for n in executor.performed if " at " in n]) == 2
    assert result.failed == [] and cells(again / "out") == before
    assert merged(again / "out") == whole


def test_clocks_that_are_out_of_step_change_nothing(again: Path) -> None:
    whole = merged(again / "out")
    for i, path in enumerate(sorted(the_run(again).rglob("*"))):
        day = (-1) ** i * 86_400 * (i + 1)
        os.utime(path, (time.time() + day, time.time() + day))
    executor = Inline()
    result = run(again / "out.toml", executor)
    assert not any(" at " in name for name in executor.performed)  # only merged, for its new path
    assert result.found == SMALL_CELLS
    marks(again)[0].unlink()  # one group is to be done again, all files dated anyhow
    before = cells(again / "out")
    assert run(again / "out.toml").failed == []
    assert cells(again / "out") == before and merged(again / "out") == whole


def test_a_second_driver_is_refused(again: Path) -> None:
    with filelock.FileLock(again / "out" / ".lock"):
        with pytest.raises(NybbleError, match="another sweep is writing to this place"):
            run(again / "out.toml")
    assert run(again / "out.toml").found == SMALL_CELLS


@pytest.mark.slow
def test_a_place_that_fills_up_ends_the_group_with_the_reason(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nybble.results import store

    write = store.RunStore.write_cell

    def full(self: store.RunStore, name: str, *rest: Any) -> None:
        if name.startswith("c96-"):
            with store.disk_errors(self.path(name)):
                raise OSError(28, "No space left on device")
        write(self, name, *rest)

    path = write_sweep(folder, "out")
    monkeypatch.setattr(store.RunStore, "write_cell", full)
    result = run(path)
    assert result.scored == 2
    assert {f.context for f in result.failed if f.corpus == "code"} == {96}
    assert all("the disk is full" in f.error for f in result.failed)
    monkeypatch.setattr(store.RunStore, "write_cell", write)
    assert run(path, retry_failed=True).failed == []


def test_memory_and_cloud_prices_of_a_dry_run(folder: Path) -> None:
    path = write_sweep(folder, "out", run="price_per_hour = 3.6\nmemory_gib = 0.001")
    sweep = Sweep(specs.read(path))
    planned = sweep.planned(LocalExecutor(1, memory=1 << 20).fits)
    assert [(p.context, p.corpus, p.cells, p.done) for p in planned] == [
        (64, "prose", 1, False), (64, "code", 1, False),
        (96, "prose", 1, False), (96, "code", 1, False),
    ]  # fmt: skip
    assert all(p.memory_bytes > 400 << 20 and "0.0 GiB are there" in p.skipped for p in planned)
    assert all(p.cost == pytest.approx(p.seconds / 1000) and p.seconds > 0 for p in planned)
    assert not (folder / "out").exists()  # a dry run writes nothing


def test_what_was_asked_is_kept_and_threads_stay(again: Path) -> None:
    kept = json.loads((again / "out" / "sweep.json").read_text())
    assert kept["threads"] == 1 and kept["spec"]["grids"][0]["context"] == [64, 96]
    spec = specs.read(again / "out.toml")
    sweep = Sweep(specs.Spec(spec.grids, spec.place))  # threads not said
    assert sweep.threads == 1
    assert Run(**asdict(sweep.runs[0])) == sweep.runs[0]
