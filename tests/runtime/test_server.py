"""The OpenAI-compatible server, driven by the official client and by clients that misbehave."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("starlette")
openai = pytest.importorskip("openai")

import httpx  # noqa: E402
from generate_models import CONTEXT, runtime, text  # noqa: E402

from nybble.errors import NybbleError  # noqa: E402
from nybble.runtime.generate import Limits  # noqa: E402
from nybble.runtime.server import queue as server_queue  # noqa: E402
from nybble.runtime.server.app import Server  # noqa: E402
from nybble.runtime.server.endpoints import MOST_BYTES, Served  # noqa: E402

NAME = "tiny"
KEY = "a-secret"
HELLO = [{"role": "user", "content": "Hello, who are you?"}]


class Running:
    """A server on a thread of its own."""

    def __init__(self, **options: Any) -> None:
        ready = threading.Event()
        served = Served(runtime(), text(), NAME)
        self.server = Server(served, port=0, on_ready=lambda url: ready.set(), **options)
        self.url = self.server.url
        self._thread = threading.Thread(target=self.server.run)
        self._thread.start()
        assert ready.wait(10)

    def client(self, key: str = "none") -> Any:
        """The official client, which does not try again."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=30)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        """A request as it stands."""
        content = body if isinstance(body, (bytes, str)) else json.dumps(body)
        headers = {"Content-Type": "application/json", **options.pop("headers", {})}
        return httpx.post(self.url + path, content=content, headers=headers, timeout=30, **options)

    def idle(self) -> bool:
        """Wait until nothing is to be answered."""
        return eventually(lambda: self.server.line.waiting == 0)

    def stop(self) -> None:
        """End it."""
        self.server.stop()
        self._thread.join(20)
        assert not self._thread.is_alive()


def eventually(true: Callable[[], bool], seconds: float = 20) -> bool:
    """Whether something comes true."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    made = Running()
    yield made
    made.stop()


def chat(running: Running, **changes: Any) -> dict[str, Any]:
    return {"model": NAME, "messages": HELLO, "max_tokens": 4, **changes}


def said(prompt: list[int], n: int) -> str:
    """What the runtime itself says to a prompt."""
    decoder = text().decoder(prompt)
    made = runtime().session().stream(prompt, Limits(n, text().ends))
    return "".join(decoder.add(t) for t in made) + decoder.end()


class TestChat:
    def test_an_answer_is_the_runtimes_and_is_counted(self, running: Running) -> None:
        found = running.client().chat.completions.create(**chat(running, max_tokens=8))
        prompt = text().chat(HELLO)
        assert found.choices[0].message.content == said(prompt, 8)
        assert found.choices[0].message.role == "assistant"
        assert found.choices[0].finish_reason == "length" and found.model == NAME
        assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(prompt), 8)
        assert found.usage.total_tokens == len(prompt) + 8

    def test_a_stream_is_the_same_in_parts(self, running: Running) -> None:
        create = running.client().chat.completions.create
        parts = list(create(**chat(running, max_tokens=8), stream=True,
                            stream_options={"include_usage": True}))  # fmt: skip
        texts = [c.delta.content or "" for p in parts for c in p.choices]
        assert "".join(texts) == said(text().chat(HELLO), 8)
        assert parts[0].choices[0].delta.role == "assistant"
        assert [c.finish_reason for p in parts for c in p.choices][-1] == "length"
        assert parts[-1].usage.completion_tokens == 8 and not parts[-1].choices
        assert all(p.usage is None for p in parts[:-1])
        assert len({p.id for p in parts}) == 1

    def test_a_stream_counts_only_where_asked(self, running: Running) -> None:
        reply = running.post("/v1/chat/completions", chat(running, stream=True))
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert "usage" not in reply.text and reply.text.endswith("data: [DONE]\n\n")

    def test_the_next_turn_reads_only_what_is_new(self, running: Running) -> None:
        create = running.client().chat.completions.create
        first = create(**chat(running, messages=HELLO, max_tokens=3, stop=["never"]))
        turns = [*HELLO, first.choices[0].message.model_dump(), *HELLO]
        second = create(**chat(running, messages=turns))
        held = second.usage.prompt_tokens_details.cached_tokens
        # Random bytes need not come back as the tokens they were; then all is read again.
        assert held in (0, first.usage.prompt_tokens + 2)
        again = create(**chat(running, messages=HELLO))
        assert again.usage.prompt_tokens_details.cached_tokens == 0

    def test_roles_and_parts(self, running: Running) -> None:
        parts = [{"type": "text", "text": "Hello, "}, {"type": "text", "text": "who are you?"}]
        reply = running.post("/v1/chat/completions", chat(running, messages=[
            {"role": "developer", "content": "Be short."}, {"role": "user", "content": parts},
        ]))  # fmt: skip
        whole = [{"role": "system", "content": "Be short."}, *HELLO]
        assert reply.json()["usage"]["prompt_tokens"] == len(text().chat(whole))


class TestCompletions:
    def test_text_and_ids_are_one(self, running: Running) -> None:
        create = running.client().completions.create
        prompt = text().prompt("Once upon")
        wanted = said(prompt, 6)
        for given in ("Once upon", ["Once upon"], prompt, [prompt]):
            found = create(model=NAME, prompt=given, max_tokens=6)
            assert found.choices[0].text == wanted
            assert found.usage.prompt_tokens == len(prompt)

    def test_a_stream(self, running: Running) -> None:
        parts = running.client().completions.create(
            model=NAME, prompt="Once upon", max_tokens=6, stream=True
        )
        choices = [p.choices[0] for p in parts]
        assert "".join(c.text for c in choices) == said(text().prompt("Once upon"), 6)
        assert choices[-1].finish_reason == "length"

    def test_the_usual_limit(self, running: Running) -> None:
        found = running.client().completions.create(model=NAME, prompt="Once upon")
        assert found.usage.completion_tokens <= 16

    def test_a_stop_is_not_shown(self, running: Running) -> None:
        free = said(text().prompt("Once upon"), 12)
        stop = free[5:7]
        cut = running.client().completions.create(
            model=NAME, prompt="Once upon", max_tokens=12, stop=[stop, "never"]
        )
        assert cut.choices[0].text == free[: free.index(stop)]
        assert cut.choices[0].finish_reason == "stop"

    def test_a_seed_repeats(self, running: Running) -> None:
        def drawn(seed: int) -> str:
            found = running.client().completions.create(
                model=NAME, prompt="Once", max_tokens=12, temperature=1.5, seed=seed
            )
            return str(found.choices[0].text)

        assert drawn(5) == drawn(5) != drawn(-6)

    def test_the_context_ends_an_answer(self, running: Running) -> None:
        found = running.client().completions.create(
            model=NAME, prompt=[5] * (CONTEXT - 3), max_tokens=50
        )
        assert found.usage.total_tokens == CONTEXT
        assert found.choices[0].finish_reason == "length"


def changed(**changes: Any) -> dict[str, Any]:
    """A request for a chat with some fields as they are given."""
    return {"model": NAME, "messages": HELLO, **changes}


def prompted(prompt: Any, **changes: Any) -> dict[str, Any]:
    """A request for a completion."""
    return {"model": NAME, "prompt": prompt, **changes}


WRONG: list[tuple[str, Any, int, str]] = [
    ("chat/completions", b"{not json", 400, "no JSON"),
    ("chat/completions", b"\xff\xfe", 400, "no JSON"),
    ("chat/completions", b"", 400, "no JSON"),
    ("chat/completions", b"[]", 400, "object"),
    ("chat/completions", {"model": NAME}, 400, "messages: Field required"),
    ("chat/completions", {"messages": HELLO}, 400, "model: Field required"),
    ("chat/completions", {"model": "gpt-9", "messages": HELLO}, 404, "no model 'gpt-9'"),
    ("chat/completions", changed(messages=[]), 400, "messages"),
    ("chat/completions", changed(messages="hi"), 400, "messages"),
    ("chat/completions", changed(messages=[{"role": "wizard", "content": "x"}]), 400, "messages.0"),
    ("chat/completions", changed(messages=[{"role": "user", "content": "\ud800"}]), 400, ""),
    ("chat/completions", changed(messages=[{"role": "user", "content": [{"type": "image_url",
        "image_url": {"url": "x"}}]}]), 400, "messages.0"),
    ("chat/completions", changed(messages=[{"role": "assistant", "content": "", "tool_calls":
        [{"id": "1"}]}]), 400, "text only"),
    ("chat/completions", changed(tools=[{"type": "function"}]), 400, "tools"),
    ("chat/completions", changed(n=2), 400, "n:"),
    ("chat/completions", changed(logprobs=True), 400, "logprobs"),
    ("chat/completions", changed(presence_penalty=0.5), 400, "presence_penalty"),
    ("chat/completions", changed(response_format={"type": "json_object"}), 400, "response_format"),
    ("chat/completions", changed(temperature=3), 400, "temperature"),
    ("chat/completions", changed(temperature="hot"), 400, "temperature"),
    ("chat/completions", changed(max_tokens=0), 400, "max_tokens"),
    ("chat/completions", changed(max_tokens=1.5), 400, "max_tokens"),
    ("chat/completions", changed(stop=["a"] * 5), 400, "stop"),
    ("chat/completions", changed(stop=""), 400, "stop"),
    ("chat/completions", changed(magic=1), 400, "magic: this server does not know"),
    ("completions", prompted(""), 400, "empty"),
    ("completions", prompted([]), 400, "prompt"),
    ("completions", prompted(["a", "b"]), 400, "prompt"),
    ("completions", prompted([260]), 400, "token that the model does not have"),
    ("completions", prompted("x" * CONTEXT), 400, "does not fit the context"),
    ("completions", prompted("x", echo=True), 400, "echo"),
]  # fmt: skip


class TestRefused:
    @pytest.mark.parametrize(("path", "body", "status", "words"), WRONG)
    def test_with_a_message_and_the_server_lives(
        self, running: Running, path: str, body: Any, status: int, words: str
    ) -> None:
        reply = running.post(f"/v1/{path}", body)
        error = reply.json()["error"]
        assert reply.status_code == status, error
        assert words in error["message"] and error["type"] == "invalid_request_error"
        assert "\n" not in error["message"]
        assert running.post("/v1/chat/completions", chat(running, max_tokens=1)).status_code == 200

    def test_codes_that_programs_know(self, running: Running) -> None:
        with pytest.raises(openai.BadRequestError) as too_long:
            running.client().completions.create(model=NAME, prompt="x" * CONTEXT)
        assert too_long.value.code == "context_length_exceeded"
        with pytest.raises(openai.NotFoundError) as unknown:
            running.client().models.retrieve("gpt-9")
        assert unknown.value.code == "model_not_found"

    def test_other_content_and_long_bodies(self, running: Running) -> None:
        plain = running.post("/v1/completions", "{}", headers={"Content-Type": "text/plain"})
        assert plain.status_code == 415
        long = running.post("/v1/completions", b" " * (MOST_BYTES + 1))
        assert long.status_code == 413 and "longer" in long.json()["error"]["message"]

    def test_other_paths_and_methods(self, running: Running) -> None:
        assert httpx.get(running.url + "/v2").json()["error"]["message"] == "there is no /v2 here"
        assert httpx.get(running.url + "/v1/completions").status_code == 405

    def test_another_name_for_this_machine(self, running: Running) -> None:
        headers = {"Host": "evil.example:80"}
        assert httpx.get(running.url + "/v1/models", headers=headers).status_code == 403
        assert httpx.get(running.url + "/health", headers=headers).status_code == 403


@pytest.fixture
def slow(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that takes its time, so that requests meet."""
    made = running.server.line._runtime
    forward = made.forward

    def slowly(*given: Any) -> Any:
        time.sleep(0.03)
        return forward(*given)

    monkeypatch.setattr(made, "forward", slowly)


class TestWaiting:
    def test_requests_are_answered_in_turn_and_alike(self, running: Running) -> None:
        wanted = said(text().prompt("Once upon"), 10)
        answers: list[str] = []

        def ask() -> None:
            found = running.client().completions.create(
                model=NAME, prompt="Once upon", max_tokens=10
            )
            answers.append(found.choices[0].text)

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [wanted] * 6

    def test_too_many_are_turned_away(
        self, running: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(server_queue, "MOST_WAITING", -1)
        reply = running.post("/v1/completions", {"model": NAME, "prompt": "x"})
        assert reply.status_code == 503 and reply.json()["error"]["code"] == "overloaded"

    @pytest.mark.usefixtures("slow")
    @pytest.mark.parametrize("stream", [True, False])
    def test_a_client_that_hangs_up_ends_its_answer(self, running: Running, stream: bool) -> None:
        assert running.idle()
        body = json.dumps(prompted("Once upon", max_tokens=500, stream=stream))
        host, port = running.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(
                f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: "
                f"application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            assert eventually(lambda: running.server.line.waiting == 1)
            if stream:
                assert raw.recv(100).startswith(b"HTTP/1.1 200")
        assert running.idle()
        session = running.server.line._session
        assert session is not None and len(session.tokens) < 400

    @pytest.mark.usefixtures("slow")
    def test_one_that_hangs_up_while_it_waits_is_never_begun(self, running: Running) -> None:
        assert running.idle()
        client = running.client()
        slow = client.completions.create(**prompted("Once upon", max_tokens=200, stream=True))
        next(iter(slow))
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.2).completions.create(model=NAME, prompt="x")
        assert eventually(lambda: any(j.cancelled for j in running.server.line._jobs))
        slow.close()
        assert running.idle()

    def test_a_failure_is_told_and_the_next_request_is_answered(
        self, running: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = running.server.line._runtime
        asked = {"model": NAME, "prompt": "Something else", "max_tokens": 3}

        def fail(*_: object) -> None:
            raise NybbleError("NaN in the keys of layer 1")

        with monkeypatch.context() as patch:
            patch.setattr(made, "forward", fail)
            reply = running.post("/v1/completions", asked)
            assert reply.status_code == 500 and "layer 1" in reply.json()["error"]["message"]
            stream = running.post("/v1/completions", {**asked, "stream": True})
            assert '"error"' in stream.text and "layer 1" in stream.text
        assert running.post("/v1/completions", asked).status_code == 200


class TestAbout:
    def test_health_says_what_is_in_effect(self, running: Running) -> None:
        assert running.idle()
        found = httpx.get(running.url + "/health").json()
        assert found["status"] == "ok" and found["kv"] == "q8_0/q4_0" and found["waiting"] == 0
        assert found["context"] == CONTEXT and found["kernel"]

    def test_models(self, running: Running) -> None:
        client = running.client()
        assert [m.id for m in client.models.list()] == [NAME]
        assert client.models.retrieve(NAME).id == NAME


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    made = Running(key=KEY)
    yield made
    made.stop()


class TestKey:
    def test_is_demanded(self, locked: Running) -> None:
        for key in ("wrong", KEY + "x", "ä"):
            with pytest.raises((openai.AuthenticationError, UnicodeEncodeError)):
                locked.client(key).models.list()
        assert httpx.get(locked.url + "/v1/models").status_code == 401
        head = {"Authorization": f"Basic {KEY}"}
        assert httpx.get(locked.url + "/v1/models", headers=head).status_code == 401

    def test_opens(self, locked: Running) -> None:
        assert [m.id for m in locked.client(KEY).models.list()] == [NAME]

    def test_health_is_open(self, locked: Running) -> None:
        assert httpx.get(locked.url + "/health").status_code == 200

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org"])
    def test_other_addresses_demand_one(self, host: str) -> None:
        with pytest.raises(NybbleError, match="needs an API key"):
            Server(Served(runtime(), text(), NAME), host, 0)

    def test_a_port_in_use(self, locked: Running) -> None:
        port = int(locked.url.rpartition(":")[2])
        with pytest.raises(NybbleError, match="cannot listen"):
            Server(Served(runtime(), text(), NAME), port=port)


def test_the_end_of_the_server_ends_an_answer() -> None:
    made = Running()
    stream = made.client().completions.create(
        model=NAME, prompt="Once upon", max_tokens=400, stream=True
    )
    next(iter(stream))
    begun = time.monotonic()
    made.stop()
    assert time.monotonic() - begun < 15 and made.server.line.waiting == 0
