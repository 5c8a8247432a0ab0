"""What a running server says of its own KV cache; one file an engine, listed in registry.py.

A reading repeats what the server or its log says and judges nothing: an echo of the request is
marked as one, and what is not told stays None.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import httpx

MOST_BYTES = 8 << 20  # of an answer; a server's word is hostile input


@dataclass(frozen=True)
class Reading:
    """What one server tells.

    Attributes:
        engine: name, as in engines.known.
        version: of the engine, as told.
        k: K type, as the engine spells it; for engines with one flag K and V are both its value.
        v: V type.
        echo: whether `k` and `v` only repeat what was requested, in effect or not.
        rotation: widths by which K and V are rotated, (0, 0) for none.
        tokens: that the cache holds, all sequences together.
        n_bytes: of the whole cache.
        bytes_per_token: of one sequence, where told or computed from the two above.
        skipped: layers that are left in 16 bits, as told.
        context: tokens of one sequence.
        sequences: held at once.
        model: as the server calls it.
        sources: where each came from: "log: llama_kv_cache lines", "/metrics", ...
        notes: kernel-path warnings and other lines worth telling, as the server wrote them.
    """

    engine: str
    version: str | None = None
    k: str | None = None
    v: str | None = None
    echo: bool = False
    rotation: tuple[int, int] | None = None
    tokens: int | None = None
    n_bytes: int | None = None
    bytes_per_token: float | None = None
    skipped: str | None = None
    context: int | None = None
    sequences: int | None = None
    model: str | None = None
    sources: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Http:
    """GET and POST on one server, with limits; None where it does not answer with 200.

    Args:
        base: URL without a path.
        key: API key, sent as a bearer token; None for none.
        timeout: seconds.
    """

    def __init__(self, base: str, key: str | None = None, timeout: float = 30.0) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.base = base.rstrip("/")
        # No proxies: the address is meant as it stands.
        self._client = httpx.Client(headers=headers, timeout=timeout, trust_env=False)
        self.refused: set[int] = set()  # statuses of 401 and 403 that were met

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def text(self, path: str) -> str | None:
        """Body of a GET, cut off at 8 MiB; None where there is no such answer."""
        return self._ask("GET", path, None)

    def json(self, path: str, body: dict[str, Any] | None = None) -> Any | None:
        """Decoded JSON of a GET, or of a POST where there is a body."""
        import json

        text = self._ask("GET" if body is None else "POST", path, body)
        try:
            return None if text is None else json.loads(text)
        except (ValueError, RecursionError):
            return None

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> str | None:
        try:
            with self._client.stream(method, self.base + path, json=body) as answer:
                if answer.status_code in (401, 403):
                    self.refused.add(answer.status_code)
                if answer.status_code != 200:
                    return None
                found = b""
                for part in answer.iter_bytes():
                    found += part
                    if len(found) > MOST_BYTES:
                        break
                return found[:MOST_BYTES].decode("utf-8", "replace")
        except httpx.HTTPError:
            return None


class Reader(ABC):
    """Reads one engine's servers."""

    engine: str

    @abstractmethod
    def recognise(self, http: Http) -> bool:
        """Whether this is such a server, by a path or answer that only this engine has."""

    @abstractmethod
    def read(self, http: Http, log: str | None) -> Reading:
        """What the server and, where one is given, its log tell.

        Args:
            http: the server.
            log: text of its output; lines of an earlier start may come first.
        """
