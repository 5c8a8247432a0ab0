"""A comparison of costs as tables: terminal, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math
from typing import TYPE_CHECKING

from nybble.report import format as fmt
from nybble.report.plan_table import marks, span
from nybble.results.plans import BreakEvenRecord, CostComparison, CostRecord, Span

if TYPE_CHECKING:
    from rich.table import Table

HEADER = ("option", "how", "sequences", "cards", "busy", "USD/month", "USD per M answer tokens",
          "USD per M tokens", "mean KLD")  # fmt: skip
_SHORT = ("option", "how", "sequen-\nces", "cards", "busy", "USD/\nmonth", "USD per M\nanswer tok",
          "USD per\nM tokens", "mean\nKLD")  # fmt: skip


def heading(found: CostComparison) -> str:
    """The model and its load, in one line."""
    return f"{found.model}: " + ", ".join(f"{what} {value}" for what, value in found.load)


def cells(record: CostRecord) -> list[str]:
    """One line of the table, as `HEADER`."""
    kld = fmt.NONE
    if record.quality is not None:
        kld = fmt.kld_with_interval(record.quality.mean_kld) + marks(record.quality)
    elif record.setting in ("f16/f16", "bf16/bf16"):
        kld = "0"
    busy = tuple(100 * v for v in record.busy)
    return [
        record.name, record.how,
        f"{record.sequences:,}" if record.sequences else fmt.NONE,
        _whole(record.cards) if record.cards[1] else fmt.NONE,
        f"{span((busy[0], busy[1]))} %" if record.cards[1] else fmt.NONE,
        span(record.month, 3), span(record.per_million_out, 3), span(record.per_million, 3), kld,
    ]  # fmt: skip


def _whole(value: tuple[int, int]) -> str:
    return f"{value[0]:,}" if value[0] == value[1] else f"{value[0]:,}-{value[1]:,}"


def rich_table(found: CostComparison) -> Table:
    """All options that can serve the load, cheapest first."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for i, title in enumerate(_SHORT):
        table.add_column(title, justify="left" if i < 2 else "right", no_wrap=i != 8)
    for record in found.costs:
        if not record.refused:
            table.add_row(*cells(record))
    return table


def refusals(found: CostComparison) -> list[str]:
    """Why an option cannot serve the load."""
    return [f"{r.name}: {r.refused}" for r in found.costs if r.refused]


def break_even(record: BreakEvenRecord) -> str:
    """A break-even point as a sentence."""
    low, high = record.value
    if math.isinf(low):
        text = "never"
    elif math.isinf(high):
        text = f"after {span((low, low), 3)} {record.unit} at the earliest, or never"
    else:
        text = f"{'after' if record.unit == 'months' else 'from'} {span(record.value, 3)} "
        text += record.unit
    within = {
        ("months", "yes"): ", within its life", ("months", "no"): ", past its life",
        ("months", "unclear"): ", which may be past its life",
        ("", "yes"): ", which it can give", ("", "no"): ", more than it can give",
        ("", "unclear"): ", which may be more than it can give",
    }  # fmt: skip
    kind = "months" if record.unit == "months" else ""
    text += "" if text == "never" else within[kind, record.reached]
    return f"owning {record.of} is cheaper than {record.against}: {text}"


def explain(record: CostRecord) -> list[str]:
    """The arithmetic of one option."""
    found = [f"{record.name}, {record.how}:"]
    found += [f"  {name}: {span(value, 4)} {unit} = {formula}"
              for name, value, unit, formula in record.lines]  # fmt: skip
    return found


def assumptions(found: CostComparison) -> list[str]:
    """Every number that the costs rest on, once."""
    seen: dict[str, None] = {}
    for record in found.costs:
        for a in record.assumptions:
            seen[f"{a.name}: {a.value} {a.unit} ({a.source})".replace("  ", " ")] = None
    return list(seen)


def markdown(found: CostComparison) -> str:
    """A table to paste."""
    lines = [f"**{heading(found)}**", "", "| " + " | ".join(HEADER) + " |",
             "|---|---" + "|--:" * (len(HEADER) - 2) + "|"]  # fmt: skip
    lines += ["| " + " | ".join(cells(r)) + " |" for r in found.costs if not r.refused]
    lines += ["", *(f"- {break_even(b)}" for b in found.break_even)]
    return "\n".join(lines).rstrip()


def csv_text(found: CostComparison) -> str:
    """One line for each option, low and high ends apart."""
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    spans = ("month", "per_million_out", "per_million", "million_out", "purchase", "busy")
    ends = [f"{name}_{end}" for name in spans for end in ("low", "high")]
    lines.writerow(["option", "how", "setting", "context", "sequences", *ends, "cards_low",
                    "cards_high", "mean_kld", "refused"])  # fmt: skip
    for r in found.costs:
        values: list[Span] = [getattr(r, name) for name in spans]
        kld = r.quality.mean_kld.value if r.quality else ""
        lines.writerow([r.name, r.how, r.setting, r.context, r.sequences,
                        *(end for value in values for end in value), *r.cards, kld,
                        r.refused])  # fmt: skip
    return out.getvalue()
