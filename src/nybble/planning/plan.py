"""`plan`: one model on some cards, every KV setting of every engine that runs it there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nybble.errors import NybbleError
from nybble.formats.registry import ALIASES
from nybble.formats.setting import KVSetting, parse
from nybble.models.found import Found, find
from nybble.models.geometry import Geometry
from nybble.planning import choose
from nybble.planning.evidence import Identity, qualities
from nybble.planning.memory.base import Load, Memory, MemoryModel
from nybble.planning.memory.cards import GIB
from nybble.planning.memory.registry import ENGINES, known, memory_model
from nybble.planning.request import CONTEXTS, PlanRequest
from nybble.planning.seats import Seats, cards_of
from nybble.planning.solve import Solver
from nybble.planning.speed import Speeds
from nybble.results.plans import CardRecord, Fit, PartRecord, Plan, Quality

_CURVE_POINTS = 24
_FAR = 1 << 24  # tokens
_RESULTS = Path("nybble-results")
_OTHER_FILES = ("exl2", "exl3", "mlx")


@dataclass(frozen=True)
class _Asked:
    """What every row of the table shares."""

    request: PlanRequest
    geometry: Geometry
    seats: Seats | None
    contexts: tuple[int, ...]
    quality: dict[str, Quality]
    speeds: Speeds


def plan(request: PlanRequest) -> Plan:
    """Say what fits, how much of it, and at what quality.

    Reads headers, config.json and stored measurements; runs no engine and loads no weights.

    Raises:
        NybbleError: the model, a card, an engine or a KV setting is not known or not possible;
            no engine runs the model; or a demanded quality was never measured.
    """
    found = find(request.model, request.file)
    geometry = found.geometry
    seats = cards_of(request.cards)
    quality = quality_of(request.results, found)
    speeds = Speeds.of(request, geometry, seats)
    asked = _Asked(request, geometry, seats, _contexts(request, geometry), quality, speeds)
    engines = _engines(request, found, seats)
    fits: list[Fit] = []
    for engine in engines:
        brief = request.brief and any(not fit.refused for fit in fits)
        fits += _fits(engine, asked, brief)
    if all(fit.refused for fit in fits):
        raise _nothing_runs(geometry, fits)
    weights = geometry.weights
    made = Plan(
        model=geometry.name,
        architecture=geometry.architecture,
        weights_bytes=weights.n_bytes if weights else 0,
        weights_source=weights.source if weights else "unknown",
        context_length=geometry.context_length,
        card=_card(seats),
        sequences=request.users,
        contexts=asked.contexts,
        fits=tuple(fits),
        about=geometry.notes,
        notes=tuple(_notes(request, found, engines, seats)),
        assumptions=speeds.assumptions,
    )
    if request.context is None and request.max_kld is None:
        return made
    return replace(made, choice=choose.choose(made, request, geometry, seats))


def _contexts(request: PlanRequest, geometry: Geometry) -> tuple[int, ...]:
    longest = geometry.context_length
    if request.context is not None and request.context > longest:
        raise NybbleError(
            "the model was not made for such a context", seen=f"{request.context:,} tokens",
            allowed=f"up to {longest:,}", hint=f"--context {longest}",
        )  # fmt: skip
    asked = {request.context} if request.context else set()
    return tuple(sorted({c for c in CONTEXTS if c < longest} | {longest} | asked))


def _engines(request: PlanRequest, found: Found, seats: Seats | None) -> list[str]:
    if request.engines:
        for name in request.engines:
            known(name)
        return list(dict.fromkeys(name.strip().lower() for name in request.engines))
    # Unasked, only engines that load what the model is stored as, and its cards.
    vendor = seats.card.vendor if seats else None
    return [
        name for name, about in ENGINES.items()
        if (vendor is None or vendor in about.vendors) and about.weights not in _OTHER_FILES
        and (about.weights == "gguf" or found.weights != "gguf" or found.kind == "catalogue")
    ] or ["llama.cpp"]  # fmt: skip


def _fits(engine: str, asked: _Asked, brief: bool) -> list[Fit]:
    model = memory_model(engine)
    where, seats = known(engine), asked.seats
    if seats is not None and seats.card.vendor not in where.vendors:
        why = f"{engine} does not run on {seats.card.name}: {', '.join(where.vendors)} only"
        return [Fit(engine, "-", refused=why)]
    settings: Sequence[KVSetting] = asked.request.settings
    settings = settings or tuple(map(parse, model.listed(asked.geometry)))
    return [_fit(model, setting, asked, brief) for setting in settings]


def _fit(model: MemoryModel, setting: KVSetting, asked: _Asked, brief: bool) -> Fit:
    geometry, request, seats = asked.geometry, asked.request, asked.seats
    quality = asked.quality.get(str(setting))
    load = Load(1, request.users, ubatch=request.ubatch)
    try:
        model.check(geometry, setting)
        solver = Solver(model, geometry, setting, seats.budget if seats else choose.ENDLESS)
        largest = solver.largest_context(load) if seats else None
        row = Fit(
            engine=model.engine,
            setting=written(setting),
            bits=_bits(geometry, setting),
            bytes_per_token=_per_token(solver, load),
            largest_context=largest,
            limited_by=_limit(largest, geometry) if seats else None,
            quality=quality,
        )
        if brief:
            return row
        memory = {c: solver.memory(replace(load, context=c)) for c in asked.contexts}
    except NybbleError as error:
        return Fit(model.engine, written(setting), refused=error.what, quality=quality)
    explained = request.context or largest or asked.contexts[0]
    users = {c: solver.most_users(replace(load, context=c)) for c in asked.contexts if seats}
    longest = asked.contexts[-1]
    speed = asked.speeds.of_fit(model.engine, setting, asked.contexts, largest)
    return replace(
        row,
        memory={c: m.total for c, m in memory.items()},
        users=users,
        notes=tuple(n.removeprefix(f"{model.engine} ") for n in memory[longest].notes),
        parts=_parts(solver.memory(replace(load, context=explained))),
        explained=explained,
        curve=_curve(solver, load, longest) if request.curve else {},
        decode=speed[0],
        prefill=speed[1],
    )


def _per_token(solver: Solver, load: Load) -> int:
    """Bytes that one more token of one sequence adds, beyond every window.

    Taken over so many tokens that blocks and pages, which round, do not show.
    """
    far = [solver.memory(replace(load, context=c * _FAR)).of("cache") for c in (1, 2)]
    return round((far[1] - far[0]) / _FAR / load.sequences)


def written(setting: KVSetting) -> str:
    """A setting as a user would write it: by the engine's name of a mode where it has one."""
    text = str(setting)
    short = next((name for name, meaning in ALIASES.items() if str(parse(meaning)) == text), None)
    return short or text


def _bits(geometry: Geometry, setting: KVSetting) -> float:
    """Stored bits an element of the layers that keep every token, or of all where none does."""
    grows = geometry.of_kind("global", "latent") or geometry.of_kind("sliding")
    total = elements = 0.0
    for layer in grows:
        sides = [(setting.k_type, layer.k_width, layer.k_dim),
                 (setting.v_type, layer.v_width, layer.v_dim)]  # fmt: skip
        if setting.around.latent and layer.k_is_v:  # no key is stored
            sides = [(setting.latent_type, layer.v_width, layer.v_dim)]
        for kind, width, dim in sides:
            if width:
                total += width * kind.bits_at(dim)
                elements += width
    return total / elements if elements else 0.0


def _limit(largest: int | None, geometry: Geometry) -> str:
    return "model" if largest == geometry.context_length else "card"


def _parts(memory: Memory) -> tuple[PartRecord, ...]:
    return tuple(PartRecord(p.use, p.name, p.n_bytes, p.formula, p.estimated) for p in memory.parts)


def _curve(solver: Solver, load: Load, longest: int) -> dict[int, int]:
    low = min(1024, longest)
    steps = (low * (longest / low) ** (i / (_CURVE_POINTS - 1)) for i in range(_CURVE_POINTS))
    points = sorted({min(longest, math.ceil(s / 256) * 256) for s in steps})
    return {c: solver.memory(replace(load, context=c)).total for c in points}


def quality_of(results: Sequence[Path], found: Found) -> dict[str, Quality]:
    """KV setting -> what it cost, from `results` or ./nybble-results where that is there.

    Raises:
        NybbleError: a folder that was named is not there.
    """
    folders = tuple(results) or ((_RESULTS,) if _RESULTS.is_dir() else ())
    if not folders:
        return {}
    identity = Identity(
        found.geometry.architecture, found.file, found.size_bytes,
        aliases=_aliases(found.geometry.architecture),
    )  # fmt: skip
    return dict(qualities(folders, identity))


def _aliases(architecture: str) -> tuple[str, ...]:
    """The same family's name in the other kind of file: gemma3_text and gemma3, qwen3_moe..."""
    short = architecture.removesuffix("_text")
    return tuple({short, short.replace("_", ""), short.replace("_", "-")} - {architecture})


def _card(seats: Seats | None) -> CardRecord | None:
    if seats is None:
        return None
    b = seats.budget
    return CardRecord(seats.card.name, b.cards, b.card_bytes, b.reserve)


def _notes(
    request: PlanRequest, found: Found, engines: Sequence[str], seats: Seats | None
) -> list[str]:
    notes = []
    others = [e for e in engines if known(e).weights != found.weights]
    if others and found.geometry.weights is not None:
        size = found.geometry.weights.n_bytes / GIB
        notes.append(
            f"{', '.join(others)}: weights are counted as given here ({size:.1f} GiB, "
            f"{found.weights}); they load other files, whose size may differ"
        )
    if seats is not None and seats.budget.cards > 1:
        notes.append("cards are counted together; a split by layers leaves up to one layer's "
                     "bytes more on one of them")  # fmt: skip
    if found.geometry.weights is None:
        notes.append("the size of the weights is not known: only the cache is counted")
    if seats is not None and seats.card.note and request.calibration is None:
        notes.append(f"{seats.card.name}: {seats.card.note}")
    return notes


def _nothing_runs(geometry: Geometry, fits: Sequence[Fit]) -> NybbleError:
    first = "; ".join(dict.fromkeys(f"{f.engine}, {f.setting}: {f.refused}" for f in fits[:3]))
    return NybbleError(
        f"no engine asked for runs {geometry.name} so", seen=first,
        allowed=f"engines: {', '.join(ENGINES)}", hint="leave out --engine and --kv to see all",
    )  # fmt: skip
