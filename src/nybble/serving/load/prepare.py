"""What must be known of a server before it is put under load: address, model, dialect, lengths."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from nybble.errors import EngineError, NybbleError
from nybble.loopback import loopback_url
from nybble.results.loads import LoadRequest
from nybble.serving.load.client import MALFORMED, REFUSED, Ask, Dialect, ask, failure, openai
from nybble.serving.load.profile import BenchProfile
from nybble.serving.load.prompts import Fit, Prompts, new_mark

KEYS = ("NYBBLE_API_KEY", "OPENAI_API_KEY")
_NO_KEY = "none"  # the client insists on one; servers without a key do not look at it
_PROBE_WORDS = 8


@dataclass(frozen=True)
class Target:
    """A server, ready to be driven.

    Attributes:
        name: for the tables.
        url: of the API, with /v1.
        client: an AsyncOpenAI.
        model: name of the model to ask for.
        server: what it says of itself.
        dialect: what it takes.
        fit: tokens of a prompt by words.
        prompts: of this run.
        notes: what a reader must know.
    """

    name: str
    url: str
    client: Any
    model: str
    server: str
    dialect: Dialect
    fit: Fit
    prompts: Prompts
    notes: tuple[str, ...]


def base_url(text: str) -> str:
    """The API's address: http(s)://host:port/v1 where no path is given.

    Raises:
        NybbleError: no such address, or one with a password or key in it.
    """
    whole = text.strip() if "://" in text else f"http://{text.strip()}"
    try:
        parts = urlsplit(whole)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise NybbleError("not an address", seen=text, hint="http://127.0.0.1:8080") from error
    if parts.username or parts.password or parts.query or parts.fragment:
        # The address is kept in the record and shown in tables.
        raise NybbleError("an address has no key, password or query in it", seen=host,
                          allowed="http://host:port", hint="--api-key-env NAME")  # fmt: skip
    if parts.scheme not in ("http", "https") or not host:
        raise NybbleError("a load test drives a server over HTTP", seen=text,
                          allowed="http://host:port or https://host", hint="http://127.0.0.1:8080",
                          )  # fmt: skip
    path = parts.path.rstrip("/") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


def api_key(url: str, variable: str | None = None) -> str | None:
    """The key for a server, out of the environment.

    Without a name, NYBBLE_API_KEY and then OPENAI_API_KEY are looked at, and neither is sent in
    clear text to another machine: a key named on purpose is.

    Raises:
        NybbleError: the named variable is not set.
    """
    if variable is not None:
        if not os.environ.get(variable):
            raise NybbleError("the variable with the API key is not set", seen=variable,
                              hint=f"export {variable}=...")  # fmt: skip
        return os.environ[variable]
    if not url.startswith("https:") and not loopback_url(url):
        return None
    return next((os.environ[name] for name in KEYS if os.environ.get(name)), None)


def connect(url: str, key: str | None) -> Any:
    """A client for one server; closed by whoever asked for it.

    Raises:
        MissingExtraError: the official client is not installed.
    """
    module = openai()
    # A proxy of the environment has no business between this machine and itself.
    http = module.DefaultAsyncHttpxClient(trust_env=not loopback_url(url), timeout=None)
    return module.AsyncOpenAI(
        base_url=url, api_key=key or _NO_KEY, max_retries=0, timeout=None, http_client=http
    )


async def prepare(
    client: Any, name: str, url: str, profile: BenchProfile, model: str | None, timeout: float,
    letter: str = "",
) -> Target:  # fmt: skip
    """Find the model, what the server takes, and how long its prompts are.

    Args:
        client: of `connect`.
        name: for the tables.
        url: of the API.
        profile: of the test.
        model: name; None for the only one the server has.
        timeout: seconds of a request.
        letter: begins the mark of the prompts; another one for each server.

    Raises:
        EngineError: it does not answer, or not as an OpenAI-compatible server does.
        NybbleError: the model must be named.
    """
    found, server = await _model(client, url, model)
    prompts = Prompts(profile.seed, new_mark(letter), profile.shared)
    notes: list[str] = []
    dialects = [Dialect(eos, usage) for usage in (True, False)
                for eos in ((True, False) if profile.ignore_eos else (False,))]  # fmt: skip
    first: LoadRequest | None = None
    for dialect in dialects:
        first = await _probe(client, profile, found, dialect, prompts, _PROBE_WORDS, timeout)
        if first.error not in ("HTTP 400", "HTTP 422"):
            break
    assert first is not None
    if first.error is not None:
        raise EngineError(
            "the server does not answer as an OpenAI-compatible one",
            seen=f"{url}: {first.error}: {first.detail}",
            hint=_hint(first.error, profile.api),
        )
    if dialect.ignore_eos != profile.ignore_eos:
        notes.append("the server refuses ignore_eos: answers end where the model ends them")
    fit = Fit()
    # A vocabulary of bytes may make a long one longer than the context.
    for words in (400, 100, 24) if first.tokens_in else ():
        if words != 24 and words > profile.tokens_in.longest // 4:
            continue
        second = await _probe(client, profile, found, dialect, prompts, words, timeout)
        if first.tokens_in and second.tokens_in:
            fit = Fit.of((_PROBE_WORDS, first.tokens_in), (words, second.tokens_in))
            break
    if not fit.known:
        notes.append("the server does not count prompt tokens: prompts are about as long as asked")
    if not dialect.usage:
        notes.append("the server does not count answer tokens: pieces of the stream are counted")
    return Target(name, url, client, found, server, dialect, fit, prompts, tuple(notes))


async def _model(client: Any, url: str, model: str | None) -> tuple[str, str]:
    """Name of the model, and who says to serve it."""
    error = detail = None
    listed: list[Any] = []
    try:
        listed = list((await client.models.list()).data or ())
    except Exception as caught:
        error, detail = failure(caught, begun=False, timeout=0)
    if error == REFUSED:
        raise EngineError("no server answers there", seen=f"{url}: {detail}",
                          allowed="the address of a running OpenAI-compatible server",
                          hint="nybble serve MODEL, or the server's own log")  # fmt: skip
    names = [str(m.id) for m in listed]
    owner = str(getattr(listed[0], "owned_by", "") or "") if listed else ""
    if model is not None:
        return model, owner
    if len(names) == 1:
        return names[0], owner
    if error is not None:
        raise EngineError("the server does not list its models", seen=f"{url}: {error}: {detail}",
                          hint=_hint(error, "chat", "--model NAME"))  # fmt: skip
    raise NybbleError("the server has several models" if names else "the server lists no model",
                      seen=url, allowed=names[:20] or None, hint="--model NAME")  # fmt: skip


async def _probe(
    client: Any, profile: BenchProfile, model: str, dialect: Dialect, prompts: Prompts,
    words: int, timeout: float,
) -> LoadRequest:  # fmt: skip
    """A short request, with a number that no other one has."""
    text = prompts.text(-profile.n_warmup - 1 - int(words > _PROBE_WORDS), words)
    wanted = Ask(-1, -1, text, words, 2, 0.0)
    return await ask(client, profile.api, model, dialect, wanted, time.perf_counter(), timeout)


def _hint(error: str, api: str, otherwise: str | None = None) -> str:
    if error in ("HTTP 401", "HTTP 403"):
        return "--api-key-env NAME, with the key in that variable"
    if otherwise is not None:
        return otherwise
    if error == MALFORMED:
        return "an address whose /v1 is an OpenAI-compatible API"
    other = "completions" if api == "chat" else "chat"
    return f"--api {other}, --model NAME, or the server's own log"
