from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from nybble.engines.server.base import Identity, last_part
from nybble.engines.server.http import Client, RefusedError, ServerGoneError, check_url
from nybble.engines.server.registry import SERVERS, connect
from nybble.errors import EngineError, NybbleError
from nybble.formats import parse

Answer = Callable[[int, str, dict[str, str]], str]


@pytest.fixture
def answer() -> Iterator[Answer]:
    """Starts a server that gives one answer to everything; tells its address."""
    servers: list[HTTPServer] = []

    def start(status: int, text: str, headers: dict[str, str]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                # An unread request would make the end of this connection a reset.
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if status == 0:  # hangs up
                    return
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(text.encode())

            do_POST = do_GET

        servers.append(HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000"),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000"),
        ("https://host/llm/v1/", "https://host/llm"),
        (" http://[::1]:80 ", "http://[::1]:80"),
    ],
)
def test_addresses(given: str, kept: str) -> None:
    assert check_url(given) == kept


@pytest.mark.parametrize(
    "given", ["", "127.0.0.1:8000", "ftp://host", "http://", "http://host:99999", "http://h?k=1"]
)
def test_what_is_no_address(given: str) -> None:
    with pytest.raises(NybbleError, match="not the address"):
        check_url(given)


def test_a_secret_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(NybbleError, match="does not belong") as caught:
        check_url("http://user:s3cret@host:8000")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "text", "what", "words"),
    [
        (400, json.dumps({"error": {"message": "too long", "code": 400}}), "refuses", "too long"),
        (422, json.dumps({"detail": "field required"}), "refuses", "field required"),
        (400, json.dumps({"object": "error", "message": "bad k"}), "refuses", "bad k"),
        (404, "Not Found", "does not know", "Not Found"),
        (403, "{}", "wants a key", "403"),
        (500, "<html>oops</html>", "the server failed", "oops"),
        (503, "", "the server failed", "Service Unavailable"),
    ],
)
def test_refusals_in_the_servers_words(
    answer: Answer, status: int, text: str, what: str, words: str
) -> None:
    with pytest.raises(RefusedError, match=what) as caught:
        Client(answer(status, text, {})).post("/x", {})
    assert words in str(caught.value) and caught.value.status == status


def test_a_long_refusal_is_cut(answer: Answer) -> None:
    with pytest.raises(RefusedError) as caught:
        Client(answer(400, "x" * 100_000, {})).post("/x", {})
    assert len(str(caught.value)) < 1000


def test_a_redirect_is_not_followed(answer: Answer) -> None:
    """It would carry the key to another host."""
    target = answer(200, "{}", {})
    with pytest.raises(RefusedError, match="sends elsewhere"):
        Client(answer(307, "", {"Location": target})).post("/x", {})


def test_no_json(answer: Answer) -> None:
    client = Client(answer(200, "hello", {}))
    assert client.get("/metrics") == "hello"
    with pytest.raises(EngineError, match="not JSON"):
        client.post("/x", {})


def test_hung_up_and_gone(answer: Answer) -> None:
    with pytest.raises(ServerGoneError, match="broke"):
        Client(answer(0, "", {})).post("/x", {})
    with pytest.raises(ServerGoneError, match="cannot be reached") as caught:
        Client("http://127.0.0.1:9").get("/x")
    assert "run the same command again" in str(caught.value)


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(
    answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert Client(answer(200, "[1]", {})).get("/x") == [1]


@pytest.mark.parametrize("engine", SERVERS)
@pytest.mark.parametrize("text", ["{}", "[]", '"x"', '{"data": []}', '{"data": [{}]}', "null"])
def test_answers_of_something_else(answer: Answer, engine: str, text: str) -> None:
    with pytest.raises(EngineError):
        connect(engine, answer(200, text, {}), 5).identity()


def test_which_type_a_server_says_it_stores() -> None:
    vllm = connect("vllm", "http://127.0.0.1:9", 1)
    fp8, f16 = parse("fp8_e4m3/fp8_e4m3"), parse("f16/f16")
    assert vllm.stores(fp8, None) is None
    assert vllm.stores(fp8, "fp8") and vllm.stores(fp8, "fp8_e4m3")
    assert not vllm.stores(fp8, "auto") and not vllm.stores(fp8, "int8_per_token_head")
    assert vllm.stores(f16, "auto") and vllm.stores(f16, "bfloat16")
    assert not vllm.stores(f16, "fp8")
    assert vllm.stores(parse("turboquant_4bit_nc"), "turboquant_4bit_nc")
    sglang = connect("sglang", "http://127.0.0.1:9", 1)
    assert sglang.stores(fp8, "fp8_e4m3") and not sglang.stores(fp8, "fp8_e5m2")


def test_names_of_weights() -> None:
    assert last_part("/models/a.gguf") == last_part("org/a.gguf") == "a.gguf"
    assert last_part("C:\\models\\a") == "a" and last_part("a/") == "a"
    assert Identity("vllm", "1", "m", "w").kv is None
