"""How a server behaves: log-probabilities of a plain text, token by token or in one pass.

They tell two things. A model that finds plain English hardly likelier than random tokens is
broken, whatever its flags say. And where the model's file is here, the KV setting in effect is
the one whose log-probabilities they are (engines/llamacpp/fingerprint.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nybble.engines.llamacpp import fingerprint
from nybble.engines.llamacpp.fingerprint import Match
from nybble.engines.server.base import Scores, Server
from nybble.engines.server.llamacpp import LlamaCppServer
from nybble.engines.server.registry import SERVERS, connect
from nybble.environment import usable_cpus
from nybble.errors import EngineError
from nybble.formats.setting import KVSetting, parse

# A language model takes 2 to 4 nat a token of such a text; half of log(vocabulary) is 5 to 6.
BROKEN_SHARE = 0.5
_STEPS = 24  # tokens told of
_PLACES = 8  # of them where each costs a prompt of its own
_STRIDE = 5  # tokens between them
_TOP = 20  # likeliest tokens told at each; vLLM's own bound
_MOST = 256  # tokens of it; more where a vocabulary spells it in bytes
_PASSAGE = (
    "The river rises in the hills to the north of the town and flows south through farmland for "
    "about forty miles before it reaches the sea. In the nineteenth century several mills were "
    "built along its banks, and the water was used to drive the machines that spun cotton. Most "
    "of the mills have since been closed, but two of them are still standing and are now used as "
    "offices and flats. Every spring, when the snow melts, the river rises by a metre or more, "
    "and the fields on both sides are flooded for a few days. The farmers have learned to live "
    "with this, because the flood leaves behind a layer of fine mud that makes the soil rich. A "
    "narrow path follows the water from the old bridge to the harbour, and on Sundays many "
    "families walk along it with their children and their dogs. At the end of the path there is "
    "a small museum where visitors can learn about the history of the river and of the people "
    "who have worked on it."
)


@dataclass(frozen=True)
class Probe:
    """What the probe found.

    Attributes:
        nll: mean negative log-likelihood of the text's tokens, nat.
        vocabulary: entries; None where the server does not tell.
        read: how the cache was read, in words.
        match: against the settings a file here was decoded in; None without the file.
        drift: mean absolute difference of the tokens' log-probabilities (nat) from those of
            another server; None without one.
    """

    nll: float
    vocabulary: int | None
    read: str
    match: Match | None = None
    drift: float | None = None

    @property
    def broken(self) -> bool:
        """Whether the model is no better than chance on plain English."""
        return not self.nll < BROKEN_SHARE * math.log(self.vocabulary or 32_000)


def can_probe(engine: str) -> bool:
    """Whether an engine's servers tell log-probabilities of given tokens."""
    return engine in SERVERS


def probe(
    engine: str,
    url: str,
    *,
    model: Path | None,
    settings: Sequence[KVSetting],
    reference: str | None = None,
    timeout: float = 600.0,
) -> Probe:
    """Decode a plain text on a server and compare.

    Args:
        engine: kind of server.
        url: of it, without a path.
        model: the GGUF it runs, where that is on this disk.
        settings: that the server may run, besides the usual ones.
        reference: URL of another server of the same model, with a 16-bit cache.
        timeout: seconds an answer may take.

    Raises:
        EngineError: a server cannot be reached or does not tell log-probabilities.
    """
    server = connect(engine, url, timeout)
    identity = server.identity()
    ids = _tokens(server, identity.context)
    scores = _scored(server, ids)
    nll = float(-np.mean(scores.true))
    found = Probe(nll if math.isfinite(nll) else math.inf, identity.vocabulary, scores.read)
    if reference is not None:
        other = connect(engine, reference, timeout)
        other.identity()
        gaps = np.abs(_scored(other, ids).true - scores.true)
        found = replace(found, drift=float(np.mean(np.where(np.isfinite(gaps), gaps, np.inf))))
    if isinstance(server, LlamaCppServer) and model is not None:
        found = replace(found, match=_match(server, model, ids, settings))
    return found


def _tokens(server: Server, context: int | None) -> list[int]:
    """The text's tokens, with room for as many again as are told of; no BOS, as none is known."""
    ids = server.tokenize(_PASSAGE)[:_MOST]
    if context is not None:
        ids = ids[: max(0, context - 2 * _STEPS)]
    if len(ids) < 2 * _STEPS:
        raise EngineError("too few tokens of a plain text fit into the server's context",
                          seen=f"{len(ids)} of a context of {context}",
                          allowed=f"{2 * _STEPS} or more")  # fmt: skip
    return ids


def _scored(server: Server, ids: Sequence[int]) -> Scores:
    last = len(ids) - 1
    if server.one_pass:
        return server.score(ids, last - _STEPS, _TOP, "prefill", lambda _: None)
    # A prompt for each: a server with a sliding window does not keep its cache between requests.
    places = range(last - _PLACES * _STRIDE, last, _STRIDE)
    parts = [server.score(ids[: at + 2], at, _TOP, "decode", lambda _: None) for at in places]
    return Scores(
        np.concatenate([p.ids for p in parts]),
        np.concatenate([p.logps for p in parts]),
        np.concatenate([p.true for p in parts]),
        f"{_PLACES} places, a prompt for each",
    )


def _match(
    server: LlamaCppServer, model: Path, ids: Sequence[int], asked: Sequence[KVSetting]
) -> Match:
    """What the server generates, one token a step, decoded here under every setting."""
    tokens, told = server.generate(ids, _STEPS, _TOP)
    settings = list(
        dict.fromkeys([*(s for s in asked if s.llamacpp), *map(parse, fingerprint.USUAL)])
    )
    return fingerprint.match(model, [*ids, *tokens[:-1]], told, settings, threads=usable_cpus())
