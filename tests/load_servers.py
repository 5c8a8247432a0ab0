"""HTTP servers for the load test's tests, on loopback only."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_ENGINE = """
import sys
import xllamacpp as x
p = x.CommonParams()
p.model.path, p.n_ctx, p.n_parallel = sys.argv[1], 4096, 4
p.cpuparams.n_threads, p.warmup = 1, False
if sys.argv[2] != "f16":
    p.cache_type_k = p.cache_type_v = x.ggml_type.GGML_TYPE_Q4_0
    p.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
server = x.Server(p)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@contextmanager
def engine(model: Path, kv: str = "f16") -> Iterator[str]:
    """llama.cpp's server in a child process, until the block ends."""
    child = subprocess.Popen(
        [sys.executable, "-c", _ENGINE, str(model), kv],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert child.stdout and child.stdin
    try:
        url = child.stdout.readline().strip()
        assert url.startswith("http"), "the server did not start"
        yield url
    finally:
        child.stdin.close()
        try:
            child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


class Misbehaving:
    """Answers as an OpenAI-compatible server would, but for the way that the path names.

    `seen` holds every body of a completion by way, `connections` how many are open now.
    """

    def __init__(self) -> None:
        self.seen: dict[str, list[dict[str, Any]]] = {}
        self.headers: list[str] = []
        self.at_once: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ready = threading.Event()

    def __enter__(self) -> Misbehaving:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def url(self, way: str) -> str:
        """Address of the server that misbehaves that way."""
        return f"http://127.0.0.1:{self.port}/{way}"

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        way = ""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.headers.append(head)
            path = head.split()[1]
            length = next((int(x.split(":")[1]) for x in head.lower().split("\r\n")
                           if x.startswith("content-length:")), 0)  # fmt: skip
            body = json.loads(await reader.readexactly(length) or b"{}")
            way = path.split("/")[1]
            if path.endswith("/models"):
                self._models(writer, way)
            else:
                self.seen.setdefault(way, []).append(body)
                self.at_once[way] += 1
                self.most[way] = max(self.most[way], self.at_once[way])
                try:
                    await self._answer(writer, way, body, len(self.seen[way]))
                finally:
                    self.at_once[way] -= 1
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _models(self, writer: asyncio.StreamWriter, way: str) -> None:
        names = {"two": ["one", "two"], "none": []}.get(way, ["m"])
        listed = [{"id": n, "object": "model", "created": 0, "owned_by": "test"} for n in names]
        _whole(writer, 404 if way == "unlisted" else 200, {"object": "list", "data": listed})

    async def _answer(
        self, writer: asyncio.StreamWriter, way: str, body: dict[str, Any], n: int
    ) -> None:
        if way.startswith("http"):
            _whole(writer, int(way[4:]), {"error": {"message": f"said with {way[4:]}"}})
        elif way == "flaky" and n > 2 and n % 3 == 0:
            _whole(writer, 429, {"error": {"message": "slow down"}})
        elif way == "dies" and n > 2:
            _whole(writer, 500, {"error": {"message": "out of memory"}})
        elif way == "noeos" and "ignore_eos" in body:
            _whole(writer, 400, {"error": {"message": "unknown field ignore_eos"}})
        elif way == "nousage" and "stream_options" in body:
            _whole(writer, 422, {"detail": "stream_options"})
        elif way == "html":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n<html>hi</html>"[:-1])
        elif way == "hang":
            await asyncio.sleep(30)
        elif way == "closes":
            return
        else:
            await self._stream(writer, way, body)

    async def _stream(self, writer: asyncio.StreamWriter, way: str, body: dict[str, Any]) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                     b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n")  # fmt: skip
        n, size = body["max_tokens"], 4 if way == "pieces" else 1
        for i in range(0, n, size):
            if way == "slow":
                await asyncio.sleep(0.02)
            if i >= 2 * size and way in _MIDDLE:
                if _MIDDLE[way] is None:
                    await asyncio.sleep(30)
                writer.write(_MIDDLE[way] or b"")
                return
            if way != "empty":
                _event(writer, _chunk(body, "x " * size))
        if way == "endless":
            writer.write(b"0\r\n\r\n")
            return
        _event(writer, _chunk(body, "", "stop" if way == "short" else "length"))
        if way != "nousage" and way != "uncounted":
            text = json.dumps(body.get("messages", body.get("prompt")))
            tokens = 0 if way == "empty" else n // 2 if way == "short" else n
            usage = {"prompt_tokens": 10 + len(text.split()), "completion_tokens": tokens,
                     "total_tokens": 0}  # fmt: skip
            _event(writer, {**_chunk(body, ""), "choices": [], "usage": usage})
        _event(writer, None)
        writer.write(b"0\r\n\r\n")


def _framed(text: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(text), text)


_MIDDLE = {
    "cut": b"",
    "hangmid": None,
    "malformed": _framed(b'data: {"choices": [}\n\n'),
    "notutf8": _framed(b"data: \xff\xfe\xfd\n\n"),
    "shape": _framed(b'data: {"choices": [1]}\n\n'),
    "errorevent": _framed(b'data: {"error": {"message": "cache is full"}}\n\n'),
    "errorchunk": _framed(b'data: {"object": "error", "message": "worker\\u001b died"}\n\n'),
}


def _chunk(body: dict[str, Any], text: str, finish: str | None = None) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
    if "messages" in body:
        choice["delta"] = {"content": text}
    else:
        choice["text"] = text
    return {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m",
            "choices": [choice]}  # fmt: skip


def _event(writer: asyncio.StreamWriter, data: dict[str, Any] | None) -> None:
    text = "[DONE]" if data is None else json.dumps(data)
    writer.write(_framed(f"data: {text}\n\n".encode()))


def _whole(writer: asyncio.StreamWriter, status: int, data: dict[str, Any]) -> None:
    text = json.dumps(data).encode()
    writer.write(b"HTTP/1.1 %d Said\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
                 b"Connection: close\r\n\r\n%b" % (status, len(text), text))  # fmt: skip
