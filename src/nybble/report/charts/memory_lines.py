"""Where the lines of memory against context run: settings, contexts and GiB, no drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nybble.report import view
from nybble.results.plans import Fit, Plan

GIB = 2**30
MOST = 6  # with more settings than this, the most useful are named and the others dimmed
_ABOVE = 2.0  # the picture ends at this many times the limit: nothing above it runs
_FAR = 3.0  # a limit this many times above every line would flatten them all; it is only named
_OCTAVES = 7  # doublings of context; left of them all lines are one


@dataclass(frozen=True)
class Line:
    """One KV setting's memory.

    Attributes:
        fit: what it is.
        xs: tokens.
        ys: GiB.
        exit: tokens at which it leaves through the top; None where it reaches its end.
    """

    fit: Fit
    xs: list[float]
    ys: list[float]
    exit: float | None


def span(fits: Sequence[Fit]) -> tuple[float, float]:
    """Contexts from where lines part to a little beyond the last one that fits."""
    start = min(min(f.curve) for f in fits)
    end = max(max(f.curve) for f in fits)
    met = [f.largest_context for f in fits if f.limited_by == "card" and f.largest_context]
    right = float(end)
    if met and all(f.limited_by == "card" for f in fits):
        right = min(right, 2.0 ** math.ceil(math.log2(1.2 * max(met))))
    right = max([right, *met])
    left = min([right / 2**_OCTAVES, *(m / 2 for m in met)])
    left = max(float(start), 2.0 ** math.floor(math.log2(max(left, 1))))
    return (left, right) if left < right else (right / 2, right * 2)


def upper(
    fits: Sequence[Fit], limit: float | None, left: float, right: float
) -> tuple[float, bool]:
    """Upper end of the axis in GiB, and whether the limit is far above it."""
    reach = max(_at(f, right) for f in fits)
    if limit is None or limit > _FAR * reach:
        return 1.08 * reach or 1.0, limit is not None
    start = max(_at(f, left) for f in fits)
    return 1.08 * max(limit, min(reach, max(_ABOVE * limit, 1.3 * start))), False


def _at(fit: Fit, context: float) -> float:
    """GiB at a context, straight between the known ones."""
    known = sorted(fit.curve)
    return float(np.interp(context, known, [fit.curve[c] / GIB for c in known]))


def line(fit: Fit, limit: float | None, left: float, right: float, top: float) -> Line:
    """Points close enough for a smooth curve: straight in tokens is bent on a log axis."""
    known = {c: n / GIB for c, n in fit.curve.items()}
    if met(fit) and limit is not None and fit.largest_context:
        known[fit.largest_context] = limit  # to within one step of contexts, by its definition
    knots = sorted(known)
    start, end = max(left, knots[0]), min(right, knots[-1])
    xs = sorted({*np.geomspace(start, end, 160).tolist(), *(k for k in knots if start < k < end)})
    ys = [float(np.interp(x, knots, [known[k] for k in knots])) for x in xs]
    over = next((i for i, y in enumerate(ys) if y > top), None)
    if not over:
        return Line(fit, xs, ys, None)
    exit_at = float(np.interp(top, ys[over - 1 : over + 1], xs[over - 1 : over + 1]))
    return Line(fit, [*xs[:over], exit_at], [*ys[:over], top], exit_at)


def met(fit: Fit) -> bool:
    """Whether its line meets that of the cards, and where is known."""
    return fit.limited_by == "card" and bool(fit.largest_context)


def named(plan: Plan, fits: Sequence[Fit]) -> set[str]:
    """All of a few settings; of many, those that no other beats in bytes and loss, and the choice.

    Without measurements of two or more, one for each number of bytes a token.
    """
    if len(fits) <= MOST:
        return {f.setting for f in fits}
    loss = [
        (f, f.quality.mean_kld.value if f.quality else 0.0)
        for f in fits
        if f.quality or f.bits >= 16
    ]
    front = [loss[i][0] for i in view.pareto([(f.bytes_per_token, k) for f, k in loss])]
    if sum(f.quality is not None for f in front) < 2:
        front = list({f.bytes_per_token: f for f in reversed(fits)}.values())
    if len(front) > MOST:
        front = [front[round(k * (len(front) - 1) / (MOST - 1))] for k in range(MOST)]
    chosen = plan.choice.setting if plan.choice and plan.choice.engine == fits[0].engine else None
    return {f.setting for f in front} | {f.setting for f in fits if f.setting == chosen}
