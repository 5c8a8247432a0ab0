"""Scoring through SGLang's own API: decoding token by token.

Read in 0.5.23 (srt/entrypoints/http_server.py, srt/managers/tokenizer_manager.py, io_struct.py,
srt/layers/sampler.py, srt/managers/schedule_batch.py). `/generate` takes `input_ids`; at
temperature 0 the log-probabilities of the generated token's position are log_softmax of the raw
logits. `top_logprobs_num` and `token_ids_logprob` give triples (log-probability, id, text).
`logprob_start_len` -1 leaves the prompt out, so its prefix may come from the radix cache;
`meta_info.cached_tokens` says how much did.

Prompts cannot be scored in one pass: the tokens of a prefill attend to each other's K and V before
these are quantized (reference/engines.md 2.1). So each scored token is a request, whose prefix is
read as stored; only the one new token attends to its own raw K and V.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nybble.engines.server.base import Identity, Position, Server, field, last_part
from nybble.errors import EngineError


class SGLangServer(Server):
    """`python -m sglang.launch_server`."""

    name = "sglang"
    one_pass = False
    _page = 1

    def _identity(self) -> Identity:
        """From /v1/models, /model_info and /server_info."""
        model = field(self.client.get("/v1/models"), "data", 0, of="the server")
        info = self.client.get("/server_info")
        path = field(self.client.get("/model_info"), "model_path", of="the server")
        self._page = int(info.get("page_size") or 1)
        return Identity(
            self.name, str(field(info, "version", of="the server")), str(model["id"]),
            last_part(str(path)), model.get("max_model_len"), kv=info.get("kv_cache_dtype"),
        )  # fmt: skip

    def _tokenize(self, text: str) -> list[int]:
        """Through /tokenize."""
        body = {"prompt": text, "add_special_tokens": False}
        return list(field(self.client.post("/tokenize", body), "tokens", of=self.name))

    def one(
        self, ids: Sequence[int], first: int, k: int, done: Callable[[int], None]
    ) -> list[Position]:
        """Not used: a prefill reads raw K and V."""
        raise EngineError("one pass over a prompt does not read SGLang's quantized cache",
                          hint="--via decode")  # fmt: skip

    def decode(
        self, ids: Sequence[int], first: int, k: int, done: Callable[[int], None]
    ) -> tuple[list[Position], str]:
        """The prefix once, then one new token a request, its own K and V raw."""
        found, most = [], 1
        for at in range(first, len(ids) - 1):
            answer = self.client.post("/generate", {
                "input_ids": list(ids[: at + 1]),
                "sampling_params": {"max_new_tokens": 1, "temperature": 0, "ignore_eos": True},
                "return_logprob": True, "logprob_start_len": -1, "top_logprobs_num": k,
                "token_ids_logprob": [ids[at + 1]], "return_text_in_logprobs": False,
            })  # fmt: skip
            meta = field(answer, "meta_info", of=self.name)
            if at > first:
                most = max(most, self._new(meta, at + 1))
            found.append(self._position(meta, ids[at + 1]))
            done(at + 1 if at == first else 1)
        last = "its own" if most == 1 else f"those of up to {most} tokens of the last page"
        return found, f"decode: all K and V read as stored but {last}"

    def _new(self, meta: Any, n: int) -> int:
        new = n - int(field(meta, "cached_tokens", of=self.name))
        if new > self._page:
            raise EngineError(
                "the server did not keep its cache between two requests",
                seen=f"{new:,} of {n:,} tokens computed anew",
                allowed=f"at most {self._page} (its page size)",
                hint="start it without --disable-radix-cache; no other client meanwhile",
            )
        return new

    def _position(self, meta: Any, true: int) -> Position:
        top = field(meta, "output_top_logprobs", 0, of=self.name)
        value, token = field(meta, "output_token_ids_logprobs", 0, 0, of=self.name)[:2]
        if token != true:
            raise EngineError("SGLang told another token's log-probability", seen=token,
                              allowed=str(true))  # fmt: skip
        return Position(tuple((int(t), _log(x)) for x, t, *_ in top), _log(value))


def _log(value: float | None) -> float:
    return float("nan") if value is None else float(value)
