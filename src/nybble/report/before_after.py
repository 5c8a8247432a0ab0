"""Pictures of a hardened model: what was gained by kind of text, and layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nybble.report import describe, parts, view
from nybble.report import format as fmt
from nybble.results.hardened import Hardened
from nybble.results.records import Measurement, Row

if TYPE_CHECKING:
    from nybble.report.charts.before_after import Pair, Panel
    from nybble.report.plots import Chart

_PROMISED = (
    " The dash is the formula's promise: what the layer cost before, divided by the gain the "
    "formula gives it."
)


def charts(found: Hardened) -> list[Chart]:
    """The pictures that there are numbers for; often only the first."""
    from nybble.report import plots  # loads matplotlib

    by_text = plots.pair_chart(
        _texts(found), "kind of text", "before-texts",
        title="By kind of text",
        caption=_caption(found.measurement, "Mean KLD to the original's 16-bit cache"),
    )  # fmt: skip
    by_layer = None
    if found.split is not None:
        panels = _layers(found, found.split)
        promised = any(r.promised is not None for p in panels for r in p.pairs)
        what = "One layer quantized alone, each model against its own 16-bit cache"
        by_layer = plots.pair_chart(
            panels, "layer", "before-layers",
            title="Layer by layer, " + ", ".join(p.title for p in panels),
            caption=_caption(found.split, what) + (_PROMISED if promised else "") + _sums(panels),
        )  # fmt: skip
    return [chart for chart in (by_text, by_layer) if chart]


def _texts(found: Hardened) -> list[Panel]:
    """Every setting, where it was measured on more than one kind of text."""
    from nybble.report.charts.before_after import Panel

    panels = []
    for gain in found.gains:
        before = _candidate(found.measurement, gain.setting, "a")
        after = _candidate(found.measurement, gain.setting, "b")
        pairs = _by_category(before, after) if before and after else ()
        if len(pairs) > 1:
            panels.append(Panel(fmt.label(gain.setting), pairs))
    return panels


def _candidate(m: Measurement, setting: str, model: str) -> Row | None:
    """The row of this model that is compared with the original's 16-bit cache."""
    wanted = (setting, "candidate", model, "a")
    rows = (r for r in m.rows if (r.setting, r.role, r.model, r.reference) == wanted)
    return next(rows, None)


def _by_category(before: Row, after: Row) -> tuple[Pair, ...]:
    from nybble.report.charts.before_after import Pair

    now = {s.name: s.metrics["mean_kld"] for s in after.by_category}
    return tuple(
        Pair(s.name, s.metrics["mean_kld"], now[s.name])
        for s in before.by_category
        if s.name in now
    )


def _layers(found: Hardened, split: Measurement) -> list[Panel]:
    """Every setting and side that was taken apart in both models, layer by layer."""
    from nybble.report.charts.before_after import Pair, Panel

    gains = {layer.layer: layer.gain for layer in found.layers}
    rows = {
        (parts.part(r).of, parts.part(r).side, r.model, parts.part(r).layer): r
        for group in view.groups(split)
        for r in view.own(split, group.model, group.context)
        if r.part is not None and r.part.head is None and "mean_kld" in r.metrics
    }
    panels = []
    for of, side in dict.fromkeys((of, side) for of, side, _, _ in rows):
        pairs = []
        for layer in sorted({n for *where, n in rows if where == [of, side, "a"]}):
            if (after := rows.get((of, side, "b", layer))) is None:
                continue
            before = rows[of, side, "a", layer].metrics["mean_kld"]
            # KLD is quadratic in small errors of scores, so it falls as their variance does.
            promised = before.value / gains[layer] if side == "K" and layer in gains else None
            pairs.append(Pair(str(layer), before, after.metrics["mean_kld"], promised))
        panels.append(Panel(_title(of, side), tuple(pairs)))
    return [p for p in panels if p.pairs]


def _sums(panels: Sequence[Panel]) -> str:
    """How the layers add up."""
    words = ""
    for panel in panels:
        before, after = (
            fmt.kld(sum(e.value for e in found))
            for found in zip(*((r.before, r.after) for r in panel.pairs), strict=True)
        )
        promised = [r.promised for r in panel.pairs if r.promised is not None]
        more = f", {fmt.kld(sum(promised))} promised" if len(promised) == len(panel.pairs) else ""
        words += f" {panel.title}, all layers summed: {before} before, {after} after{more}."
    return words


def _title(of: str, side: str) -> str:
    """`K in q4_0`."""
    k, _, v = of.partition("/")
    kind = k if side == "K" else v.partition("+")[0]
    return f"{fmt.clean(side, 4)} in {fmt.label(kind)}"


def _caption(m: Measurement, what: str) -> str:
    names = ", ".join(t.name for t in describe.texts(m)[:6])
    on = f" of {fmt.clean(names, 120)}" if names else ""
    return f"{what}. {describe.scale(m)}{on}, in {describe.engine(m)}."
