"""A load test as tables: terminal, Markdown and CSV; two or more runs side by side."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nybble.report import format as fmt
from nybble.report.spreadsheet import ends, safe
from nybble.results.loads import LoadRatio, LoadReport, LoadRun
from nybble.results.records import Estimate

if TYPE_CHECKING:
    from rich.table import Table

RATES = {
    "tokens_out": "answer tokens/s",
    "tokens": "all tokens/s",
    "requests": "requests/s",
}
TIMES = {
    "ttft": "time to first text",
    "itl": "between pieces",
    "tpot": "a token after the first",
    "total": "whole request",
}
_NAME = 32  # characters of a run's name


@dataclass(frozen=True)
class Line:
    """One line of the table: its title, a cell for each run, a cell for each ratio."""

    title: str
    cells: tuple[str, ...]
    ratios: tuple[str, ...]


def heading(report: LoadReport) -> str:
    """What was asked, in one line."""
    s = report.shape
    how = f"{s.concurrency} at once"
    if s.rate is not None:
        how = f"{s.rate:g} requests/s, at most {how}"
    parts = [s.api, how, f"prompts {s.tokens_in} tokens", f"answers {s.tokens_out}"]
    if s.requests is not None:
        parts.append(fmt.plural(s.requests, "request"))
    if s.duration is not None:
        parts.append(f"{s.duration:g} s")
    if s.shared:
        parts.append(f"{s.shared:.0%} of each prompt in common")
    if s.blocks > 1:
        parts.append(f"in {s.blocks} blocks" + (" in turns" if len(report.runs) > 1 else ""))
    return ", ".join(parts)


def name(run: LoadRun) -> str:
    """Of a run, for a table."""
    return fmt.clean(run.name, _NAME)


def header(report: LoadReport) -> list[str]:
    """Titles of the columns."""
    titles = ["", *(name(r) for r in report.runs)]
    many = len(report.ratios) > 1
    return [*titles, *(f"{fmt.clean(r.of, _NAME)} : first" if many else "ratio"
                       for r in report.ratios)]  # fmt: skip


def lines(report: LoadReport) -> list[Line]:
    """Every line of the table, intervals in brackets."""
    found = [_line(report, title, _rate(key), _number) for key, title in RATES.items()]
    for key, title in TIMES.items():
        for level in ("p50", "p90", "p99"):
            found.append(_line(report, f"{title}, {level}", _time(key, level), seconds))
    if report.shape.rate is not None:
        for level in ("p50", "p99"):
            cells = tuple(seconds(r.numbers.queued.get(level, 0.0)) for r in report.runs)
            found.append(Line(f"waited in the client, {level}", cells, _blank(report)))
    found += _good(report)
    done = tuple(f"{r.numbers.answered:,} of {r.numbers.answered + r.numbers.failed:,}"
                 for r in report.runs)  # fmt: skip
    lengths = tuple(f"{_tokens(r.numbers.tokens_in)} + {_tokens(r.numbers.tokens_out)}"
                    for r in report.runs)  # fmt: skip
    found.append(Line("answered", done, _blank(report)))
    found.append(Line("tokens of a request", lengths, _blank(report)))
    shares = [r.numbers.cached for r in report.runs]
    if any(s is not None and s >= 0.01 for s in shares):
        found.append(Line("prompts found in its cache", tuple(map(fmt.percent, shares)),
                          _blank(report)))  # fmt: skip
    return found


def _rate(key: str) -> Callable[[LoadRun | LoadRatio], Estimate | None]:
    def of(found: LoadRun | LoadRatio) -> Estimate | None:
        rates = found.numbers.rates if isinstance(found, LoadRun) else found.rates
        return rates.get(key)

    return of


def _time(key: str, level: str) -> Callable[[LoadRun | LoadRatio], Estimate | None]:
    def of(found: LoadRun | LoadRatio) -> Estimate | None:
        times = found.numbers.seconds_at if isinstance(found, LoadRun) else found.seconds_at
        return times.get(key, {}).get(level)

    return of


def _line(
    report: LoadReport,
    title: str,
    of: Callable[[LoadRun | LoadRatio], Estimate | None],
    show: Callable[[float], str],
) -> Line:
    return Line(
        title,
        tuple(cell(of(r), show) for r in report.runs),
        tuple(cell(of(r), _ratio) for r in report.ratios),
    )


def _good(report: LoadReport) -> list[Line]:
    found = [r.numbers.good for r in report.runs]
    first = next((g for g in found if g is not None), None)
    if first is None:
        return []
    asked = (("first text", first.ttft), ("a token", first.tpot))
    title = " and ".join(f"{what} within {seconds(x)}" for what, x in asked if x is not None)
    share = tuple(cell(None if g is None else g.share, fmt.percent) for g in found)
    rate = tuple(cell(None if g is None else g.rate, _number) for g in found)
    blank = _blank(report)
    return [Line(title, share, blank), Line("such requests/s", rate, blank)]


def _blank(report: LoadReport) -> tuple[str, ...]:
    return ("",) * len(report.ratios)


def cell(estimate: Estimate | None, show: Callable[[float], str]) -> str:
    """`39.9 ms [36.9, 43.0]`; the unit stands once."""
    if estimate is None:
        return fmt.NONE
    text = show(estimate.value)
    if estimate.low is None or estimate.high is None:
        return text
    if show is seconds:
        scale = 1000 if text.endswith(" ms") else 1
        return f"{text} [{_number(scale * estimate.low)}, {_number(scale * estimate.high)}]"
    return f"{text} [{show(estimate.low)}, {show(estimate.high)}]"


def seconds(value: float) -> str:
    """Seconds with three digits, in ms below one second."""
    return f"{_number(1000 * value)} ms" if value < 0.9995 else f"{_number(value)} s"


def _number(value: float) -> str:
    """Three digits, or all of a whole number: `1,127`, `39.9`, `0.0512`."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 99.95:
        return f"{value:,.0f}"
    if size >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 0.9995 else f"{value:.3g}"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}"


def _tokens(value: float | None) -> str:
    return "?" if value is None else f"{value:,.0f}"


def notes(report: LoadReport) -> list[str]:
    """What a reader must know: failures, and what makes the numbers doubtful."""
    found = []
    for run in report.runs:
        for f in run.numbers.failures:
            found.append(f"{name(run)}: {f.count:,} x {fmt.clean(f.error, 40)}: "
                         f"{fmt.clean(f.detail, 200)}")  # fmt: skip
        found += [f"{name(run)}: {fmt.clean(text, 300)}" for text in run.notes]
    for ratio in report.ratios:
        found += [f"{fmt.clean(ratio.of, _NAME)} : {fmt.clean(ratio.against, _NAME)}: "
                  f"{fmt.clean(text, 300)}" for text in ratio.notes]  # fmt: skip
    return found


def rich_table(report: LoadReport) -> Table:
    """The table for a terminal."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for i, title in enumerate(header(report)):
        table.add_column(title, justify="right" if i else "left")
    for line in lines(report):
        table.add_row(line.title, *line.cells, *line.ratios)
    return table


def markdown(report: LoadReport) -> str:
    """A table to paste."""
    titles = [title.replace("|", "\\|") for title in header(report)]
    found = [f"**{heading(report)}**", "", "| " + " | ".join(titles) + " |",
             "|---" + "|--:" * (len(titles) - 1) + "|"]  # fmt: skip
    found += ["| " + " | ".join((x.title, *x.cells, *x.ratios)) + " |" for x in lines(report)]
    said = [f"- {text}".replace("|", "\\|").replace("<", "&lt;") for text in notes(report)]
    return "\n".join([*found, *([""] if said else []), *said])


def csv_text(report: LoadReport) -> str:
    """One line for each number of each run and ratio; seconds and 1/s, full precision."""
    out = io.StringIO()
    write = csv.writer(out, lineterminator="\n").writerow
    write(["run", "against", "what", "level", "value", "low", "high"])
    for run in report.runs:
        who = [safe(run.name), ""]
        n = run.numbers
        for key, rate in n.rates.items():
            write([*who, f"{key}_per_s", "", *ends(rate)])
        for key, levels in n.seconds_at.items():
            for level, estimate in levels.items():
                write([*who, key, level, *ends(estimate)])
        for level, value in n.queued.items():
            write([*who, "queued", level, value, "", ""])
        for key in ("answered", "failed", "seconds", "tokens_in", "tokens_out", "cached"):
            write([*who, key, "", getattr(n, key), "", ""])
        if n.good is not None:
            write([*who, "good_share", "", *ends(n.good.share)])
            write([*who, "good_per_s", "", *ends(n.good.rate)])
        for f in n.failures:
            write([*who, "failed", safe(f.error), f.count, "", ""])
    for ratio in report.ratios:
        who = [safe(ratio.of), safe(ratio.against)]
        for key, rate in ratio.rates.items():
            write([*who, f"{key}_per_s", "", *ends(rate)])
        for key, levels in ratio.seconds_at.items():
            for level, estimate in levels.items():
                write([*who, key, level, *ends(estimate)])
    return out.getvalue()
