"""The answer to a demand: the KV setting that meets it with the least loss, or what would."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from nybble.errors import NybbleError
from nybble.formats.setting import parse
from nybble.models.geometry import Geometry
from nybble.planning.cards import cards
from nybble.planning.memory.base import Load
from nybble.planning.memory.registry import known, memory_model
from nybble.planning.request import PlanRequest
from nybble.planning.seats import Seats, seats
from nybble.planning.solve import Budget, Solver
from nybble.results.plans import Choice, Fit, Plan

ENDLESS = Budget(1 << 62)  # for sizes without a card
_MOST_CHANGES = 5


def choose(plan: Plan, request: PlanRequest, geometry: Geometry, at: Seats | None) -> Choice:
    """Pick a row: fits, within the loss that is allowed, least loss first.

    Without a context the one with the largest context wins; a quality must be demanded then.

    Raises:
        NybbleError: a quality is demanded and nothing was measured, or there is no card.
    """
    if at is None:
        raise NybbleError("what fits depends on a card", seen="no card",
                          hint="--gpu rtx-4090 or --this-machine")  # fmt: skip
    # What nobody has timed is told, and picked only when asked for by name.
    rows = [fit for fit in plan.fits
            if not fit.refused and (request.engines or known(fit.engine).timed)]  # fmt: skip
    if request.max_kld is not None:
        rows = _good(rows, plan, request.max_kld)
    if request.context is None:
        return _largest(rows, plan)
    ordered = sorted(rows, key=_loss)
    for fit in ordered:
        if fit.largest_context and fit.largest_context >= request.context:
            left = (plan.budget or 0) - fit.memory[request.context]
            why = (
                f"{fit.setting} in {fit.engine} holds {_load(request)} and leaves "
                f"{left / 2**30:.1f} GiB{_at_loss(fit)}"
            )
            better: Iterator[str] = iter(())
            if fit != ordered[0]:
                better = (f"{c}, for less loss" for c in
                          _changes(plan, request, geometry, at, ordered))  # fmt: skip
            return Choice(fit.setting, fit.engine, why, tuple(better))
    changes = tuple(_changes(plan, request, geometry, at, ordered))
    why = f"{_load(request)} do not fit on {_cards(at)}"
    if request.max_kld is not None:
        why += f" within a mean KLD of {request.max_kld:g}"
    return Choice(None, None, why, changes)


def _loss(fit: Fit) -> tuple[float, float]:
    """Measured loss first; where none was measured, more bits are taken to lose less."""
    measured = fit.quality.mean_kld.value if fit.quality else math.inf
    return (measured, -fit.bits) if fit.bits < 16 else (0.0, -fit.bits)


def _good(rows: list[Fit], plan: Plan, most: float) -> list[Fit]:
    found = []
    for fit in rows:
        if fit.bits >= 16:
            found.append(fit)  # the reference itself
        elif fit.quality is not None:
            kld = fit.quality.mean_kld
            if (kld.value if kld.high is None else kld.high) <= most:
                found.append(fit)
    if not any(fit.quality for fit in rows):
        raise NybbleError(
            "no stored measurement says what these KV settings cost on this model",
            seen=f"{plan.model} ({plan.architecture}), mean KLD of at most {most:g}",
            allowed="--results FOLDER with runs of nybble measure on this model or its family",
            hint="nybble measure MODEL --documents 8",
        )
    return found


def _largest(rows: list[Fit], plan: Plan) -> Choice:
    best = max(rows, key=lambda f: (f.largest_context or 0, -_loss(f)[0]), default=None)
    if best is None or not best.largest_context:
        return Choice(None, None, f"{plan.model} does not fit on this card at that quality", ())
    why = (
        f"{best.setting} in {best.engine} holds the largest context at that quality: "
        f"{best.largest_context:,} tokens{_at_loss(best)}"
    )
    return Choice(best.setting, best.engine, why, ())


def _changes(
    plan: Plan, request: PlanRequest, geometry: Geometry, at: Seats, ordered: list[Fit]
) -> Iterator[str]:
    """What else would do, cheapest first: less context, fewer users, more cards, another card."""
    said = 0
    context = request.context or 0
    load = Load(context, request.users, ubatch=request.ubatch)
    fits = any(f.largest_context and f.largest_context >= context for f in ordered)
    if not fits:
        for name in _other_settings(request, geometry, at, ordered, load):
            yield name
            said += 1
        best = max(ordered, key=lambda f: f.largest_context or 0, default=None)
        if best is not None and best.largest_context:
            yield f"--context {best.largest_context}: that much fits with {best.setting}"
            said += 1
        most = max(ordered, key=lambda f: f.users.get(context, 0), default=None)
        if most is not None and 0 < most.users.get(context, 0) < request.users:
            yield f"--users {most.users[context]} at this context, with {most.setting}"
            said += 1
    # The same cards in a larger number, then one of another kind: with the best setting first.
    want = ordered[:1] if fits else ordered
    for fit in want:
        solver = _solver(fit, geometry, at)
        for count in (2, 3, 4, 8):
            n = count * at.budget.cards
            if replace(solver, budget=replace(at.budget, cards=n)).fits(load):
                yield f"--gpu {n}x{at.card.name} with {fit.setting}"
                said += 1
                break
        larger = sorted(
            (c for c in cards() if c.memory_bytes > at.card.memory_bytes and not c.unified
             and c.vendor in known(fit.engine).vendors),
            key=lambda c: c.memory_bytes,
        )  # fmt: skip
        for other in larger:
            if replace(solver, budget=seats(other, at.budget.cards).budget).fits(load):
                times = f"{at.budget.cards}x" if at.budget.cards > 1 else ""
                yield f"--gpu {times}{other.name} ({other.memory_gib:.0f} GiB) with {fit.setting}"
                said += 1
                break
        if said >= _MOST_CHANGES:
            return


def _other_settings(
    request: PlanRequest, geometry: Geometry, at: Seats, ordered: list[Fit], load: Load
) -> Iterator[str]:
    """A KV setting that was not asked for and fits, one for each engine."""
    asked = set(map(str, request.settings))
    for engine in dict.fromkeys(fit.engine for fit in ordered if asked):
        model = memory_model(engine)
        for setting in map(parse, model.listed(geometry)):
            try:
                model.check(geometry, setting)
                fits = Solver(model, geometry, setting, at.budget).fits(load)
            except NybbleError:
                continue
            if fits and str(setting) not in asked:
                yield f"--kv {setting} in {engine}"
                break


def _solver(fit: Fit, geometry: Geometry, at: Seats) -> Solver:
    return Solver(memory_model(fit.engine), geometry, parse(fit.setting), at.budget)


def _load(request: PlanRequest) -> str:
    users = f"{request.users} x " if request.users > 1 else ""
    return f"{users}{request.context:,} tokens"


def _cards(at: Seats) -> str:
    return f"{at.budget.cards} x {at.card.name}" if at.budget.cards > 1 else at.card.name


def _at_loss(fit: Fit) -> str:
    if fit.quality is None:
        return "" if fit.bits >= 16 else "; what it costs in quality was not measured here"
    kld, of = fit.quality.mean_kld, "" if fit.quality.same_model else f" on {fit.quality.model}"
    return f"; mean KLD {kld.value:.2g} measured{of}"
