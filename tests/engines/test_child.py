"""A child that crashes, hangs or talks nonsense becomes one clear error."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from nybble.engines import child as child_module
from nybble.engines.child import (
    EngineCrashError,
    EngineProcess,
    Frame,
    error_header,
    read_frame,
    write_frame,
)
from nybble.errors import CacheNotReadError, EngineError, ModelFileError, NybbleError

LOOP = """
import os, signal, sys, time
from nybble.engines.child import Frame, error_header, read_frame, write_frame
from nybble.errors import *
out = sys.stdout.buffer

def answer(request):
    op = request.header["op"]
{body}

while (request := read_frame(sys.stdin.buffer)) is not None:
    try:
        reply = answer(request)
    except NybbleError as error:
        reply = Frame(error_header(error))
    write_frame(out, reply)
"""
Start = Callable[..., EngineProcess]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start a child whose `answer` has this body."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    children: list[EngineProcess] = []

    def make(body: str, **kwargs: Any) -> EngineProcess:
        name = f"toy_worker_{len(children)}"
        indented = "\n".join(f"    {line}" for line in body.strip("\n").splitlines())
        (tmp_path / f"{name}.py").write_text(LOOP.replace("{body}", indented))
        children.append(EngineProcess(name, timeout=kwargs.pop("timeout", 30), **kwargs))
        return children[-1]

    yield make
    for child in children:
        child.close()


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


class TestTalk:
    def test_header_and_payload(self, start: Start) -> None:
        child = start("return Frame({'got': request.header}, request.payload[::-1])")
        for payload in (b"", b"abc", bytes(range(256))):
            reply = child.request({"op": "x", "n": [1, None, "ü"]}, payload)
            assert reply.header == {"got": {"op": "x", "n": [1, None, "ü"]}}
            assert reply.payload == payload[::-1]

    def test_ten_megabytes_there_and_back(self, start: Start) -> None:
        child = start("return Frame({}, request.payload)")
        payload = os.urandom(10 << 20)
        assert child.request({"op": "x"}, payload).payload == payload

    def test_events_in_order_before_the_answer(self, start: Start) -> None:
        child = start("""
for i in range(200):
    write_frame(out, Frame({"event": True, "step": "decode", "lane": i % 3, "i": i}))
return Frame({"done": op})
""")
        seen: list[int] = []
        reply = child.request({"op": "go"}, on_event=lambda e: seen.append(e["i"]))
        assert reply.header == {"done": "go"}
        assert seen == list(range(200))
        assert child.where == {"op": "go", "event": True, "step": "decode", "lane": 1, "i": 199}
        # A request without listener is fine, and `where` starts anew.
        child.request({"op": "again"})
        assert child.where["op"] == "again"

    def test_stdout_belongs_to_nobody_else(self, start: Start) -> None:
        """The child's own stderr does not end up in ours, nor in the frames."""
        child = start("print('noise', file=sys.stderr, flush=True); return Frame({})")
        assert child.request({"op": "x"}).header == {}


class TestErrors:
    @pytest.mark.parametrize(
        "error",
        [
            NybbleError("what", seen="a\nb", allowed=["x", "y"], hint="try"),
            EngineError("engine"),
            ModelFileError("model", seen=3),
            CacheNotReadError("cache", allowed="drift"),
        ],
    )
    def test_carried_whole(self, start: Start, error: NybbleError) -> None:
        child = start(f"""
if op == "fail":
    raise {type(error).__name__}({error.what!r}, seen={error.seen!r}, allowed={error.allowed!r},
        hint={error.hint!r})
return Frame({{"fine": True}})
""")
        with pytest.raises(NybbleError) as caught:
            child.request({"op": "fail"})
        got = caught.value
        assert type(got) is type(error)
        assert (got.what, got.seen, got.allowed, got.hint) == (
            error.what, error.seen, error.allowed, error.hint,
        )  # fmt: skip
        assert str(got) == str(error)
        # An error is not a crash: the child goes on.
        assert child.request({"op": "x"}).header == {"fine": True}

    def test_unknown_kinds_are_still_errors(self, start: Start) -> None:
        child = start("""
return Frame({"error": "SystemExit", "what": "w", "seen": None, "allowed": None, "hint": None})
""")
        with pytest.raises(NybbleError) as caught:
            child.request({"op": "x"})
        assert type(caught.value) is NybbleError

    def test_header_keeps_every_field(self) -> None:
        header = error_header(ModelFileError("w", seen=1, allowed=["a", "b"], hint="h"))
        assert header == {
            "error": "ModelFileError", "what": "w", "seen": "1", "allowed": "a, b", "hint": "h",
        }  # fmt: skip


class TestCrashes:
    def crash(self, child: EngineProcess, **kwargs: Any) -> EngineCrashError:
        with pytest.raises(EngineCrashError) as caught:
            child.request({"op": "x"}, **kwargs)
        assert gone(child.pid)
        return caught.value

    def test_abort_tells_the_assertion(self, start: Start) -> None:
        child = start("""
write_frame(out, Frame({"event": True, "step": "decode", "lane": 2}))
print("loading", file=sys.stderr)
print("/src/ggml.c:123: GGML_ASSERT(n_dims <= 4) failed", file=sys.stderr)
print("[New LWP 12345]\\nlibthread_db noise", file=sys.stderr, flush=True)
os.abort()
""")
        error = self.crash(child)
        assert error.what == "the engine process was ended by SIGABRT"
        assert error.seen == "/src/ggml.c:123: GGML_ASSERT(n_dims <= 4) failed"
        assert error.where == {"op": "x", "event": True, "step": "decode", "lane": 2}

    def test_kill_tells_of_memory(self, start: Start) -> None:
        error = self.crash(start("os.kill(os.getpid(), signal.SIGKILL)"))
        assert "SIGKILL" in error.what and "too little memory" in error.what
        assert error.hint is not None and "--context" in error.hint
        assert error.seen is None

    def test_segfault(self, start: Start) -> None:
        error = self.crash(start("os.kill(os.getpid(), signal.SIGSEGV)"))
        assert error.what == "the engine process was ended by SIGSEGV"

    def test_python_exception(self, start: Start) -> None:
        error = self.crash(start("raise ZeroDivisionError('by zero')"))
        assert error.what == "the engine process ended with code 1"
        assert error.seen == "ZeroDivisionError: by zero"

    def test_quiet_exit(self, start: Start) -> None:
        error = self.crash(start("os._exit(0)"))
        assert error.what == "the engine process ended with code 0"
        assert error.seen is None

    def test_no_such_module(self) -> None:
        child = EngineProcess("nybble.no_such_module")
        try:
            error = self.crash(child)
        finally:
            child.close()
        assert "No module named" in str(error.seen)

    def test_much_noise_before(self, start: Start) -> None:
        """Only the end of the log is read, and what matters in it is found."""
        error = self.crash(
            start("""
sys.stderr.write("x" * 5_000_000 + "\\n\\xff GGML_ASSERT(late)\\n" + "backtrace\\n" * 20)
sys.stderr.flush()
os.abort()
""")
        )
        assert error.seen is not None and error.seen.endswith("GGML_ASSERT(late)")

    def test_after_a_crash_every_request_says_so(self, start: Start) -> None:
        child = start("os.abort()")
        self.crash(child)
        with pytest.raises(EngineCrashError, match="SIGABRT"):
            child.request({"op": "again"}, b"x" * 200_000)

    def test_in_the_middle_of_an_answer(self, start: Start) -> None:
        """A cut-off payload must not pass for a whole one."""
        child = start("""
import io
whole = io.BytesIO()
write_frame(whole, Frame({"rows": 1000}, b"x" * 100_000))
out.write(whole.getvalue()[:50_000])
out.flush()
os.abort()
""")
        assert "SIGABRT" in self.crash(child).what


@pytest.mark.timeout(60)
class TestHangs:
    def test_silence(self, start: Start) -> None:
        child = start("""
if op == "x":
    write_frame(out, Frame({"event": True, "step": "load"}))
    time.sleep(600)
return Frame({})
""")
        child.request({"op": "warm up"})
        begin = time.monotonic()
        with pytest.raises(EngineCrashError, match="hung and was ended") as caught:
            child.request({"op": "x"}, timeout=0.5)
        assert time.monotonic() - begin < 10
        assert gone(child.pid)
        assert caught.value.where["step"] == "load"
        assert "--timeout" in str(caught.value.hint)

    def test_signs_of_life_count(self, start: Start) -> None:
        child = start("""
if op == "x":
    for _ in range(8):
        time.sleep(0.3)
        write_frame(out, Frame({"event": True}))
return Frame({"op": op})
""")
        child.request({"op": "warm up"})
        assert child.request({"op": "x"}, timeout=1.5).header == {"op": "x"}

    def test_ignoring_sigterm_does_not_help(self, start: Start) -> None:
        child = start("""
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if op == "x":
    time.sleep(600)
return Frame({})
""")
        child.request({"op": "warm up"})
        child.close()
        assert gone(child.pid)

    @pytest.mark.parametrize(
        "garbage",
        [
            b"\x00\x00\x00\x05hello",  # no JSON
            b'\x00\x00\x00\x0d{"bytes": -1}',
            b"\x00\x00\x00\x02{}",  # no size
            b"\x00\x00\x00\x02[]",  # no object
        ],
    )
    def test_garbage_instead_of_frames(
        self, start: Start, garbage: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The child lives on and waits: it must be ended, not waited for."""
        monkeypatch.setattr(child_module, "_GRACE", 0.2)
        child = start(f"out.write({garbage!r}); out.flush(); time.sleep(600)")
        with pytest.raises(EngineCrashError, match="malformed frame and was ended"):
            child.request({"op": "x"})
        assert gone(child.pid)


class TestEnd:
    def test_close_ends_the_child_and_may_be_repeated(self, start: Start) -> None:
        child = start("return Frame({})")
        child.request({"op": "x"})
        child.close()
        assert gone(child.pid)
        child.kill()

    def test_closed_stdin_ends_the_scoring_worker(self) -> None:
        """So it goes when the parent is killed."""
        with subprocess.Popen(
            [sys.executable, "-m", "nybble.scoring.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as child:  # fmt: skip
            out, err = child.communicate(timeout=30)
        assert (child.returncode, out, err) == (0, b"", b"")

    def test_ctrl_c_reaches_the_parent_only(self, start: Start) -> None:
        child = start("return Frame({})")
        child.request({"op": "x"})
        assert os.getsid(child.pid) == child.pid != os.getsid(0)


class TestFrames:
    @pytest.mark.parametrize("payload", [b"", b"x", b"\n" * 70_000])
    def test_round_trip(self, payload: bytes) -> None:
        stream = io.BytesIO()
        frames = [Frame({"a": [1, {"b": "ü"}]}, payload), Frame({})]
        for frame in frames:
            write_frame(stream, frame)
        stream.seek(0)
        assert [read_frame(stream), read_frame(stream), read_frame(stream)] == [*frames, None]

    def test_end_of_stream(self) -> None:
        assert read_frame(io.BytesIO(b"")) is None
        assert read_frame(io.BytesIO(b"\x00\x00")) is None

    def test_cut_off_payload(self) -> None:
        stream = io.BytesIO()
        write_frame(stream, Frame({"a": 1}, b"0123456789"))
        cut = io.BytesIO(stream.getvalue()[:-1])
        assert read_frame(cut) is None

    def test_absurd_size(self) -> None:
        header = b'{"bytes": 99999999999}'
        with pytest.raises(EngineError, match="malformed frame"):
            read_frame(io.BytesIO(struct.pack(">I", len(header)) + header))
