"""`nybble rag index`: passages, vectors and words of a folder's documents, kept up to date."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nybble.cli import console

if TYPE_CHECKING:
    from nybble.rag.build import IndexReport

_PATH = click.Path(path_type=Path)
_SHOWN = 20  # skipped files in the table; all of them are in --json
_EXAMPLES = """\b
Examples:
  nybble rag index notes
  nybble rag index notes --include "*.md" --exclude "drafts/*"
  nybble rag index notes --fresh --chunk-tokens 300
  nybble rag index notes --embedding http://127.0.0.1:8001/v1 --embedding-model bge-m3
"""


@click.command(epilog=_EXAMPLES)
@click.argument("folder", metavar="DIR", type=_PATH)
@click.option("--index", "path", type=_PATH, help="The index's folder.  [default: DIR/.nybble-rag]")
@click.option("--chunk-tokens", type=int, help="Tokens of a passage at most.  [default: 200]")
@click.option("--overlap", type=int, help="Tokens that neighbours may share.  [default: 40]")
@click.option("--embedding", metavar="NAME",
              help="minilm, a folder or name of sentence-transformers, or http(s)://HOST/v1.  "
              "[default: minilm]")  # fmt: skip
@click.option("--embedding-model", default="", metavar="NAME", help="Of an embedding server.")
@click.option("--include", multiple=True, metavar="GLOB",
              help="Only these paths or names, also in later runs; '' forgets them.")  # fmt: skip
@click.option("--exclude", multiple=True, metavar="GLOB",
              help="Not these paths or names, also in later runs; '' forgets them.")  # fmt: skip
@click.option("--max-mb", type=float, default=50.0, show_default=True,
              help="Larger files are left out.")  # fmt: skip
@click.option("--timeout", type=float, default=60.0, show_default=True,
              help="Seconds that a parser may take for one document.")  # fmt: skip
@click.option("--fresh", is_flag=True, help="Empty the index first, and embed all anew.")
@click.option("--json", "form", flag_value="json", help="The whole report on stdout.")
@click.option("--csv", "form", flag_value="csv", help="What was skipped, one line per file.")
@click.option("--markdown", "form", flag_value="markdown", help="Tables to paste on stdout.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
def index(
    folder: Path,
    path: Path | None,
    chunk_tokens: int | None,
    overlap: int | None,
    embedding: str | None,
    embedding_model: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    max_mb: float,
    timeout: float,
    fresh: bool,
    form: str | None,
    quiet: bool,
) -> int:
    """Index the documents in DIR, or bring its index up to date.

    Text, Markdown, source code, HTML, PDF, DOCX, ODT and RTF; hidden files are passed over. What
    did not change is kept, so the same command again is quick, and goes on where a killed one
    stopped. Nothing leaves this machine unless --embedding names a server. What cannot be read
    is listed with its reason; exit code 1 if nothing could be.
    """
    from nybble.rag.build import IndexOptions, build
    from nybble.rag.index import FOLDER

    place = path or folder / FOLDER
    options = IndexOptions(
        chunk_tokens=chunk_tokens, overlap=overlap, embedding=embedding,
        embedding_model=embedding_model, include=include or None, exclude=exclude or None,
        max_mb=max_mb, seconds=timeout, fresh=fresh,
    )  # fmt: skip
    with console.BarProgress(quiet) as progress:
        report = build(folder, place, options, progress)
    _show(report, place, form)
    if not report.documents:
        click.echo("nothing in the folder could be read: the index is empty", err=True)
        return 1
    return 0


def _show(report: IndexReport, place: Path, form: str | None) -> None:
    if form == "json":
        click.echo(json.dumps({"index": str(place), **report.as_dict()}, indent=1))
    elif form == "csv":
        _csv(report)
    else:
        _tables(report, place, form == "markdown")


def _csv(report: IndexReport) -> None:
    import csv
    import sys

    lines = csv.writer(sys.stdout, lineterminator="\n")
    lines.writerow(("path", "reason"))
    lines.writerows((s.path, s.reason) for s in report.skipped)


def _tables(report: IndexReport, place: Path, markdown: bool) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from nybble.report.format import clean

    style = box.MARKDOWN if markdown else box.HEAVY_HEAD
    counts = Table("", "documents", box=style, title=None if markdown else "index")
    counts.columns[1].justify = "right"
    for name in ("added", "changed", "moved", "deleted", "kept"):
        counts.add_row(name, f"{getattr(report, name):,}")
    counts.add_row("copies of another", f"{report.copies:,}")
    counts.add_row("skipped", f"{len(report.skipped):,}")
    out = console.out()
    out.print(counts)
    if report.skipped:
        skipped = Table("skipped", "reason", box=style)
        for s in report.skipped[:_SHOWN]:
            skipped.add_row(Text(clean(s.path, 80)), Text(clean(s.reason, 100)))
        out.print(skipped)
        if rest := Counter(s.reason for s in report.skipped[_SHOWN:]):
            parts = ", ".join(f"{n:,} {clean(reason, 60)}" for reason, n in rest.most_common(5))
            click.echo(f"and {sum(rest.values()):,} more (--csv lists all): {parts}")
    for word, globs in (("only", report.include), ("without", report.exclude)):
        if globs:
            click.echo(f"{word} {clean(', '.join(globs), 200)}")
    line = f"{report.documents:,} documents, {report.passages:,} passages in {place}"
    if report.per_second is not None:
        without = report.per_second_without_embedding or 0.0
        line += (
            f"\n{report.new_passages:,} new passages in {report.seconds:.1f} s: "
            f"{report.per_second:,.1f} a second, {without:,.0f} a second without embedding"
        )
    click.echo(line)
