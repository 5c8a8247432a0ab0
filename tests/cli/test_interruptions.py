"""Runs that are stopped: nothing is lost, nothing is left behind, the same command finishes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import psutil
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals and mounts of Linux")

Run = Callable[..., Any]
SMALL = ("--context", "64", "--documents", "1", "--categories", "prose", "--kv", "q8_0/q4_0")
# Token by token, so that a chunk takes long enough to be stopped in.
LONG = ("--text", "long.txt", "--context", "512", "--documents", "6", "--via", "decode",
        "--kv", "q4_0,q8_0", "--threads", "1")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Where the commands run: a model and a text."""
    from pydoc_data.topics import topics

    path = tmp_path_factory.mktemp("interruptions")
    (path / "tiny.gguf").symlink_to(tiny_model)
    text = "".join(topics[k] for k in sorted(topics))
    (path / "long.txt").write_text(text[:60_000], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def undisturbed(folder: Path, invoke: Run, cache: dict[str, str]) -> list[Any]:
    """The rows of the same command when nothing happens to it."""
    ran = invoke("measure", "tiny.gguf", *LONG, "-q", "--json", "--out", "calm", cwd=folder,
                 env=cache)  # fmt: skip
    assert ran.code == 0
    return list(ran.record["rows"])


@pytest.fixture
def command(folder: Path, tmp_path: Path) -> tuple[object, ...]:
    """The long command with a run folder of its own."""
    return ("measure", "tiny.gguf", *LONG, "--json", "--out", tmp_path / "out")


def cells(out: Path) -> dict[str, int]:
    """Finished cells and when they were written."""
    return {p.name: p.stat().st_mtime_ns for p in (out / "rows").glob("*.parquet")}


def readable(out: Path) -> bool:
    """Whether every cell has rows that can be read."""
    with duckdb.connect() as db:
        for name in cells(out):
            found = db.execute(f"SELECT count(kld) FROM '{out / 'rows' / name}'").fetchone()
            if not found or not found[0]:
                return False
    return True


def wait_for_cells(run: Any, out: Path, n: int = 2, seconds: float = 60) -> None:
    """Wait until a run has finished that many cells and still runs."""
    end = time.monotonic() + seconds
    while len(cells(out)) < n:
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < end, "no cells in time"
        time.sleep(0.01)
    assert run.poll() is None, "the run was over too soon to be interrupted"


def gone(process: psutil.Process, seconds: float) -> bool:
    """Whether a process ends by itself in that time; a zombie has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def finish(invoke: Run, command: tuple[object, ...], folder: Path, out: Path) -> list[Any]:
    """The same command again: it must keep what there is and score the rest."""
    before = cells(out)
    ran = invoke(*command, cwd=folder)
    assert ran.code == 0, ran.err
    after = cells(out)
    assert len(after) > len(before)
    assert {name: after[name] for name in before} == before
    assert not list(out.rglob("*.tmp"))
    return list(ran.record["rows"])


@pytest.mark.parametrize("whole_group", [False, True], ids=["parent", "group"])
def test_ctrl_c(
    folder: Path,
    tmp_path: Path,
    command: tuple[object, ...],
    undisturbed: list[Any],
    start: Run,
    invoke: Run,
    whole_group: bool,
) -> None:
    """A terminal sends Ctrl-C to the whole group, `kill -INT` to one process."""
    out = tmp_path / "out"
    run = start(*command, cwd=folder)
    wait_for_cells(run, out)
    children = psutil.Process(run.pid).children(recursive=True)
    assert children
    if whole_group:
        os.killpg(run.pid, signal.SIGINT)
    else:
        run.send_signal(signal.SIGINT)
    stdout, stderr = run.communicate(timeout=20)
    assert run.returncode == 130
    assert stdout == ""
    assert stderr.splitlines()[-1] == (
        "interrupted; finished cells are kept, the same command continues"
    )
    assert "Traceback" not in stderr
    assert all(gone(child, 5) for child in children)
    assert readable(out)
    assert finish(invoke, command, folder, out) == undisturbed


def test_killed(
    folder: Path,
    tmp_path: Path,
    command: tuple[object, ...],
    undisturbed: list[Any],
    start: Run,
    invoke: Run,
) -> None:
    """`kill -9`, a crash of the session or of the machine: nothing can be tidied up."""
    out = tmp_path / "out"
    run = start(*command, cwd=folder)
    wait_for_cells(run, out)
    children = psutil.Process(run.pid).children(recursive=True)
    assert children
    run.kill()
    run.communicate(timeout=20)
    assert all(gone(child, 20) for child in children)
    assert readable(out)
    assert not (out / "summary.json").exists()
    (out / "rows" / "c512-stale.tmp").write_bytes(b"half a cell")
    assert finish(invoke, command, folder, out) == undisturbed


def test_engine_killed(
    folder: Path,
    tmp_path: Path,
    command: tuple[object, ...],
    undisturbed: list[Any],
    start: Run,
    invoke: Run,
) -> None:
    """What the kernel does when memory runs out: the engine's process goes, the parent tells."""
    out = tmp_path / "out"
    run = start(*command, cwd=folder)
    wait_for_cells(run, out)
    for child in psutil.Process(run.pid).children(recursive=True):
        child.kill()
    stdout, stderr = run.communicate(timeout=120)
    assert "ended by SIGKILL" in stderr and "too little memory" in stderr
    assert "Traceback" not in stderr
    assert readable(out)
    if run.returncode == 1:  # it was between two chunks
        assert finish(invoke, command, folder, out) == undisturbed
    else:  # it was in one, which was tried again with less at once
        assert run.returncode == 0 and "lane by lane" in stderr
        assert json.loads(stdout)["rows"] == undisturbed


def test_damaged_cell_is_scored_again(folder: Path, tmp_path: Path, invoke: Run) -> None:
    """A power cut can leave a file with a name and without its end."""
    command = ("measure", "tiny.gguf", *SMALL, "--json", "--out", tmp_path / "out")
    whole = invoke(*command, cwd=folder).record["rows"]
    first, second, third = sorted((tmp_path / "out" / "rows").glob("*.parquet"))
    first.write_bytes(first.read_bytes()[:-100])
    second.write_bytes(b"")
    before = third.stat().st_mtime_ns
    assert invoke(*command, cwd=folder).record["rows"] == whole
    assert readable(tmp_path / "out") and third.stat().st_mtime_ns == before


def test_two_runs_in_one_folder(
    folder: Path,
    tmp_path: Path,
    command: tuple[object, ...],
    undisturbed: list[Any],
    start: Run,
    invoke: Run,
) -> None:
    out = tmp_path / "out"
    run = start(*command, cwd=folder)
    wait_for_cells(run, out, 1)
    second = invoke(*command, cwd=folder)
    assert run.poll() is None, "the first run was over too soon"
    assert (second.code, second.out) == (1, "")
    assert "another nybble run is writing to this folder" in second.err
    assert str(out) in second.err and "--out FOLDER" in second.err
    stdout, _ = run.communicate(timeout=120)
    assert run.returncode == 0
    assert json.loads(stdout)["rows"] == undisturbed


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small disk; again with another size enlarges it."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk needs root")
    path = tmp_path / "disk"
    path.mkdir()

    def mount(size: str) -> Path:
        options = f"size={size}" + (",remount" if path.is_mount() else "")
        words = ["mount", "-t", "tmpfs", "-o", options, "nybble-test", str(path)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"cannot mount a small disk: {done.stderr.strip()}")
        return path

    yield mount
    if path.is_mount():
        subprocess.run(["umount", "--lazy", str(path)], check=True)


class TestFullDisk:
    def test_between_cells(
        self, folder: Path, undisturbed: list[Any], disk: Callable[[str], Path], invoke: Run
    ) -> None:
        path = disk("120k")
        command = ("measure", "tiny.gguf", *LONG, "--json", "--out", path)
        ran = invoke(*command, cwd=folder)
        assert (ran.code, ran.out) == (1, "")
        assert "error: the disk is full; finished cells are kept" in ran.err
        assert str(path) in ran.err and "bytes free" in ran.err and "free space" in ran.err
        assert len(cells(path)) >= 2 and readable(path)
        assert not list(path.rglob("*.tmp"))
        disk("20m")
        assert finish(invoke, command, folder, path) == undisturbed

    def test_at_the_report(self, folder: Path, disk: Callable[[str], Path], invoke: Run) -> None:
        path = disk("60k")
        command = ("measure", "tiny.gguf", *SMALL, "--out", path)
        ran = invoke(*command, cwd=folder)
        assert (ran.code, ran.out) == (1, "")
        assert "error: the disk is full" in ran.err
        assert len(cells(path)) == 3 and not (path / "report.html").exists()
        assert not list(path.rglob("*.tmp")) and not list(path.rglob(".*.tmp"))
        disk("20m")
        again = invoke(*command, cwd=folder)
        assert again.code == 0 and "every cell is there already" in again.err
        assert (path / "report.html").exists()

    def test_no_room_for_the_float_copy(
        self, folder: Path, tiny_q8: Path, disk: Callable[[str], Path], invoke: Run
    ) -> None:
        path = disk("200k")
        env = {"NYBBLE_CACHE": str(path)}
        ran = invoke("measure", tiny_q8, *SMALL, cwd=folder, env=env)
        assert (ran.code, ran.out) == (1, "")
        assert "not enough disk for the f16 copy of the weights" in ran.err
        assert f"bytes free in {path}" in ran.err
        assert "NYBBLE_CACHE=" in ran.err and "--weights as-shipped" in ran.err
        assert not list(path.rglob("*.part")) and not list(path.rglob("*.gguf"))
        shipped = invoke("measure", tiny_q8, *SMALL, "--weights", "as-shipped", cwd=folder, env=env)
        assert shipped.code == 0
        disk("200m")
        assert invoke("measure", tiny_q8, *SMALL, cwd=folder, env=env).code == 0
        assert len(list(path.rglob("*.gguf"))) == 1


def test_what_a_killed_copy_left_is_removed(
    folder: Path, tmp_path: Path, tiny_q8: Path, invoke: Run
) -> None:
    """A part of a float copy can be as large as the model."""
    env = {"NYBBLE_CACHE": str(tmp_path)}
    command = ("measure", tiny_q8, *SMALL, "--out", tmp_path / "out")
    assert invoke(*command, cwd=folder, env=env).code == 0
    (copy,) = tmp_path.glob("weights/*.gguf")
    part = copy.with_suffix(".123.part")
    copy.rename(part)
    other = copy.with_name("another-model.456.part")
    other.touch()
    assert invoke(*command, cwd=folder, env=env).code == 0
    assert copy.exists() and other.exists() and not part.exists()
