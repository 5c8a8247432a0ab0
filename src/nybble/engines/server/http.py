"""JSON over HTTP with a model server, and what its refusals mean to a user."""

from __future__ import annotations

import json
import os
from typing import Any
from urllib.parse import urlsplit

import httpx

from nybble.engines.known.base import KEY
from nybble.errors import EngineError, NybbleError
from nybble.loopback import loopback_url

_CONNECT = 10.0  # seconds until a server that does not take the connection counts as not there
_TRIES = 2  # an idle connection may be closed by the server just when it is used again
_LONGEST = 600  # characters of a server's refusal that are shown


class ServerGoneError(EngineError):
    """The server is not there, or died while it was asked."""


class RefusedError(EngineError):
    """The server answered with an error; `text` is its own message."""

    def __init__(self, what: str, *, text: str, status: int, **kwargs: Any) -> None:
        self.text, self.status = text, status
        super().__init__(what, **kwargs)


class Client:
    """Speaks JSON with one server. The key comes from the environment variable `KEY`.

    Args:
        url: the server's root, with or without a trailing /v1.
        timeout: seconds to wait for an answer.

    Raises:
        NybbleError: not an http or https address.
    """

    def __init__(self, url: str, timeout: float = 1800.0) -> None:
        self.url = check_url(url)
        key = os.environ.get(KEY)
        self._keyed = bool(key)
        self._client = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout, connect=_CONNECT),
            # A proxy of the environment is for the world outside, not for this machine. A redirect
            # is not followed: it would carry the key elsewhere.
            trust_env=not loopback_url(self.url),
        )

    def get(self, path: str) -> Any:
        """Ask for JSON; the raw text where the answer is none.

        Raises:
            EngineError: see `post`.
        """
        return self._ask("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Send JSON, get JSON.

        Raises:
            ServerGoneError: no connection, or it broke.
            RefusedError: an answer of 4xx or 5xx, with the server's own words.
            EngineError: no answer in time, or not one of JSON.
        """
        found = self._ask("POST", path, body)
        if isinstance(found, str):
            raise EngineError("the server's answer is not JSON", seen=f"{path}: {found[:200]}",
                              hint="check the address and --engine")  # fmt: skip
        return found

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        for left in reversed(range(_TRIES)):
            try:
                answer = self._client.request(method, path, json=body)
                break
            except httpx.ConnectError as error:
                raise ServerGoneError(
                    "the server cannot be reached", seen=f"{self.url}: {error}",
                    hint="start it, then run the same command again: what is scored is kept",
                ) from error  # fmt: skip
            except httpx.TimeoutException as error:
                raise EngineError(
                    "the server did not answer in time", seen=f"{self.url}{path}",
                    hint="--timeout SECONDS if it is only slow",
                ) from error  # fmt: skip
            except httpx.HTTPError as error:
                if not left:
                    raise ServerGoneError(
                        "the connection to the server broke", seen=f"{self.url}{path}: {error}",
                        hint="look at its log, start it, and run the same command again: finished "
                        "documents are kept",
                    ) from error  # fmt: skip
        if answer.status_code >= 300:
            raise self._refusal(path, answer)
        try:
            # NaN and Infinity are no JSON, but what some servers send for broken logits.
            return json.loads(answer.text)
        except (ValueError, RecursionError):
            return answer.text

    def _refusal(self, path: str, answer: httpx.Response) -> EngineError:
        text, status = _message(answer), answer.status_code
        seen = f"{self.url}{path}: {status}: {text}"
        if status in (401, 403):
            hint = f"the key in {KEY} is not this server's" if self._keyed else f"export {KEY}=..."
            what = "the server wants a key"
        elif status == 404:
            what, hint = "the server does not know this request", "check the address and --engine"
        elif status < 400:
            what, hint = "the server sends elsewhere", "give the final address"
        elif status < 500:
            what, hint = "the server refuses the request", None
        else:
            what, hint = "the server failed", "look at its log; the same command continues"
        return RefusedError(what, text=text, status=status, seen=seen, hint=hint)


def check_url(url: str) -> str:
    """An address without trailing / and /v1.

    Raises:
        NybbleError: not http or https, no host, or a key in the address.
    """
    text = url.strip().rstrip("/").removesuffix("/v1")
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        good = good and not parts.query and not parts.fragment
    except ValueError:
        good = False
    if not good:
        raise NybbleError("not the address of a server", seen=url[:200],
                          allowed="http://HOST:PORT or https://HOST",
                          hint="http://127.0.0.1:8000")  # fmt: skip
    if parts.password or parts.username:
        # Addresses go into the record; a secret must not.
        raise NybbleError("a key does not belong into the address", seen=parts.hostname,
                          hint=f"export {KEY}=...")  # fmt: skip
    return text


def _message(answer: httpx.Response) -> str:
    """The server's own words: {"error": {"message": ...}}, {"message": ...}, {"detail": ...}."""
    found: Any = answer.text
    try:
        found = answer.json()
    except ValueError:
        pass
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and found.get(key):
            found = found[key]
    return " ".join(str(found).split())[:_LONGEST] or answer.reason_phrase
