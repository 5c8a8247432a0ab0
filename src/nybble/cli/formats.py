"""`nybble formats`: the KV types, their bits, and the engines that accept them."""

from __future__ import annotations

import json

import click
from rich.table import Table

from nybble.cli import console
from nybble.formats import ALIASES, KV_TYPES

HELP = """
A setting is K/V, for example q8_0/q4_0. Bits are at a head size of 128 and
include scales; the block must divide the model's head size. llama.cpp runs its
own types itself; every type can be simulated bit for bit with --engine
transformers, with these around it:
  -norot       llama.cpp's rotation off
  +first4      first tokens in f16          +recent128   last tokens in f16
  +chunk512    current prefill chunk raw    +skip0.1.-1  layers left in f16
  +mean        key mean removed             +scale       K channels scaled for Q
  +search      block scale by least error   +rot32       +rotrandom, +rotllama
  +at0.5-7:q8_0/q4_0  other types in some layers; +at3h1:... in one KV head
  +latent      layers whose K is a function of V (Gemma 4's global ones) store V
               alone, in the K type; nybble's own runtime only
+mean, +scale and the type nyb4 use a calibration, made when missing (nybble
calibrate)."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def formats(as_json: bool) -> None:
    """List the KV types: bits an element, block layout, engines."""
    if as_json:
        rows = [
            {
                "name": t.name, "bits": t.bits, "block": t.block, "tokens": t.tokens,
                "sides": t.sides, "reads": t.reads.rule, "llama.cpp": t.ggml_id is not None,
                "calibrated": t.calibrated, "layout": t.layout, "source": t.source,
                "engines": list(t.engines),
            }
            for t in KV_TYPES.values()
        ]  # fmt: skip
        click.echo(json.dumps({"types": rows, "aliases": ALIASES}, indent=1))
        return
    table = Table()
    for name in ("KV type", "bits", "of f16", "layout", "engines"):
        # What is typed into --kv must be there in full, so only words may wrap.
        words = name in ("layout", "engines")
        right = name in ("bits", "of f16")
        table.add_column(name, justify="right" if right else "left", no_wrap=not words)
    for t in KV_TYPES.values():
        engines = ", ".join(t.engines) or "none"
        if not t.quantized:
            engines = "all" if len(t.engines) > 5 else engines
        table.add_row(t.name, f"{t.bits:g}", f"{t.bits / 16:.0%}", t.layout, engines)
    out = console.out()
    out.print(table)
    for name, meaning in ALIASES.items():
        click.echo(f"{name} is short for {meaning}")
    click.echo(HELP)
