"""Sweeps over tiny models, an executor in this process, and what a place holds."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from nybble.errors import NybbleError
from nybble.results.sweeps import SweepResult
from nybble.sweep import spec as specs
from nybble.sweep import work
from nybble.sweep.drive import Sweep
from nybble.sweep.executor import Executor, Listener, Needs, Task

NYBBLE = (sys.executable, "-m", "nybble")
KV = '["q8_0/q8_0", "q8_0/q4_0", "q5_0/q5_0", "q4_1/q4_1", "q4_0/q4_0"]'
SMALL = dict(model='"a.gguf"', kv='"q8_0/q4_0"', context="[64, 96]",
             categories='["prose", "code"]', documents="2")  # fmt: skip
FORTY = dict(model='["a.gguf", "b.gguf"]', kv=KV, context="[64, 128]",
             categories='["prose", "code"]', documents="4")  # fmt: skip


def write_sweep(folder: Path, place: str, run: str = "", **grid: str) -> Path:
    """A sweep's TOML with one grid, SMALL unless told, and one thread a worker."""
    lines = [f"{k} = {v}" for k, v in {**SMALL, **grid}.items()]
    path = folder / f"{Path(place).name}.toml"
    text = [f'place = "{place}"', "[run]", "threads = 1", run, "[[grid]]", *lines]
    path.write_text("\n".join(text), encoding="utf-8")
    return path


class Inline:
    """An executor in this process: every task at once, what it refuses by name."""

    name = "here"
    workers = 1

    def __init__(self, refused: str = "") -> None:
        self.refused, self.performed = refused, list[str]()

    def fits(self, needs: Needs) -> str | None:
        return self.refused or None

    def run(self, tasks: Sequence[Task], listener: Listener) -> None:
        for task in tasks:
            self.performed.append(task.name)
            try:
                reply = work.perform(task.payload, lambda event: None)
            except NybbleError as error:
                listener.failed(task, error)
            else:
                listener.done(task, reply)

    def close(self) -> None:
        work.close()


def run(path: Path, executor: Executor | None = None, **how: Any) -> SweepResult:
    """Run a sweep to its end."""
    executor = executor or Inline()
    try:
        return Sweep(specs.read(path), **how).run(executor)
    finally:
        executor.close()


def merged(place: Path) -> dict[str, bytes]:
    """All that must be the same whoever ran a sweep and whatever happened on the way.

    Not who did it (groups/), nor what a process that was killed had begun to write.
    """
    found = {}
    for path in sorted(place.glob("runs/*/**/*")):
        begun = path.name.startswith(".") or path.suffix == ".tmp"
        if path.is_file() and path.parent.name != "groups" and not begun:
            found[path.relative_to(place).as_posix()] = path.read_bytes()
    return found


def cells(place: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of writing of every finished cell."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns)
            for p in place.glob("runs/*/rows/*.parquet")}  # fmt: skip


def wait_for(what: Callable[[], object], seconds: float = 120.0) -> Any:
    """Poll until it is true.

    Raises:
        TimeoutError: it did not come true.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.02)
    raise TimeoutError("it did not happen")


def start(*args: object, cwd: Path, **how: Any) -> subprocess.Popen[bytes]:
    """`nybble ARGS` in the background, its messages in a file that `said` reads."""
    with (cwd / "said.txt").open("ab") as log:
        return subprocess.Popen([*NYBBLE, *map(str, args)], cwd=cwd, stdout=log, stderr=log, **how)


def said(cwd: Path) -> str:
    return (cwd / "said.txt").read_text(encoding="utf-8")


def finish(folder: Path, name: str, *more: str) -> None:
    """Run `nybble sweep NAME.toml` to a good end."""
    process = start("sweep", f"{name}.toml", *more, cwd=folder)
    assert process.wait(timeout=240) == 0, said(folder)


def kill_tree(pid: int) -> None:
    """SIGKILL a process and all its children at once, as a power cut would."""
    try:
        top = psutil.Process(pid)
        gone = [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in gone:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            pass
    psutil.wait_procs(gone, timeout=10)
