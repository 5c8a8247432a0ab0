"""Embedding models: of servers, of folders, and those that are refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rag_index_doubles import indexed

from nybble.errors import NybbleError
from nybble.loopback import loopback_url
from nybble.rag.embed.minilm import folder as minilm_folder
from nybble.rag.embed.registry import embedder
from nybble.rag.index import open_index


class Server:
    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.answer: Any = None
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None: ...

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.asked.append(body)
                server.keys.append(self.headers["Authorization"])
                data = [
                    {"object": "embedding", "index": n, "embedding": [3.0, float(len(t)), 0.0, 1.0]}
                    for n, t in enumerate(body["input"])
                ]
                made = {"object": "list", "model": "m", "data": data[::-1],
                        "usage": {"prompt_tokens": 1, "total_tokens": 1}}  # fmt: skip
                text = json.dumps(server.answer or made).encode()
                self.send_response(400 if server.answer == "no" else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def test_a_server(server: Server, tmp_path: Path) -> None:
    for n in range(70):
        (tmp_path / f"{n}.txt").write_text(f"text {'of ' * n} number {n}")
    report = indexed(tmp_path, embedding=server.url, embedding_model="m")
    assert report.added == 70 and {body["model"] for body in server.asked} == {"m"}
    assert max(len(body["input"]) for body in server.asked) == 64
    with open_index(tmp_path / ".nybble-rag") as index:
        about = index.about()
        assert (about.embedding, about.embedding_model, about.dims) == (server.url, "m", 4)
        assert len(index.search("number", mode="dense", k=5)) == 5
    with pytest.raises(NybbleError, match="another embedding model"):
        indexed(tmp_path, embedding=server.url, embedding_model="n")


def test_vectors_in_the_order_of_the_texts_and_of_length_1(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "the key")
    found = embedder(server.url + "/", "m").passages(["a", "bbb"])
    assert np.allclose(np.linalg.norm(found, axis=1), 1) and found.dtype == np.float32
    assert found[0, 1] / found[0, 0] == pytest.approx(1 / 3)
    assert found[1, 1] / found[1, 0] == pytest.approx(1)
    assert server.keys[-1] == "Bearer the key"


def test_a_server_that_fails(server: Server) -> None:
    model = embedder(server.url, "m")
    good = {"object": "embedding", "index": 0, "embedding": [1.0]}
    for answer in ("no", {"data": []}, {"data": [good, good]}, {"data": [{"index": 0}]}, [1]):
        server.answer = answer
        with pytest.raises(NybbleError, match="embedding server"):
            model.passages(["a"])
    with pytest.raises(NybbleError, match="the embedding server failed"):
        embedder("http://127.0.0.1:9/v1", "m").query("a")


def test_names() -> None:
    with pytest.raises(NybbleError, match="needs a model's name"):
        embedder("http://127.0.0.1:9/v1")
    with pytest.raises(NybbleError, match="is for embedding servers"):
        embedder("minilm", "m")
    with pytest.raises(NybbleError, match="no such embedding model here"):
        _ = embedder("nobody/no-such-model").fingerprint
    assert loopback_url("http://localhost:1/v1") and loopback_url("http://[::1]:1/v1")
    assert not loopback_url("http://127.0.0.1.example.com/v1")


def folder(place: Path, **modules: Any) -> Path:
    place.mkdir(exist_ok=True)
    (place / "tokenizer.json").write_text("{}")
    (place / "modules.json").write_text(json.dumps([{"type": "x", "path": "", **modules}]))
    return place


def test_folders_that_are_refused(tmp_path: Path) -> None:
    mine = "sentence_transformers.models.Transformer"
    for place, text in (
        (tmp_path, "has no modules.json"),
        (folder(tmp_path / "code", type="evil.Module"), "code of its own"),
        (folder(tmp_path / "out", type=mine, path="../x"), "out of its folder"),
    ):
        with pytest.raises(NybbleError, match=text):
            _ = embedder(str(place)).fingerprint
    pickled = folder(tmp_path / "pickled", type=mine)
    (pickled / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(NybbleError, match="pickle can run code"):
        _ = embedder(str(pickled)).fingerprint
    (pickled / "modules.json").write_text("{")
    with pytest.raises(NybbleError, match="cannot be read"):
        _ = embedder(str(pickled)).fingerprint


@pytest.mark.slow
def test_a_damaged_model(tmp_path: Path) -> None:
    broken = folder(tmp_path / "broken", type="sentence_transformers.models.Transformer")
    (broken / "model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(NybbleError, match="cannot load the embedding model"):
        embedder(str(broken)).query("a")


@pytest.mark.slow
def test_the_default_model_finds_by_meaning(tmp_path: Path) -> None:
    for name, text in (
        ("sea", "Waves broke over the deck and the sailors prayed."),
        ("tax", "Income is declared by the end of May, or a fine is due."),
        ("cat", "The kitten slept on the warm windowsill all afternoon."),
    ):
        (tmp_path / f"{name}.txt").write_text(text)
    assert indexed(tmp_path).added == 3
    with open_index(tmp_path / ".nybble-rag") as index:
        assert index.about().dims == 384
        for query, name in (("a young feline napping", "cat"), ("a ship in a storm", "sea"),
                            ("what does the revenue office want", "tax")):  # fmt: skip
            assert index.search(query, mode="dense")[0].passage.document == f"{name}.txt"
    # The same model by its folder is the same model.
    with open_index(tmp_path / ".nybble-rag", embedding=str(minilm_folder())) as index:
        assert index.search("storm at sea")
