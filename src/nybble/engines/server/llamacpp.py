"""Scoring through llama.cpp's server: generated tokens only, one request for each.

Read in b11549, tools/server: `n_probs` gives the probabilities before sampling of the most likely
tokens and of the sampled one (server-context.cpp populate_token_probs); `logit_bias` acts on a
copy inside the sampler, so a bias that forces the true token leaves its probability as it is.
With `cache_prompt` the slot keeps the common prefix, and `timings` tell how many tokens were read
from the cache (`cache_n`) and computed (`prompt_n`). llama.cpp stores K and V before it attends,
so the token computed reads all of them as stored.

Its softmax adds up the vocabulary in float32 (server-common.cpp get_token_probabilities), so all
log-probabilities of a position share a small common error, alike for reference and candidate.
A probability that float32 rounds to 0 comes as the lowest float instead of -inf (server-task.cpp
logarithm); it is read as that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nybble.engines.server.base import Identity, Position, Server, field, last_part
from nybble.errors import EngineError

_FORCE = 1e9  # added to the true token's logit; far above any other, and no infinity in JSON
_LOWEST = -1e30  # what stands for log 0 is far below


class LlamaCppServer(Server):
    """llama-server, or xllamacpp's in process."""

    name = "llama.cpp"
    one_pass = False

    def _identity(self) -> Identity:
        """From /props and /v1/models; no API tells the KV type."""
        props = self.client.get("/props")
        of = "the server"
        model = field(self.client.get("/v1/models"), "data", 0, of=of)
        meta = model.get("meta") or {}
        return Identity(
            self.name, str(field(props, "build_info", of=of)), str(field(model, "id", of=of)),
            last_part(str(field(props, "model_path", of=of))),
            field(props, "default_generation_settings", "n_ctx", of=of), meta.get("n_vocab"),
        )  # fmt: skip

    def _tokenize(self, text: str) -> list[int]:
        """Through /tokenize."""
        body = {"content": text, "add_special": False, "parse_special": False}
        return list(field(self.client.post("/tokenize", body), "tokens", of=self.name))

    def one(
        self, ids: Sequence[int], first: int, k: int, done: Callable[[int], None]
    ) -> list[Position]:
        """Not offered: the server tells nothing of the prompt."""
        raise EngineError("llama.cpp's server gives no log-probabilities of the prompt",
                          hint="--via decode")  # fmt: skip

    def decode(
        self, ids: Sequence[int], first: int, k: int, done: Callable[[int], None]
    ) -> tuple[list[Position], str]:
        """The prefix once, then one new token a request."""
        found = []
        for at in range(first, len(ids) - 1):
            answer = self.client.post("/completion", {
                "prompt": list(ids[: at + 1]), "n_predict": 1, "n_probs": k,
                "post_sampling_probs": False, "temperature": 0,
                "logit_bias": [[ids[at + 1], _FORCE]],
                # The prefix is computed anew, so that what another client left plays no part.
                "cache_prompt": at > first, "id_slot": 0,
                "response_fields": ["completion_probabilities", "timings"],
            })  # fmt: skip
            if at > first:
                self._check(answer, at)
            found.append(self._position(answer, ids[at + 1]))
            done(at + 1 if at == first else 1)
        return found, "decode: one new token a request, all others read as stored"

    def generate(
        self, ids: Sequence[int], n: int, k: int
    ) -> tuple[list[int], list[list[tuple[int, float]]]]:
        """Let the server go on by itself, greedily.

        Args:
            ids: prompt.
            n: tokens to generate.
            k: likeliest tokens to tell at each.

        Returns:
            The tokens, and for each the pairs of (token, log-probability) it was chosen from; no
            pairs where the server told none, as for a token that ends within a character.
        """
        answer = self.client.post("/completion", {
            "prompt": list(ids), "n_predict": n, "n_probs": k, "post_sampling_probs": False,
            "temperature": 0, "cache_prompt": False, "id_slot": 0, "ignore_eos": True,
            "return_tokens": True, "response_fields": ["completion_probabilities", "tokens"],
        })  # fmt: skip
        tokens = [int(token) for token in field(answer, "tokens", of=self.name)]
        steps = list(field(answer, "completion_probabilities", of=self.name))
        told: list[list[tuple[int, float]]] = []
        for token in tokens:
            pairs = []
            if steps and field(steps[0], "id", of=self.name) == token:
                pairs = [(int(t["id"]), _log(t["logprob"])) for t in steps.pop(0)["top_logprobs"]]
            told.append(pairs)
        if len(tokens) != n or not any(told):
            raise EngineError("the server did not generate as asked", seen=f"{len(tokens)} tokens",
                              allowed=f"{n} tokens with probabilities")  # fmt: skip
        return tokens, told

    def _check(self, answer: Any, cached: int) -> None:
        cache_n = field(answer, "timings", "cache_n", of=self.name)
        prompt_n = field(answer, "timings", "prompt_n", of=self.name)
        if (cache_n, prompt_n) != (cached, 1):
            raise EngineError(
                "the server did not keep its cache between two requests",
                seen=f"{cache_n:,} tokens from the cache and {prompt_n:,} computed anew",
                allowed=f"{cached:,} and 1",
                hint="no other client meanwhile; --swa-full for a model with a sliding window; "
                "models with recurrent layers cannot be scored so",
            )

    def _position(self, answer: Any, true: int) -> Position:
        token = field(answer, "completion_probabilities", 0, of=self.name)
        if field(token, "id", of=self.name) != true:
            raise EngineError("the server did not take the token it was told to",
                              seen=token["id"], allowed=str(true),
                              hint="start it without draft models and samplers of its own",
                              )  # fmt: skip
        top = tuple((int(t["id"]), _log(t["logprob"])) for t in token["top_logprobs"])
        return Position(top, _log(token["logprob"]))


def _log(value: float | None) -> float:
    return float("nan") if value is None else float("-inf") if value < _LOWEST else float(value)
