"""What a server is asked: how many requests, how long, and when.

`planning.cost.LoadProfile` is the load of a service over a month, in means; this is a test that
can be run again: every length and arrival follows from the seed. tokens_in and tokens_out mean
the same in both, and `concurrency` here is what `users` is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from nybble.errors import NybbleError
from nybble.results.loads import LoadShape
from nybble.serving.load.lengths import Lengths

Api = Literal["chat", "completions"]
APIS: tuple[Api, ...] = ("chat", "completions")
MOST_AT_ONCE = 1000  # connections that the client's pool opens
CONCURRENCY = 8
REQUESTS = 100
BLOCKS = 5  # parts of a run with two servers; fewer pairs give wide intervals


@dataclass(frozen=True)
class BenchProfile:
    """A load test.

    Attributes:
        tokens_in: prompt tokens of a request, as the server counts them.
        tokens_out: tokens of its answer.
        concurrency: requests in flight at once, at most.
        requests: how many that count, of each server; None: until `duration` ends.
        duration: seconds of each server after which no request is sent.
        rate: requests/s that arrive whatever the server does (open loop, Poisson); None for a
            closed loop: the next request is sent when one of `concurrency` is done.
        shared: share of each prompt that all prompts of the run have in common at their
            beginning, so that a prefix cache may help; 0: not a word.
        seed: of lengths, texts and arrivals.
        warmup: requests before the first that counts; None for as many as `concurrency`, at
            most 8.
        blocks: parts of the run, each finished before the next begins; None for 1 part with one
            server and 5 with two.
        api: "chat" or "completions".
        ignore_eos: ask the server to go on behind an end of the text, so that answers have the
            asked length.

    Raises:
        NybbleError: a number that means nothing.
    """

    tokens_in: Lengths = Lengths("fixed", 512, 512)
    tokens_out: Lengths = Lengths("fixed", 128, 128)
    concurrency: int = CONCURRENCY
    requests: int | None = REQUESTS
    duration: float | None = None
    rate: float | None = None
    shared: float = 0.0
    seed: int = 0
    warmup: int | None = None
    blocks: int | None = None
    api: Api = "chat"
    ignore_eos: bool = True

    def __post_init__(self) -> None:
        _within("requests at once", self.concurrency, 1, MOST_AT_ONCE)
        _within("the share that prompts have in common", self.shared, 0, 0.95)
        _within("the seed", self.seed, 0, 2**63 - 1)
        if self.requests is not None:
            _within("the number of requests", self.requests, 1, 10_000_000)
        elif self.duration is None:
            raise NybbleError("nothing ends this load test", seen="no number of requests",
                              allowed="requests or a duration",
                              hint="--requests 100 or --duration 60")  # fmt: skip
        if self.duration is not None:
            _within("the duration", self.duration, 0.001, 1e7)
        if self.rate is not None:
            _within("requests a second", self.rate, 1e-4, 1e5)
        if self.warmup is not None:
            _within("warm-up requests", self.warmup, 0, 100_000)
        if self.blocks is not None:
            _within("parts of the run", self.blocks, 1, min(self.requests or 1000, 1000))
        if self.api not in APIS:
            raise NybbleError("unknown API", seen=self.api, allowed=APIS)

    def n_blocks(self, servers: int) -> int:
        """Parts of each server's run; no part is without a request."""
        if self.blocks is not None:
            return self.blocks
        most = BLOCKS if servers > 1 else 1
        return most if self.requests is None else min(most, self.requests)

    @property
    def n_warmup(self) -> int:
        """Requests that do not count."""
        return min(self.concurrency, 8) if self.warmup is None else self.warmup

    def shape(self, servers: int) -> LoadShape:
        """As the records have it."""
        return LoadShape(
            api=self.api,
            tokens_in=str(self.tokens_in),
            tokens_out=str(self.tokens_out),
            concurrency=self.concurrency,
            requests=self.requests,
            duration=self.duration,
            rate=self.rate,
            shared=self.shared,
            seed=self.seed,
            warmup=self.n_warmup,
            blocks=self.n_blocks(servers),
        )

    def asked(self, index: int) -> tuple[int, int]:
        """Prompt and answer tokens of request `index`: the same for every server."""
        rng = generator(self.seed, "lengths", index)
        return self.tokens_in.draw(rng), self.tokens_out.draw(rng)

    def wait(self, index: int) -> float:
        """Seconds from the request before to this one, of an open loop."""
        if self.rate is None:
            return 0.0
        return float(generator(self.seed, "arrivals", index).exponential(1 / self.rate))


def generator(seed: int, what: str, index: int) -> np.random.Generator:
    """Random numbers of one request and purpose, whichever other requests there are."""
    # A warm-up request has a negative number, which a seed sequence does not take.
    return np.random.default_rng([seed, *what.encode(), int(index < 0), abs(index)])


def _within(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:  # not a number is outside as well
        raise NybbleError(
            f"{name}: outside what a load test takes",
            seen=value,
            allowed=f"from {least:,g} to {most:,g}",
        )
