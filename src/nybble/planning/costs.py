"""`cost`: what serving a load of one model costs, on cards that are owned or rented, or by an API.

Each option is planned first: how many sequences its cards hold at the load's context, and how
fast they are, by the same memory models and rooflines as `plan`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nybble.errors import NybbleError, nearest
from nybble.formats.setting import KVSetting, parse
from nybble.models.found import Found, find
from nybble.planning import compare as sums
from nybble.planning.assumptions import API_PRICES, ApiPrice
from nybble.planning.cards import change
from nybble.planning.cost import Cost, LoadProfile, Option
from nybble.planning.interval import Interval
from nybble.planning.measured_load import MeasuredLoad
from nybble.planning.memory.base import Load
from nybble.planning.memory.registry import known, memory_model
from nybble.planning.plan import quality_of
from nybble.planning.seats import Seats, named, seats
from nybble.planning.solve import Solver
from nybble.planning.speed import Speeds, record
from nybble.planning.terms import Terms
from nybble.results.plans import BreakEvenRecord, CostComparison, CostRecord, Quality, Span

CONTEXTS = (2048, 8192, 32_768, 131_072)  # tokens, of the picture


@dataclass(frozen=True)
class Way:
    """Cards, a KV setting and an engine to serve with.

    Attributes:
        text: as the user wrote it: [Nx]CARD[:KV][@ENGINE].
        cards: of one replica, with what they lend.
        setting: KV setting.
        engine: name.
    """

    text: str
    cards: Seats
    setting: KVSetting
    engine: str


@dataclass(frozen=True)
class CostRequest:
    """Everything that defines a comparison of costs.

    Attributes:
        model: what `models.found.find` takes.
        ways: options as [Nx]CARD[:KV][@ENGINE], for example "2xrtx-3090:q4_0@llama.cpp".
        profile: the load.
        file: of a model of the catalogue, which of its published files.
        terms: of owning and renting.
        apis: names of `assumptions.API_PRICES`, or prices.
        price: USD a card, in place of every card's own.
        rent: USD an hour and card, likewise.
        power: W a card under load, likewise.
        reserve_gib: of every card left free; None for the default of `seats`.
        results: folders of measurements, for the quality of each option.
        curve: the same load at other contexts too, for a picture.
        measured: of an option (one of `ways`, spelled alike), its throughput with this very load,
            in place of the estimate.
    """

    model: str
    ways: tuple[str, ...]
    profile: LoadProfile
    file: str | None = None
    terms: Terms = Terms()
    apis: tuple[str | ApiPrice, ...] = ()
    price: float | None = None
    rent: float | None = None
    power: float | None = None
    reserve_gib: float | None = None
    results: tuple[Path, ...] = ()
    curve: bool = False
    measured: Mapping[str, MeasuredLoad] = field(default_factory=dict)


def cost(request: CostRequest) -> CostComparison:
    """Compare ways to serve one load, cheapest a month first.

    Raises:
        NybbleError: the model, a card, an engine, a KV setting or an API is not known; the load
            is none; a price that a comparison needs is not known; or what was measured is of
            another load.
    """
    _check(request)
    found = find(request.model, request.file)
    ways = [_way(text, request) for text in request.ways]
    apis = [_api(a) for a in request.apis]
    quality = quality_of(request.results, found)
    costs = _costs(found, ways, apis, request.profile, request, quality)
    done = [c for c, _ in costs if c is not None]
    records = [r for _, r in costs]
    if not done and records:
        why = "; ".join(f"{r.name}: {r.refused}" for r in records[:3])
        raise NybbleError("none of these can serve the load", seen=why,
                          allowed="cards or KV types that hold it",
                          hint=f"nybble plan {request.model} --gpu CARD --context "
                               f"{_context(request.profile)}")  # fmt: skip
    curve = {}
    if request.curve:
        for context in sorted({*CONTEXTS, _context(request.profile)}):
            profile = _at(request.profile, context)
            if context <= found.geometry.context_length and profile is not None:
                at = _costs(found, ways, apis, profile, request, quality)
                curve[context] = tuple(r for _, r in at)
    return CostComparison(
        model=found.geometry.name,
        load=tuple(_words(request.profile)),
        costs=tuple(records),
        break_even=tuple(_break_even(done, apis, request)),
        curve=curve,
    )


def _check(request: CostRequest) -> None:
    """Measured loads are of an option that is compared, and of the load that is priced."""
    for way, load in request.measured.items():
        if way not in request.ways:
            raise NybbleError("a load test is of no option that is compared", seen=way,
                              allowed=request.ways)  # fmt: skip
        load.check(request.profile)
    if request.measured and request.curve:
        raise NybbleError("a load test is of one context, and the picture is of several",
                          seen="a measured load", hint="leave out one of the two")  # fmt: skip


def _context(profile: LoadProfile) -> int:
    return profile.context or round(profile.tokens_in + profile.tokens_out)


def _at(profile: LoadProfile, context: int) -> LoadProfile | None:
    """The same answers behind prompts that fill another context."""
    tokens_in = context - profile.tokens_out
    return replace(profile, tokens_in=tokens_in, context=context) if tokens_in > 0 else None


def _way(text: str, request: CostRequest) -> Way:
    rest, _, engine = text.partition("@") if "@" in text and _is_engine(text) else (text, "", "")
    where, _, kv = rest.partition(":")
    count, card = named(where.strip())
    card = change(card, price=request.price, rent=request.rent, tdp_w=request.power)
    engine = engine or "llama.cpp"
    known(engine)
    setting = parse(kv) if kv else parse("f16/f16")
    return Way(text, seats(card, count, request.reserve_gib), setting, engine.lower())


def _is_engine(text: str) -> bool:
    """Whether what follows the last @ names an engine, and not a what-if card's bandwidth."""
    return not text.rpartition("@")[2][:1].isdigit()


def _api(name: str | ApiPrice) -> ApiPrice:
    if isinstance(name, ApiPrice):
        return name
    found = API_PRICES.get(name.strip().lower())
    if found is None:
        near = nearest(name, API_PRICES)
        raise NybbleError("no price of this API is known", seen=name, allowed=API_PRICES,
                          hint=f"--api {near}" if near else "--api-price IN,OUT")  # fmt: skip
    return found


def _costs(
    found: Found,
    ways: Iterable[Way],
    apis: Sequence[ApiPrice],
    profile: LoadProfile,
    request: CostRequest,
    quality: dict[str, Quality],
) -> list[tuple[Cost | None, CostRecord]]:
    """Every option's cost, cheapest first; refused ones last, without one."""
    done: list[tuple[Cost | None, CostRecord]] = []
    refused: list[tuple[Cost | None, CostRecord]] = []
    for way in ways:
        name = f"{way.text}" if ":" in way.text else f"{way.text}:{way.setting}"
        about = {"setting": str(way.setting), "context": _context(profile)}
        measured = request.measured.get(way.text)
        try:
            option = _option(found, way, name, profile, measured)
            made = sums.compare([option], profile, request.terms)
        except NybbleError as error:
            text = error.what + (f" ({error.seen})" if error.seen else "")
            refused.append((None, CostRecord(name, "refused", refused=text, **about)))  # type: ignore[arg-type]
            continue
        for one in made:
            if measured is not None:
                one = replace(one, assumptions=(measured.assumption, *one.assumptions))
            kept = _record(one, str(way.setting), option, quality.get(str(way.setting)))
            done.append((one, kept))
    for price in apis:
        one = sums.compare([], profile, request.terms, [price])[0]
        done.append((one, _record(one)))
    done.sort(key=lambda pair: (pair[1].month[0] + pair[1].month[1], pair[1].name))
    return done + refused


def _option(
    found: Found, way: Way, name: str, profile: LoadProfile, measured: MeasuredLoad | None
) -> Option:
    """How many sequences the cards hold, and how fast they are or were measured to be."""
    geometry, context = found.geometry, _context(profile)
    if context > geometry.context_length:
        raise NybbleError("the model was not made for such a context", seen=f"{context:,} tokens",
                          allowed=f"up to {geometry.context_length:,}")  # fmt: skip
    model = memory_model(way.engine)
    if way.cards.card.vendor not in known(way.engine).vendors:
        raise NybbleError(f"{way.engine} does not run on this card", seen=way.cards.card.name)
    model.check(geometry, way.setting)
    solver = Solver(model, geometry, way.setting, way.cards.budget)
    most = solver.most_users(Load(context))
    if not most:
        has, needs = way.cards.budget.total, solver.memory(Load(context)).total
        raise NybbleError("one request does not fit",
                          seen=f"{needs / 2**30:.1f} GiB of {has / 2**30:.1f}")  # fmt: skip
    if measured is not None:
        if most < measured.concurrency:
            raise NybbleError("the load test had more requests at once than fit here",
                              seen=f"{measured.concurrency}, {most} fit")  # fmt: skip
        return Option(name, way.cards.card, way.cards.budget.cards, measured.concurrency,
                      measured.rate, None, str(way.setting), context)  # fmt: skip
    held = min(most, profile.users)
    speeds = Speeds(geometry, way.cards)
    middle = round(profile.tokens_in + profile.tokens_out / 2)
    decode = speeds.speed("decode", way.engine, way.setting, middle, held)
    prefill = speeds.speed("prefill", way.engine, way.setting, max(1, round(profile.tokens_in)))
    if decode is None or prefill is None:
        raise NybbleError("its speed cannot be estimated: the card's bandwidth or FP16 rate, the "
                          "size of the weights, or any run of the engine, is not known",
                          seen=f"{way.engine} on {way.cards.card.name}")  # fmt: skip
    return Option(name, way.cards.card, way.cards.budget.cards, held, decode.tokens,
                  prefill.tokens, str(way.setting), context)  # fmt: skip


def _span(value: Interval) -> Span:
    return value.low, value.high


def _record(
    made: Cost, setting: str = "", option: Option | None = None, quality: Quality | None = None
) -> CostRecord:
    return CostRecord(
        name=made.name,
        how=made.how,
        setting=setting,
        context=option.context or 0 if option else 0,
        sequences=option.sequences if option else 0,
        month=_span(made.month),
        per_million_out=_span(made.per_million_out),
        per_million=_span(made.per_million),
        million_out=_span(made.million_out),
        replicas=made.replicas,
        cards=made.cards,
        busy=_span(made.busy),
        purchase=_span(made.purchase),
        quality=quality,
        lines=tuple((x.name, _span(x.value), x.unit, x.formula) for x in made.lines),
        assumptions=tuple(map(record, made.assumptions)),
    )


def _break_even(
    costs: Sequence[Cost], apis: Sequence[ApiPrice], request: CostRequest
) -> Iterable[BreakEvenRecord]:
    rented = [c for c in costs if c.how == "rented"]
    for own in (c for c in costs if c.how == "owned"):
        # Its own cards rented, and the cheapest that are.
        others = [c for c in rented if c.name == own.name or c is rented[0]]
        for other in others:
            found = sums.against_rent(own, other, request.terms)
            yield BreakEvenRecord(own.name, f"{other.name}, rented", "months",
                                  _span(found.months), found.within_life)  # fmt: skip
        for price in apis:
            volume = sums.against_api(own, price, request.profile)
            yield BreakEvenRecord(own.name, f"{price.name} by API",
                                  "million answer tokens a month", _span(volume.million_out),
                                  volume.reached)  # fmt: skip


def _words(profile: LoadProfile) -> Iterable[tuple[str, str]]:
    yield "users at once", f"{profile.users:,}"
    yield "prompt", f"{profile.tokens_in:,.0f} tokens"
    yield "answer", f"{profile.tokens_out:,.0f} tokens"
    yield "context", f"{_context(profile):,} tokens"
    yield "busy hours a day", f"{profile.hours_per_day:g}"
    if profile.requests_per_hour is not None:
        yield "requests an hour", f"{profile.requests_per_hour:g}"
    else:
        yield "utilisation", f"{profile.utilisation:g}"
    if profile.cached:
        yield "prompt tokens already in the cache", f"{profile.cached:.0%}"
