"""`nybble rag serve`: what it refuses before anything is loaded, and the whole of it once."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from page_index import small_index

from nybble.cli.main import main
from nybble.cli.rag_serve import _url_key
from nybble.errors import NybbleError

RUN = ("import sys; sys.path.insert(0, sys.argv.pop(1)); import page_index as p; "
       "from nybble.rag.embed.registry import CARRIED; CARRIED[p.NAME] = p.Hashed; "
       "from nybble.cli.main import main; sys.exit(main(sys.argv[1:]))")  # fmt: skip


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "one server answers"),
        (("--model", "m.gguf", "--url", "http://127.0.0.1:9"), "one server answers"),
        (("--model", "m.gguf", "--host", "0.0.0.0"), "needs an API key"),
        (("--model", "m.gguf", "--api-key"), "NYBBLE_API_KEY is not set"),
        (("--model", "m.gguf", "--port", "70000"), "not a port"),
        (("--model", "m.gguf"), "there is no index here"),
        (("--url", "ftp://x", "--index", "{index}"), "http"),
        (("--model", "absent.gguf", "--index", "{index}"), "absent.gguf"),
        (("--model", "m.gguf", "--kv", "q9_9", "--index", "{index}"), "q9_9"),
        (("--url", "http://127.0.0.1:9", "--k", "0", "--index", "{index}"), "--k"),
        (("--url", "http://127.0.0.1:9", "--mode", "odd", "--index", "{index}"), "odd"),
        (("--model", "m.gguf", "--frame", "gilded"), "gilded"),
        (("nowhere", "--model", "m.gguf"), "nowhere"),
    ],
)
def test_refused_in_words(
    options: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NYBBLE_API_KEY", raising=False)
    if "{index}" in options:
        place = str(small_index(tmp_path / "documents"))
        options = tuple(place if o == "{index}" else o for o in options)
    assert main(["rag", "serve", *options]) == 1
    told = capsys.readouterr()
    assert words in told.err and "Traceback" not in told.err and told.out == ""
    assert "unexpected" not in told.err


def test_the_pages_key_is_not_sent_to_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NYBBLE_API_KEY", "page")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    asked = {"url_key_env": None, "keyed": True}
    assert _url_key(asked) is None
    assert _url_key({**asked, "keyed": False}) == "page"
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    assert _url_key(asked) == "theirs"
    monkeypatch.setenv("MINE", "mine")
    assert _url_key({**asked, "url_key_env": "MINE"}) == "mine"
    with pytest.raises(NybbleError, match="no key"):
        _url_key({**asked, "url_key_env": "ABSENT"})


@pytest.fixture
def running(tmp_path: Path, tiny_instruct: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`nybble rag serve` over a folder that has an index already."""
    small_index(tmp_path / "documents")
    command = [sys.executable, "-c", RUN, str(Path(__file__).parent), "rag", "serve",
               str(tmp_path / "documents"), "--model", str(tiny_instruct), "--kv", "q8_0/q4_0",
               "--context", "4096", "--answer-tokens", "24", "--k", "2", "--port", "0"]  # fmt: skip
    env = {**os.environ, "NYBBLE_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env=env, preexec_fn=_interruptible)  # fmt: skip
    try:
        assert process.stdout is not None and process.stderr is not None
        url = process.stdout.readline().strip()
        assert url, process.stderr.read()
        yield process, url
    finally:
        process.kill()
        process.wait(10)


def _interruptible() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # llama.cpp's threads wait for each other busily: on cores that others use, one is quicker.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


@pytest.mark.slow
def test_from_the_folder_to_an_answer(running: tuple[subprocess.Popen[str], str]) -> None:
    process, url = running
    state = httpx.get(url + "api/state", timeout=20).json()
    assert state["index"]["documents"] == 3 and state["server"]["kv"] == "q8_0/q4_0"
    assert state["cache"]["tokens"] == 0 and state["cache"]["allocated"] == 4096 * 208
    body = {"question": "What does crane number 3 lift?"}
    answer = httpx.post(url + "api/ask", json=body, timeout=100)
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line[:6] == "data: "]
    assert events[-1]["kind"] == "done", events[-1]
    sources = next(e for e in events if e["kind"] == "sources")
    assert sources["sources"][0]["document"] == "cranes.md" and "of" in sources["packed"]
    done = events[-1]["answer"]
    assert 0 < done["tokens"] <= 24 and done["first"] > 0 and done["same"]
    state = httpx.get(url + "api/state", timeout=20).json()
    assert state["cache"]["tokens"] > 100
    assert state["cache"]["bytes"] == state["cache"]["tokens"] * 208
    assert any("tokens of context computed" in note for note in done["notes"]), done["notes"]
    again = {"question": "And which quay?", "same": done["same"]}
    answer = httpx.post(url + "api/ask", json=again, timeout=100)
    assert re.search(r"[\d,]+ tokens of context read from a file", answer.text)
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    assert process.wait(30) == 0 and time.monotonic() - begun < 25
    assert process.stderr is not None
    told = process.stderr.read()
    assert "ended" in told and "Traceback" not in told
    with pytest.raises(httpx.HTTPError):
        httpx.get(url, timeout=2)
