"""`nybble results gate`: measurements held against a policy, for CI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nybble.cli import console

if TYPE_CHECKING:
    from nybble.results.gate import Gate

_PATH = click.Path(path_type=Path)
_EXAMPLES = """\b
Examples:
  nybble results gate runs --policy policy.toml
  nybble results gate runs/new --policy policy.toml --against runs/main --junit gate.xml

\b
policy.toml:
  [[rule]]
  name = "4-bit values stay safe"
  where = { kv = "q8_0/q4_0", context = [4096, 8192], model = "Gemma*" }
  metric = "mean_kld"
  max = 0.02                 # or min = ..., max_increase = ..., verdict = ["safe"]

\b
  [[rule]]
  name = "no worse than the main branch"
  metric = "mean_kld"
  max_increase = 0.001       # paired, against --against
  inconclusive = "pass"      # of an interval that spans the limit; default "fail"
"""


@click.command(epilog=_EXAMPLES)
@click.argument("base", metavar="RUN|BASE", type=_PATH)
@click.option("--policy", "policy_file", required=True, type=_PATH, metavar="FILE",
              help="Rules, in TOML (docs/gate.md).")  # fmt: skip
@click.option("--against", type=_PATH, metavar="RUN",
              help="Baseline of rules with max_increase: a run folder.")  # fmt: skip
@click.option("--junit", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write JUnit XML, too.")  # fmt: skip
@click.option("--json", "form", flag_value="json", help="The whole record on stdout.")
@click.option("--markdown", "form", flag_value="markdown", help="A table for a pull request.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
def gate(
    base: Path,
    policy_file: Path,
    against: Path | None,
    junit: Path | None,
    form: str | None,
    quiet: bool,
) -> int:
    """Check measurements against a policy: GO, NO-GO or INCONCLUSIVE for every rule and cell.

    Exit code 0 for GO; 1 for NO-GO, and for an inconclusive check unless its rule lets it pass.
    Besides the rules, the runs they are about must have an identity row of exactly 0 and a noise
    floor, and no row that a rule is about may have failed.
    """
    from nybble.cli.results_query import report_damage
    from nybble.errors import NybbleError
    from nybble.results.base.base import open_base
    from nybble.results.gate import gate as check
    from nybble.results.policy import load_policy

    policy = load_policy(policy_file)
    if policy.needs_baseline and against is None:
        raise NybbleError(
            "a rule with max_increase needs a baseline", seen=policy_file,
            hint=f"nybble results gate {base} --policy {policy_file} --against RUN",
        )  # fmt: skip
    increase = None
    if against is not None:
        from nybble.scoring.between.increase import increases

        increase = increases(base, against)
    with console.BarProgress(quiet) as progress, open_base(base, progress) as opened:
        report_damage(opened)
        found = check(
            policy, opened.cells, base=str(base), against=str(against or ""), increase=increase,
            damaged=[(d.path, d.reason) for d in opened.damaged],
        )  # fmt: skip
    if junit is not None:
        _write(found, junit)
    _show(found, form)
    return 0 if found.passed else 1


def _write(found: Gate, path: Path) -> None:
    from nybble.report.gate_table import junit
    from nybble.results.store import write_text

    write_text(path, junit(found))
    click.echo(f"JUnit XML: {path}", err=True)


def _show(found: Gate, form: str | None) -> None:
    from nybble.report import gate_table as table

    if form == "json":
        click.echo(json.dumps(found.as_dict(), indent=1))
    elif form == "markdown":
        click.echo(table.markdown(found))
    else:
        out = console.out()
        out.print(table.rich_table(found))
        out.print()
        out.print(table.conclusion(found), style="bold", markup=False, highlight=False)
