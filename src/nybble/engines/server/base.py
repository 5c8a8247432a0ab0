"""What a scorer asks of a running server: who it is, how it tokenizes, and top-k log-probabilities.

Servers tell the k most likely tokens of a position and, asked the right way, the log-probability
of one token more: the true next one. Token ids are sent, never text, so that every server of a
run reads the same tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nybble.engines.known.base import Engine
from nybble.engines.known.registry import engine
from nybble.engines.server.http import Client
from nybble.errors import EngineError, NybbleError
from nybble.formats.setting import KVSetting

PLAIN = frozenset({"auto", "f16", "float16", "bf16", "bfloat16", "half"})
SAME = {"fp8": "fp8_e4m3"}  # two names of one type, in vLLM and in SGLang
_ABOVE = 1e-2  # rounding of a log-probability of 0 is far below
MISSING = -1  # token id where a server told fewer than k tokens


@dataclass(frozen=True)
class Identity:
    """What a server says of itself.

    Attributes:
        engine: as in `engines.known.registry`.
        version: its own words for it, "unknown" where it does not tell.
        model: name to put into requests.
        weights: last part of the path or id its weights were loaded from.
        context: most tokens of prompt and answer together; None where it does not tell.
        vocabulary: entries; None where it does not tell.
        kv: KV type that it reports; None where it does not tell.
    """

    engine: str
    version: str
    model: str
    weights: str
    context: int | None = None
    vocabulary: int | None = None
    kv: str | None = None


@dataclass(frozen=True)
class Scores:
    """Top-k log-probabilities of n positions, natural logarithms, float32 as the engines compute.

    Attributes:
        ids: int32 [n, k], most likely first; MISSING where the server told fewer.
        logps: float32 [n, k]; -inf where the server told fewer.
        true: float32 [n], log-probability of the true next token.
        read: how the cache was read, in words.
    """

    ids: npt.NDArray[np.int32]
    logps: npt.NDArray[np.float32]
    true: npt.NDArray[np.float32]
    read: str


@dataclass(frozen=True)
class Position:
    """One position's answer: pairs of token id and log-probability, and the true token's."""

    top: tuple[tuple[int, float], ...]
    true: float


class Server(ABC):
    """One running server.

    Args:
        client: speaks with it.
    """

    name: str
    one_pass: bool  # whether it gives log-probabilities of the prompt at all

    def __init__(self, client: Client) -> None:
        self.client = client
        self.notes: list[str] = []  # what the user should know, found out while scoring

    @property
    def known(self) -> Engine:
        """The engine's capabilities."""
        return engine(self.name)

    def identity(self) -> Identity:
        """Ask who it is.

        Raises:
            EngineError: it cannot be reached, refuses, or is another kind of server.
        """
        with _understood(self.name):
            return self._identity()

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text without BOS, as the server's own tokenizer has them.

        Raises:
            EngineError: as `identity`.
        """
        with _understood(self.name):
            return self._tokenize(text)

    @abstractmethod
    def _identity(self) -> Identity:
        """Ask who it is."""

    @abstractmethod
    def _tokenize(self, text: str) -> list[int]:
        """Ask for token ids."""

    @abstractmethod
    def one(
        self, ids: Sequence[int], first: int, k: int, done: Callable[[int], None]
    ) -> list[Position]:
        """Score positions first..len(ids)-2 in one pass over the prompt."""

    @abstractmethod
    def decode(
        self, ids: Sequence[int], first: int, k: int, done: Callable[[int], None]
    ) -> tuple[list[Position], str]:
        """The same token by token; also in words, what of the cache each token read."""

    def score(
        self, ids: Sequence[int], first: int, k: int, via: str, done: Callable[[int], None]
    ) -> Scores:
        """Score positions first..len(ids)-2: each predicts the token after it.

        Args:
            ids: tokens of one context, BOS included.
            first: first scored position.
            k: tokens to tell at each.
            via: "prefill" (one pass) or "decode".
            done: called with tokens read since its last call.

        Raises:
            EngineError: the server fails, refuses, or did not read its cache as asked.
        """
        with _understood(self.name):
            if via == "decode" or not self.one_pass:
                found, read = self.decode(ids, first, k, done)
            else:
                found, read = self.one(ids, first, k, done), "one pass over the prompt"
        wanted = len(ids) - 1 - first
        if len(found) != wanted:
            raise EngineError(f"{self.name} scored another number of positions than asked",
                              seen=len(found), allowed=str(wanted))  # fmt: skip
        made = _scores(found, k, read)
        if (made.true > _ABOVE).any() or (made.logps > _ABOVE).any():
            raise EngineError(
                f"{self.name} tells numbers that are no log-probabilities",
                seen=f"{max(made.true.max(), made.logps.max()):.3g}", allowed="0 or less",
                hint="vLLM: --logprobs-mode raw_logprobs" if self.name == "vllm" else None,
            )  # fmt: skip
        return made

    def stores(self, setting: KVSetting, reported: str | None) -> bool | None:
        """Whether the KV type a server reports is a setting's; None where it reports none."""
        if reported is None:
            return None
        if not setting.quantized:
            return reported in PLAIN
        try:
            names = {c.name for c in self.known.choice(setting)}
        except NybbleError:
            names = set()
        names |= set(setting.types)
        return SAME.get(reported, reported) in {SAME.get(n, n) for n in names}


@contextmanager
def _understood(name: str) -> Iterator[None]:
    """Make an error of an answer that is not built as this kind of server builds it."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(
            f"the answer is not built as {name} builds it",
            seen=f"{type(error).__name__}: {error}"[:200],
            hint=f"is this {name}, in a version like {engine(name).version}?",
        ) from error


def _scores(found: Sequence[Position], k: int, read: str) -> Scores:
    width = min(k, max((len(p.top) for p in found), default=0))
    ids = np.full((len(found), width), MISSING, dtype=np.int32)
    logps = np.full((len(found), width), -np.inf, dtype=np.float32)
    for i, position in enumerate(found):
        top = sorted(position.top, key=lambda pair: -pair[1])[:width]
        ids[i, : len(top)] = [t for t, _ in top]
        logps[i, : len(top)] = [x for _, x in top]
    return Scores(ids, logps, np.array([p.true for p in found], dtype=np.float32), read)


def field(data: Any, *path: str | int, of: str) -> Any:
    """A value inside an answer.

    Raises:
        EngineError: it is not there; the server is of another kind or version.
    """
    at = data
    for key in path:
        try:
            at = at[key]
        except (KeyError, IndexError, TypeError):
            where = ".".join(map(str, path))
            raise EngineError(f"{of} answered without `{where}`", seen=str(data)[:200],
                              hint="check --engine: is this the right kind of server?",
                              ) from None  # fmt: skip
    return at


def last_part(path: str) -> str:
    """Name of a file or folder, or the last part of a hub id."""
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]
