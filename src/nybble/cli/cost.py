"""`nybble cost`: what serving a load costs, owned, rented or by an API."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nybble.cli import console
from nybble.errors import NybbleError
from nybble.planning.interval import Interval
from nybble.planning.terms import NAMES, Terms

if TYPE_CHECKING:
    from nybble.planning.assumptions import ApiPrice
    from nybble.planning.measured_load import MeasuredLoad
    from nybble.results.plans import CostComparison

_PATH = click.Path(path_type=Path)
_LOAD = ("tokens_in", "tokens_out", "users", "requests_per_hour", "hours_per_day", "utilisation",
         "cached", "context")  # fmt: skip
_EXAMPLES = """\b
Examples:
  nybble cost gemma-4-31b-qat --on rtx-4090:q4_0 --on 8xh100-sxm:f16@vllm --users 4
  nybble cost gemma-4-31b-qat --on rtx-3090:q8_0/q4_0 --requests 60 --hours 8 --api gemma-4-31b
  nybble cost model.gguf --on rtx-4090 --price 1800 --set electricity=0.30 --set life_years=3..5
"""


@click.command(epilog=_EXAMPLES)
@click.argument("model")
@click.option("--on", "ways", multiple=True, metavar="[Nx]CARD[:KV][@ENGINE]",
              help="A way to serve; again for each.  [default: rtx-4090:q8_0/q4_0]")  # fmt: skip
@click.option("--users", type=int, default=1, show_default=True, help="Requests at once.")
@click.option("--in", "tokens_in", type=float, default=8000, show_default=True,
              help="Prompt tokens of a request.")  # fmt: skip
@click.option("--out", "tokens_out", type=float, default=500, show_default=True,
              help="Tokens of an answer.")  # fmt: skip
@click.option("--context", type=int, help="Room of a sequence.  [default: prompt and answer]")
@click.option("--requests", "requests_per_hour", type=float,
              help="In a busy hour.  [default: users ask one after the other]")  # fmt: skip
@click.option("--hours", "hours_per_day", type=float, default=24.0, show_default=True,
              help="Busy hours of a day.")  # fmt: skip
@click.option("--utilisation", type=float, default=1.0, show_default=True,
              help="Share of those with requests in work.")  # fmt: skip
@click.option("--cached", type=float, default=0.0, show_default=True,
              help="Share of prompts that is in the cache.")  # fmt: skip
@click.option("--measured-load", "loads", multiple=True, metavar="[WAY=]FILE[#RUN]",
              help="Throughput of a run of nybble bench --save, for a way of --on.")  # fmt: skip
@click.option("--api", "apis", multiple=True, metavar="NAME", help="Also by this API.")
@click.option("--api-price", metavar="IN,OUT", help="USD for a million tokens, of another API.")
@click.option("--file", help="Which published file of a known model.")
@click.option("--price", type=float, metavar="USD", help="Of one card.")
@click.option("--rent", type=float, metavar="USD", help="Of one card and hour.")
@click.option("--power", type=float, metavar="W", help="Of one card under load.")
@click.option("--reserve", "reserve_gib", type=float, metavar="GIB", help="Left free on each card.")
@click.option("--set", "given", multiple=True, metavar="NAME=VALUE",
              help=f"An assumption, or LOW..HIGH: {', '.join(NAMES)}.")  # fmt: skip
@click.option("--rent-all-day", is_flag=True, help="Rented cards are kept all month.")
@click.option("--results", multiple=True, type=_PATH, metavar="FOLDER",
              help="Runs of nybble measure, for the quality.")  # fmt: skip
@click.option("--explain", is_flag=True, help="The arithmetic, and every assumption.")
@click.option("--picture", type=_PATH, metavar="FILE", help="Cost against context, .svg or .png.")
@click.option("--json", "form", flag_value="json", help="The whole record on stdout.")
@click.option("--csv", "form", flag_value="csv", help="One line per option on stdout.")
@click.option("--markdown", "form", flag_value="markdown", help="A table to paste on stdout.")
def cost(
    ways: tuple[str, ...],
    loads: tuple[str, ...],
    apis: tuple[str, ...],
    api_price: str | None,
    given: tuple[str, ...],
    rent_all_day: bool,
    explain: bool,
    picture: Path | None,
    form: str | None,
    **options: Any,
) -> int:
    """Compare what serving a load of MODEL costs a month and a million tokens.

    Cards are planned as nybble plan does: how many sequences fit, how fast they are. Everything is
    an interval, from the cheap end of each assumption to the dear one.
    """
    from nybble.planning.cost import LoadProfile
    from nybble.planning.costs import CostRequest
    from nybble.planning.costs import cost as compare

    profile = LoadProfile(**{name: options.pop(name) for name in _LOAD})
    prices: list[str | ApiPrice] = [*apis, *([_price(api_price)] if api_price else [])]
    ways = ways or ("rtx-4090:q8_0/q4_0",)
    request = CostRequest(
        ways=ways,
        measured=_loads(loads, ways),
        profile=profile,
        terms=Terms(**_terms(given), rent_all_day=rent_all_day),
        apis=tuple(prices),
        curve=picture is not None,
        **options,
    )
    found = compare(request)
    if picture is not None:
        from nybble.report.plan_plots import save_cost

        save_cost(found, picture)
    _show(found, explain, form)
    if picture is not None:
        click.echo(f"picture: {picture}", err=True)
    return 0


def _loads(given: tuple[str, ...], ways: tuple[str, ...]) -> dict[str, MeasuredLoad]:
    """Load tests by the way they were of; unnamed where there is only one."""
    from nybble.planning.measured_load import measured_load

    found = {}
    for text in given:
        way, _, file = text.partition("=")
        if way not in ways or not file:
            way, file = ways[0], text
            if len(ways) > 1:
                raise NybbleError("--measured-load names the way that was measured", seen=text,
                                  allowed=ways, hint=f"--measured-load {way}=FILE")  # fmt: skip
        found[way] = measured_load(file)
    return found


def _terms(given: tuple[str, ...]) -> dict[str, Interval]:
    known = {f.name for f in fields(Terms)} & set(NAMES)
    found = {}
    for text in given:
        name, _, value = text.partition("=")
        if name not in known:
            raise NybbleError("--set takes an assumption and its value", seen=text, allowed=NAMES,
                              hint="--set electricity=0.30")  # fmt: skip
        found[name] = _interval("--set", text, value)
    return found


def _interval(option: str, text: str, value: str) -> Interval:
    low, dots, high = value.partition("..")
    try:
        return Interval(float(low), float(high if dots else low))
    except ValueError as error:
        raise NybbleError(f"{option} takes a number, or two with .. between", seen=text,
                          hint="--set life_years=3..5") from error  # fmt: skip


def _price(text: str) -> ApiPrice:
    from nybble.planning.assumptions import ApiPrice

    low, comma, high = text.partition(",")
    try:
        ends = float(low), float(high)
    except ValueError as error:
        raise NybbleError("--api-price takes USD for a million input and output tokens",
                          seen=text, hint="--api-price 0.12,0.35") from error  # fmt: skip
    return ApiPrice("the API", Interval(ends[0], ends[0]), Interval(ends[1], ends[1]), "given")


def _show(found: CostComparison, explain: bool, form: str | None) -> None:
    from nybble.report import cost_table as table

    if console.shown(found, form, table):
        return
    out = console.out()
    out.print(table.heading(found), style="bold", markup=False, highlight=False)
    out.print()
    out.print(table.rich_table(found))
    out.print()
    for line in (table.break_even(b) for b in found.break_even):
        out.print(line, markup=False, highlight=False)
    for line in table.refusals(found):
        out.print(f"cannot serve it: {line}", markup=False, highlight=False)
    if not explain:
        out.print("Prices, power and speeds are assumptions: --explain lists them, --set changes "
                  "them.", markup=False, highlight=False)  # fmt: skip
        return
    for record in found.costs:
        if not record.refused:
            out.print()
            for line in table.explain(record):
                out.print(line, markup=False, highlight=False)
    out.print("\nassumptions:", markup=False)
    for line in table.assumptions(found):
        out.print(f"  {line}", markup=False, highlight=False)
