"""K alone against V alone: which side of the cache the damage comes from."""

from __future__ import annotations

import re

from nybble.report import format as fmt
from nybble.report import view
from nybble.report.charts import bars
from nybble.report.charts.canvas import Picture, Theme
from nybble.results.records import Measurement, Row

_WIDE = ("f16", "bf16", "f32")


def draw(m: Measurement, theme: Theme) -> Picture | None:
    """Bars for each type measured on both sides alone; None where there is no such pair."""
    found: list[bars.Bar] = []
    groups = view.groups(m)
    for group in groups:
        by_cache = {(r.k_type, r.v_type, _suffix(r)): r for r in group.done}
        pairs = dict.fromkeys(
            (k if k not in _WIDE else v, suffix)
            for k, v, suffix in by_cache
            if (k in _WIDE) != (v in _WIDE)
        )
        for kind, suffix in pairs:
            k_alone = _first(by_cache, [(kind, w, suffix) for w in _WIDE])
            v_alone = _first(by_cache, [(w, kind, suffix) for w in _WIDE])
            if k_alone is None or v_alone is None:
                continue
            label = f"{kind}{suffix}" + (f", {group.title}" if group.title else "")
            found.append(bars.Bar(label, "K alone", k_alone.metrics["mean_kld"]))
            found.append(bars.Bar(label, "V alone", v_alone.metrics["mean_kld"]))
            both = by_cache.get((kind, kind, suffix))
            if both is not None:
                found.append(bars.Bar(label, "both", both.metrics["mean_kld"]))
    if not found:
        return None
    picture = bars.draw(found, theme)
    picture.title = "K alone, V alone"
    picture.caption = "One side quantized, the other left at 16 bits."
    if view.has_intervals(m):
        picture.caption += " Thin lines are 95 % intervals."
    picture.summary = "Mean KLD with one side quantized. " + "; ".join(
        f"{fmt.setting(b.group)} {b.name} {fmt.kld(b.estimate.value)}" for b in found
    )
    return picture


def _suffix(row: Row) -> str:
    """What follows the two types in a setting: `-norot`, `+skip0.1`; halves must share it."""
    return re.sub(r"^\w*(?:/\w*)?", "", row.setting)


def _first(rows: dict[tuple[str, str, str], Row], keys: list[tuple[str, str, str]]) -> Row | None:
    return next((rows[k] for k in keys if k in rows), None)
