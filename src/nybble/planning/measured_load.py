"""What a stored load test (`nybble bench --save`) says to a cost and to a plan.

A cost takes the throughput itself: answer tokens a second at a number of requests at once, with
the reading of the prompts in it. It holds for that load only, so the load of the cost must be the
one that was measured. A plan takes rates (bytes and operations a second) and therefore needs a run
with one request at a time, in which the time to the first text is the prompt's alone and the time
between tokens the decoding's.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from urllib.parse import urlsplit

from nybble.errors import NybbleError
from nybble.formats.setting import KVSetting
from nybble.models.geometry import Geometry
from nybble.planning import assumptions as a
from nybble.planning.assumptions import Assumption
from nybble.planning.calibration import Calibration, Decoded, Prefilled, calibrate
from nybble.planning.cost import LoadProfile
from nybble.planning.interval import Interval, as_interval
from nybble.planning.roofline import Experts, weights_of
from nybble.results.loads import LoadReport, LoadRequest, LoadRun, LoadShape, read

_NAME = "answer tokens a second with this load, prompts read in between"
_OFF = 0.1  # share by which the measured load may differ from the one that is priced
_TWICE = 2.0  # contexts that lie so far apart show the cache's share of a step
_LEAST = 8  # requests that a rate comes from
_SPREAD = "how far requests of the load test lay apart (half the distance of the quartiles)"


@dataclass(frozen=True)
class MeasuredLoad:
    """A throughput that was measured.

    Attributes:
        rate: answer tokens/s of one server.
        concurrency: requests it had at once.
        tokens_in: mean prompt tokens; None where the server did not count them.
        tokens_out: mean answer tokens.
        cached: share of the prompt tokens that it had in its cache.
        source: file, run and date.
    """

    rate: Interval
    concurrency: int
    tokens_in: float | None
    tokens_out: float
    cached: float
    source: str

    def check(self, profile: LoadProfile) -> None:
        """Refuse a load that is not the one that was measured.

        Raises:
            NybbleError: naming what differs.
        """
        pairs = [("answer tokens", "--out", self.tokens_out, profile.tokens_out)]
        if self.tokens_in is not None:
            pairs.append(("prompt tokens", "--in", self.tokens_in, profile.tokens_in))
        for name, option, measured, asked in pairs:
            if abs(asked / measured - 1) > _OFF if measured else asked:
                raise NybbleError(f"the load test was of another load: its {name} differ",
                                  seen=f"{asked:g} {name}", allowed=f"about {measured:g}",
                                  hint=f"{option} {measured:.0f}")  # fmt: skip
        if abs(profile.cached - self.cached) > _OFF:
            raise NybbleError("the load test was of another load: what its prompt cache held",
                              seen=f"{profile.cached:.0%} cached", allowed=f"{self.cached:.0%}",
                              hint=f"--cached {self.cached:.2f}")  # fmt: skip
        if profile.users < self.concurrency:
            raise NybbleError("the load test had more requests at once than the load has",
                              seen=f"{profile.users} users", allowed=f"{self.concurrency} or more",
                              hint=f"--users {self.concurrency}, or a test with --concurrency "
                                   f"{profile.users}")  # fmt: skip

    @property
    def assumption(self) -> Assumption:
        """What the cost rests on."""
        return Assumption(_NAME, self.rate, f"tokens/s at {self.concurrency} at once", self.source)


def measured_load(text: str) -> MeasuredLoad:
    """Read FILE or FILE#RUN; the run must be named where the file has several.

    Raises:
        NybbleError: no such file or run, or a run whose rate says nothing of what a server can do.
    """
    name, _, wanted = text.partition("#")
    report = read(Path(name))
    names = [r.name for r in report.runs]
    found = [r for r in report.runs if r.name == wanted or (not wanted and len(names) == 1)]
    if not found:
        raise NybbleError("which run of the load test?", seen=text, allowed=names,
                          hint=f"{name}#{names[-1]}")  # fmt: skip
    return throughput(report.shape, found[0], Path(name).name)


def throughput(shape: LoadShape, run: LoadRun, source: str) -> MeasuredLoad:
    """The throughput of one run, widened by what a repeated run may differ by.

    Raises:
        NybbleError: an open loop, whose rate is that of the arrivals, or requests that failed.
    """
    n = run.numbers
    if shape.rate is not None:
        raise NybbleError("an open loop measures what came, not what a server can do",
                          seen=f"{shape.rate:g} requests/s", allowed="a closed loop",
                          hint="nybble bench URL --concurrency N, without --rate")  # fmt: skip
    if n.failed > 0.01 * (n.answered + n.failed) or not n.answered:
        raise NybbleError("too many requests of this load test failed",
                          seen=f"{n.failed} of {n.answered + n.failed}", allowed="1 %",
                          hint="a lower --concurrency")  # fmt: skip
    rate, margin = n.rates["tokens_out"], as_interval(_number(a.REPEAT)).high
    low = rate.value if rate.low is None else rate.low
    high = rate.value if rate.high is None else rate.high
    return MeasuredLoad(
        rate=Interval(low * (1 - margin), high * (1 + margin)),
        concurrency=shape.concurrency,
        tokens_in=n.tokens_in,
        tokens_out=n.tokens_out,
        cached=n.cached or 0.0,
        source=f"measured: {source}, {run.name}, {run.created[:10]}, {n.answered} requests",
    )


def rates(
    report: LoadReport, run: LoadRun, geometry: Geometry, setting: KVSetting,
    experts: Experts | None = None,
) -> Calibration:  # fmt: skip
    """Rates of this machine, for `nybble plan --calibration`.

    Where contexts of the requests lie twice as far apart, the shortest and the longest third are
    taken, so that the cache's rate can be told from the weights'.

    Args:
        report: of the load test.
        run: one of its runs.
        geometry: of the served model, weights included.
        setting: its KV setting, which the run itself does not know.
        experts: of a mixture.

    Raises:
        NybbleError: more than one request at once, a server on another machine, lengths that
            the server did not count, or too few answers.
    """
    # Imports the engine, which a cost does without.
    from nybble.planning.measured import MEASURED_ON

    if report.shape.concurrency != 1 or report.shape.rate is not None:
        raise NybbleError("rates of a machine come from one request at a time",
                          seen=f"{report.shape.concurrency} at once", allowed="1, without --rate",
                          hint="--concurrency 1")  # fmt: skip
    if not _here(run.url):
        raise NybbleError("a calibration is of this machine, and the server runs on another one",
                          seen=run.url, allowed="a server on this machine",
                          hint="nybble cost --measured-load takes any server's run")  # fmt: skip
    weights = weights_of(geometry)
    done = [r for r in run.requests if r.error is None and _complete(r)]
    if len(done) < _LEAST:
        raise NybbleError("too few answers for a calibration",
                          seen=f"{len(done)} with counted tokens", allowed=f"{_LEAST} or more",
                          hint="--requests 30 --output 64")  # fmt: skip
    done.sort(key=_context)
    third = max(_LEAST // 2, len(done) // 3)
    groups = [done[:third], done[-third:]]
    if _context(done[-1]) < _TWICE * _context(done[0]) or len(done) < 2 * third:
        groups = [done]
    source = f"nybble bench of {run.server or 'a server'} on this machine, {run.created[:10]}"
    found = calibrate(
        geometry,
        setting,
        [Decoded(round(_mean([_context(r) for r in g])), 1 / median(map(_step, g)))
         for g in groups],
        [p for g in groups for p in _prefilled(g)],
        source=source,
        experts=experts,
    )  # fmt: skip
    spread = max(_spread([_step(r) for r in g]) for g in groups)
    bits = 8 * weights.n_bytes / max(weights.n_params, 1)
    on = f"{geometry.name} ({bits:.2g} bits a weight), {setting}, {len(done)} requests"
    wide = [
        replace(one, value=_widened(one.value, spread)) if isinstance(one.value, Interval) else one
        for one in found.assumptions[:2]  # of weights and cache
    ]
    return replace(
        found,
        weights=_widened(found.weights, spread),
        cache=_widened(found.cache, spread),
        assumptions=(*wide, *found.assumptions[2:], Assumption(_SPREAD, spread, "", source),
                     Assumption(MEASURED_ON, on, "", source)),
    )  # fmt: skip


def _complete(r: LoadRequest) -> bool:
    read_now = (r.tokens_in or 0) - (r.cached or 0)
    return read_now > 0 and bool(r.first) and r.tokens_out > 1 and sum(r.gaps) > 0


def _context(r: LoadRequest) -> float:
    """Tokens in the cache in the middle of the answer."""
    return (r.tokens_in or 0) + r.tokens_out / 2


def _step(r: LoadRequest) -> float:
    """Seconds of a token behind the first one."""
    return sum(r.gaps) / (r.tokens_out - 1)


def _prefilled(group: Sequence[LoadRequest]) -> list[Prefilled]:
    """The slow and the fast quartile, so that what lies between requests is seen."""
    new = [(r.tokens_in or 0) - (r.cached or 0) for r in group]
    slow, _, fast = quantiles([n / (r.first or 1.0) for n, r in zip(new, group, strict=True)], n=4)
    tokens, depth = round(_mean(new)), round(_mean([r.cached or 0 for r in group]))
    return [Prefilled(tokens, speed, depth) for speed in (slow, fast)]


def _spread(steps: Sequence[float]) -> float:
    low, _, high = quantiles(steps, n=4)
    return (high - low) / 2 / median(steps)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _widened(value: Interval, share: float) -> Interval:
    return Interval(value.low / (1 + share), value.high * (1 + share))


def _number(assumption: Assumption) -> float | Interval:
    assert not isinstance(assumption.value, str)
    return assumption.value


def _here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
