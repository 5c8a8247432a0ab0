"""Every way a server can misbehave becomes a word and the server's own text; none ends the run."""

from __future__ import annotations

import asyncio
import socket
import statistics
import time
from typing import Any

import pytest

from load_servers import Misbehaving
from nybble.errors import EngineError, MissingExtraError, NybbleError
from nybble.loopback import loopback_url
from nybble.results.loads import LoadRequest
from nybble.serving.load import client as module
from nybble.serving.load.client import Ask, Dialect, ask
from nybble.serving.load.lengths import Lengths
from nybble.serving.load.prepare import api_key, base_url, connect
from nybble.serving.load.profile import BenchProfile
from nybble.serving.load.run import BenchRequest, bench


def asked(url: str, api: str = "chat", tokens: int = 8, timeout: float = 5.0) -> LoadRequest:
    async def run() -> LoadRequest:
        client = connect(base_url(url), None)
        try:
            wanted = Ask(3, 0, "some words", 10, tokens, 0.0)
            began = time.perf_counter()
            return await ask(client, api, "m", Dialect(), wanted, began, timeout)
        finally:
            await client.close()

    return asyncio.run(run())


class TestOneRequest:
    @pytest.mark.parametrize("api", ["chat", "completions"])
    def test_a_whole_answer(self, bad: Misbehaving, api: str) -> None:
        found = asked(bad.url("slow"), api)
        assert found.error is None and found.tokens_out == 8
        assert found.tokens_in and found.cached is None
        assert found.first is not None and len(found.gaps) == 7
        assert 0 < found.first <= found.first + sum(found.gaps) <= found.total
        # A busy machine may hand over two pieces at once.
        assert statistics.median(found.gaps) > 0.005, "each piece has its own time"
        body = bad.seen["slow"][0]
        assert body["ignore_eos"] is True and body["stream_options"] == {"include_usage": True}

    def test_pieces_of_several_tokens(self, bad: Misbehaving) -> None:
        found = asked(bad.url("pieces"))
        assert found.tokens_out == 8 and len(found.gaps) == 1

    def test_without_a_count_pieces_are_counted(self, bad: Misbehaving) -> None:
        found = asked(bad.url("uncounted"))
        assert (found.error, found.tokens_in, found.tokens_out) == (None, None, 8)

    @pytest.mark.parametrize(
        ("way", "error", "detail"),
        [
            ("http500", "HTTP 500", "said with 500"),
            ("http429", "HTTP 429", "said with 429"),
            ("http503", "HTTP 503", "said with 503"),
            ("cut", "cut off", ""),
            ("endless", "cut off", "without an end"),
            ("closes", "connection lost", ""),
            ("malformed", "malformed", "JSON"),
            ("notutf8", "malformed", ""),
            ("shape", "malformed", ""),
            ("html", "cut off", "without an end"),
            ("errorevent", "server error", "cache is full"),
            ("errorchunk", "server error", "worker\ufffd died"),
            ("empty", "empty", "without text"),
        ],
    )
    def test_errors(self, bad: Misbehaving, way: str, error: str, detail: str) -> None:
        found = asked(bad.url(way))
        assert found.error == error and detail in (found.detail or ""), found
        assert found.index == 3 and found.total >= 0

    @pytest.mark.parametrize("way", ["hang", "hangmid"])
    def test_a_server_that_hangs(self, bad: Misbehaving, way: str) -> None:
        found = asked(bad.url(way), timeout=0.3)
        assert found.error == "time-out" and "0.3 s" in (found.detail or "")
        assert (found.first is None) == (way == "hang")

    def test_nobody_there(self) -> None:
        with socket.socket() as held:  # bound, not listening
            held.bind(("127.0.0.1", 0))
            found = asked(f"http://127.0.0.1:{held.getsockname()[1]}")
        assert found.error == "refused" and found.detail


def run(url: str, **options: Any) -> Any:
    given = {"tokens_in": Lengths.parse("40"), "tokens_out": Lengths.parse("6"),
             "concurrency": 2, "requests": 12, **options}  # fmt: skip
    timeout = given.pop("timeout", 5.0)
    return bench(BenchRequest((url,), BenchProfile(**given), timeout=timeout)).runs[0]


class TestRuns:
    def test_some_fail(self, bad: Misbehaving) -> None:
        found = run(bad.url("flaky"))
        n = found.numbers
        assert n.failed and n.answered and n.failed + n.answered == 12
        assert [(f.error, f.count, f.detail) for f in n.failures] == [
            ("HTTP 429", n.failed, "slow down")
        ]

    def test_all_fail(self, bad: Misbehaving) -> None:
        with pytest.raises(EngineError) as caught:
            run(bad.url("dies"), requests=5000, warmup=0)
        assert "not one request" in caught.value.what and "out of memory" in str(caught.value)
        assert len(bad.seen["dies"]) < 100, "it gives up"

    def test_never_more_at_once_than_asked(self, bad: Misbehaving) -> None:
        run(bad.url("slow"), concurrency=3)
        assert bad.most["slow"] == 3

    def test_refused_extensions_are_left_out(self, bad: Misbehaving) -> None:
        found = run(bad.url("noeos"))
        assert not found.numbers.failed and any("ignore_eos" in n for n in found.notes)
        found = run(bad.url("nousage"))
        assert not found.numbers.failed and found.numbers.tokens_in is None
        assert any("pieces of the stream are counted" in n for n in found.notes)
        assert any("about as long as asked" in n for n in found.notes)

    def test_short_answers_are_said(self, bad: Misbehaving) -> None:
        found = run(bad.url("short"))
        assert found.numbers.as_asked == 0
        assert any("100% of the answers ended before" in n for n in found.notes)

    def test_prompts_are_as_long_as_asked(self, bad: Misbehaving) -> None:
        found = run(bad.url("ok"), tokens_in=Lengths.parse("100..400"))
        assert all(abs((r.tokens_in or 0) - r.asked_in) <= 2 for r in found.requests)

    def test_open_loop_waits_in_the_client(self, bad: Misbehaving) -> None:
        found = run(bad.url("slow"), rate=200.0, concurrency=1, requests=10)
        assert found.numbers.queued["p99"] > found.numbers.queued["p50"] > 0
        due = [r.due for r in found.requests]
        assert due == sorted(due) and all(r.sent >= r.due for r in found.requests)

    def test_duration_ends_it(self, bad: Misbehaving) -> None:
        found = run(bad.url("slow"), requests=None, duration=0.4)
        last = max(r.sent for r in found.requests)
        assert found.numbers.answered >= 2 and last <= 0.41

    @pytest.mark.parametrize(
        ("way", "words"),
        [
            ("http401", ("HTTP 401", "--api-key-env")),
            ("http404", ("HTTP 404", "--api completions")),
            ("http500", ("HTTP 500", "said with 500")),
            ("html", ("cut off",)),
            ("two", ("several models", "one, two", "--model")),
            ("none", ("no model", "--model")),
            ("unlisted", ("does not list", "--model")),
        ],
    )
    def test_servers_that_are_none(
        self, bad: Misbehaving, way: str, words: tuple[str, ...]
    ) -> None:
        with pytest.raises(NybbleError) as caught:
            run(bad.url(way))
        for word in words:
            assert word in str(caught.value)

    def test_nobody_there(self) -> None:
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            with pytest.raises(EngineError, match="no server answers"):
                run(f"127.0.0.1:{held.getsockname()[1]}")


class TestAddresses:
    @pytest.mark.parametrize(
        ("text", "url"),
        [
            ("127.0.0.1:80", "http://127.0.0.1:80/v1"),
            ("http://h:1/", "http://h:1/v1"),
            ("https://h/v1/", "https://h/v1"),
            ("https://h/api/v3", "https://h/api/v3"),
            (" http://[::1]:8080 ", "http://[::1]:8080/v1"),
        ],
    )
    def test_base(self, text: str, url: str) -> None:
        assert base_url(text) == url

    @pytest.mark.parametrize(
        "text", ["", "ftp://h", "http://", "http://h:port", "http://[::1", "http://h:99999"]
    )
    def test_none(self, text: str) -> None:
        with pytest.raises(NybbleError):
            base_url(text)

    @pytest.mark.parametrize("text", ["http://u:secret@h", "http://h/v1?key=secret", "h#secret"])
    def test_secrets_are_not_repeated(self, text: str) -> None:
        with pytest.raises(NybbleError) as caught:
            base_url(text)
        assert "secret" not in str(caught.value)

    def test_loopback(self) -> None:
        assert loopback_url("http://127.3.0.1:1/v1") and loopback_url("http://[::1]:1/v1")
        assert loopback_url("http://localhost/v1") and not loopback_url("http://10.0.0.1/v1")

    def test_keys(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("NYBBLE_API_KEY", raising=False)
        monkeypatch.setenv("OPENAI_API_KEY", "theirs")
        assert api_key("http://127.0.0.1/v1") == "theirs"
        assert api_key("https://h/v1") == "theirs"
        assert api_key("http://10.0.0.1/v1") is None, "not in clear text to another machine"
        assert api_key("http://10.0.0.1/v1", "OPENAI_API_KEY") == "theirs", "but on purpose"
        monkeypatch.setenv("NYBBLE_API_KEY", "ours")
        assert api_key("https://h/v1") == "ours"
        with pytest.raises(NybbleError, match="not set"):
            api_key("https://h/v1", "NO_SUCH_KEY_HERE")

    def test_the_key_is_sent_and_not_kept(
        self, bad: Misbehaving, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NYBBLE_API_KEY", "ours-and-secret")
        found = run(bad.url("ok"))
        assert all("Bearer ours-and-secret" in head for head in bad.headers)
        assert "secret" not in repr(found)

    def test_a_missing_client_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(MissingExtraError) as caught:
            run("127.0.0.1:1")
        assert ".[bench]" in str(caught.value)
