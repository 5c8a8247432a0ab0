"""Headers of remote models, read from a server on loopback that is slow, broken or hostile."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from model_folders import CONFIG, weights
from test_gguf_header import ARRAY, HUGE, STRING, U8, U32, array, build, kv, tensor, text
from web_server import QUICK, Handler, Web, plain_environment, refused

from nybble.models import remote
from nybble.models.folder import INDEX
from nybble.models.gguf_header import read_header
from nybble.models.http_connection import Limits
from nybble.models.remote import remote_config, remote_folder, remote_gguf
from nybble.models.safetensors_header import read_header as read_safetensors

TOKENS = kv("tokens", ARRAY, array(STRING, 20_000, text("word") * 20_000))  # 240,000 bytes
MODEL = build([kv("a", U32, b"1234"), TOKENS], [tensor()], data=100_000)
PATH = "/model.gguf"


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    plain_environment(monkeypatch)
    with Web(files={PATH: MODEL}) as server:
        yield server


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """First requests so small that a test's header takes several."""
    monkeypatch.setattr(remote, "FIRST_GGUF", 4096)
    monkeypatch.setattr(remote, "FIRST_OTHER", 512)


class TestRanges:
    def test_equal_to_the_local_file(self, web: Web, tmp_path: Path) -> None:
        (tmp_path / "m.gguf").write_bytes(MODEL)
        assert remote_gguf(web.url(), QUICK) == [read_header(tmp_path / "m.gguf")]
        assert [a.range for a in web.asked] == [(0, (1 << 20) - 1)]
        assert web.asked[0].headers["Accept-Encoding"] == "identity"

    def test_twice_as_much_each_time_on_one_connection(self, web: Web, small: None) -> None:
        (header,) = remote_gguf(web.url(), QUICK)
        asked = [a.range for a in web.asked]
        # The array says at once that its 20,000 strings take 8 bytes each or more.
        assert asked[0] == (0, 4095) and asked[1] is not None and asked[1][1] > 160_000
        assert asked[1][0] == 4096 and len(asked) == 3
        assert len({a.connection for a in web.asked}) == 1
        assert header.file_size == len(MODEL)

    def test_the_weights_are_not_read(self, web: Web, small: None) -> None:
        web.files[PATH] = build([kv("a", U32, b"1234")], [tensor(shape=(2_000_000,))], data=8 << 20)
        remote_gguf(web.url(), QUICK)
        assert [a.range for a in web.asked] == [(0, 4095)]

    def test_a_server_that_knows_no_ranges(self, web: Web, small: None) -> None:
        sent = []

        def endless(handler: Handler, before: int) -> bool:
            handler.answer(200, MODEL, {"Content-Length": str(len(MODEL) + (1 << 40))})
            while not web.over.is_set():
                handler.wfile.write(bytes(1 << 16))
                sent.append(1 << 16)
            return True

        web.rules[PATH] = endless
        (header,) = remote_gguf(web.url(), QUICK)
        assert header.file_size == len(MODEL) + (1 << 40)
        assert len(web.asked) == 1  # the second step reads on in the same answer
        assert sum(sent) < 64 << 20

    def test_no_ranges_and_a_broken_connection(self, web: Web, small: None) -> None:
        def broken(handler: Handler, before: int) -> bool:
            cut = 100_000 if before == 0 else len(MODEL)
            handler.answer(200, MODEL[:cut], {"Content-Length": str(len(MODEL))})
            handler.close_connection = True
            return True

        web.rules[PATH] = broken
        assert remote_gguf(web.url(), QUICK)[0].file_size == len(MODEL)
        assert len(web.asked) == 2

    def test_no_ranges_and_no_length(self, web: Web) -> None:
        def chunked(handler: Handler, before: int) -> bool:
            handler.answer(
                200,
                b"5\r\nGGUF!\r\n0\r\n\r\n",
                {"Transfer-Encoding": "chunked", "Content-Length": None},
            )  # type: ignore[dict-item]
            return True

        web.rules[PATH] = chunked
        refused(web.url(), "neither sends ranges nor says how large")

    def test_resumes_where_it_broke_off(self, web: Web, small: None) -> None:
        def broken(handler: Handler, before: int) -> bool:
            if before != 1:
                return False
            first, last = web.asked[-1].range or (0, 0)
            handler.answer(206, MODEL[first : first + 1000], {
                "Content-Range": f"bytes {first}-{last}/{len(MODEL)}",
                "Content-Length": str(last - first + 1)})  # fmt: skip
            handler.close_connection = True
            return True

        web.rules[PATH] = broken
        remote_gguf(web.url(), QUICK)
        assert (web.asked[2].range or (0, 0))[0] == 4096 + 1000

    def test_empty_files(self, web: Web) -> None:
        web.files[PATH] = b""
        refused(web.url(), "is empty")
        web.rules[PATH] = lambda handler, _: bool(handler.answer(200)) or True
        refused(web.url(), "is empty")

    def test_hostile_counts_end_at_once(self, web: Web, small: None) -> None:
        for payload, words in ((array(U8, 1 << 33), "the header is too large"),
                               (array(STRING, HUGE), "the file ends inside")):  # fmt: skip
            raw = build([kv("k", ARRAY, payload)], data=10_000)
            web.asked.clear()

            def large(handler: Handler, _: int, raw: bytes = raw) -> bool:
                handler.answer(206, raw[:4096], {"Content-Range": f"bytes 0-4095/{1 << 40}"})
                return True

            web.rules[PATH] = large
            refused(web.url(), words)
            assert len(web.asked) == 1

    def test_the_page_of_a_file(self, web: Web) -> None:
        web.files[PATH] = b"<!doctype html><title>no model</title>"
        refused(web.url(), "HTML")


CONTENT_RANGES = {
    "none": None, "text": "bytes", "unknown size": "bytes 0-9/*", "later": "bytes 1-10/500000",
    "before": "bytes 5-4/500000", "past the end": "bytes 0-99/50", "unit": "items 0-9/500000",
    "huge": f"bytes 0-9/{'9' * 40}", "negative": "bytes 0--9/500000",
}  # fmt: skip


class TestLies:
    @pytest.mark.parametrize("name", CONTENT_RANGES)
    def test_content_range(self, web: Web, name: str) -> None:
        def wrong(handler: Handler, _: int) -> bool:
            handler.answer(206, MODEL[:10], {"Content-Range": CONTENT_RANGES[name]})  # type: ignore[dict-item]
            return True

        web.rules[PATH] = wrong
        refused(web.url(), "another range")
        assert len(web.asked) == 1

    @pytest.mark.parametrize("by", [-50, 50])
    def test_content_length(self, web: Web, small: None, by: int) -> None:
        def lie(handler: Handler, _: int) -> bool:
            first, last = web.asked[-1].range or (0, 0)
            part = MODEL[first : last + 1]
            handler.answer(206, part, {
                "Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(MODEL)}",
                "Content-Length": str(len(part) + by)})  # fmt: skip
            return True

        web.rules[PATH] = lie
        if by < 0:
            refused(web.url(), "ends its answer too early", "of 4,096 bytes")
        else:  # nothing after the range is read, or waited for
            assert remote_gguf(web.url(), QUICK)[0].file_size == len(MODEL)

    def test_changed_meanwhile(self, web: Web, small: None) -> None:
        def change(handler: Handler, before: int) -> bool:
            web.tag = f'"{before}"'
            return False

        web.rules[PATH] = change
        refused(web.url(), "changed on the server", "'\"0\"'", "'\"1\"'")

    def test_another_size_meanwhile(self, web: Web, small: None) -> None:
        def grow(handler: Handler, before: int) -> bool:
            web.files[PATH] = MODEL + bytes(32 * before)
            return False

        web.rules[PATH] = grow
        refused(web.url(), "changed on the server", f"{len(MODEL) + 32:,}")

    def test_compressed(self, web: Web) -> None:
        def gzip(handler: Handler, _: int) -> bool:
            handler.answer(206, MODEL[:10], {"Content-Range": f"bytes 0-9/{len(MODEL)}",
                                             "Content-Encoding": "gzip"})  # fmt: skip
            return True

        web.rules[PATH] = gzip
        refused(web.url(), "compresses")

    def test_an_endless_config(self, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(remote, "MAX_JSON_BYTES", 1 << 20)

        def endless(handler: Handler, _: int) -> bool:
            handler.answer(200, b"", {"Content-Length": None})  # type: ignore[dict-item]
            while True:
                handler.wfile.write(b" " * 65_536)

        web.rules["/config.json"] = endless
        refused(web.url("/"), "too large", read=remote_config)
        web.rules["/config.json"] = lambda handler, _: bool(
            handler.answer(200, b"{}", {"Content-Length": str(1 << 40)})) or True  # fmt: skip
        refused(web.url("/"), "too large", read=remote_config)

    def test_no_http(self, web: Web) -> None:
        def garbage(handler: Handler, _: int) -> bool:
            handler.wfile.write(b"\x1b[31mSSH-2.0-nothing\r\n" * 3)
            handler.close_connection = True
            return True

        web.rules[PATH] = garbage
        refused(web.url(), "no HTTP")


class TestTime:
    @pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 206 Partial", MODEL[:10]])
    def test_stalls(self, web: Web, sent: bytes) -> None:
        def stall(handler: Handler, _: int) -> bool:
            if sent[:4] == b"GGUF":
                at = (web.asked[-1].range or (0, 0))[0]
                handler.answer(206, sent, {"Content-Range": f"bytes {at}-{at + 999}/{len(MODEL)}",
                                           "Content-Length": "1000"})  # fmt: skip
            else:
                handler.wfile.write(sent)
            handler.hang()
            return True

        web.rules[PATH] = stall
        refused(web.url(), "nothing came for 0.5 s")
        assert len(web.asked) == QUICK.attempts

    @pytest.mark.parametrize("drop", [b"x", b"HTTP/1.1 100 Continue\r\n\r\n", b"A: b\r\n"])
    def test_a_byte_now_and_then(self, web: Web, drop: bytes) -> None:
        def dribble(handler: Handler, _: int) -> bool:
            if drop == b"x":
                handler.answer(206, b"GGUF", {"Content-Range": f"bytes 0-9999/{len(MODEL)}",
                                              "Content-Length": "10000"})  # fmt: skip
            elif drop == b"A: b\r\n":
                handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
            while not web.over.wait(0.05):
                handler.wfile.write(drop)
            return True

        web.rules[PATH] = dribble
        slow = Limits(read=0.3, total=0.6, attempts=3, backoff=0.01)
        refused(web.url(), "longer than 0.6 s", limits=slow)

    def test_fails_twice_then_works(self, web: Web) -> None:
        def weak(handler: Handler, before: int) -> bool:
            if before == 0:
                handler.answer(503, b"later", {"Retry-After": "0"})
            elif before == 1:
                handler.close_connection = True
            return before < 2

        web.rules[PATH] = weak
        assert len(remote_gguf(web.url(), QUICK)) == 1
        assert len(web.asked) == 3

    def test_a_long_retry_after_is_not_waited_for(self, web: Web) -> None:
        web.rules[PATH] = lambda handler, _: bool(
            handler.answer(429, b"", {"Retry-After": "3600"})) or True  # fmt: skip
        refused(web.url(), "HTTP 429", "wait 3,600 s")
        assert len(web.asked) == 1

    def test_nobody_listens(self, monkeypatch: pytest.MonkeyPatch) -> None:
        plain_environment(monkeypatch)  # transformers, imported by other tests, goes offline
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            refused(f"http://127.0.0.1:{closed.getsockname()[1]}/m.gguf", "refuses the connection")

    def test_import_is_light(self) -> None:
        code = "import sys, nybble.models.remote as r; assert r.is_remote('hf:a/b'); "
        code += "assert not {'http.client', 'ssl', 'urllib.request'} & set(sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True)


class TestStatus:
    @pytest.mark.parametrize(
        ("status", "requests", "words"),
        [(401, 1, "not give this file to everyone"), (403, 1, "not give this file"),
         (404, 1, "There is no model.gguf"), (410, 1, "There is no model.gguf"),
         (416, 1, "refuses a range"), (204, 1, "unexpected"), (418, 1, "unexpected"),
         (599, 1, "unexpected"), (304, 1, "unexpected"), (429, 3, "limits how often"),
         (500, 3, "failure of its own"), (504, 3, "failure of its own")],
    )  # fmt: skip
    def test_says_what_to_do(self, web: Web, status: int, requests: int, words: str) -> None:
        web.rules[PATH] = lambda handler, _: bool(handler.answer(status)) or True
        refused(web.url(), words, f"HTTP {status}", web.url())
        assert len(web.asked) == requests


def split_file(i: int, n: int, name: str, total: int = 0) -> bytes:
    keys = [kv("split.no", U32, struct.pack("<I", i)), kv("split.count", U32, struct.pack("<I", n)),
            kv("split.tensors.count", U32, struct.pack("<I", total or n))]  # fmt: skip
    return build(keys, [tensor(name)])


class TestSplit:
    def test_all_files(self, web: Web, small: None) -> None:
        for i in range(11):
            web.files[f"/m-{i + 1:05d}-of-00011.gguf"] = split_file(i, 11, f"t{i}")
        headers = remote_gguf(web.url("/m-00001-of-00011.gguf?download=true"), QUICK)
        assert [h.tensors[0].name for h in headers] == [f"t{i}" for i in range(11)]
        assert all(p.endswith("?download=true") for p in web.paths)
        refused(web.url("/m-00002-of-00011.gguf"), "not the first file", "-00001-of-00011")

    def test_files_that_do_not_fit(self, web: Web) -> None:
        web.files["/m-00001-of-00002.gguf"] = web.files["/m.gguf"] = split_file(0, 2, "a")
        url = web.url("/m-00001-of-00002.gguf")
        refused(url, "There is no m-00002-of-00002.gguf")
        for other in (split_file(1, 3, "b"), split_file(0, 2, "b"), split_file(1, 2, "a"), MODEL):
            web.files["/m-00002-of-00002.gguf"] = other
            refused(url, "another model")
        web.files["/m-00001-of-00002.gguf"] = split_file(0, 2, "a", total=5)
        web.files["/m-00002-of-00002.gguf"] = split_file(1, 2, "b")
        refused(url, "do not hold all")
        refused(web.url("/m.gguf"), "not the first file")
        web.files["/m-00001-of-60000.gguf"] = split_file(0, 60_000, "a")
        refused(web.url("/m-00001-of-60000.gguf"), "up to 1,000 files")


class TestFolder:
    @pytest.fixture
    def folder(self, web: Web, tmp_path: Path) -> Web:
        web.files["/org/m/config.json"] = json.dumps(CONFIG).encode()
        weights(tmp_path / "one", "a", "b")
        weights(tmp_path / "two", "c", *(f"d{i}" for i in range(100)))
        web.files["/org/m/one.safetensors"] = (tmp_path / "one").read_bytes()
        web.files["/org/m/two.safetensors"] = (tmp_path / "two").read_bytes()
        return web

    def index(self, web: Web, **files: str) -> str:
        web.files[f"/org/m/{INDEX}"] = json.dumps({"weight_map": files}).encode()
        return web.url("/org/m")

    def test_single(self, folder: Web, tmp_path: Path, small: None) -> None:
        folder.files["/org/m/model.safetensors"] = folder.files["/org/m/two.safetensors"]
        for end in ("", "/", "/config.json"):
            found = remote_folder(folder.url(f"/org/m{end}"), QUICK)
            assert dict(found.config) == CONFIG
            assert found.headers == {"model.safetensors": read_safetensors(tmp_path / "two")}
        assert remote_config(folder.url("/org/m"), QUICK) == CONFIG

    def test_parts(self, folder: Web, tmp_path: Path, small: None) -> None:
        url = self.index(folder, a="one.safetensors", b="one.safetensors", c="two.safetensors")
        assert remote_folder(url, QUICK).headers == {
            f"{name}.safetensors": read_safetensors(tmp_path / name) for name in ("one", "two")
        }

    @pytest.mark.parametrize("name", [
        "../one.safetensors", "/etc/passwd", "http://127.0.0.1/a.safetensors", "a/b.safetensors",
        "one.bin",
        "x" * 300 + ".safetensors", "a?b.safetensors", "\x1b.safetensors", "é.safetensors"
    ])  # fmt: skip
    def test_names_that_lead_out(self, folder: Web, name: str) -> None:
        refused(self.index(folder, a=name), "not one of the folder's", read=remote_folder)

    def test_parts_that_do_not_fit(
        self, folder: Web, small: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = "one.safetensors"
        refused(self.index(folder, z=one), "lacks a tensor", "'z'", read=remote_folder)
        refused(self.index(folder, a="gone.safetensors"), "no gone.safetensors", read=remote_folder)
        folder.files["/org/m/copy.safetensors"] = folder.files["/org/m/one.safetensors"]
        url = self.index(folder, a=one, b="copy.safetensors")
        refused(url, "repeats a tensor", read=remote_folder)
        folder.files[f"/org/m/{INDEX}"] = b'{"weight_map": [1]}'
        refused(url, "does not say where", read=remote_folder)
        url = self.index(folder, a=one, c="two.safetensors")
        with monkeypatch.context() as small_headers:
            small_headers.setattr(remote, "MAX_OTHER", 1024)
            refused(url, "the header is too large", read=remote_folder)
        monkeypatch.setattr(remote, "MAX_ALL_OTHER", 100)
        refused(url, "headers of this model are too large", read=remote_folder)
        monkeypatch.setattr(remote, "MAX_FILES", 1)
        refused(url, "too many files", read=remote_folder)

    def test_no_weights_or_config(self, folder: Web) -> None:
        refused(folder.url("/org/m"), "no safetensors weights", read=remote_folder)
        refused(folder.url("/org/none"), "There is no config.json", read=remote_folder)
        refused(folder.url("/org/m?x=1"), "query", read=remote_folder)
        for data, words in ((b"<html>", "not JSON"), (b"[1]", "JSON object"), (b"\xff", "not JSON"),
                            (b"[" * 100_000, "not JSON"), (b"9" * 5000, "not JSON")):  # fmt: skip
            folder.files["/org/m/config.json"] = data
            refused(folder.url("/org/m"), words, read=remote_config)

    def test_a_config_cut_short_is_asked_for_again(self, folder: Web) -> None:
        def cut(handler: Handler, before: int) -> bool:
            if before < 2:
                handler.answer(200, b'{"a', {"Content-Length": "100"})
                handler.close_connection = True
            return before < 2

        folder.rules["/org/m/config.json"] = cut
        assert remote_config(folder.url("/org/m"), QUICK) == CONFIG
