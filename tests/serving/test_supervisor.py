"""Children that serve, die, hang and refuse to end: real processes on loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nybble.errors import EngineError
from nybble.serving import supervisor as supervising
from nybble.serving.guard import MODULE as GUARD
from nybble.serving.supervisor import Program, Supervisor

HEALTHY = """
import http.server, signal, sys
print("hello from", sys.argv[1], flush=True)
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *a): pass
http.server.HTTPServer.allow_reuse_address = True
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), H).serve_forever()
"""


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervising, "BACKOFF", (0.05,))
    monkeypatch.setattr(supervising, "GRACE", 2.0)


def program(code: str, port: int, folder: Path) -> Program:
    return Program([sys.executable, "-c", code, str(port)], f"http://127.0.0.1:{port}/",
                   folder / "log" / "out.log")  # fmt: skip


def until(holds: Callable[[], bool]) -> None:
    by = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < by, "it did not happen"
        time.sleep(0.02)


def test_output_is_heard_and_logged(port: int, tmp_path: Path) -> None:
    heard: list[str] = []
    child = Supervisor(program(HEALTHY, port, tmp_path), on_line=heard.append)
    child.start()
    child.wait_ready(60)
    child.stop()
    assert f"hello from {port}" in heard
    assert f"hello from {port}" in (tmp_path / "log" / "out.log").read_text()
    assert child.pid is None


def test_a_killed_child_is_started_again(port: int, tmp_path: Path) -> None:
    events: list[str] = []
    child = Supervisor(program(HEALTHY, port, tmp_path), on_event=events.append)
    child.start()
    child.wait_ready(60)
    keeper = threading.Thread(target=child.keep, args=(60,))
    keeper.start()
    first = child.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    until(lambda: "serving again" in events)
    assert child.restarts == 1 and child.pid not in (None, first)
    child.stop()
    keeper.join(30)
    assert not keeper.is_alive()
    assert any("SIGKILL" in event for event in events)


def test_one_that_dies_again_and_again_is_given_up(port: int, tmp_path: Path) -> None:
    child = Supervisor(program("print('Error: no such model', flush=True); raise SystemExit(3)",
                               port, tmp_path))  # fmt: skip
    child.start()
    with pytest.raises(EngineError, match="in a row") as caught:
        child.keep(60)
    assert "no such model" in str(caught.value.seen)
    assert child.restarts == supervising.MOST_CRASHES
    child.stop()


def test_one_that_dies_while_loading_tells_its_last_words(port: int, tmp_path: Path) -> None:
    child = Supervisor(program("raise ValueError('bad magic')", port, tmp_path))
    child.start()
    with pytest.raises(EngineError, match="ended with code 1") as caught:
        child.wait_ready(60)
    assert "bad magic" in str(caught.value.seen)
    child.stop()


def test_one_that_never_listens(port: int, tmp_path: Path) -> None:
    child = Supervisor(program("import time; time.sleep(600)", port, tmp_path))
    child.start()
    waited: list[float] = []
    with pytest.raises(EngineError, match="healthy"):
        child.wait_ready(0.5, waited.append)
    assert waited == sorted(waited) and waited
    child.stop()


def test_one_that_ignores_sigterm_is_ended_with_its_own_children(port: int, tmp_path: Path) -> None:
    code = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('child', p.pid, flush=True); time.sleep(600)\n"
    )
    heard: list[str] = []
    child = Supervisor(program(code, port, tmp_path), on_line=heard.append)
    child.start()
    until(lambda: bool(heard))
    grandchild = int(heard[0].split()[1])
    child.stop()
    assert child.pid is None
    until(lambda: not Path(f"/proc/{grandchild}/status").exists()
          or "zombie" in Path(f"/proc/{grandchild}/status").read_text())  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal")
def test_it_ends_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        f"p = subprocess.Popen([sys.executable, '-m', '{GUARD}', 'sleep', '600'])\n"
        "print(p.pid, flush=True); time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    until(lambda: b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0])
    parent.kill()
    parent.wait()
    until(lambda: not Path(f"/proc/{pid}").exists())


def test_a_program_that_is_not_there(port: int, tmp_path: Path) -> None:
    child = Supervisor(Program(["/nowhere/engine"], f"http://127.0.0.1:{port}/",
                               tmp_path / "log"))  # fmt: skip
    child.start()
    with pytest.raises(EngineError):
        child.wait_ready(60)
    child.stop()


def test_a_log_that_cannot_be_written(port: int, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file, not a folder")
    with pytest.raises(EngineError, match="cannot write the log"):
        Supervisor(program(HEALTHY, port, tmp_path))


def test_a_command_beside_it(port: int, tmp_path: Path) -> None:
    child = Supervisor(program(HEALTHY, port, tmp_path))
    child.run([sys.executable, "-c", "print('created')"], 60)
    assert "created" in (tmp_path / "log" / "out.log").read_text()
    with pytest.raises(EngineError, match="failed") as caught:
        child.run([sys.executable, "-c", "print('no such model'); raise SystemExit(2)"], 60)
    assert "no such model" in str(caught.value.seen)
    with pytest.raises(EngineError, match="failed"):
        child.run(["/nowhere/program"], 60)
    child.stop()
