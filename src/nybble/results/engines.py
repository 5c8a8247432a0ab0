"""What `nybble engines` prints: plain records."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineLine:
    """One engine in the matrix; all in words."""

    name: str
    version: str
    flags: str
    types: str
    sides: str
    read: str
    told: str


@dataclass(frozen=True)
class ChoiceLine:
    """One value of an engine's KV flag.

    Attributes:
        name: as the engine spells it.
        kv: in nybble's words.
        bits: stored bits an element; None where nybble has no format of it.
        read: when quantized K and V are read.
        needs: versions, hardware and other limits.
        works: for a model and card that were asked about: "yes", or why not; None without.
        source: where it is read from.
    """

    name: str
    kv: str
    bits: float | None
    read: str
    needs: str
    works: str | None
    source: str


@dataclass(frozen=True)
class ProbedLine:
    """One engine that is installed here.

    Attributes:
        engine: name.
        installed: what was found, with its version.
        read: version our data was read up to.
        found: values of its KV flag.
        missing: found, and not in our data.
        gone: in our data, and not found.
        where: path.
        note: what could not be compared, and why.
        drifted: whether values differ.
    """

    engine: str
    installed: str
    read: str
    found: tuple[str, ...]
    missing: tuple[str, ...]
    gone: tuple[str, ...]
    where: str
    note: str
    drifted: bool
