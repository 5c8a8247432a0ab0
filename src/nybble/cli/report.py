"""`nybble report`: pages out of a result base. A group of commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nybble.cli import console
from nybble.cli.lazy import NamedGroup

if TYPE_CHECKING:
    from nybble.report.site.details import TypeNote

_PATH = click.Path(path_type=Path)
_EXAMPLES = """\b
Examples:
  nybble report build
  nybble report build results --out public --title "KV types on our models"
"""


@click.group(cls=NamedGroup)
def report() -> None:
    """Make pages out of a result base."""


@report.command(epilog=_EXAMPLES)
@click.argument("base", type=_PATH, default=Path("nybble-results"))
@click.option("--out", type=_PATH, default=Path("site"), show_default=True,
              help="Folder of the site: new, empty, or an earlier site.")  # fmt: skip
@click.option("--title", help="Of the site.  [default: KV cache leaderboard]")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def build(base: Path, out: Path, title: str | None, quiet: bool) -> int:
    """Build a static leaderboard from the result base BASE (./nybble-results).

    The site needs no server and no network: open its index.html from the disk, or put the folder
    on any web host. Files of an earlier build that are no longer needed are removed, others stay.
    Prints the path of index.html; exit code 1 where a damaged record was left out.
    """
    from nybble.cli.results_query import report_damage
    from nybble.report.site.build import TITLE, build_site
    from nybble.report.site.details import details_of
    from nybble.results.base.base import open_base

    with console.BarProgress(quiet) as progress:
        with open_base(base, progress) as opened:
            progress.stage("building the site")
            found = build_site(opened.cells, opened.externals, out, title=title or TITLE,
                               details=details_of(opened, _types()))  # fmt: skip
            code = report_damage(opened)
    click.echo(found.index)
    return code


def _types() -> dict[str, TypeNote]:
    from nybble.formats import KV_TYPES
    from nybble.report.site.details import TypeNote

    return {t.name: TypeNote(t.bits, t.layout, t.source, t.engines) for t in KV_TYPES.values()}
