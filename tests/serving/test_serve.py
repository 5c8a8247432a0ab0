"""`serve` with llama.cpp in a child: clients that behave, clients that do not, and a killed child.

The model is tiny and random; what it says means nothing, how it is served does.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from served_models import exl3_folder, free_port

from nybble.errors import NybbleError
from nybble.formats.setting import parse
from nybble.models.demo import demo_model
from nybble.planning.request import CardChoice
from nybble.serving import runs, supervisor
from nybble.serving.deploy import DeployRequest
from nybble.serving.serve import Server, ServeRequest, serve
from nybble.serving.verify import VerifyRequest, verify

HELLO: Any = [{"role": "user", "content": "Hello"}]


def client(server: Server, **more: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url, api_key="k", timeout=120, **more)


def test_the_cache_in_effect_is_the_one_asked_for(server: Server) -> None:
    applied = server.applied
    assert applied is not None
    assert {(s.k_type, s.v_type) for s in applied.subcaches} == {("q4_0", "q4_0")}
    # 2 layers x 1 KV head x 64 x (K and V) x 4.5 bits x 2 slots x 1,024 cells
    assert applied.n_bytes == pytest.approx(2 * 64 * 2 * 4.5 / 8 * 2 * 1024, rel=0.05)


def test_chat(server: Server) -> None:
    answer = client(server).chat.completions.create(model="any", messages=HELLO, max_tokens=8)
    assert answer.usage is not None and answer.usage.completion_tokens == 8
    stream = client(server).chat.completions.create(model="any", messages=HELLO, max_tokens=8,
                                                    stream=True)  # fmt: skip
    parts = [part for part in stream if part.choices]
    assert parts[-1].choices[0].finish_reason == "length"


def test_a_model_without_a_template_gets_one_with_tools(
    tiny_model: Path, serving: Callable[..., Any]
) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    with serving(tiny_model) as server:
        assert any("chat template" in note for note in server.notes)
        url = server.url.removesuffix("/v1")
        made = httpx.post(f"{url}/apply-template", json={"messages": HELLO, "tools": [tool]})
        caps = httpx.get(f"{url}/props").json()["chat_template_caps"]
    assert "<tools>" in made.json()["prompt"] and caps["supports_tool_calls"]


@pytest.mark.slow
def test_the_demo_model_chats_and_calls_a_tool(tmp_path: Path, serving: Callable[..., Any]) -> None:
    """A base model: two examples in the conversation show it what to do."""
    tool: Any = {"type": "function", "function": {
        "name": "get_weather", "description": "weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}},
                       "required": ["city"]}}}  # fmt: skip
    talk: list[Any] = []
    for i, (city, weather) in enumerate((("Rome", "sunny"), ("Oslo", "snow"))):
        call = {"id": f"c{i}", "type": "function", "function": {
            "name": "get_weather", "arguments": json.dumps({"city": city})}}  # fmt: skip
        talk += [{"role": "user", "content": f"What is the weather in {city}?"},
                 {"role": "assistant", "content": "", "tool_calls": [call]},
                 {"role": "tool", "tool_call_id": f"c{i}", "content": weather}]  # fmt: skip
    talk.append({"role": "user", "content": "What is the weather in Paris?"})
    with serving(demo_model(tmp_path), context=2048) as server:
        for choice in ("auto", "required"):
            answer = client(server).chat.completions.create(
                model="any", messages=talk, tools=[tool], tool_choice=choice, max_tokens=64,
                temperature=0, stop=["<|im_end|>"],
            )  # fmt: skip
            (made, *_) = answer.choices[0].message.tool_calls or []
            assert made.type == "function" and made.function.name == "get_weather"
            assert json.loads(made.function.arguments) == {"city": "Paris"}
        stream = client(server).chat.completions.create(
            model="any", messages=HELLO, max_tokens=8, stream=True
        )
        assert len([p for p in stream if p.choices]) > 2
        found = verify(VerifyRequest(server.url))
    assert found.outcome == "confirmed" and found.why == "q4_0/q4_0 is in effect"


def test_more_than_the_context_is_a_clear_error(server: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="context"):
        client(server).completions.create(model="any", prompt="word " * 2000, max_tokens=1)


@pytest.mark.parametrize("body", ["{bad", "", "[]", '{"messages": 5}', "\x00"])
def test_what_is_no_request_is_a_clear_error(server: Server, body: str) -> None:
    answer = httpx.post(f"{server.url}/chat/completions", content=body, timeout=60)
    assert 400 <= answer.status_code < 600 and "error" in answer.json()


def test_a_client_that_hangs_up_does_not_hold_the_others(server: Server) -> None:
    body = json.dumps({"prompt": "a", "max_tokens": 900, "stream": True})
    for _ in range(6):
        with socket.create_connection(("127.0.0.1", server.deployed.deployment.port)) as link:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
            link.sendall(f"{head}Content-Type: application/json\r\n\r\n{body}".encode())
            link.recv(200)
    answer = client(server).completions.create(model="any", prompt="b", max_tokens=2)
    assert answer.usage is not None and answer.usage.completion_tokens == 2


def test_two_hundred_at_once_all_get_an_answer(server: Server) -> None:
    def ask(n: int) -> int:
        body = {"prompt": f"request {n}", "max_tokens": 2}
        return httpx.post(f"{server.url}/completions", json=body, timeout=240).status_code

    with ThreadPoolExecutor(200) as pool:
        assert set(pool.map(ask, range(200))) == {200}


def test_a_killed_engine_comes_back(
    tiny_instruct: Path, serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "BACKOFF", (0.1,))
    events: list[str] = []
    with (
        serving(tiny_instruct, "q8_0/q8_0", context=4096, users=2, events=events) as server,
        ThreadPoolExecutor(20) as pool,
    ):
        # The official client's own retries bridge a restart.
        patient, other = client(server, max_retries=10), client(server, max_retries=0)

        def ask(n: int) -> int:
            answer = patient.completions.create(
                model="any", prompt=f"{n}", max_tokens=8, extra_body={"ignore_eos": True}
            )
            return answer.usage.completion_tokens if answer.usage else 0

        stream = other.completions.create(
            model="any", prompt="a", max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        os.kill(server.supervisor.pid, signal.SIGKILL)  # long before the 4,000th token
        waiting = [pool.submit(ask, n) for n in range(20)]
        with pytest.raises((openai.APIError, httpx.HTTPError)):  # not a silent end
            for _ in stream:
                pass
        assert [one.result(timeout=120) for one in waiting] == [8] * 20
        assert "serving again" in events and server.supervisor.restarts == 1
        applied = server.applied
        assert applied is not None and len(applied.subcaches) == 1


def test_a_key_is_demanded_and_not_shown(tiny_instruct: Path, serving: Callable[..., Any]) -> None:
    with serving(tiny_instruct, keyed=True) as server:
        body = {"prompt": "a", "max_tokens": 1}
        assert httpx.post(f"{server.url}/completions", json=body, timeout=60).status_code == 401
        assert client(server).completions.create(model="any", prompt="a", max_tokens=1)
        pid = server.supervisor.pid
        shown = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        assert b"k" not in shown
        assert server.log.read_text().count("api_key: k") == 0


def test_a_record_is_kept_while_it_serves(server: Server) -> None:
    run = runs.recall(server.deployed.deployment.port)
    assert run is not None and run.kv == "q4_0/q4_0" and run.pid == os.getpid()
    assert run.bytes_per_token == server.deployed.fit.bytes_per_token == 2 * 64 * 2 * 4.5 / 8


def test_a_port_that_is_taken(server: Server, tiny_instruct: Path) -> None:
    asked = DeployRequest(str(tiny_instruct), setting=parse("f16/f16"), context=256,
                          port=server.deployed.deployment.port)  # fmt: skip
    with pytest.raises(NybbleError, match="cannot listen"):
        serve(ServeRequest(asked))


def test_an_engine_that_is_not_installed(tiny_instruct: Path) -> None:
    asked = DeployRequest(str(tiny_instruct), setting=parse("f16/f16"), context=256, port=18_099)
    with pytest.raises(NybbleError, match="not installed"):
        serve(ServeRequest(asked, program="no-such-llama-server"))


def test_a_file_elsewhere_needs_a_program_that_downloads() -> None:
    asked = DeployRequest("gemma-4-31b-qat", setting=parse("q4_0/q4_0"), context=256, port=18_099)
    with pytest.raises(NybbleError, match="local file"):
        serve(ServeRequest(asked))


def test_a_slots_folder_that_cannot_be(tiny_instruct: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    asked = DeployRequest(str(tiny_instruct), setting=parse("f16/f16"), context=256, port=18_099)
    with pytest.raises(NybbleError, match="folder for slots"):
        serve(ServeRequest(asked, slots=tmp_path / "file" / "slots"))


def test_no_key_in_the_environment(tiny_instruct: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NYBBLE_API_KEY", raising=False)
    asked = DeployRequest(str(tiny_instruct), setting=parse("f16/f16"), context=256, keyed=True,
                          host="0.0.0.0", port=18_099)  # fmt: skip
    with pytest.raises(NybbleError, match="there is no key"):
        serve(ServeRequest(asked))


def test_tabbyapi_runs_in_its_own_folder(tmp_path: Path) -> None:
    """A stand-in for its main.py: what matters is where it runs and what it is given."""
    home, model = tmp_path / "tabbyAPI", exl3_folder(tmp_path / "tiny-exl3")
    home.mkdir()
    asked = DeployRequest(str(model), engine="exllamav3", setting=parse("exl3_4/exl3_4"),
                          context=1024, port=free_port(),
                          cards=CardChoice(name="rtx-3090"))  # fmt: skip
    with pytest.raises(NybbleError, match="its own folder"):
        serve(ServeRequest(asked, program=str(home)))
    (home / "main.py").write_text(
        "import http.server, os, sys, yaml\n"
        "given = yaml.safe_load(open(sys.argv[sys.argv.index('--config') + 1]))\n"
        "open('seen', 'w').write(os.getcwd() + ' ' + given['model']['cache_mode'])\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self): self.send_response(200); self.end_headers()\n"
        "http.server.HTTPServer(('127.0.0.1', given['network']['port']), H).serve_forever()\n"
    )
    with serve(ServeRequest(asked, program=str(home))) as server:
        server.start()
    assert (home / "seen").read_text() == f"{home.resolve()} 4,4"


def test_ollama_is_given_its_model_once_it_answers(
    tiny_instruct: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for its program, which is not to be had here."""
    program = tmp_path / "ollama"
    program.write_text(
        f"#!{sys.executable}\n"
        "import http.server, os, pathlib, sys\n"
        f"seen = pathlib.Path({str(tmp_path / 'seen')!r})\n"
        "if sys.argv[1] == 'create':\n"
        "    seen.write_text(sys.argv[2] + '\\n' + open(sys.argv[4]).read()); sys.exit()\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self): self.send_response(200); self.end_headers()\n"
        "port = int(os.environ['OLLAMA_HOST'].rsplit(':', 1)[1])\n"
        "http.server.HTTPServer(('127.0.0.1', port), H).serve_forever()\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    asked = DeployRequest(str(tiny_instruct), engine="ollama", setting=parse("q8_0/q8_0"),
                          context=1024, port=free_port())  # fmt: skip
    with serve(ServeRequest(asked)) as server:
        server.start()
    name, source, *_ = (tmp_path / "seen").read_text().splitlines()
    assert name == "tiny-instruct" and source == f"FROM {tiny_instruct.resolve()}"
