"""What a load test saw: plain records, as `nybble bench --save` writes and `--against` reads them.

Every request is kept with its times, so any percentile can be computed again later.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import secrets
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from nybble.errors import NybbleError
from nybble.results.records import Estimate

LOADS_SCHEMA_VERSION = 1
_KIND = "nybble load test"
_MAX_BYTES = 1 << 30
_AGAIN = "nybble bench URL --save FILE writes one"


@dataclass(frozen=True)
class LoadShape:
    """What was asked of a server; only runs of the same shape are compared.

    Attributes:
        api: "chat" or "completions".
        tokens_in: prompt tokens of a request, as written: "512", "128..1024" or
            "lognormal:P50,P95".
        tokens_out: tokens of its answer, likewise.
        concurrency: requests in flight at once, at most.
        requests: how many; None where only `duration` ends the run.
        duration: seconds of one server after which no request is sent; None for no such limit.
        rate: requests/s that arrive whatever the server does (Poisson); None where the next one
            is sent when one is done.
        shared: share of each prompt that all prompts have in common.
        seed: of lengths, texts and arrivals.
        warmup: requests before the first that counts.
        blocks: parts the run is cut into; two servers take turns by them.
    """

    api: str
    tokens_in: str
    tokens_out: str
    concurrency: int
    requests: int | None
    duration: float | None
    rate: float | None
    shared: float
    seed: int
    warmup: int
    blocks: int


@dataclass(frozen=True)
class LoadRequest:
    """One request. Times are seconds.

    Attributes:
        index: its number, which decides its lengths and text.
        block: the part of the run it belongs to.
        asked_in: prompt tokens it was to have.
        asked_out: answer tokens that were asked for.
        tokens_in: prompt tokens that the server counted; None where it does not tell.
        cached: how many of them it had in its cache already; None where it does not tell.
        tokens_out: answer tokens that the server counted, else pieces that came.
        due: when it was to be sent, since its block began.
        sent: when it was sent.
        first: from there to the first text; None where none came.
        gaps: between one piece of text and the next.
        total: from sending to the end of the answer.
        error: what went wrong, one of a few words; None for a whole answer.
        detail: the server's or the system's own words.
    """

    index: int
    block: int
    asked_in: int
    asked_out: int
    tokens_in: int | None
    cached: int | None
    tokens_out: int
    due: float
    sent: float
    first: float | None
    gaps: tuple[float, ...]
    total: float
    error: str | None = None
    detail: str | None = None


@dataclass(frozen=True)
class LoadBlock:
    """A part of a run, with no request in flight before and after it.

    Attributes:
        index: its number.
        began: seconds since the test began.
        seconds: until its last answer ended.
        client_busy: share of one core that the client took.
        client_late: how late the client's own clock ticked, 99th percentile, seconds.
    """

    index: int
    began: float
    seconds: float
    client_busy: float
    client_late: float


@dataclass(frozen=True)
class LoadFailure:
    """Requests that failed in one way."""

    error: str
    count: int
    detail: str


@dataclass(frozen=True)
class LoadGood:
    """Requests within stated limits.

    Attributes:
        ttft: most seconds to the first text; None for any.
        tpot: most seconds a token after it; None for any.
        share: of all requests, failed ones among them.
        rate: such requests a second.
    """

    ttft: float | None
    tpot: float | None
    share: Estimate
    rate: Estimate


@dataclass(frozen=True)
class LoadNumbers:
    """A run in numbers. Intervals are 95 %, None where there is too little for one.

    Attributes:
        answered: requests with a whole answer.
        failed: the others.
        seconds: in which requests were in flight.
        tokens_in: mean prompt tokens, as the server counted; None where it does not tell.
        tokens_out: mean answer tokens.
        cached: share of the prompt tokens that it had in its cache; None where it does not tell.
        as_asked: share of the answers that are as long as was asked.
        per_piece: answer tokens in one piece of the stream, mean.
        rates: tokens_out, tokens (prompts and answers) and requests: a second.
        seconds_at: ttft (to the first text), itl (between pieces), tpot (a token after the
            first) and total (a request): by "p50", "p90" and "p99", in seconds.
        queued: the same of how long requests waited in the client; no interval.
        failures: by kind, most frequent first.
        good: with limits only.
    """

    answered: int
    failed: int
    seconds: float
    tokens_in: float | None
    tokens_out: float
    cached: float | None
    as_asked: float
    per_piece: float
    rates: dict[str, Estimate]
    seconds_at: dict[str, dict[str, Estimate]]
    queued: dict[str, float]
    failures: tuple[LoadFailure, ...]
    good: LoadGood | None = None


@dataclass(frozen=True)
class LoadRun:
    """One server under load.

    Attributes:
        name: for the tables.
        url: of the API.
        model: as asked for.
        server: what it says of itself; "" for nothing.
        created: date and time.
        mark: a word in the beginning of each prompt, which no earlier run has used.
        blocks: parts of the run.
        requests: all of them.
        numbers: the same, summed up.
        notes: what a reader must know.
    """

    name: str
    url: str
    model: str
    server: str
    created: str
    mark: str
    blocks: tuple[LoadBlock, ...]
    requests: tuple[LoadRequest, ...]
    numbers: LoadNumbers
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoadRatio:
    """One run divided by another.

    Attributes:
        of: name.
        against: name.
        in_turns: whether their blocks alternated, so that the machine's noise hit both alike.
        rates: as of `LoadNumbers`; above 1 is better.
        seconds_at: likewise; below 1 is better.
        notes: what a reader must know.
    """

    of: str
    against: str
    in_turns: bool
    rates: dict[str, Estimate]
    seconds_at: dict[str, dict[str, Estimate]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoadReport:
    """One or more runs of one shape.

    Attributes:
        shape: what was asked.
        runs: in the order given.
        ratios: of every later run to the first.
        hardware: of the client's machine.
        versions: of the client.
    """

    shape: LoadShape
    runs: tuple[LoadRun, ...]
    ratios: tuple[LoadRatio, ...]
    hardware: dict[str, Any]
    versions: dict[str, str]
    kind: str = _KIND
    schema_version: int = LOADS_SCHEMA_VERSION

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)


def to_json(report: LoadReport) -> str:
    """Canonical JSON: sorted keys, no NaN."""
    return json.dumps(report.as_dict(), sort_keys=True, allow_nan=False, ensure_ascii=False)


def from_json(text: str | bytes) -> LoadReport:
    """Read a report back; every value is checked against its field's type.

    Raises:
        NybbleError: not a load test, a damaged one, or one of another schema.
    """
    try:
        data = json.loads(text)
        if not isinstance(data, dict) or data.get("kind") != _KIND:
            raise ValueError("not a load test")
        version = data["schema_version"]
        found = _build(LoadReport, data) if version == LOADS_SCHEMA_VERSION else None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        seen = f"{type(error).__name__}: {str(error)[:80]}"
        raise NybbleError(
            "not a load test that nybble wrote, or a damaged one", seen=seen, hint=_AGAIN
        ) from error
    if not isinstance(found, LoadReport):
        raise NybbleError(
            "the load test was written by another version of nybble",
            seen=f"schema {str(version)[:40]}",
            allowed=f"schema {LOADS_SCHEMA_VERSION}",
            hint=_AGAIN,
        )
    return found


def check_writable(path: Path | None) -> None:
    """Refuse a file that could not be written, before minutes are spent on what goes into it.

    Raises:
        NybbleError: its folder is not there or cannot be written, or it is a folder itself.
    """
    if path is None:
        return
    folder = path.absolute().parent
    if path.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise NybbleError("this file cannot be written", seen=path,
                          allowed="a file in a folder where you may write")  # fmt: skip


def write(report: LoadReport, path: Path) -> Path:
    """Keep a report; written whole or not at all.

    Returns:
        `path`.

    Raises:
        NybbleError: the file cannot be written.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        try:
            part.write_text(to_json(report), encoding="utf-8")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise NybbleError("cannot write the load test", seen=error,
                          hint="--save FILE where you may write") from error  # fmt: skip
    return path


def read(path: Path) -> LoadReport:
    """Read a file that `nybble bench --save` wrote.

    Raises:
        NybbleError: it cannot be read, or is no load test.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise NybbleError("cannot read the load test", seen=error, hint=_AGAIN) from error
    if len(raw) > _MAX_BYTES:
        raise NybbleError("the load test is too large to be one", seen=path, hint=_AGAIN)
    return from_json(raw)


def _build(kind: Any, data: Any) -> Any:
    """Plain JSON as a value of this type; ValueError where it is none."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(data, dict):
            raise ValueError(f"no {kind.__name__}")
        hints = get_type_hints(kind)
        return kind(**{name: _build(hints[name], value) for name, value in data.items()})
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        rest = [a for a in args if a is not type(None)]
        return None if data is None and len(rest) < len(args) else _build(rest[0], data)
    if origin is tuple and isinstance(data, list):
        return tuple(_build(args[0], value) for value in data)
    if origin is dict and isinstance(data, dict):
        return {str(name): _build(args[1], value) for name, value in data.items()}
    if kind is Any:
        return data
    if kind is float and isinstance(data, (int, float)) and not isinstance(data, bool):
        if not math.isfinite(data):
            raise ValueError("not a finite number")
        return float(data)
    if isinstance(kind, type) and type(data) is kind:
        return data
    raise ValueError(f"no {getattr(kind, '__name__', kind)}: {str(data)[:40]}")
