"""Which KV settings work where: capabilities held against a model and a card."""

from __future__ import annotations

from collections.abc import Sequence

from nybble.engines.known.base import Deployment, Engine, KVChoice, holds
from nybble.errors import NybbleError
from nybble.formats.setting import KVSetting, parse
from nybble.models.found import Found
from nybble.models.geometry import Geometry
from nybble.planning.memory.registry import known, memory_model
from nybble.planning.seats import Seats
from nybble.results.engines import ChoiceLine, EngineLine
from nybble.serving.deploy import hardware_of

_TOLD = {"api": "its API", "log": "its log only", "echo": "nobody: an echo", "no": "nobody"}
_ANY = Geometry("any model", "any", (), 1, 1, 1, 1)
_READ = {"always": "always", "chunks": "after each prefill chunk", "decode": "in decode only"}


def engine_line(engine: Engine) -> EngineLine:
    """An engine's line of the matrix."""
    reads = dict.fromkeys(_READ[c.read] for c in engine.choices if _quantized(c))
    return EngineLine(
        engine.name, engine.version, engine.flags,
        " ".join(c.name for c in engine.choices),
        "apart" if engine.sides else "alike", ", ".join(reads), _TOLD[engine.tells],
    )  # fmt: skip


def choice_lines(
    engine: Engine, found: Found | None, seats: Seats | None, version: str | None
) -> tuple[ChoiceLine, ...]:
    """One line a value of the engine's flag; with a model or a card also whether it works there.

    Raises:
        NybbleError: `version` is not one.
    """
    asked = found is not None or seats is not None or version is not None
    return tuple(
        ChoiceLine(
            choice.name,
            choice.kv or "",
            None if choice.kv is None else parse(choice.kv).bits,
            _READ[choice.read] if _quantized(choice) else "",
            _needs(choice),
            _works(engine, choice, found, seats, version) if asked else None,
            choice.source,
        )
        for choice in engine.choices
    )


def notes(
    engine: Engine, found: Found | None, seats: Seats | None, version: str | None
) -> list[str]:
    """Limits and traps of an engine, those of another version left out."""
    at = version or engine.version
    told = [f"{trap.kind}: {trap.what} ({trap.source})" for trap in engine.traps
            if holds(at, trap.since, trap.until)]  # fmt: skip
    there: list[str] = []
    if found is not None or seats is not None:
        for choice in engine.choices:
            if choice.kv is None or not holds(at, choice.since, choice.until):
                continue
            try:
                there += (f"* {text}" for text in _try(engine, parse(choice.kv), found, seats))
            except NybbleError:
                continue
    about = [("sliding windows", engine.sliding), ("limits", engine.limits),
             ("read back by", engine.readback)]  # fmt: skip
    return [*dict.fromkeys(there), *(f"{name}: {text}" for name, text in about if text), *told]


def _works(
    engine: Engine, choice: KVChoice, found: Found | None, seats: Seats | None, version: str | None
) -> str:
    at = version or engine.version
    if not holds(at, choice.since, choice.until):
        since = f"from {choice.since}" if choice.since else ""
        until = f"until {choice.until}" if choice.until else ""
        return f"no: {since} {until}".replace("  ", " ").strip()
    if choice.kv is None:
        return "nybble has no format of it"
    setting = parse(choice.kv)
    try:
        told = _try(engine, setting, found, seats)
    except NybbleError as error:
        return f"no: {error.what}"
    return "yes, but see *" if told else "yes"


def _try(
    engine: Engine, setting: KVSetting, found: Found | None, seats: Seats | None
) -> Sequence[str]:
    """Warnings for this setting there; raises where it does not run."""
    where = known(engine.name)
    if seats is not None and seats.card.vendor not in where.vendors:
        raise NybbleError(f"{engine.name} does not run on {seats.card.name}")
    if found is not None:
        memory_model(engine.name).check(found.geometry, setting)
    geometry = found.geometry if found else _ANY
    asked = Deployment("model", geometry, where.weights, setting, 1, hardware=hardware_of(seats))
    engine.refuse(asked)
    return engine.warnings(asked)


def _quantized(choice: KVChoice) -> bool:
    return choice.kv is None or parse(choice.kv).quantized


def _needs(choice: KVChoice) -> str:
    parts = []
    if choice.since:
        parts.append(f"from {choice.since}")
    if choice.until:
        parts.append(f"until {choice.until}")
    if choice.sm:
        parts.append("SM" + "/".join(map(str, choice.sm)))
    if len(choice.vendors) < 5:
        parts.append(", ".join(v for v in choice.vendors if v != "what-if"))
    return "; ".join([*parts, choice.limits] if choice.limits else parts)
