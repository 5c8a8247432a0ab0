"""`nybble results validate`: whether a result is what it claims to be."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from nybble.cli import console
from nybble.errors import NybbleError

_EXAMPLES = """\b
Examples:
  nybble results validate nybble-results/tiny-1f2e3d4c
  nybble results validate nybble-results --json > checks.json
  nybble results validate submission --markdown
"""


@click.command(epilog=_EXAMPLES)
@click.argument("folders", nargs=-1, required=True, metavar="FOLDER...",
                type=click.Path(path_type=Path))  # fmt: skip
@click.option("--json", "form", flag_value="json", help="Every check on stdout.")
@click.option("--markdown", "form", flag_value="markdown", help="Tables to paste on stdout.")
def validate(folders: tuple[Path, ...], form: str | None) -> int:
    """Check a run, or all runs of a result base, as a submission to a leaderboard is checked.

    Schema, manifest, token rows against the summary, identity row, noise floor, drift, order of
    the types, plausible numbers, and what the record tells of its author. Exit code 0 only if
    nothing failed; a warning is for a person to judge.
    """
    from nybble.formats import parse
    from nybble.report import validation_table as table
    from nybble.results.validate.run import validate as check
    from nybble.scoring.verdict import smaller

    def fewer(a: str, b: str) -> bool:
        try:
            return smaller(parse(a), parse(b))
        except NybbleError:  # a setting of a newer nybble, or of nobody, is not ordered
            return False

    found = [validation for folder in folders for validation in check(folder, fewer)]
    if form == "json":
        shown = [{**dataclasses.asdict(v), "failed": v.failed} for v in found]
        click.echo(json.dumps(shown, indent=1, ensure_ascii=False))
    elif form == "markdown":
        click.echo(table.markdown(found).rstrip("\n"))
    else:
        out = console.out()
        for validation in found:
            out.print(table.counts(validation), style="bold", markup=False, highlight=False)
            out.print(table.rich_table(validation))
    return int(any(v.failed for v in found))
