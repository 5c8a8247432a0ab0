"""Remote models: names, redirects, private addresses, the token, proxies, TLS, hostile headers."""

from __future__ import annotations

import random
import shutil
import socket
import ssl
import struct
import subprocess
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_gguf_header import ARRAY, STRING, U32, array, build, kv, mutate, tensor, text
from web_server import QUICK, Handler, Web, plain_environment, refused

from nybble.errors import ModelFileError
from nybble.models import gguf_header, http_connection, http_refusals, remote, safetensors_header
from nybble.models.first_bytes import NeedMoreBytes
from nybble.models.http_connection import LOCAL, PRIVATE, PUBLIC, nearness, parse_url
from nybble.models.remote import is_remote, names_gguf, remote_folder, remote_gguf
from nybble.models.remote_names import url_of

MODEL = build([kv("a", U32, b"1234"), kv("t", ARRAY, array(STRING, 3000, text("x") * 3000))],
              [tensor()])  # fmt: skip
PATH = "/model.gguf"
HF = "https://huggingface.co"


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_environment(monkeypatch)


@pytest.fixture
def web() -> Iterator[Web]:
    with Web(files={PATH: MODEL}) as server:
        yield server


@pytest.fixture
def other() -> Iterator[Web]:
    with Web(files={PATH: MODEL}, host="127.0.0.2") as server:
        yield server


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """127.0.0.1 counts as a public address, the other loopback ones do not."""
    real = nearness
    monkeypatch.setattr(http_connection, "nearness",
                        lambda ip: PUBLIC if ip == "127.0.0.1" else real(ip))  # fmt: skip


class TestNames:
    @pytest.mark.parametrize(("name", "url"), [
        ("hf:org/repo/m.gguf", f"{HF}/org/repo/resolve/main/m.gguf"),
        ("HF://org/repo/q4/m.gguf", f"{HF}/org/repo/resolve/main/q4/m.gguf"),
        ("hf:org/repo@v1.0/m.gguf", f"{HF}/org/repo/resolve/v1.0/m.gguf"),
        ("hf:org/repo/a b#?.gguf", f"{HF}/org/repo/resolve/main/a%20b%23%3F.gguf"),
        ("hf:org/repo", f"{HF}/org/repo/resolve/main"),
        ("org/repo", f"{HF}/org/repo/resolve/main"),
        (f"{HF}/org/repo", f"{HF}/org/repo/resolve/main"),
        (f"{HF}/org/repo/", f"{HF}/org/repo/resolve/main"),
        (f"{HF}/org/repo/tree/main/sub", f"{HF}/org/repo/resolve/main/sub"),
        (f"{HF}/org/repo/blob/main/m.gguf", f"{HF}/org/repo/resolve/main/m.gguf"),
        (f"{HF}/org/repo/raw/abc/m.gguf#L1", f"{HF}/org/repo/resolve/abc/m.gguf"),
        ("https://hf.co/org/repo/resolve/refs%2Fpr%2F1/m.gguf?download=true",
         f"{HF}/org/repo/resolve/refs%2Fpr%2F1/m.gguf"),
        (f"{HF}/datasets/o/r/resolve/main/m.gguf", f"{HF}/datasets/o/r/resolve/main/m.gguf"),
        ("https://host.example/blob/m.gguf?sig=1", "https://host.example/blob/m.gguf?sig=1"),
        ("http://[::1]:8000/ü.gguf", "http://[::1]:8000/%C3%BC.gguf"),
    ])  # fmt: skip
    def test_urls(self, name: str, url: str) -> None:
        assert url_of(name) == url
        assert is_remote(name) == (name != "org/repo")
        assert names_gguf(name) == ("gguf" in url)

    def test_local_names_stay_local(self) -> None:
        for name in ("org/repo", "model.gguf", "C:\\m.gguf", "./hf:x", "ftp://x/y.gguf", ""):
            assert not is_remote(name)

    @pytest.mark.parametrize(("name", "words"), [
        ("hf:org", "no name on the"), ("hf:org/re--po/m.gguf", "no name"),
        ("hf:../b/m.gguf", "no name"), ("hf:a/b@../m.gguf", "no name"),
        ("hf:a/b//m.gguf", "no name"), ("hf:a/b/../c", "no name"),
        ("hf:\x1b/b/m.gguf", "no name"), ("file:///etc/passwd", "Only http and https"),
        ("https://", "no valid host"), ("https:///m.gguf", "no valid host"),
        ("https://u:secret@host/m.gguf", "password"), ("https://host:99999/m", "no URL"),
        ("https://[::x]/m.gguf", "no URL"), ("https://bücher.example/m.gguf", "no valid host"),
        (f"https://{'a' * 64}.example/m.gguf", "no valid host"), ("https://a b/m", "no valid host"),
        ("https://h/" + "a" * 9000, "too long"), (f"{HF}/org/repo", "names no GGUF file"),
    ])  # fmt: skip
    def test_refused(self, name: str, words: str) -> None:
        error = refused(name, words)
        assert "secret" not in str(error)

    def test_offline(self, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "true")
        refused(web.url(), "HF_HUB_OFFLINE")
        refused("hf:a/b", "HF_HUB_OFFLINE", read=remote_folder)
        assert web.asked == []
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        assert remote_gguf(web.url(), QUICK)

    def test_hub_with_a_store_elsewhere(self, web: Web, other: Web,
                                        monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
        monkeypatch.setenv("HF_ENDPOINT", web.url("/"))
        monkeypatch.setattr(remote, "FIRST_GGUF", 4096)
        web.redirect("/o/r/resolve/main/m.gguf", "/new/r/resolve/main/m.gguf", 307)
        web.redirect("/new/r/resolve/main/m.gguf", other.url("/model.gguf?sig=secret"))

        def expire(handler: Handler, before: int) -> bool:
            if before == 1:
                handler.answer(403, b"Request has expired")
            return before == 1

        other.rules["/model.gguf?sig=secret"] = expire
        assert remote_gguf("hf:o/r/m.gguf", QUICK)[0].file_size == len(MODEL)
        # The second range goes straight to the store; as its address is over, the hub gives anew.
        assert len(web.asked) == 4 and len(other.asked) >= 3
        other.files.clear()
        assert "secret" not in str(refused("hf:o/r/m.gguf", "HTTP 404"))


class TestRedirects:
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_followed(self, web: Web, status: int) -> None:
        web.redirect("/a", "b/../%6Dodel.gguf?x=ü", status)
        web.files["/%6Dodel.gguf"] = MODEL
        assert remote_gguf(web.url("/a"), QUICK)
        assert web.paths == ["/a", "/%6Dodel.gguf?x=%FC"]

    @pytest.mark.parametrize("to", [
        "file:///etc/passwd", "ftp://127.0.0.1/m.gguf", "gopher://127.0.0.1/x", "data:,GGUF",
        "http://[", "http://user:pw@127.0.0.1/", "javascript:0", "http://a\tb/", "http://a..b/",
    ])  # fmt: skip
    def test_only_to_http(self, web: Web, to: str) -> None:
        web.redirect("/a", to)
        refused(web.url("/a"), "redirects to an address that is not read")

    def test_too_many(self, web: Web) -> None:
        web.redirect("/a", "/a")
        refused(web.url("/a"), "redirects too often")
        assert len(web.asked) == 1 + QUICK.redirects
        web.redirect("/a", "")
        refused(web.url("/a"), "redirects too often")


class TestAddresses:
    @pytest.mark.parametrize(("address", "near"), [
        ("8.8.8.8", PUBLIC), ("2606:4700::1111", PUBLIC), ("10.1.2.3", PRIVATE),
        ("192.168.1.1", PRIVATE), ("172.16.0.1", PRIVATE), ("100.64.0.1", PRIVATE),
        ("fd00::1", PRIVATE), ("127.0.0.1", LOCAL), ("127.9.9.9", LOCAL), ("::1", LOCAL),
        ("169.254.169.254", LOCAL), ("fe80::1%eth0", LOCAL), ("0.0.0.0", LOCAL), ("::", LOCAL),
        ("::ffff:127.0.0.1", LOCAL), ("::ffff:10.0.0.1", PRIVATE), ("224.0.0.1", LOCAL),
    ])  # fmt: skip
    def test_nearness(self, address: str, near: int) -> None:
        assert nearness(address) == near

    def test_from_inside_to_inside(self, web: Web, other: Web) -> None:
        web.redirect("/a", other.url())
        assert remote_gguf(web.url("/a"), QUICK)

    def test_from_outside_to_inside(self, web: Web, other: Web, outside: None) -> None:
        web.redirect("/a", other.url())
        refused(web.url("/a"), "leads to an address of this machine", "127.0.0.2")
        web.redirect("/a", "http://10.1.2.3/m.gguf")
        refused(web.url("/a"), "leads to an address of a private network")
        assert other.asked == []

    def test_from_inside_to_outside_and_back(self, web: Web, other: Web, outside: None) -> None:
        web.redirect("/a", other.url("/b"))
        other.redirect("/b", web.url("/a"))
        refused(other.url("/b"), "leads to an address of this machine")
        assert (other.paths, web.paths) == (["/b"], ["/a"])

    def test_a_name_for_this_machine(self, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
        def resolve(host: str, port: int, **_: Any) -> list[Any]:
            ip = {"models.example": "127.0.0.1", "localhost": "127.0.0.1"}.get(host, host)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port))]

        real = socket.getaddrinfo
        monkeypatch.setattr(http_connection.socket, "getaddrinfo",
                            lambda host, port, *a, **k: resolve(host, port) if not a
                            else real(host, port, *a, **k))  # fmt: skip
        refused(web.url(host="models.example"), "leads to an address of this machine")
        assert web.asked == []
        assert remote_gguf(web.url(host="localhost"), QUICK)

    def test_a_name_that_is_not_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for code, asked in ((socket.EAI_NONAME, 1), (socket.EAI_AGAIN, QUICK.attempts)):
            calls: list[object] = []

            def fail(*a: object, code: int = code, calls: list[object] = calls, **_: object) -> Any:
                calls.append(a)
                raise socket.gaierror(code, "unknown")

            monkeypatch.setattr(http_connection.socket, "getaddrinfo", fail)
            refused("https://models.example/m.gguf", "name is not found", "models.example")
            assert len(calls) == asked


class TestToken:
    def test_only_to_the_hub(self, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        remote_gguf(web.url(), QUICK)
        assert "Authorization" not in web.asked[0].headers
        for url, sent in ((f"{HF}/a/b", True), (f"{HF}:443/a", True), (f"{HF}:444/a", False),
                          ("http://huggingface.co/a", False), ("https://hf-mirror.com/a", False),
                          ("https://huggingface.co.evil.example/a", False)):  # fmt: skip
            assert (http_refusals.token_for(parse_url(url)) is not None) == sent

    def test_dropped_on_the_way_to_another_host(
        self, web: Web, other: Web, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setattr(http_refusals, "is_hub", lambda url: url.hostname == "127.0.0.1")
        web.redirect("/a", "/b")
        web.redirect("/b", other.url("/c"))
        other.redirect("/c", web.url())
        remote_gguf(web.url("/a"), QUICK)
        assert [a.headers.get("Authorization") for a in web.asked] == ["Bearer hf_secret"] * 2 + [
            None
        ]
        assert "Authorization" not in other.asked[0].headers

    def test_errors(self, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(http_refusals, "is_hub", lambda url: True)
        path = "/org/repo/resolve/main/m.gguf"
        web.rules[path] = lambda handler, _: bool(handler.answer(401)) or True
        refused(web.url(path), "gated or private", "HF_TOKEN=hf_...", f"{HF}/org/repo")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        error = refused(web.url(path), "account that may read it")
        assert "hf_secret" not in str(error)
        monkeypatch.setenv("HF_TOKEN", "hf_secret\nHost: evil")
        assert "secret" not in str(refused(web.url(path), "HF_TOKEN is no token"))


class TestProxy:
    def test_http(self, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("http_proxy", f"http://us%40er:pw@127.0.0.1:{web.port}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        web.files["http://models.example/m.gguf"] = MODEL
        assert remote_gguf("http://models.example/m.gguf", QUICK)
        assert web.asked[0].headers["Host"] == "models.example"
        assert web.asked[0].headers["Proxy-Authorization"] == "Basic dXNAZXI6cHc="
        web.redirect("http://models.example/m.gguf", "http://localhost/m.gguf")
        refused("http://models.example/m.gguf", "leads to an address of this machine")

    def test_of_another_kind(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("all_proxy", "socks5://user:secret@127.0.0.1:1080")
        assert "secret" not in str(refused("https://models.example/m.gguf", "all_proxy"))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    path = tmp_path_factory.mktemp("tls") / "pair.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                    "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj",
                    "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
                    "-keyout", path, "-out", path.with_suffix(".crt")],
                   check=True, capture_output=True)  # fmt: skip
    path.write_bytes(path.read_bytes() + path.with_suffix(".crt").read_bytes())
    return path


class TestTLS:
    @pytest.fixture
    def secure(self, certificate: Path) -> Iterator[Web]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        with Web(files={PATH: MODEL}, context=context) as server:
            yield server
        http_connection._context.cache_clear()

    def test_trusted_and_not(self, secure: Web, web: Web, certificate: Path,
                             monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
        http_connection._context.cache_clear()
        refused(secure.url(), "certificate is not trusted", "SSL_CERT_FILE")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        http_connection._context.cache_clear()
        monkeypatch.setattr(remote, "FIRST_GGUF", 4096)
        assert remote_gguf(secure.url(), QUICK)
        assert len({a.connection for a in secure.asked}) == 1
        secure.redirect("/down", web.url())
        refused(secure.url("/down"), "from https to plain http")
        web.redirect("/up", secure.url())
        assert remote_gguf(web.url("/up"), QUICK)
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{web.port}")
        monkeypatch.setenv("no_proxy", "")
        assert remote_gguf(secure.url(), QUICK)
        assert web.paths[-1] == f"127.0.0.1:{secure.port}"


def grown(data: bytes, size: int, step: int) -> Any:
    """What the bytes reader says of a file, given more of it whenever it asks for that."""
    have = min(step, size)
    while True:
        try:
            return gguf_header.read_header_bytes(data[:have], size, "any.gguf")
        except NeedMoreBytes as e:
            assert have < e.n_bytes <= min(size, gguf_header.MAX_HEADER_BYTES)
            have = min(max(e.n_bytes, 2 * have), size)
        except ModelFileError as e:
            return str(e)


class TestBytesReader:
    def test_equal_to_the_mapped_file_however_cut(self, tmp_path: Path) -> None:
        rng = random.Random(5)
        path = tmp_path / "any.gguf"
        outcomes = set()
        tracemalloc.start()
        for i in range(300):
            raw = mutate(rng, MODEL[:2000] if i % 2 else MODEL) if i else MODEL
            path.write_bytes(raw)
            try:
                expected: object = gguf_header.read_header(path)
            except ModelFileError as e:
                expected = str(e)
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            found = grown(raw, len(raw), rng.choice([0, 24, 700, 5000]))
            assert tracemalloc.get_traced_memory()[1] - before < 4 << 20
            if isinstance(expected, str):  # the local reader names the path where it is no GGUF
                expected = expected.replace(str(path), "any.gguf")
            assert found == expected
            outcomes.add(type(found))
        tracemalloc.stop()
        assert len(outcomes) == 2

    @settings(deadline=None, max_examples=300, derandomize=True)
    @given(head=st.sampled_from([b"", b"GGUF", b"GGUF" + struct.pack("<IQQ", 3, 1, 2)]),
           pieces=st.lists(st.sampled_from([kv("k", U32, b"\1\0\0\0"), kv("s", STRING, text("v")),
                                            tensor(), array(ARRAY, 2), bytes(8)]), max_size=6),
           rest=st.binary(max_size=600), size=st.integers(0, 1 << 62))  # fmt: skip
    @example(head=b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 40), pieces=[], rest=b"", size=1 << 62)
    def test_any_bytes_of_any_size(
        self, head: bytes, pieces: list[bytes], rest: bytes, size: int
    ) -> None:
        data = head + b"".join(pieces) + rest
        for read, most in ((gguf_header.read_header_bytes, gguf_header.MAX_HEADER_BYTES),
                           (safetensors_header.read_header_bytes, (16 << 20) + 8)):  # fmt: skip
            try:
                read(data[:size], size, "any")
            except NeedMoreBytes as e:
                assert len(data[:size]) < e.n_bytes <= min(size, most)
            except ModelFileError as e:
                assert e.hint
