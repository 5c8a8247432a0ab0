"""`nybble rag search`: the passages that fit a question, without a language model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nybble.cli import console

if TYPE_CHECKING:
    from nybble.rag.passages import Hit

_MODES = "hybrid, dense, lexical"  # of nybble.rag.index, which takes a second to import
_EXAMPLES = """\b
Examples:
  nybble rag search "how is the cache rotated" --index notes/.nybble-rag
  nybble rag search q4_0 --mode lexical --k 5
"""


@click.command(epilog=_EXAMPLES)
@click.argument("query")
@click.option("--index", "path", type=click.Path(path_type=Path), default=Path(".nybble-rag"),
              show_default=True, help="The index's folder.")  # fmt: skip
@click.option("--k", type=int, default=10, show_default=True, help="Passages at most.")
@click.option("--mode", default="hybrid", show_default=True, help=f"{_MODES}.")
@click.option("--embedding", metavar="NAME",
              help="The one of the index, named again: only for a server elsewhere.")  # fmt: skip
@click.option("--embedding-model", default="", metavar="NAME", help="Of an embedding server.")
@click.option("--json", "form", flag_value="json", help="Hits with their whole text on stdout.")
@click.option("--csv", "form", flag_value="csv", help="One line per hit on stdout.")
@click.option("--markdown", "form", flag_value="markdown", help="A table to paste on stdout.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
def search(
    query: str,
    path: Path,
    k: int,
    mode: str,
    embedding: str | None,
    embedding_model: str,
    form: str | None,
    quiet: bool,
) -> int:
    """Show the passages of an index that fit QUERY best.

    By the embedding's nearest vectors (dense), by words (lexical, BM25), or by both, their ranks
    fused (hybrid). Exit code 1 if there are none.
    """
    from nybble.rag.index import open_index

    with open_index(path, embedding=embedding, embedding_model=embedding_model) as opened:
        with console.BarProgress(quiet) as progress:
            if mode in ("hybrid", "dense"):
                progress.stage("loading the embedding model")
            hits = opened.search(query, k, mode)
        if not opened.about().lexical_current and not quiet and mode != "dense":
            click.echo("note: the word index is behind the documents; nybble rag index DIR "
                       "brings it up to date", err=True)  # fmt: skip
    _show(hits, form)
    return 0 if hits else 1


def _show(hits: list[Hit], form: str | None) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from nybble.report.format import clean

    if form == "json":
        click.echo(json.dumps([asdict(h) for h in hits], indent=1, ensure_ascii=True))
        return
    header = ("rank", "score", "dense", "lexical", "document", "section", "text")
    rows = []
    for rank, h in enumerate(hits, 1):
        section = h.passage.heading or (f"page {h.passage.page}" if h.passage.page else "")
        rows.append((
            str(rank), f"{h.score:.4f}", _rank(h.dense_rank), _rank(h.lexical_rank),
            clean(h.passage.document, 60), clean(section, 40), clean(h.passage.text, 160),
        ))  # fmt: skip
    if form == "csv":
        import csv
        import sys

        lines = csv.writer(sys.stdout, lineterminator="\n")
        lines.writerow(header)
        lines.writerows(rows)
        return
    if not hits:
        click.echo("no passage fits")
        return
    table = Table(box=box.MARKDOWN if form == "markdown" else box.HEAVY_HEAD)
    for name in header:
        table.add_column(name, justify="right" if name in header[:4] else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.out().print(table)


def _rank(rank: int | None) -> str:
    return "" if rank is None else str(rank)
