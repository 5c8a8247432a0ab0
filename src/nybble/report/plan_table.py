"""A plan as tables: terminal, Markdown and CSV, from one list of columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nybble.report import format as fmt
from nybble.results.plans import CardRecord, Fit, Plan, Quality, Span

if TYPE_CHECKING:
    from rich.table import Table

GIB = 1 << 30
OVER = ">"  # marks memory that is more than the cards have


@dataclass(frozen=True)
class Column:
    """One column: its title (two lines at most), and a fit's cell."""

    title: str
    cell: Callable[[Fit], str]


def short(setting: str) -> str:
    """`q4_0/q4_0` as it is, but one long name for both sides once; `--kv` takes either."""
    k, _, v = setting.partition("/")
    return k if k == v and len(k) > 8 else setting


def tokens(n: int) -> str:
    """8,192 as 8K, 131,072 as 128K, 1,048,576 as 1M, else with a comma."""
    for unit, name in ((1 << 20, "M"), (1 << 10, "K")):
        if n and n % unit == 0:
            return f"{n // unit}{name}"
    return f"{n:,}"


def span(value: Span | None, digits: int = 2) -> str:
    """Low to high with a few digits; nothing where not known."""
    if value is None:
        return fmt.NONE
    low, high = (_few(v, digits) for v in value)
    return low if low == high else f"{low}-{high}"


def _few(value: float, digits: int) -> str:
    if value == 0:
        return "0"
    text = f"{value:,.{digits}g}"
    return f"{float(text.replace(',', '')):,.0f}" if "e" in text or value >= 10**digits else text


def gib(n_bytes: float) -> str:
    """Bytes as GiB with three digits."""
    value = n_bytes / GIB
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def heading(plan: Plan) -> str:
    """The model, its weights and the cards, in one line."""
    size = f"{gib(plan.weights_bytes)} GiB of weights" if plan.weights_bytes else "weights unknown"
    text = f"{plan.model}, {size}"
    if plan.card is not None:
        text += f", on {cards(plan.card)}: {gib(plan.budget or 0)} GiB to use"
        if plan.card.reserve:
            text += f", {gib(plan.card.reserve)} left free"
            text += " on each" if plan.card.count > 1 else ""
    if plan.sequences > 1:
        text += f"; {plan.sequences} sequences"
    return text


def cards(card: CardRecord) -> str:
    """`2 x rtx-4090`."""
    return f"{card.count} x {card.name}" if card.count > 1 else card.name


def engines(plan: Plan) -> tuple[str, ...]:
    """Engines of the plan, in order."""
    return tuple(dict.fromkeys(fit.engine for fit in plan.fits))


def columns(plan: Plan, fits: Sequence[Fit]) -> list[Column]:
    """The columns that these rows have something for."""
    found = [
        Column("KV type", lambda f: short(f.setting)),
        Column("bits", lambda f: f"{f.bits:.3g}"),
        Column("bytes/\ntoken", lambda f: f"{f.bytes_per_token:,.0f}"),
    ]
    if plan.card is not None:
        found.append(Column("largest\ncontext", largest))
    shown = _contexts(plan)
    for context in shown:
        found.append(Column(f"GiB at\n{tokens(context)}", _memory(plan, context)))
    if plan.card is not None:
        worth = [c for c in shown if any(f.users.get(c, 0) > 1 for f in fits)]
        found += [Column(f"users\nat {tokens(c)}", _users(c)) for c in worth[-2:]]
    at = speed_context(plan, fits)
    if at is not None:
        found.append(Column(f"decode tok/s\nat {tokens(at)}", lambda f: span(f.decode.get(at))))
    if any(f.quality for f in fits):
        found.append(Column("mean\nKLD", kld))
    return found


def speed_context(plan: Plan, fits: Sequence[Fit]) -> int | None:
    """The longest context of the columns at which most rows have a speed; None without any."""
    counted = {c: sum(c in f.decode for f in fits) for c in plan.contexts}
    best = max(counted.values(), default=0)
    return max((c for c, n in counted.items() if n == best), default=None) if best else None


def _contexts(plan: Plan) -> tuple[int, ...]:
    """Four contexts at most: a terminal has no room for more, and JSON has all."""
    most = plan.contexts[-1]
    asked = plan.fits[0].explained if plan.choice is not None else most
    few = [c for c in plan.contexts if c not in (most, asked)]
    return tuple(sorted({*few[-2 if asked != most else -3 :], asked, most}))


def _memory(plan: Plan, context: int) -> Callable[[Fit], str]:
    def cell(fit: Fit) -> str:
        n = fit.memory.get(context)
        if n is None:
            return fmt.NONE
        return (OVER if plan.budget is not None and n > plan.budget else "") + gib(n)

    return cell


def _users(context: int) -> Callable[[Fit], str]:
    return lambda fit: f"{fit.users.get(context, 0):,}"


def largest(fit: Fit) -> str:
    """Tokens that fit; with a plus sign where the model's own longest context does."""
    if not fit.largest_context:
        return "none"
    return f"{fit.largest_context:,}" + ("+" if fit.limited_by == "model" else "")


def kld(fit: Fit) -> str:
    """Mean KLD with its interval, and `marks` of where it is from."""
    if fit.quality is None:
        return "0" if fit.bits >= 16 else fmt.NONE
    return fmt.kld_with_interval(fit.quality.mean_kld) + marks(fit.quality)


def marks(quality: Quality) -> str:
    """* for a simulated cache, ~ for another model of the family."""
    found = "*" * quality.simulated + "~" * (not quality.same_model)
    return f" {found}" if found else ""


def rows(plan: Plan, engine: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one engine's table; refused settings are not among them."""
    fits = [f for f in plan.fits if f.engine == engine and not f.refused]
    found = columns(plan, fits)
    return [c.title for c in found], [[c.cell(f) for c in found] for f in fits]


def rich_table(plan: Plan, engine: str) -> Table:
    """One engine's rows for the terminal."""
    from rich import box
    from rich.table import Table

    header, lines = rows(plan, engine)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, header_style="bold")
    for i, title in enumerate(header):
        # Names and contexts are what a reader acts on: only the KLD may wrap.
        table.add_column(title, justify="left" if not i else "right", no_wrap="KLD" not in title)
    chosen = plan.choice.setting if plan.choice and plan.choice.engine == engine else None
    for line in lines:
        mine = chosen is not None and line[0] == short(chosen)
        table.add_row(*line, style="bold green" if mine else None)
    return table


def other_engines(plan: Plan, shown: Sequence[str]) -> list[tuple[str, str]]:
    """(engine, its settings with their largest contexts) for engines without a table."""
    found = []
    for engine in engines(plan):
        if engine in shown:
            continue
        parts = []
        for fit in plan.fits:
            if fit.engine == engine and not fit.refused:
                size = largest(fit) if plan.card else f"{fit.bytes_per_token:,.0f} B/token"
                parts.append(f"{short(fit.setting)} {size}")
        found.append((engine, ", ".join(parts)))
    return [pair for pair in found if pair[1]]


def refusals(plan: Plan) -> list[str]:
    """Why an engine does not run the model, or some setting of it; equal reasons once."""
    by: dict[tuple[str, str], list[str]] = {}
    for fit in plan.fits:
        if fit.refused:
            by.setdefault((fit.engine, fit.refused), []).append(fit.setting)
    found = []
    for (engine, why), settings in by.items():
        what = "" if settings == ["-"] else f" {', '.join(map(short, settings))}"
        found.append(f"{engine}{what}: {why}")
    return found


def notes(plan: Plan, shown: Sequence[str]) -> list[str]:
    """What a user should know: of the model, then of the engines with a table."""
    found = list(plan.notes)
    kept = [f for f in plan.fits if f.engine in shown and not f.refused]
    if any(f.limited_by == "model" and f.largest_context for f in kept):
        found.append(f"+ is the model's own longest context, {plan.context_length:,} tokens")
    if plan.budget is not None and any(n > plan.budget for f in kept for n in f.memory.values()):
        found.append(f"{OVER} is more than there is to use")
    for engine in shown:
        of = [f for f in kept if f.engine == engine]
        for note in dict.fromkeys(n for f in of for n in f.notes):
            only = [short(f.setting) for f in of if note in f.notes]
            which = f", {' and '.join(only)}" if len(only) < len(of) else ""
            found.append(f"{engine}{which}: {note}")
        measured = [f.quality for f in of if f.quality]
        if any(q.simulated for q in measured):
            found.append("* simulated: the type's bytes in transformers, not an engine's cache")
        if names := dict.fromkeys(q.model for q in measured if not q.same_model):
            found.append(f"~ measured on {', '.join(names)}, another model of the family")
    return list(dict.fromkeys(found))


def explain(fit: Fit, sequences: int) -> Table:
    """Where each byte of one row is."""
    from rich import box
    from rich.table import Table

    times = f"{sequences} x " if sequences > 1 else ""
    title = f"{fit.engine}, {fit.setting}, {times}{fit.explained:,} tokens"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", padding=(0, 1),
                  show_edge=False)  # fmt: skip
    for name, side in (("use", "left"), ("what", "left"), ("bytes", "right"), ("GiB", "right")):
        table.add_column(name, justify="right" if side == "right" else "left", no_wrap=True)
    table.add_column("how (~ is a rule of thumb)")
    for p in fit.parts:
        how = f"~ {p.formula}" if p.estimated else p.formula
        table.add_row(p.use, p.name, f"{p.n_bytes:,}", gib(p.n_bytes), how)
    total = sum(p.n_bytes for p in fit.parts)
    table.add_row("total", "", f"{total:,}", gib(total), "", style="bold")
    return table


def markdown(plan: Plan, shown: Sequence[str]) -> str:
    """Tables to paste, one for each engine."""
    parts = [f"**{heading(plan)}**"]
    for engine in shown:
        header, lines = rows(plan, engine)
        if not lines:
            continue
        titles = [title.replace("/\n", "/").replace("\n", " ") for title in header]
        text = ["| " + " | ".join(titles) + " |", "|---" + "|--:" * (len(titles) - 1) + "|"]
        text += ["| " + " | ".join(cell for cell in line) + " |" for line in lines]
        parts += [f"{engine}:", "\n".join(text)]
    if plan.choice is not None:
        parts.append(plan.choice.why)
    return "\n\n".join(parts)


def csv_text(plan: Plan) -> str:
    """One line for each row and context, every engine, plain numbers."""
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(["engine", "setting", "bits", "bytes_per_token", "largest_context", "context",
                    "bytes", "fits", "users", "decode_low", "decode_high", "mean_kld",
                    "refused"])  # fmt: skip
    for f in plan.fits:
        kld = f.quality.mean_kld.value if f.quality else ""
        for context in plan.contexts if not f.refused else (None,):
            n = f.memory.get(context) if context else None
            fits = "" if n is None or plan.budget is None else int(n <= plan.budget)
            low, high = f.decode.get(context or 0, ("", ""))
            lines.writerow([f.engine, f.setting, f"{f.bits:g}", f"{f.bytes_per_token:g}",
                            f.largest_context, context, n, fits, f.users.get(context or 0, ""),
                            low, high, kld, f.refused])  # fmt: skip
    return out.getvalue()
