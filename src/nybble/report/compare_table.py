"""A comparison of two runs as tables: terminal, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import TYPE_CHECKING

from nybble.report import format as fmt
from nybble.report.spreadsheet import ends, safe
from nybble.report.table import md
from nybble.results.compared import A_BETTER, B_BETTER, UNRESOLVED, Compared, Pair, Side
from nybble.results.records import Estimate

if TYPE_CHECKING:
    from rich.table import Table

MAIN = ("KV type", "context", "KLD of A", "KLD of B", "B - A", "B / A", "shared tokens", "verdict")
TOKENS = ("KV type", "context", "same top, B - A", "flips, B - A", "NLL, B - A", "right, B - A",
          "other top token", "lost", "gained", "p")  # fmt: skip
EXPLAINED = (
    ("B - A", "Mean KLD of B less that of A on the tokens that both scored, nats; the 95 % "
     "interval draws documents, the same ones for both."),
    ("same top, flips", "Share of tokens, percentage points; each side against its own 16-bit "
     "cache."),
    ("right", "Share of tokens whose most likely one is the true next one, percentage points."),
    ("other top token", "Share of tokens whose most likely one is not the same for A and B."),
    ("lost, gained", "Tokens that only A, or only B, has right."),
    ("p", "Exact McNemar test of lost against gained, corrected for the pairs tested (Holm); it "
     "takes tokens as independent, so no verdict rests on it."),
)  # fmt: skip
_STYLES = {A_BETTER: "green", B_BETTER: "green", UNRESOLVED: "cyan"}


def heading(found: Compared) -> list[str]:
    """What A and B are, in a line each."""
    first = found.pairs[0]
    return [f"A: {_side(first.a)}", f"B: {_side(first.b)}"]


def _side(side: Side) -> str:
    version = f" {fmt.clean(side.engine_version, 40)}" if side.engine_version else ""
    words = f"{fmt.clean(side.run, 120)}, {fmt.clean(side.model, 60)} in "
    words += f"{fmt.clean(side.engine, 40)}{version} via {fmt.clean(side.via, 20)}"
    return words + (" (simulated)" if side.simulated else "")


def setting(pair: Pair) -> str:
    """The KV setting, or both."""
    a, b = fmt.setting(pair.a.setting), fmt.setting(pair.b.setting)
    return a if a == b else f"{a} | {b}"


def main_cells(pair: Pair) -> list[str]:
    """One line under `MAIN`."""
    kld = pair.metrics["mean_kld"]
    return [
        setting(pair), fmt.count(pair.context), fmt.kld_with_interval(kld.a),
        fmt.kld_with_interval(kld.b), _signed(kld.difference, _nats),
        fmt.with_interval(pair.ratio, fmt.times), _tokens(pair), verdict(pair),
    ]  # fmt: skip


def token_cells(pair: Pair) -> list[str]:
    """One line under `TOKENS`, of a paired comparison."""
    found = pair.changed
    assert found is not None
    changes = {name: c.difference for name, c in pair.metrics.items()}
    return [
        setting(pair), fmt.count(pair.context), _signed(changes["same_top"], _points),
        _signed(changes["flips"], _points), _signed(changes["nll"], _nats),
        _signed(changes["right"], _points), fmt.with_interval(found.differs, fmt.percent),
        fmt.count(found.lost), fmt.count(found.gained), _p(found.p_corrected),
    ]  # fmt: skip


def verdict(pair: Pair) -> str:
    """The verdict, or that there is none and why."""
    return fmt.clean(pair.verdict if pair.paired else "unpaired, not judged", 60)


def reasons(found: Compared) -> list[str]:
    """What decided each verdict, then what else a reader must know."""
    lines = [
        f"{setting(p)} at {fmt.count(p.context)}: {fmt.clean(p.verdict, 60)}, as "
        f"{fmt.clean(p.reason, 300)}"
        for p in found.pairs if p.paired
    ]  # fmt: skip
    return lines + [fmt.clean(note, 500) for note in found.notes]


def _nats(value: float) -> str:
    return "0" if value == 0 else f"{'+' if value > 0 else ''}{fmt.kld(value)}"


def _points(value: float) -> str:
    return "0" if value == 0 else f"{100 * value:+.2f}"


def _signed(found: Estimate | None, one: Callable[[float], str]) -> str:
    return fmt.with_interval(found, one)


def _tokens(pair: Pair) -> str:
    text = fmt.count(pair.n_tokens)
    apart = [f"{fmt.count(n)} only {name}" for name, n in (("A", pair.only_a), ("B", pair.only_b))
             if n]  # fmt: skip
    return f"{text} ({', '.join(apart)})" if apart else text


def _p(value: float) -> str:
    return "<1e-12" if value < 1e-12 else f"{value:.2g}"


def rich_tables(found: Compared) -> list[Table]:
    """KLD and verdicts; then the tokens, where any pair is paired."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    tables = []
    paired = [p for p in found.pairs if p.changed is not None]
    for header, cells, pairs in (
        (MAIN, main_cells, found.pairs),
        (TOKENS, token_cells, paired),
    ):
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, collapse_padding=True)
        for title in header:
            left = title in ("KV type", "verdict")
            table.add_column(title.replace(", ", "\n"), justify="left" if left else "right",
                             overflow="fold")  # fmt: skip
        for pair in pairs:
            style = _STYLES.get(pair.verdict, "") if header is MAIN else ""
            # Intervals and second settings go on a line of their own: eight columns fit 120.
            lines = [c.replace(" [", "\n[").replace(" | ", "\n") for c in cells(pair)]
            words = [Text(line) for line in lines]
            words[-1].stylize(style)
            table.add_row(*words)
        tables += [table] if pairs else []
    return tables


def markdown(found: Compared) -> str:
    """Both tables and the notes, to paste."""
    lines = [f"- {md(line)}" for line in heading(found)]
    paired = [p for p in found.pairs if p.changed is not None]
    for header, cells, pairs in (
        (MAIN, main_cells, found.pairs),
        (TOKENS, token_cells, paired),
    ):
        if pairs:
            lines += ["", f"| {' | '.join(header)} |", "|---" + "|--:" * (len(header) - 1) + "|"]
            lines += [f"| {' | '.join(map(md, cells(p)))} |" for p in pairs]
    lines += ["", *(f"- {md(line)}" for line in reasons(found))]
    return "\n".join(lines)


def csv_text(found: Compared) -> str:
    """One line a pair, every number in full precision."""
    sides = ("run", "model", "sha256", "engine", "engine_version", "via", "setting", "simulated",
             "top_k")  # fmt: skip
    counts = ("context", "paired", "n_documents", "n_tokens", "n_nonfinite", "only_a", "only_b")
    changed = ("n_differs", "lost", "gained", "p", "p_corrected")
    last = ("p", "p_corrected", "margin", "verdict", "reason")
    metrics = list(dict.fromkeys(m for p in found.pairs for m in p.metrics))
    suffixes = ("", "_low", "_high")
    head = [f"{s}_{name}" for s in "ab" for name in sides] + list(counts)
    head += [f"{m}_{w}{end}" for m in metrics for w in ("a", "b", "difference") for end in suffixes]
    head += [f"ratio{end}" for end in suffixes] + [f"differs{end}" for end in suffixes]
    head += [f"tokens_{name}" for name in changed] + list(last)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for pair in found.pairs:
        line = [safe(getattr(side, name)) for side in (pair.a, pair.b) for name in sides]
        line += [getattr(pair, name) for name in counts]
        for metric in metrics:
            contrast = pair.metrics.get(metric)
            for which in ("a", "b", "difference"):
                line += ends(getattr(contrast, which) if contrast else None)
        line += ends(pair.ratio) + ends(pair.changed.differs if pair.changed else None)
        line += [getattr(pair.changed, name) if pair.changed else "" for name in changed]
        line += [safe(getattr(pair, name)) for name in last]
        writer.writerow(line)
    return out.getvalue()
