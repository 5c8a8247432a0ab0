"""`nybble results import`: numbers of other harnesses into a result base."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nybble.errors import NybbleError

if TYPE_CHECKING:
    from nybble.results.importers.keep import Kept

_EXAMPLES = """\b
Examples:
  nybble results import kld-q8_0-q4_0.log
  nybble results import results_2026-11-29T10-00-00.json --kv q4_0/q4_0
  nybble results import table.csv --harness exllamav3-ppl --source https://example.org/table
"""


@click.command(name="import", epilog=_EXAMPLES)
@click.argument("files", nargs=-1, required=True, metavar="FILE...",
                type=click.Path(path_type=Path))  # fmt: skip
@click.option("--base", type=click.Path(path_type=Path), default="nybble-results",
              show_default=True, metavar="DIR", help="Of the results.")  # fmt: skip
@click.option("--as", "form", metavar="FORMAT",
              help="llama-perplexity, lm-eval or csv.  [default: by the content]")  # fmt: skip
@click.option("--model", metavar="NAME", help="Over the name in the file.")
@click.option("--kv", metavar="K/V", help="KV setting, where the file does not tell it.")
@click.option("--context", type=click.IntRange(min=1), metavar="TOKENS",
              help="Over the length in the file.")  # fmt: skip
@click.option("--harness", metavar="NAME", help="What measured it; a table needs it.")
@click.option("--source", "address", metavar="URL",
              help="Where it was published; a table needs it.  [default: file name]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Every number on stdout.")
def import_(
    files: tuple[Path, ...],
    base: Path,
    form: str | None,
    model: str | None,
    kv: str | None,
    context: int | None,
    harness: str | None,
    address: str | None,
    as_json: bool,
) -> int:
    """Keep what other tools measured in a result base, apart from nybble's own numbers.

    FILE is a log of llama-perplexity, a results_*.json of lm-evaluation-harness, or a published
    table in CSV. Each harness has columns of its own. The same file again changes nothing; told
    otherwise (--model, --kv), it takes the place of the earlier import.
    """
    from nybble.formats import parse
    from nybble.results.importers.keep import import_file
    from nybble.results.importers.source import Given

    given = Given(
        read_setting=lambda text: str(parse(text)), model=model, context=context, harness=harness,
        setting=None if kv is None else str(parse(kv)), address=address,
    )  # fmt: skip
    done: list[Kept] = []
    failed = False
    for file in files:
        try:
            done.append(import_file(file, base, given, form))
        except NybbleError as error:
            if len(files) == 1:
                raise
            failed = True
            click.echo(f"error: {error}", err=True)
            continue
        for note in done[-1].notes:
            click.echo(f"{file}: {note}", err=True)
        if not as_json:
            click.echo(_line(done[-1]))
    if as_json:
        shown = [{"path": str(k.path), "state": k.state, "format": k.form, "notes": k.notes,
                  "record": dataclasses.asdict(k.record)} for k in done]  # fmt: skip
        click.echo(json.dumps(shown, indent=1, ensure_ascii=False))
    return int(failed)


def _line(kept: Kept) -> str:
    rows = kept.record.rows
    models, settings = sorted({r.model for r in rows}), sorted({r.setting for r in rows})
    told = ", ".join(s or "no KV setting told" for s in settings[:3])
    more = f" and {len(models) - 1} more" if len(models) > 1 else ""
    return (
        f"{kept.state}: {kept.path}: {len(rows):,} numbers of {kept.record.harness} "
        f"(read as {kept.form}), {models[0]}{more}, {told}"
    )
