"""Before and after hardening: a table for the terminal, and one HTML of both models."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from nybble.report import before_after, describe, html
from nybble.report import format as fmt
from nybble.report.page import Grid
from nybble.results.hardened import Gain, Hardened, Training, to_json

if TYPE_CHECKING:
    from rich.table import Table

_WAYS = {
    "fold": "A scale for every channel was folded into the weights: keys are stored divided by "
    "it, queries come multiplied by it, and every score between them stays what it was.",
    "train": "The model was trained with the quantized cache in its forward pass.",
}
_HEADER = ("KV type", "mean KLD before", "mean KLD after", "times lower")


def rich_hardened(found: Hardened) -> Iterator[Table | str]:
    """What changed, for a terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(fmt.clean(title(found), 120)), title_justify="left")
    table.add_column("KV type")
    for name in ("KLD before", "KLD after", "times lower"):
        table.add_column(name, justify="right")
    for row in _gains(found):
        table.add_row(*map(Text, row))
    yield table
    yield unchanged(found)
    if found.layers:
        yield promise(found)
    if found.training:
        yield trained(found.training)


def title(found: Hardened) -> str:
    """One line: what was done to what."""
    name = found.measurement.models[0].name
    return f"{name}: {found.method} for {found.family}, mean KLD on held-out text"


def unchanged(found: Hardened) -> str:
    """What the change costs without a quantized cache."""
    before, after = found.ppl
    return (
        f"16-bit cache: KLD {fmt.kld(found.drift.value)} to the original (noise floor "
        f"{fmt.kld(found.floor.value)}), perplexity {before:.4f} before, {after:.4f} after"
    )


def trained(t: Training) -> str:
    """How the training went, in one line."""
    # The 16-bit model's KLD from itself is a sum of rounding, which may fall below 0.
    lines = ", ".join(
        f"{name} {fmt.kld(max(kld, 0.0))} to {fmt.kld(t.best[name])}"
        for name, kld in t.start.items()
    )
    took = f"{t.seconds / 60:.0f} minutes" if t.seconds >= 90 else f"{t.seconds:.0f} seconds"
    kept = f"step {t.best_step} of {t.steps} is kept" if t.improved else "the fold alone is kept"
    return (
        f"training of {t.scope} on {t.tokens:,} tokens in {took}: {kept}; "
        f"mean KLD on text held out from it: {lines}"
    )


def promise(found: Hardened) -> str:
    """What the formula says of the layers, before anything is measured."""
    gains = [layer.gain for layer in found.layers]
    bounds = [layer.bound for layer in found.layers]
    return (
        f"the formula: variance of a score's error {_mean(gains)} times lower, geometric mean of "
        f"{fmt.plural(len(gains), 'layer')} ({fmt.times(min(gains))} to {fmt.times(max(gains))}; "
        f"{_mean(bounds)} if no channels had to share a scale)"
    )


def hardened_html(found: Hardened) -> str:
    """Both models on one page: what was done, what it gained, and the measurement behind it."""
    front = html.Front(
        eyebrow="before and after hardening",
        name=fmt.clean(found.measurement.models[0].name, 100),
        lead=_lead(found),
        said=_said(found),
        gains=Grid(_HEADER, _gains(found)),
        facts=_facts(found),
        charts=before_after.charts(found),
        promises=Grid(("layer", "gain", "bound"), _promises(found)) if found.layers else None,
        promised=_capital(promise(found)) + "." if found.layers else "",
        json=to_json(found),
    )
    return html.html_report(found.measurement, front)


def _lead(found: Hardened) -> str:
    """What it gained where it was needed most."""
    if not found.gains:
        return "No KV setting was measured."
    worst = max(found.gains, key=lambda gain: gain.before.value)
    return (
        f"With a {fmt.setting(worst.setting)} cache it drifts {fmt.times(worst.factor)} times "
        f"less: mean KLD {fmt.kld(worst.before.value)} before, {fmt.kld(worst.after.value)} after."
    )


def _said(found: Hardened) -> str:
    done = _WAYS.get(found.method, f"Method: {fmt.clean(found.method, 40)}.")
    return (
        f"{done} Rule for {fmt.clean(found.family, 60)}, from keys and queries of "
        f"{fmt.plural(found.tokens, 'token')} seen in {fmt.clean(found.statistics, 40)}; measured "
        "on other text. KLD is to the original's 16-bit cache where nothing else is said."
    )


def _gains(found: Hardened) -> list[tuple[str, ...]]:
    return [_gain(gain) for gain in found.gains]


def _gain(gain: Gain) -> tuple[str, ...]:
    return (
        fmt.setting(gain.setting),
        fmt.kld_with_interval(gain.before),
        fmt.kld_with_interval(gain.after),
        fmt.times(gain.factor),
    )


def _facts(found: Hardened) -> list[describe.Entry]:
    before, after = found.ppl
    training = [describe.Entry("training", trained(found.training))] if found.training else []
    return [
        describe.Entry("file", fmt.clean(found.file, 120)),
        describe.Entry(
            "16-bit cache",
            f"KLD {fmt.kld_with_interval(found.drift)} between hardened and original; noise "
            f"floor of the original {fmt.kld_with_interval(found.floor)}",
        ),
        describe.Entry("perplexity", f"{before:.4f} before, {after:.4f} after, 16-bit caches"),
        *training,
    ]


def _promises(found: Hardened) -> list[tuple[str, ...]]:
    return [
        (fmt.count(layer.layer), fmt.times(layer.gain), fmt.times(layer.bound))
        for layer in found.layers
    ]


def _mean(factors: list[float]) -> str:
    """Geometric: twice and half are no gain."""
    return fmt.times(math.exp(sum(map(math.log, factors)) / len(factors)))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
