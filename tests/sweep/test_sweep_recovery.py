"""`nybble sweep` in real processes, killed in the middle: the merged result does not change."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from sweep_runs import (
    FORTY,
    cells,
    finish,
    kill_tree,
    merged,
    run,
    said,
    start,
    wait_for,
    write_sweep,
)

from nybble.sweep import spec as specs
from nybble.sweep.drive import Sweep
from nybble.sweep.local import LocalExecutor

pytestmark = pytest.mark.slow


def workers(driver: int) -> list[int]:
    """Process ids of a driver's workers."""
    return [p.pid for p in psutil.Process(driver).children()
            if "nybble.sweep.worker" in p.cmdline()]  # fmt: skip


def test_two_workers_find_what_one_finds(folder: Path, undisturbed: dict[str, bytes]) -> None:
    write_sweep(folder, "out", **FORTY)
    finish(folder, "out", "--workers", "2")
    assert merged(folder / "out") == undisturbed


def test_a_worker_that_is_killed_is_replaced(folder: Path, undisturbed: dict[str, bytes]) -> None:
    write_sweep(folder, "out", **FORTY)
    driver = start("sweep", "out.toml", "--workers", "2", cwd=folder)
    wait_for(lambda: len(cells(folder / "out")) >= 8)
    before = cells(folder / "out")
    psutil.Process(workers(driver.pid)[0]).kill()
    assert driver.wait(timeout=240) == 0, said(folder)
    assert "was ended by SIGKILL" in said(folder) and "trying again" in said(folder)
    assert merged(folder / "out") == undisturbed
    assert before.items() <= cells(folder / "out").items()


def test_a_driver_that_is_killed_goes_on_where_it_was(
    folder: Path, undisturbed: dict[str, bytes]
) -> None:
    write_sweep(folder, "out", **FORTY)
    for wanted in (20, 60):
        driver = start("sweep", "out.toml", "--workers", "2", cwd=folder)
        wait_for(lambda n=wanted: len(cells(folder / "out")) >= n)  # type: ignore[misc]
        kill_tree(driver.pid)
        driver.wait()
    before = cells(folder / "out")
    assert 60 <= len(before) < sum("/rows/" in name for name in undisturbed)
    finish(folder, "out", "--workers", "1")
    assert before.items() <= cells(folder / "out").items()
    assert merged(folder / "out") == undisturbed


def test_a_worker_that_dies_every_time_fails_its_groups_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model b ends every process that opens it."""
    (folder / "nybble_dies.py").write_text(
        "import os\nfrom nybble.engines.worker import serve\nfrom nybble.sweep import worker\n"
        "class Dies(worker.Worker):\n"
        "    def do_perform(self, request):\n"
        "        if request.header['payload']['run']['model'].endswith('b.gguf'):\n"
        "            os.kill(os.getpid(), 9)\n"
        "        return super().do_perform(request)\n"
        "serve(Dies)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr("nybble.sweep.local.WORKER", "nybble_dies")
    path = write_sweep(folder, "out", model='["a.gguf", "b.gguf"]', context="[64]")
    result = run(path, LocalExecutor(2, attempts=2))
    assert (result.cells, result.scored) == (4, 2)
    assert {f.run[:2] for f in result.failed} == {"b-"}
    assert all("ended by SIGKILL" in f.error for f in result.failed)
    monkeypatch.undo()
    executor = LocalExecutor(2)
    try:
        again = Sweep(specs.read(path), retry_failed=True).run(executor)
    finally:
        executor.close()
    assert (again.scored, again.failed) == (2, [])
