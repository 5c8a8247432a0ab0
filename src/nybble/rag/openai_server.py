"""Any OpenAI-compatible server: the official client sends the chat, streamed."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any

import httpx

from nybble.engines.server.http import check_url
from nybble.errors import EngineError, MissingExtraError, NybbleError
from nybble.rag.answers import CutOffError, Options, Server, Usage
from nybble.rag.client import CONNECT, LONGEST, Answering, Hearer, Reply, Stream, gone, refusal
from nybble.rag.packages import INSTALL
from nybble.rag.prompt import STOPS, Prompt, defused

UNTOLD_CONTEXT = 4096  # tokens, of a server that does not tell its own
ESTIMATE = 3  # bytes of UTF-8 a token; English has 4 to 4.5, so an estimate leaves room


class OpenAIServer(Answering):
    """Any OpenAI-compatible server.

    Args:
        server: where it is.
        options: for time-outs and the context, where the server does not tell it.

    Raises:
        NybbleError: it is not there, refuses, or has no such model.
        MissingExtraError: the official client is not installed.
    """

    def __init__(self, server: Server, options: Options) -> None:
        base = check_url(server.url)
        self._module = _openai()
        timeout = httpx.Timeout(options.timeout, connect=CONNECT)
        self._http = httpx.Client(timeout=timeout, trust_env=False)
        self._client = self._module.OpenAI(
            base_url=f"{base}/v1", api_key=server.key or "none", max_retries=0,
            http_client=self._http,
        )  # fmt: skip
        try:
            with self._understood(base):
                listed = list(self._client.models.list())
            card = _card(listed, server.model, base)
            told = getattr(card, "max_model_len", None) if card is not None else None
            known = told if isinstance(told, int) and told > 0 else None
            plain = server.frame == "plain"
            super().__init__(base, known or options.context or UNTOLD_CONTEXT, plain)
            self.model = server.model or str(card.id if card is not None else "")
            if known and options.context:
                self.context = min(known, options.context)
            if not known and not options.context:
                self.notes.append(f"the server does not tell its context: {UNTOLD_CONTEXT:,} "
                                  "tokens are assumed (--context TOKENS)")  # fmt: skip
            self._counts = self._tokens("a b c") is not None
        except BaseException:
            self.close()
            raise
        if not self._counts:
            self.notes.append(f"tokens are estimated, {ESTIMATE} bytes of text each, as the "
                              "server does not count them")  # fmt: skip

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def count(self, text: str) -> int:
        """By vLLM's and SGLang's POST /tokenize, else an estimate."""
        found = self._tokens(text) if self._counts else None
        return (
            math.ceil(len(text.encode("utf-8", "replace")) / ESTIMATE) if found is None else found
        )

    def overhead(self) -> int:
        """A generous guess: templates add 5 to 40 tokens."""
        return 64

    def answer(self, prompt: Prompt, options: Options, hearer: Hearer) -> Reply:
        """Through /v1/chat/completions, or /v1/completions for a base model."""
        sources, spaced = defused(prompt.sources)
        text = prompt.lead + sources + prompt.question
        stream = Stream(hearer.text)
        finish, usage = "", Usage()
        try:
            chunks = self._chunks(text, prompt.plain, options)
            with self._understood(self.base, stream), closing(chunks):
                for chunk in chunks:
                    usage = _usage(chunk) or usage
                    for choice in chunk.choices[:1]:
                        piece = choice.text if prompt.plain else choice.delta.content
                        stream.add(piece or "")
                        finish = choice.finish_reason or finish
        except (AttributeError, TypeError, json.JSONDecodeError) as error:
            said = f"{type(error).__name__}: {error}"[:LONGEST]
            raise EngineError("the server's answer is not built as OpenAI builds it",
                              seen=said, hint="is this an OpenAI-compatible address?",
                              ) from error  # fmt: skip
        if not finish:
            raise CutOffError("the server ended its answer without an end", stream.text,
                              seen=self.base, hint="look at its log, and ask again")  # fmt: skip
        notes = (f"{spaced} strings in the sources look like control tokens of a chat: each was "
                 "spaced out",) if spaced else ()  # fmt: skip
        return Reply(stream.text, finish, usage, stream.first, stream.generate, None, notes)

    def _chunks(self, text: str, plain: bool, options: Options) -> Generator[Any, None, None]:
        common: dict[str, Any] = {
            "model": self.model, "max_tokens": options.answer_tokens, "stream": True,
            "temperature": options.temperature, "seed": options.seed,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        if plain:
            made = self._client.completions.create(prompt=text, stop=list(STOPS), **common)
        else:
            made = self._client.chat.completions.create(
                messages=[{"role": "user", "content": text}], **common
            )
        with made:  # left early, by a user who stops it, the connection is closed
            yield from made

    def _tokens(self, text: str) -> int | None:
        headers = {"Authorization": f"Bearer {self._client.api_key}"}
        try:
            answer = self._http.post(f"{self.base}/tokenize", headers=headers,
                                     json={"model": self.model, "prompt": text})  # fmt: skip
            found = answer.json() if answer.status_code == 200 else {}
        except (httpx.HTTPError, ValueError):
            return None
        count = found.get("count") if isinstance(found, dict) else None
        return count if isinstance(count, int) else None

    @contextmanager
    def _understood(self, base: str, stream: Stream | None = None) -> Iterator[None]:
        """Sort the client's exceptions into a user's words."""
        api = self._module
        try:
            yield
        except api.APIStatusError as error:
            said = " ".join(str(error.message).split())[:LONGEST]
            raise refusal(error.status_code, said, base) from error
        except (api.APIError, httpx.HTTPError) as error:
            raise gone(base, error, stream) from error


def _card(listed: list[Any], model: str, base: str) -> Any:
    """The entry of a model in the server's list; None where it lists nothing of it."""
    if not model and not listed:
        raise NybbleError("the server lists no model", seen=base, hint="--served-model NAME")
    if not model:
        return listed[0]
    return next((card for card in listed if card.id == model), None)


def _usage(chunk: Any) -> Usage | None:
    told = getattr(chunk, "usage", None)
    if told is None:
        return None
    details = getattr(told, "prompt_tokens_details", None)
    cached = getattr(details, "cached_tokens", None)
    return Usage(told.prompt_tokens, cached, told.completion_tokens)


def _openai() -> Any:
    if importlib.util.find_spec("openai") is None:
        raise MissingExtraError("questions are sent with the official OpenAI client, which is not "
                                "installed", seen="missing: openai", hint=INSTALL)  # fmt: skip
    return importlib.import_module("openai")
