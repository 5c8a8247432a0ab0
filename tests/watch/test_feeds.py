"""Asking feeds over a real connection: conditional, slow, huge, wrong, redirected, offline."""

from __future__ import annotations

import asyncio
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from feed_samples import NOTES, atom, index

from nybble.errors import NybbleError
from nybble.watch.cache import Copy, FeedCache
from nybble.watch.feeds import Addresses, Heard, Limits, about_package, about_repository, ask

INDEX, FEED = "/pypi/made/json", "/o/made/releases.atom"


@pytest.fixture
def hear(web: Any, tmp_path: Path) -> Any:
    """Asks the index, or the feed."""
    addresses = Addresses(web.index_url, web.releases_url)

    def once(feed: bool = False, **options: Any) -> Heard:
        question = about_repository(addresses, "o/made") if feed else about_package(
            addresses, "made")  # fmt: skip
        limits = options.pop("limits", Limits(total=10))
        (heard,) = ask([question], FeedCache(tmp_path / "watch"), limits, **options)
        return heard

    return once


def _versions(heard: Heard) -> list[str]:
    return [r.version for r in heard.releases]


class TestAnswers:
    def test_index_and_feed(self, web: Any, hear: Any) -> None:
        web.answer(INDEX, index("made", "1.0", "1.1"))
        web.answer(FEED, atom("o/made", ("v1.1", "2026-11-20", NOTES)))
        heard = hear()
        assert _versions(heard) == ["1.0", "1.1"]
        source = heard.source
        assert (source.kind, source.subject, source.state) == ("index", "made", "fetched")
        assert (source.age, source.why) == (0.0, "")
        heard = hear(feed=True)
        assert (_versions(heard), heard.source.kind) == (["v1.1"], "releases")
        assert web.asked[0][1]["User-Agent"].startswith("nybble/")
        assert web.asked[0][1]["Accept-Encoding"] == "identity"

    def test_what_is_unchanged_is_not_sent_again(self, web: Any, hear: Any) -> None:
        web.answer(INDEX, index("made", "1.0"), ETag='"a"', Last_Modified="Sat, 28 Nov 2026")
        assert hear().source.state == "fetched"
        heard = hear()
        assert (heard.source.state, heard.source.age) == ("unchanged", 0.0)
        assert _versions(heard) == ["1.0"]
        first, second = (headers for _, headers in web.asked)
        assert "If-None-Match" not in first
        assert second["If-None-Match"] == '"a"'
        assert second["If-Modified-Since"] == "Sat, 28 Nov 2026"
        web.answer(INDEX, index("made", "1.0", "1.1"), ETag='"b"')
        heard = hear()
        assert (heard.source.state, _versions(heard)) == ("fetched", ["1.0", "1.1"])

    @pytest.mark.parametrize("tag", ["no quotes", '"a\x7f"', '"\xe9"', '"' + "x" * 300 + '"'])
    def test_an_odd_tag_is_not_sent_back(self, web: Any, hear: Any, tag: str) -> None:
        web.answer(INDEX, index("made", "1.0"), ETag=tag)
        hear()
        assert hear().source.state == "fetched"
        assert "If-None-Match" not in web.asked[1][1]

    def test_a_damaged_copy_is_fetched_again(self, web: Any, hear: Any, tmp_path: Path) -> None:
        web.answer(INDEX, index("made", "1.0"), ETag='"a"')
        hear()
        (path,) = (tmp_path / "watch").glob("*.feed")
        path.write_bytes(path.read_bytes()[:-5])
        assert hear().source.state == "fetched"
        assert "If-None-Match" not in web.asked[1][1]
        assert hear().source.state == "unchanged"

    def test_a_copy_that_does_not_parse_is_fetched_again(
        self, web: Any, hear: Any, tmp_path: Path
    ) -> None:
        """As one of another version of nybble may be."""
        url = web.index_url.replace("{package}", "made")
        FeedCache(tmp_path / "watch").save(url, Copy(b"{}", '"a"', "", 0.0))
        assert hear(offline=True).source.state == "missing"
        web.answer(INDEX, index("made", "1.0"), ETag='"a"')
        assert hear().source.state == "fetched"

    @pytest.mark.parametrize(
        ("name", "value"),
        [("ALL_PROXY", "nonsense://x"), ("HTTP_PROXY", "http://x:port"),
         ("SSL_CERT_FILE", "/no/such/file")],
    )  # fmt: skip
    def test_a_broken_environment_is_told(
        self, hear: Any, monkeypatch: pytest.MonkeyPatch, name: str, value: str
    ) -> None:
        monkeypatch.setenv(name, value)
        with pytest.raises(NybbleError, match="proxy or the certificates"):
            hear()

    def test_an_unasked_304_is_no_answer(self, web: Any, hear: Any) -> None:
        web.answer(INDEX, b"", 304)
        heard = hear()
        assert (heard.source.state, heard.source.why) == ("missing", "HTTP 304 Not Modified")

    def test_progress_is_told(self, web: Any, hear: Any) -> None:
        web.answer(INDEX, index("made", "1.0"))
        said: list[Heard] = []
        assert [hear(said=said.append)] == said

    def test_inside_a_running_loop(self, web: Any, hear: Any) -> None:
        web.answer(INDEX, index("made", "1.0"))

        async def notebook() -> Heard:
            heard: Heard = hear()
            return heard

        assert _versions(asyncio.run(notebook())) == ["1.0"]

    def test_a_cache_that_cannot_be_written_is_told(
        self, web: Any, hear: Any, tmp_path: Path
    ) -> None:
        (tmp_path / "watch").touch()
        web.answer(INDEX, index("made", "1.0"))
        heard = hear()
        assert heard.source.state == "fetched" and heard.source.why.startswith("not cached")


class TestFailures:
    """Each says why; a copy is used where there is one."""

    def _slow_start(self, request: BaseHTTPRequestHandler, web: Any) -> None:
        web.stop.wait(20)

    def _drip(self, request: BaseHTTPRequestHandler, web: Any) -> None:
        request.send_response(200)
        request.end_headers()
        while not web.stop.wait(0.05):
            request.wfile.write(b" ")
            request.wfile.flush()

    def _huge(self, request: BaseHTTPRequestHandler, web: Any) -> None:
        request.send_response(200)
        request.end_headers()
        while not web.stop.is_set():
            request.wfile.write(b"x" * 65536)

    def _cut(self, request: BaseHTTPRequestHandler, web: Any) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        request.wfile.write(b"{")

    def _nonsense(self, request: BaseHTTPRequestHandler, web: Any) -> None:
        request.wfile.write(b"\x16\x03nonsense\r\n\r\n")

    def _zipped(self, request: BaseHTTPRequestHandler, web: Any) -> None:
        request.send_response(200)
        request.send_header("Content-Encoding", "gzip")
        request.end_headers()

    @pytest.mark.parametrize(
        ("how", "why"),
        [
            ("_slow_start", "no whole answer within 0.5 s"),
            ("_drip", "no whole answer within 0.5 s"),
            ("_huge", "larger than 100,000 bytes"),
            ("_cut", "no connection"),
            ("_nonsense", "no connection"),
            ("_zipped", "compressed"),
        ],
    )
    def test_bad_servers(self, web: Any, hear: Any, how: str, why: str) -> None:
        web.answer(INDEX, index("made", "1.0"))
        hear()
        web.routes[INDEX] = lambda request: getattr(self, how)(request, web)
        seconds = 0.5 if "0.5" in why else 30
        heard = hear(limits=Limits(total=seconds, size=100_000))
        assert why in heard.source.why
        assert (heard.source.state, _versions(heard)) == ("cached", ["1.0"])
        assert heard.source.age is not None and heard.source.age >= 0

    @pytest.mark.parametrize("status", [403, 404, 410, 429, 500, 503, 204])
    def test_other_states(self, web: Any, hear: Any, status: int) -> None:
        web.answer(INDEX, b"", status)
        heard = hear()
        assert heard.source.state == "missing" and f"HTTP {status}" in heard.source.why
        assert (heard.releases, heard.source.age) == ((), None)

    @pytest.mark.parametrize("body", [b"<html>sign in</html>", index("other", "1.0")])
    def test_an_answer_that_does_not_parse_is_not_kept(
        self, web: Any, hear: Any, body: bytes
    ) -> None:
        web.answer(INDEX, body)
        heard = hear()
        assert heard.source.state == "missing" and "package index" in heard.source.why
        assert hear(offline=True).source.state == "missing"
        web.answer(INDEX, index("made", "1.0"))
        hear()
        web.answer(INDEX, body)
        heard = hear()
        assert (heard.source.state, _versions(heard)) == ("cached", ["1.0"])

    def test_a_bomb(self, web: Any, hear: Any) -> None:
        web.answer(FEED, b'<!DOCTYPE feed [<!ENTITY a "aa">]><feed>&a;</feed>')
        assert "document type" in hear(feed=True).source.why

    def test_nobody_listens(self, hear: Any, web: Any, tmp_path: Path) -> None:
        question = about_package(Addresses("http://127.0.0.1:9/{package}"), "made")
        (heard,) = ask([question], FeedCache(tmp_path), Limits(total=5))
        assert heard.source.state == "missing" and "no connection" in heard.source.why

    def test_offline_asks_nobody(self, web: Any, hear: Any) -> None:
        heard = hear(offline=True)
        assert (heard.source.state, heard.source.why) == ("missing", "offline: not asked")
        web.answer(INDEX, index("made", "1.0"))
        hear()
        asked = len(web.asked)
        heard = hear(offline=True)
        assert (heard.source.state, _versions(heard)) == ("cached", ["1.0"])
        assert len(web.asked) == asked and heard.source.why == "offline: not asked"


class TestRedirects:
    def test_on_the_same_host(self, web: Any, hear: Any) -> None:
        web.answer(INDEX, b"", 301, Location="/pypi/Made/json")
        web.answer("/pypi/Made/json", index("made", "1.0"))
        assert _versions(hear()) == ["1.0"]

    @pytest.mark.parametrize(
        "to",
        ["http://localhost:{port}/x", "http://127.0.0.1:1/x", "https://127.0.0.1:{port}/x",
         "http://user@127.0.0.1:{port}/x", "file:///etc/passwd", "//evil.example/x"],
    )  # fmt: skip
    def test_to_other_places_are_refused(self, web: Any, hear: Any, to: str) -> None:
        web.answer(INDEX, b"", 302, Location=to.format(port=web.port))
        web.answer("/x", index("made", "1.0"))
        heard = hear()
        assert heard.source.state == "missing" and "redirects to" in heard.source.why
        assert len(web.asked) == 1

    def test_in_a_circle(self, web: Any, hear: Any) -> None:
        web.answer(INDEX, b"", 307, Location=INDEX)
        assert "more than 3 times" in hear().source.why
        assert len(web.asked) == 4

    def test_a_damaged_one(self, web: Any, hear: Any) -> None:
        web.answer(INDEX, b"", 302, Location="http://[x")
        assert hear().source.state == "missing"


class TestAddresses:
    def test_names_are_filled_in_and_escaped(self) -> None:
        addresses = Addresses(
            "https://i.example/{package}/json", "https://r.example/{repository}?k=s"
        )
        assert about_package(addresses, "a/b?c").url == "https://i.example/a%2Fb%3Fc/json"
        feed = about_repository(addresses, "o/made")
        assert feed.url == "https://r.example/o/made?k=s"
        assert feed.address == "https://r.example/o/made"

    def test_options_then_environment_then_public(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("NYBBLE_INDEX_URL", "NYBBLE_RELEASES_URL"):
            monkeypatch.delenv(name, raising=False)
        assert Addresses.chosen().index == "https://pypi.org/pypi/{package}/json"
        assert Addresses.chosen().releases == "https://github.com/{repository}/releases.atom"
        monkeypatch.setenv("NYBBLE_INDEX_URL", "http://env/{package}")
        assert Addresses.chosen().index == "http://env/{package}"
        assert Addresses.chosen("http://opt/{package}").index == "http://opt/{package}"

    @pytest.mark.parametrize(
        "url",
        ["", "pypi.org/{package}", "ftp://x/{package}", "http://x/json", "http:///{package}",
         "http://u:p@x/{package}", "http://x:99999/{package}", "http://x/ {package}",
         "http://x/\x1b{package}", "file:///{package}", "http://[x/{package}"],
    )  # fmt: skip
    def test_others_are_refused(self, url: str) -> None:
        with pytest.raises(NybbleError) as caught:
            Addresses(index=url)
        assert "NYBBLE_INDEX_URL" in str(caught.value) and ":p@" not in str(caught.value)

    @pytest.mark.parametrize("seconds", [0, -1, 1e9, float("nan")])
    def test_times_are_checked(self, seconds: float) -> None:
        with pytest.raises(NybbleError, match="--timeout"):
            Limits(total=seconds)
