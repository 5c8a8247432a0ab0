"""What `nybble verify` found: plain records."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

VERIFICATION_SCHEMA_VERSION = 1
# "echo": the server repeats the request, which proves nothing. "untold": nobody says.
State = Literal["ok", "differs", "broken", "echo", "untold"]
Outcome = Literal["confirmed", "differs", "broken", "unproven"]


@dataclass(frozen=True)
class Check:
    """One thing that was asked for, and what is known of it.

    Attributes:
        name: for example "K type" or "bytes a token".
        asked: on the command line, in the record of `nybble serve`, or by the user.
        reported: by the server or its log.
        observed: found out by reading what the cache holds or how the model behaves.
        state: see `State`.
    """

    name: str
    asked: str = ""
    reported: str = ""
    observed: str = ""
    state: State = "untold"


@dataclass(frozen=True)
class Verification:
    """A server held against what was asked of it.

    Attributes:
        url: of the server.
        engine: name.
        version: as the server tells it.
        model: as the server calls it.
        checks: in the order of the report.
        outcome: "confirmed" only where the types are reported or observed, and nothing differs.
        why: the outcome in a sentence.
        sources: where the reported values come from.
        notes: kernel-path warnings, and what could not be found out and how it could.
    """

    url: str
    engine: str
    version: str
    model: str
    checks: tuple[Check, ...]
    outcome: Outcome
    why: str
    sources: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    schema_version: int = VERIFICATION_SCHEMA_VERSION

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON takes it."""
        return dataclasses.asdict(self)


def judge(checks: tuple[Check, ...]) -> tuple[Outcome, str]:
    """The outcome of some checks, and why."""
    broken = [c for c in checks if c.state == "broken"]
    if broken:
        return "broken", "; ".join(f"{c.name}: {c.observed or c.reported}" for c in broken)
    differs = [c for c in checks if c.state == "differs"]
    if differs:
        told = (f"{c.name} is {c.observed or c.reported}, asked {c.asked}" for c in differs)
        return "differs", "; ".join(told)
    types = [c for c in checks if c.name in ("K type", "V type")]
    proven = [c for c in types if c.state == "ok"]
    if len(proven) == 2:
        k, v = ((c.observed or c.reported) for c in proven)
        return "confirmed", f"{k}/{v} is in effect"
    size = next((c for c in checks if c.name == "bytes a token" and c.state == "ok"), None)
    if size is not None and any(c.asked for c in types):
        # What an allocator counts is no echo of the flag.
        k, v = (c.asked for c in types)
        return "confirmed", f"a token takes the {size.observed or size.reported} bytes of {k}/{v}"
    if any(c.state == "echo" for c in types):
        return "unproven", "the server only repeats the type it was asked for"
    return "unproven", "neither the server nor its log tells the KV type"
