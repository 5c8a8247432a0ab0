"""docs/qat-claim.md: the words of bench/qat_claim.md, tables and picture of the kept result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import put, table
from nybble.report.charts import bars, canvas, svg
from nybble.results.records import Estimate
from nybble.results.store import write_text

DOCS = Path(__file__).parents[1] / "docs"
WORST = "q4_0/q4_0"


def estimate(found: dict[str, Any]) -> Estimate:
    """A mean KLD as it was measured."""
    return Estimate(**found["mean_kld"])


def span(found: dict[str, Any]) -> str:
    """A mean KLD with its interval."""
    e = estimate(found)
    return f"{e.value:.2g}" if e.low is None else f"{e.value:.2g} [{e.low:.2g}, {e.high:.2g}]"


def model_table(arms: dict[str, Any]) -> str:
    """What each arm did to the model itself, and what its cache costs it in the end."""
    rows = []
    for name, arm in arms.items():
        found = arm["rows"]
        ppl = found[WORST]["own"]["ppl_ref"]["value"]
        tax = found.get("f16/f16", {}).get("original")
        rows.append([
            name, f"{ppl:.3f}", span(tax) if tax else "0",
            span(found[WORST]["own"]), span(found[WORST].get("original", found[WORST]["own"])),
            *(f"{100 * found[WORST][r]['same_top']['value']:.1f} %" for r in ("own",)),
        ])  # fmt: skip
    header = ["arm", "perplexity, f16 cache", "f16 cache, to the original", f"{WORST}, to itself",
              f"{WORST}, to the original", "same top token, to itself"]  # fmt: skip
    return table(header, rows)


def settings_table(arms: dict[str, Any]) -> str:
    """Mean KLD of every arm to its own 16-bit cache, by KV setting."""
    first = next(iter(arms.values()))["rows"]
    settings = [s for s in first if s != "bf16 against f16"]
    rows = [[name, *(f"{estimate(arm['rows'][s]['own']).value:.2g}" for s in settings)]
            for name, arm in arms.items()]  # fmt: skip
    return table(["arm", *settings], rows)


def picture(arms: dict[str, Any]) -> str:
    """The arms with 4-bit keys and values: to themselves and to the original."""
    found = []
    for name, arm in arms.items():
        rows = arm["rows"][WORST]
        found.append(bars.Bar(name, "vs itself", estimate(rows["own"])))
        if "original" in rows:
            found.append(bars.Bar(name, "vs original", estimate(rows["original"])))
    with canvas.style("nybble-qat"):
        drawn = bars.draw(found, canvas.MARKED)
        drawn.summary = f"Mean KLD with a {WORST} cache. " + "; ".join(
            f"{b.group}, {b.name}: {b.estimate.value:.2g}" for b in found
        )
        return svg.adaptive(drawn)


def write_page(result: dict[str, Any]) -> None:
    """Remake the page and its picture."""
    arms, page = result["arms"], DOCS / "qat-claim.md"
    words = Path(__file__).with_name("qat_claim.md").read_text(encoding="utf-8")
    page.write_text(words, encoding="utf-8")
    put(page, "arms", model_table(arms))
    put(page, "settings", settings_table(arms))
    write_text(DOCS / "img" / "qat-claim.svg", picture(arms))
