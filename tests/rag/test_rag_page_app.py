"""The page's server: what it answers, what it refuses, and how questions wait."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from page_doubles import ANSWER, ScriptedDesk, page

from nybble.errors import NybbleError
from nybble.rag.web import app
from nybble.rag.web import turns as turns_module
from nybble.rag.web.app import MOST_BYTES, PAGE
from nybble.rag.web.guard import POLICY
from nybble.rag.web.server import PageServer

HTTP = httpx.Client(trust_env=False, timeout=20)


_DESK = ScriptedDesk()


@pytest.fixture(scope="module")
def server() -> Iterator[PageServer]:
    with page(_DESK) as found:
        yield found


@pytest.fixture(autouse=True)
def desk(server: PageServer) -> ScriptedDesk:
    """The desk behind the server, as new."""
    _DESK.__init__()  # type: ignore[misc]
    return _DESK


def post(server: PageServer, path: str, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, (bytes, str)) else json.dumps(body)
    return HTTP.post(server.url + path, content=content, timeout=20,
                      headers={"Content-Type": "application/json", **headers})  # fmt: skip


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    parts = answer.text.split("\n\n")
    return [json.loads(p.removeprefix("data: ")) for p in parts if p.startswith("data: ")]


def eventually(true: Callable[[], bool], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


class TestFiles:
    def test_each_has_its_kind_and_the_policy(self, server: PageServer) -> None:
        folder = Path(app.__file__).parent / "page"
        assert {f.name for f in folder.iterdir()} == set(PAGE)
        kinds = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
        for name in ("", *PAGE[1:]):
            answer = HTTP.get(server.url + name)
            assert answer.status_code == 200 and len(answer.content) > 100
            kind = kinds.get(name.rpartition(".")[2], "text/html")
            assert answer.headers["content-type"].startswith(kind)
            assert answer.headers["content-security-policy"] == POLICY
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"

    def test_no_script_puts_text_in_as_html(self, server: PageServer) -> None:
        for name in PAGE:
            text = HTTP.get(server.url + name.replace("index.html", "")).text
            for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
                assert word not in text, name
            # Nothing from elsewhere, nothing inline.
            assert "http:" not in text.replace("http://www.w3.org/2000/svg", "")
            assert "https:" not in text
            assert "style=" not in text and "<style" not in text and "onclick=" not in text

    def test_other_paths_and_methods(self, server: PageServer) -> None:
        for path in ("nothing", "../app.py", "%2e%2e/app.py", "api"):
            answer = HTTP.get(server.url + path)
            assert answer.status_code == 404 and "there is no" in answer.json()["error"]["what"]
            assert answer.headers["content-security-policy"] == POLICY
        assert HTTP.get(server.url + "api/ask").status_code == 405


class TestAnswers:
    def test_a_question_is_answered_in_pieces(self, server: PageServer, desk: ScriptedDesk) -> None:
        answer = post(server, "api/ask", {"question": "  What is a block? "})
        assert answer.headers["content-type"].startswith("text/event-stream")
        found = events(answer)
        kinds = [event["kind"] for event in found]
        assert kinds[:2] == ["begun", "sources"] and kinds[-1] == "done"
        assert "".join(e["text"] for e in found if e["kind"] == "text") == ANSWER
        assert [a.question for a in desk.asked] == ["What is a block?"]

    def test_what_is_read_may_be_chosen(self, server: PageServer, desk: ScriptedDesk) -> None:
        post(server, "api/ask", {"question": "And then?", "same": [4, 7]})
        post(server, "api/ask", {"question": "And \ud800?", "over": ["a \ud800.md"], "same": []})
        assert [(a.same, a.over) for a in desk.asked] == [((4, 7), ()), ((), ("a ?.md",))]
        assert desk.asked[1].question == "And ??"

    def test_an_error_in_the_middle_keeps_what_came_before(
        self, server: PageServer, desk: ScriptedDesk
    ) -> None:
        desk.fails = NybbleError("the server is gone", seen="127.0.0.1:1", allowed="one that runs",
                                 hint="start it")  # fmt: skip
        found = events(post(server, "api/ask", {"question": "What?"}))
        assert found[-1]["error"] == {"what": "the server is gone", "seen": "127.0.0.1:1",
                                      "allowed": "one that runs", "hint": "start it"}  # fmt: skip
        assert "".join(e.get("text", "") for e in found)
        desk.fails = ValueError("a mistake of ours")
        found = events(post(server, "api/ask", {"question": "What?"}))
        assert "ValueError" in found[-1]["error"]["what"]
        desk.fails = None
        assert events(post(server, "api/ask", {"question": "What?"}))[-1]["kind"] == "done"

    def test_state_documents_and_sources(self, server: PageServer) -> None:
        state = HTTP.get(server.url + "api/state").json()
        assert state["waiting"] == 0 and state["cache"]["tokens"] == 1024
        listed = HTTP.get(server.url + "api/documents", params={"find": "guide"}).json()
        assert [d["document"] for d in listed["documents"]] == ["guide/kv.md"]
        place = {"document": "guide/kv.md", "start": 0, "end": 9}
        found = HTTP.get(server.url + "api/source", params=place).json()
        assert found["marked"] == "Section 0" and found["before"] == ""
        absent = HTTP.get(server.url + "api/source", params={"document": "../../etc/passwd"})
        assert absent.status_code == 409 and absent.json()["error"]["what"] == "no such document"

    def test_the_folder_is_indexed_again_once_at_a_time(
        self, server: PageServer, desk: ScriptedDesk
    ) -> None:
        go = threading.Event()
        desk.step = lambda: go.wait(10)
        assert post(server, "api/index", {}).status_code == 202
        again = post(server, "api/index", {})
        assert again.status_code == 409 and "already" in again.json()["error"]["what"]
        job = HTTP.get(server.url + "api/state").json()["job"]
        assert job["running"] and job["text"] == "embeds 10 passages" and job["total"] == 10
        go.set()
        assert eventually(lambda: not desk.job.as_dict()["running"])
        job = HTTP.get(server.url + "api/state").json()["job"]
        assert job["told"] == "1 document added" and job["skipped"][0]["path"] == "scan.pdf"


WRONG: list[tuple[Any, int, str]] = [
    (b"{not json", 400, "no JSON"),
    (b"\xff", 400, "no JSON"),
    (b"[]", 400, "no JSON object"),
    (b"[" * 20_000, 400, "no JSON"),
    ({}, 400, "no question"),
    ({"question": "  \n"}, 400, "no question"),
    ({"question": 5}, 400, "no question"),
    ({"question": "x" * 8001}, 400, "too long"),
    ({"question": "x", "same": 5}, 400, "same"),
    ({"question": "x", "same": [True]}, 400, "same"),
    ({"question": "x", "same": [-1]}, 400, "same"),
    ({"question": "x", "same": [1 << 60]}, 400, "same"),
    ({"question": "x", "same": list(range(1001))}, 400, "same is too long"),
    ({"question": "x", "over": [1]}, 400, "over"),
    ({"question": "x", "over": ["a"], "same": [1]}, 400, "only one"),
    ({"question": "x", "path": "/etc/passwd"}, 400, "unknown field"),
    (b" " * (MOST_BYTES + 1), 413, "longer"),
]


class TestRefused:
    @pytest.mark.parametrize(("body", "status", "words"), WRONG)
    def test_questions(
        self, server: PageServer, desk: ScriptedDesk, body: Any, status: int, words: str
    ) -> None:
        answer = post(server, "api/ask", body)
        assert answer.status_code == status and words in answer.json()["error"]["what"]
        assert not desk.asked

    @pytest.mark.parametrize("value", ["-1", "x", "1e3", "9" * 30, "٣"])
    def test_places(self, server: PageServer, value: str) -> None:
        place = {"document": "guide/kv.md", "start": value, "end": "9"}
        answer = HTTP.get(server.url + "api/source", params=place)
        assert answer.status_code == 400 and "whole number" in answer.json()["error"]["what"]

    def test_forms_of_other_pages(self, server: PageServer, desk: ScriptedDesk) -> None:
        body = json.dumps({"question": "x"})
        plain = HTTP.post(server.url + "api/ask", content=body,
                           headers={"Content-Type": "text/plain"})  # fmt: skip
        assert plain.status_code == 415
        origins = ("http://evil.example", "null", server.url.rstrip("/").replace("http", "https"))
        sites = ("cross-site", "same-site")
        foreign = [{"Origin": o} for o in origins] + [{"Sec-Fetch-Site": s} for s in sites]
        for headers in foreign:
            for path in ("api/ask", "api/index"):
                answer = post(server, path, {"question": "x"}, **headers)
                assert answer.status_code == 403 and "another site" in answer.text, headers
        own = {"Origin": server.url.rstrip("/"), "Sec-Fetch-Site": "same-origin"}
        assert post(server, "api/ask", {"question": "x"}, **own).status_code == 200
        assert len(desk.asked) == 1 and desk.job.as_dict() is None

    def test_other_names_of_this_machine(self, server: PageServer) -> None:
        for path in ("", "api/state", "page.js"):
            answer = HTTP.get(server.url + path, headers={"Host": "evil.example:8090"})
            assert answer.status_code == 403 and "not a name" in answer.text
            assert answer.headers["content-security-policy"] == POLICY

    def test_others_need_a_key_to_reach_it(self, desk: ScriptedDesk) -> None:
        with pytest.raises(NybbleError, match="API key"):
            PageServer(desk, "0.0.0.0", 0)  # type: ignore[arg-type]

    def test_a_key_opens_the_data_but_the_page_is_open(self, desk: ScriptedDesk) -> None:
        with page(desk, key="right") as server:
            assert HTTP.get(server.url).status_code == 200
            assert HTTP.get(server.url + "page.js").status_code == 200
            for path in ("api/state", "api/documents", "api/source?document=x", "docs"):
                assert HTTP.get(server.url + path).status_code == 401
                wrong = HTTP.get(server.url + path, headers={"Authorization": "Bearer wrong"})
                assert wrong.status_code == 401
            assert post(server, "api/ask", {"question": "x"}).status_code == 401
            assert not desk.asked
            right = HTTP.get(server.url + "api/state", headers={"Authorization": "Bearer right"})
            assert right.status_code == 200


class TestWaiting:
    def test_one_at_a_time_and_the_others_are_told(
        self, server: PageServer, desk: ScriptedDesk
    ) -> None:
        go = threading.Event()
        desk.step = lambda: (go.wait(10), time.sleep(0.01))
        found: dict[str, list[dict[str, Any]]] = {}

        def ask(name: str) -> None:
            found[name] = events(post(server, "api/ask", {"question": name}))

        threads = []
        for i, name in enumerate(("first", "second", "third"), 1):
            threads.append(threading.Thread(target=ask, args=(name,)))
            threads[-1].start()
            assert eventually(lambda i=i: server.turns.waiting == i)  # type: ignore[misc]
        assert [a.question for a in desk.asked] == ["first"]
        go.set()
        for thread in threads:
            thread.join(20)
        assert [a.question for a in desk.asked] == ["first", "second", "third"]
        assert found["third"][0] == {"kind": "queued", "ahead": 2}
        assert {"kind": "queued", "ahead": 1} in found["third"]
        assert all(e[-1]["kind"] == "done" for e in found.values())
        assert found["first"][0] == {"kind": "begun"}

    @pytest.mark.parametrize("speaks", [True, False])
    def test_a_client_that_hangs_up_ends_its_answer(
        self, server: PageServer, desk: ScriptedDesk, speaks: bool
    ) -> None:
        go = threading.Event()
        desk.step = (lambda: time.sleep(0.05)) if speaks else (lambda: go.wait(10))
        with _raw(server, "first"):
            assert desk.begun.wait(10)
            assert server.turns.waiting == 1
        assert eventually(lambda: server.turns.waiting == 0)
        go.set()
        assert events(post(server, "api/ask", {"question": "second"}))[-1]["kind"] == "done"
        assert desk.done == 1

    def test_one_that_hangs_up_while_it_waits_is_never_begun(
        self, server: PageServer, desk: ScriptedDesk
    ) -> None:
        go = threading.Event()
        desk.step = lambda: go.wait(10)
        with _raw(server, "first"):
            assert desk.begun.wait(10)
            with _raw(server, "second"):
                assert eventually(lambda: server.turns.waiting == 2)
            assert eventually(lambda: server.turns.waiting == 1)
            go.set()
            assert eventually(lambda: server.turns.waiting == 0)
        assert [a.question for a in desk.asked] == ["first"]

    def test_too_many_are_turned_away(
        self, server: PageServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(turns_module, "MOST_WAITING", 0)
        answer = post(server, "api/ask", {"question": "x"})
        assert answer.status_code == 409 and "too many" in answer.json()["error"]["what"]

    def test_silence_is_filled_so_that_proxies_wait(
        self, server: PageServer, desk: ScriptedDesk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("nybble.rag.web.app.PAUSE", 0.05)
        slow = iter([0.3])
        desk.step = lambda: time.sleep(next(slow, 0))
        answer = post(server, "api/ask", {"question": "x"})
        assert ": still here\n\n" in answer.text and events(answer)[-1]["kind"] == "done"


def _raw(server: PageServer, question: str) -> socket.socket:
    host, port = server.url.removeprefix("http://").rstrip("/").split(":")
    body = json.dumps({"question": question})
    raw = socket.create_connection((host, int(port)))
    raw.sendall(
        f"POST /api/ask HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    return raw
