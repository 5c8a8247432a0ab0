"""`verify` on real servers: confirmed, changed behind its back, and told by nobody."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from served_models import free_port

from nybble.engines.llamacpp import server as own_server
from nybble.errors import NybbleError
from nybble.formats.setting import parse
from nybble.results.verification import Check, Verification, judge
from nybble.serving import runs
from nybble.serving.serve import Server
from nybble.serving.verify import VerifyRequest, verify


@contextmanager
def bare(model: Path, kv: str, port: int, log: Path) -> Iterator[str]:
    """A server that nybble serve knows nothing of."""
    k, v = kv.split("/")
    told = own_server.parameters(str(model), k, v, context=1024, sequences=1, host="127.0.0.1",
                                 port=port, name=None)  # fmt: skip
    with log.open("wb") as out:
        child = subprocess.Popen([sys.executable, "-m", own_server.MODULE], stdin=subprocess.PIPE,
                                 stdout=out, stderr=out)  # fmt: skip
    assert child.stdin is not None
    child.stdin.write(own_server.line(told).encode() + b"\n")
    child.stdin.flush()
    url = f"http://127.0.0.1:{port}"
    by = time.monotonic() + 120
    try:
        while True:
            try:
                if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            assert child.poll() is None and time.monotonic() < by, log.read_text()[-2000:]
            time.sleep(0.05)
        yield url
    finally:
        child.kill()
        child.wait()


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model is random and writes garbage, whatever its cache is."""
    monkeypatch.setattr("nybble.serving.probe.BROKEN_SHARE", 100.0)


def checks(found: Verification) -> dict[str, Check]:
    return {check.name: check for check in found.checks}


def test_what_nybble_serves_is_confirmed_by_the_cache_itself(
    server: Server, trusting: None
) -> None:
    found = verify(VerifyRequest(server.url))
    by = checks(found)
    assert found.outcome == "confirmed" and found.why == "q4_0/q4_0 is in effect"
    assert (by["K type"].reported, by["K type"].observed) == ("q4_0", "q4_0")
    assert by["bytes a token"].observed == by["bytes a token"].asked == "144"
    assert by["bytes a token"].state == "ok"
    assert by["rotation"].observed == "64/64"
    assert by["sequences"].reported == "2"


def test_another_setting_than_asked_for_is_told(server: Server) -> None:
    found = verify(VerifyRequest(server.url, parse("q8_0/q8_0"), probe=False))
    assert found.outcome == "differs"
    assert "K type is q4_0, asked q8_0" in found.why


def test_the_type_changed_behind_its_back(
    tiny_instruct: Path, tmp_path: Path, serving: Callable[..., Any], trusting: None
) -> None:
    """The record and its log say q4_0; who listens there now runs q8_0 and writes elsewhere."""
    with serving(tiny_instruct, "q4_0/q4_0") as server:
        port = server.deployed.deployment.port
        run = runs.recall(port)
        assert run is not None
        log = Path(run.log).read_text()
    stale = tmp_path / "stale.log"
    stale.write_text(log)
    runs.remember(replace(run, log=str(stale)), port)
    with bare(tiny_instruct, "q8_0/q8_0", port, tmp_path / "new.log") as url:
        found = verify(VerifyRequest(url))
    runs.forget(port)
    by = checks(found)
    assert (by["K type"].asked, by["K type"].reported, by["K type"].observed) == (
        "q4_0", "q4_0", "q8_0",
    )  # fmt: skip
    assert found.outcome == "differs"


def test_a_server_of_somebody_else_is_read_by_its_output(
    tiny_instruct: Path, tmp_path: Path, trusting: None
) -> None:
    with bare(tiny_instruct, "q5_1/q4_0", free_port(), tmp_path / "out.log") as url:
        found = verify(VerifyRequest(url, parse("q5_1/q4_0"), model=tiny_instruct))
        behaviour = checks(found)["behaviour"]
        blind = verify(VerifyRequest(url, log=_empty(tmp_path), probe=False))
    assert found.outcome == "confirmed" and "q5_1/q4_0" in found.why
    assert "nearest settings, nat apart: q5_1/q4_0" in behaviour.observed
    assert blind.outcome == "unproven"


def _empty(folder: Path) -> Path:
    path = folder / "empty.log"
    path.write_text("")
    return path


def test_garbage_is_broken_whatever_the_flags_say(server: Server) -> None:
    found = verify(VerifyRequest(server.url))  # random weights: no better than chance
    assert checks(found)["K type"].state == "ok"
    assert found.outcome == "broken" and "garbage" in found.why


def test_nobody_there() -> None:
    with pytest.raises(NybbleError, match="no server that is known"):
        verify(VerifyRequest(f"http://127.0.0.1:{free_port()}"))


@pytest.mark.parametrize("url", ["", "ftp://x", "http://", "http://x:99999", "http://x:0/"])
def test_no_address(url: str) -> None:
    with pytest.raises(NybbleError):
        verify(VerifyRequest(url))


def test_a_log_that_is_not_there(server: Server, tmp_path: Path) -> None:
    with pytest.raises(NybbleError, match="cannot read the log"):
        verify(VerifyRequest(server.url, log=tmp_path / "none"))


def test_an_echo_proves_nothing() -> None:
    echo = tuple(Check(n, "Q4", "Q4", "", "echo") for n in ("K type", "V type"))
    assert judge(echo)[0] == "unproven"
    sized = (*echo, Check("bytes a token", "144", "144", "", "ok"))
    assert judge(sized) == ("confirmed", "a token takes the 144 bytes of Q4/Q4")
    ok = tuple(Check(n, "q4_0", "q4_0", "", "ok") for n in ("K type", "V type"))
    assert judge(ok)[0] == "confirmed"
    assert judge((*ok, Check("behaviour", state="broken")))[0] == "broken"
    assert judge((*ok, Check("context", "4", "2", "", "differs")))[0] == "differs"
    json.dumps(Verification("u", "e", "v", "m", ok, "confirmed", "w").as_dict())
