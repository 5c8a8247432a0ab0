"""Answers from llama.cpp's server by token ids, with the context's cache kept in files.

The chat template is rendered by the server with a mark in the question's place, and the parts are
tokenized apart: template and rules with control tokens, sources and question as plain text. So no
document writes a control token, and the tokens of the context are the same for every question.
Read in b11549, tools/server: `timings` tell what was read from the cache (`cache_n`) and computed
(`prompt_n`); `n_predict` 0 computes the prompt and keeps exactly its cells.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import httpx

from nybble.engines.llamacpp.server import plain_template
from nybble.engines.server.http import check_url
from nybble.errors import EngineError, NybbleError
from nybble.rag.answers import CutOffError, Options, PrefixUse, Server, Usage
from nybble.rag.client import CONNECT, Answering, Hearer, Reply, Stream, gone, refusal
from nybble.rag.prefix import PrefixStore
from nybble.rag.prefix_use import Kept, keep
from nybble.rag.prompt import STOPS, Prompt

_MOST_LINE = 1 << 20  # characters of one event; a server's word is hostile input
_SLOT = 0
_NEAR = 64  # tokens before a context's end that a model with sliding layers goes on from
_FINISH = {"eos": "stop", "word": "stop", "limit": "length"}


class LlamaCppAnswers(Answering):
    """llama-server, or xllamacpp's in process.

    Args:
        server: where it is.
        options: how it will be asked.
        props: what it told at /props.

    Raises:
        NybbleError: it answers otherwise than llama.cpp does.
    """

    def __init__(self, server: Server, options: Options, props: dict[str, Any]) -> None:
        self._server, self._props = server, props
        base = check_url(server.url)
        try:
            context = int(props["default_generation_settings"]["n_ctx"])
        except (KeyError, TypeError, ValueError) as error:
            raise EngineError("the server does not tell its context", seen=base,
                              hint="is this llama.cpp of now?") from error  # fmt: skip
        told = str(props.get("chat_template") or "")
        bare = told.strip() in ("", plain_template().strip())
        plain = server.frame == "plain" or (server.frame == "auto" and bare)
        super().__init__(base, min(context, options.context or context), plain)
        self._http = client(server, options.timeout)
        if server.frame == "auto" and bare:
            self.notes.append("the model brings no chat template, so it goes on with a plain text: "
                              "a base model follows rules badly")  # fmt: skip
        self._head, self._tail = ("", "") if plain else self._template()

    @property
    def template(self) -> str:
        """What the prompt is framed with."""
        return f"{self._head}\0{self._tail}"

    @property
    def build(self) -> str:
        """Of the engine, in its own words."""
        return str(self._props.get("build_info") or "unknown")

    @property
    def weights(self) -> str:
        """Path of the model, as the server tells it."""
        return str(self._props.get("model_path") or "")

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def count(self, text: str) -> int:
        """By POST /tokenize."""
        return len(self.tokens(text))

    def overhead(self) -> int:
        """By its template."""
        return len(self.tokens(self._head, special=True, begins=True)) + len(
            self.tokens(self._tail, special=True)
        )

    def tokens(self, text: str, *, special: bool = False, begins: bool = False) -> list[int]:
        """Token ids.

        Args:
            text: to tokenize.
            special: read control tokens in it as such.
            begins: with what the model's prompts begin with (BOS).
        """
        if not text and not begins:
            return []
        found = self.post("/tokenize", {"content": text, "add_special": begins,
                                        "parse_special": special})  # fmt: skip
        ids = found.get("tokens")
        if not isinstance(ids, list) or not all(isinstance(i, int) for i in ids):
            raise EngineError("the server does not tokenize", seen=str(found)[:200])
        return ids

    def answer(self, prompt: Prompt, options: Options, hearer: Hearer) -> Reply:
        """Through /completion, after the context was read from its file or computed."""
        context = self.tokens(self._head + prompt.lead, special=True, begins=True)
        context += self.tokens(prompt.sources)
        question = self.tokens(prompt.question) + self.tokens(self._tail, special=True)
        stream = Stream(hearer.text)
        self._fits(len(context) + len(question) + 1)
        kept = self._kept(context, options, hearer)
        ids = context + question
        body = {
            # Without a prefix nothing of an earlier question plays a part, not even its rounding.
            "prompt": ids, "n_predict": options.answer_tokens, "cache_prompt": options.prefix,
            "temperature": options.temperature, "seed": options.seed,
            "id_slot": _SLOT, "stop": list(STOPS) if prompt.plain else [],
        }  # fmt: skip
        last = self._complete(body, stream, hearer)
        if not last.get("stop"):
            raise CutOffError("the server ended its answer without an end", stream.text,
                              seen=self.base, hint="look at its log, and ask again")  # fmt: skip
        timings = last.get("timings") or {}
        cached, computed = timings.get("cache_n"), timings.get("prompt_n")
        usage = Usage(len(ids), cached, timings.get("predicted_n"))
        why = str(last.get("stop_type"))
        use, notes = _reused(kept.use, cached, computed)
        return Reply(stream.text, _FINISH.get(why, why), usage, stream.first, stream.generate, use,
                     (*kept.notes, *notes))  # fmt: skip

    def compute(self, ids: list[int], hearer: Hearer) -> tuple[float, int]:
        """Put the cells of these tokens into the slot: seconds, tokens that it had already."""
        begun = time.monotonic()
        body = {"prompt": ids, "n_predict": 0, "cache_prompt": True, "id_slot": _SLOT}
        found = self._complete(body, Stream(lambda _: None), hearer)
        had = (found.get("timings") or {}).get("cache_n")
        return time.monotonic() - begun, had if isinstance(had, int) else 0

    def save(self, name: str) -> None:
        """Save the slot to a file of its folder."""
        self.post(f"/slots/{_SLOT}?action=save", {"filename": name})

    def restore(self, name: str) -> int:
        """Read the slot from a file of its folder; the tokens it holds then."""
        found = self.post(f"/slots/{_SLOT}?action=restore", {"filename": name})
        return int(found.get("n_restored") or 0)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send JSON, get JSON.

        Raises:
            TooLongError: more than the context holds.
            EngineError: it is gone or refuses.
        """
        try:
            answer = self._http.post(path, json=body)
        except httpx.HTTPError as error:
            raise gone(self.base, error, None) from error
        if answer.status_code != 200:
            raise _refused(answer.status_code, answer.text, self.base)
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise EngineError("the server's answer is no JSON", seen=answer.text[:200])
        return found

    def _complete(self, body: dict[str, Any], stream: Stream, hearer: Hearer) -> dict[str, Any]:
        """The last event of a completion, which has its timings; {} where none came."""
        last: dict[str, Any] = {}
        asked = {**body, "stream": True, "return_progress": True}
        # Closed also where a reader stops it: the server ends when nobody listens.
        with closing(self._events("/completion", asked, stream)) as events:
            for event in events:
                done, total = _progress(event)
                if total:
                    hearer.read(done, total)
                stream.add(str(event.get("content") or ""))
                last = event
        return last

    def _kept(self, context: list[int], options: Options, hearer: Hearer) -> Kept:
        if not options.prefix:
            return Kept(PrefixUse("off", len(context), why="it was not asked for"))
        if self._server.slots is None:
            return Kept(PrefixUse("off", len(context), why="the server saves no slots here "
                                  "(nybble serve --slots FOLDER)"))  # fmt: skip
        store = PrefixStore(self._server.slots, options.keep_prefixes)
        return keep(store, self, self._server, context, "|".join(options.over), hearer)

    def _fits(self, tokens: int) -> None:
        """Refuse before the server does: it would only do so after a prefix was computed."""
        if tokens > self.context:
            raise refusal(400, f"{tokens:,} tokens exceed the context size of {self.context:,}",
                          self.base, tokens - self.context)  # fmt: skip

    def _template(self) -> tuple[str, str]:
        """What stands before and behind a question of a user."""
        mark = f"nybble{secrets.token_hex(16)}"
        found = self.post("/apply-template", {
            "messages": [{"role": "user", "content": mark}],
            # Sources are read, not pondered: thoughts would cite what no answer says.
            "chat_template_kwargs": {"enable_thinking": False},
        })  # fmt: skip
        parts = str(found.get("prompt") or "").split(mark)
        if len(parts) != 2:
            raise EngineError("the chat template does not show a question once",
                              seen=f"{len(parts) - 1} times", hint="--frame plain")  # fmt: skip
        return parts[0], parts[1]

    def _events(
        self, path: str, body: dict[str, Any], stream: Stream
    ) -> Generator[dict[str, Any], None, None]:
        # llama.cpp's server may close a connection behind a stream: the next request has its own.
        headers = {"Connection": "close"}
        with (
            self._broken(stream),
            self._http.stream("POST", path, json=body, headers=headers) as answer,
        ):
            if answer.status_code != 200:
                answer.read()
                raise _refused(answer.status_code, answer.text, self.base)
            for line in answer.iter_lines():
                name, _, data = line.partition(":")
                if name not in ("data", "error") or data.strip() == "[DONE]":
                    continue
                event = _event(data)
                if name == "error" or "error" in event:
                    raise _failed(event.get("error", event), self.base, stream)
                yield event

    @contextmanager
    def _broken(self, stream: Stream) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            raise gone(self.base, error, stream) from error


def client(server: Server, timeout: float) -> httpx.Client:
    """Speaks with a server; a proxy of the environment and redirects are left out."""
    headers = {"Authorization": f"Bearer {server.key}"} if server.key else {}
    return httpx.Client(base_url=check_url(server.url), headers=headers, trust_env=False,
                        timeout=httpx.Timeout(timeout, connect=CONNECT))  # fmt: skip


def props(server: Server, timeout: float) -> dict[str, Any] | None:
    """What a llama.cpp server tells of itself; None where another kind of server answers.

    Raises:
        EngineError: nobody answers, or it wants a key.
    """
    with client(server, timeout) as http:
        try:
            answer = http.get("/props")
        except httpx.HTTPError as error:
            raise gone(check_url(server.url), error, None) from error
    if answer.status_code in (401, 403):
        raise _refused(answer.status_code, answer.text, check_url(server.url))
    try:
        found = answer.json() if answer.status_code == 200 else None
    except ValueError:
        return None
    good = isinstance(found, dict) and "default_generation_settings" in found
    return found if good else None


def _reused(
    use: PrefixUse, cached: int | None, computed: int | None
) -> tuple[PrefixUse, tuple[str, ...]]:
    """With what the server says it did not compute again."""
    use = replace(use, reused=min(cached or 0, use.tokens))
    if use.state == "off" or cached is None or cached + _NEAR >= use.tokens:
        return use, ()
    return use, (
        f"the server computed {computed or 0:,} tokens, though a cache was there: another client "
        "used its slot, or this model cannot go on from a file",
    )


def _progress(event: dict[str, Any]) -> tuple[int, int]:
    """Tokens of the prompt that are done, and all of them; 0 and 0 where nothing is told."""
    told = event.get("prompt_progress")
    if not isinstance(told, dict):
        return 0, 0
    done, total = told.get("processed"), told.get("total")
    return (done, total) if isinstance(done, int) and isinstance(total, int) else (0, 0)


def _event(data: str) -> dict[str, Any]:
    try:
        found = json.loads(data) if len(data) <= _MOST_LINE else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise EngineError("the server's stream is not built as llama.cpp builds it",
                          seen=data[:200])  # fmt: skip
    return found


def _refused(status: int, text: str, base: str) -> EngineError:
    said, over = " ".join(text.split())[:400], None
    try:
        error = json.loads(text)["error"]
        said = str(error["message"])[:400]
        over = int(error["n_prompt_tokens"]) - int(error["n_ctx"])
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return refusal(status, said, base, over)


def _failed(error: Any, base: str, stream: Stream) -> NybbleError:
    said = str(error.get("message") if isinstance(error, dict) else error)[:400]
    if stream.text:
        return CutOffError("the server failed in mid-answer", stream.text, seen=f"{base}: {said}",
                           hint="look at its log")  # fmt: skip
    code = error.get("code") if isinstance(error, dict) else None
    return refusal(code if isinstance(code, int) else 500, said, base)
