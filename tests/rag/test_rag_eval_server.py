"""Answers over HTTP, through the real `ask`: a server that streams, one that dies in between."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rag_eval_doubles import WordIndex, corpus

from nybble.cli.rag_eval_lanes import url_lanes
from nybble.rag.evaluate import EvalRequest, evaluate
from nybble.rag.questions import Question, generate
from nybble.results.rag import RagRun


class Talker(ThreadingHTTPServer):
    """An OpenAI-compatible server that knows the answers, but for some questions."""

    daemon_threads = True

    def __init__(self, questions: list[Question], wrong: int = 0, dies_after: int = 10**9) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = {q.text: q.answer for q in questions}
        self.wrong = {q.text for q in [q for q in questions if q.answer][:wrong]}
        self.dies_after = dies_after
        self.name = "m"
        self.prompts: list[dict[str, Any]] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class _Handler(BaseHTTPRequestHandler):
    server: Talker

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            model = {"id": self.server.name, "object": "model", "created": 0, "owned_by": "x"}
            self._json({"object": "list", "data": [{**model, "max_model_len": 2048}]})
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions":
            self.send_error(404)
            return
        self.server.prompts.append(body)
        text = body["messages"][0]["content"]
        question = text.rpartition("Question: ")[2].strip()
        answer = self.server.answers[question]
        said = "I do not know." if question in self.server.wrong else f"It is {answer} [1]."
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        gone = len(self.server.prompts) > self.server.dies_after
        for piece in (said[:4], said[4:]):
            self._event({"choices": [{"index": 0, "delta": {"content": piece},
                                      "finish_reason": None}]})  # fmt: skip
            if gone:
                self.connection.close()
                return
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self._event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 5,
                                              "total_tokens": 14}})  # fmt: skip
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, data: dict[str, Any]) -> None:
        whole = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m", **data}
        self.wfile.write(b"data: " + json.dumps(whole).encode() + b"\n\n")
        self.wfile.flush()

    def _json(self, data: object) -> None:
        raw = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


@contextmanager
def serving(server: Talker) -> Iterator[str]:
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def index() -> WordIndex:
    return WordIndex(corpus())


@pytest.fixture(scope="module")
def questions(index: WordIndex) -> list[Question]:
    return generate(index, 12, seed=0)


def run(
    index: WordIndex, questions: list[Question], folder: Path, sixteen: str, four: str
) -> RagRun:
    lanes = url_lanes((f"f16/f16={sixteen}", f"q4_0/q4_0={four}"), "", None)
    return evaluate(index, EvalRequest(tuple(questions), "12", out=folder, k=4), lanes)


def test_both_are_asked_the_same(
    index: WordIndex, questions: list[Question], tmp_path: Path
) -> None:
    one, two = Talker(questions), Talker(questions, wrong=3)
    with serving(one) as sixteen, serving(two) as four:
        found = run(index, questions, tmp_path, sixteen, four)
    f16, q4 = found.rows
    assert (f16.n_questions, q4.lost, q4.gained) == (9, 3, 0)
    assert f16.accuracy is not None and f16.accuracy.value == 1.0
    assert one.prompts == two.prompts and len(one.prompts) == 9
    assert all(p["temperature"] == 0 and p["max_tokens"] == 128 for p in one.prompts)
    assert {a.tokens for a in found.answers} == {5} and {a.finish for a in found.answers} == {
        "stop"
    }
    for a in found.of("f16/f16"):
        first = found.questions[a.question].ranks["hybrid"] == 1
        assert a.cites_source == first and len(a.sources) >= 2


def test_one_dies_in_mid_answer(
    index: WordIndex, questions: list[Question], tmp_path: Path
) -> None:
    with serving(Talker(questions)) as sixteen:
        two = Talker(questions, dies_after=4)
        with serving(two) as four:
            found = run(index, questions, tmp_path, sixteen, four)
            q4 = found.rows[1]
            assert (q4.status, q4.n_questions) == ("failed", 4)
            assert q4.error is not None and q4.error.startswith("the server ended its answer")
            two.dies_after = 10**9
            again = run(index, questions, tmp_path, sixteen, four)
        assert again.rows[1].status == "done" and len(two.prompts) == 5 + 5
        kept = [w for w in again.warnings if "are an earlier run's" in w]
        assert [w.split(" answers of ")[0] for w in kept] == ["f16/f16: 9", "q4_0/q4_0: 4"]


def test_another_model_at_the_same_address_is_asked_anew(
    index: WordIndex, questions: list[Question], tmp_path: Path
) -> None:
    one = Talker(questions)
    with serving(one) as url:
        run(index, questions, tmp_path, url, "http://127.0.0.1:1")
        one.name = "other"
        run(index, questions, tmp_path, url, "http://127.0.0.1:1")
    assert len(one.prompts) == 18


def test_nobody_is_there(index: WordIndex, questions: list[Question], tmp_path: Path) -> None:
    with serving(Talker(questions)) as sixteen:
        found = run(index, questions, tmp_path, sixteen, "http://127.0.0.1:1")
    assert [r.status for r in found.rows] == ["done", "failed"]
    assert found.rows[1].n_questions == 0 and found.rows[1].error
