"""`nybble formats`: the KV types, their bits, and the engines that accept them."""

from __future__ import annotations

import json

import click
from rich.table import Table

from nybble.cli import console
from nybble.formats import KV_TYPES


@click.command()
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def formats(as_json: bool) -> None:
    """List the KV types: bits an element, block layout, engines."""
    if as_json:
        rows = [
            {
                "name": t.name, "bits": t.bits, "block": t.block, "block_bytes": t.block_bytes,
                "layout": t.layout, "engines": list(t.engines),
            }
            for t in KV_TYPES.values()
        ]  # fmt: skip
        click.echo(json.dumps(rows, indent=1))
        return
    table = Table()
    for name in ("KV type", "bits", "against f16", "block", "layout", "engines"):
        table.add_column(name, justify="right" if name in ("bits", "against f16") else "left")
    for t in KV_TYPES.values():
        block = f"{t.block} el, {t.block_bytes} B" if t.quantized else "-"
        table.add_row(
            t.name, f"{t.bits:g}", f"{t.bits / 16:.0%}", block, t.layout, ", ".join(t.engines)
        )
    out = console.out()
    out.print(table)
    click.echo("A setting is K/V, for example q8_0/q4_0; add -norot to switch llama.cpp's")
    click.echo("rotation off. The block must divide the model's head size. Bits include scales.")
