"""Two models: what each setting costs model a, and model b."""

from __future__ import annotations

from nybble.report import cells, view
from nybble.report import format as fmt
from nybble.report.charts import bars
from nybble.report.charts.canvas import Picture, Theme
from nybble.results.records import Measurement


def draw(m: Measurement, theme: Theme) -> Picture | None:
    """Bars of KLD to own reference, grouped by setting; None with one model."""
    if len(m.models) < 2:
        return None
    several = len({g.context for g in view.groups(m)}) > 1
    found = []
    for cell in cells.cells(m):
        if cell.quantized and cell.own is not None:
            where = f", {fmt.count(cell.context)}" if several else ""
            found.append(bars.Bar(f"{cell.setting}{where}", f"model {cell.model}", cell.own))
    if not found:
        return None
    picture = bars.draw(found, theme)
    names = "; ".join(f"{x.label} is {fmt.clean(x.name, 60)}" for x in m.models)
    picture.title = "Model a against model b"
    picture.caption = f"Mean KLD of each model to its own 16-bit cache. {names}."
    picture.summary = "Mean KLD to own 16-bit cache. " + "; ".join(
        f"{fmt.setting(b.group)} {b.name} {fmt.kld(b.estimate.value)}" for b in found
    )
    return picture
