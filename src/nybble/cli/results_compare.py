"""`nybble results compare`: two runs, or two settings of one, over the tokens that both scored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from nybble.cli import console

if TYPE_CHECKING:
    from nybble.results.compared import Compared

_EXAMPLES = """\b
Examples:
  nybble results compare runs/engine-1 runs/engine-2
  nybble results compare runs/gemma:q8_0/q4_0 runs/gemma:q4_0/q4_0
  nybble results compare runs/original runs/hardened --kv q4_0 --context 4096 --markdown
  nybble results compare runs/both:a runs/both:b      # the two models of measure --against
"""


@click.command(epilog=_EXAMPLES)
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--kv", multiple=True, metavar="K/V",
              help="Only this setting, of those that both measured; repeatable.")  # fmt: skip
@click.option("--context", "contexts", type=click.IntRange(1), multiple=True, metavar="N",
              help="Only this context; repeatable.")  # fmt: skip
@click.option("--margin", type=click.FloatRange(0, min_open=True), metavar="NATS",
              help="Differences of mean KLD up to this count as none.  "
              "[default: twice the noise floor]")  # fmt: skip
@click.option("--json", "form", flag_value="json", help="The whole record on stdout.")
@click.option("--csv", "form", flag_value="csv", help="A line a pair on stdout.")
@click.option("--markdown", "form", flag_value="markdown", help="Tables to paste.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
def compare(
    a: str,
    b: str,
    kv: tuple[str, ...],
    contexts: tuple[int, ...],
    margin: float | None,
    form: str | None,
    quiet: bool,
) -> None:
    """Compare A with B, token by token.

    A and B are run folders, RUN or RUN:K/V for one setting of it; RUN:b or RUN:b:K/V for the other
    model of a run with --against. Differences are B less A, on the tokens that both scored, with
    95 % intervals over documents. Verdicts: A is better, B is better, same within the margin, no
    difference resolved; corrected for the number of pairs (Holm).
    """
    from nybble.scoring.between.compare import compare as pair_up

    names = [name for text in kv for name in console.names(text) or ()]
    with console.BarProgress(quiet or form is not None) as progress:
        found = pair_up(a, b, settings=names, contexts=contexts, margin=margin,
                        told=progress.stage)  # fmt: skip
    _show(found, form)


def _show(found: Compared, form: str | None) -> None:
    from nybble.report import compare_table as table

    if console.shown(found, form, table):
        return
    out = console.out()
    for line in table.heading(found):
        out.print(line, style="bold", markup=False, highlight=False)
    for one in table.rich_tables(found):
        out.print()
        out.print(one)
    out.print()
    for line in table.reasons(found):
        out.print(line, markup=False, highlight=False)
    if any(p.changed for p in found.pairs):
        out.print()
        for name, words in table.EXPLAINED:
            out.print(f"{name}: {words}", style="dim", markup=False, highlight=False)
