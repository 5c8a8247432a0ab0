"""`nybble config`: the exact command line, compose file or manifest of a deployment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nybble.cli import options as shared

_EXAMPLES = """\b
Examples:
  nybble config gemma-4-31b-qat --gpu rtx-4090 --kv q8_0/q4_0
  nybble config gemma-4-31b-qat --engine vllm --gpu h100-sxm --kv fp8_e4m3/fp8_e4m3 --form compose
  nybble config ./gemma-4-31b-exl3 --engine exllamav3 --gpu rtx-3090 --kv exl3_4/exl3_4
  nybble config model.gguf --api-key --host 0.0.0.0 --out deployment
"""


@click.command(epilog=_EXAMPLES)
@click.argument("model")
@shared.deployment
@click.option("--this-machine", is_flag=True, help="The cards here, or its memory.")
@click.option("--form", type=click.Choice(["shell", "compose", "kubernetes", "json"]),
              default="shell", show_default=True, help="How to write it down.")  # fmt: skip
@click.option("--out", "-o", type=click.Path(path_type=Path), metavar="FOLDER",
              help="Write every form, and the engine's own files.")  # fmt: skip
def config(model: str, this_machine: bool, form: str, out: Path | None, **options: Any) -> None:
    """Write down how an engine serves MODEL in a KV setting.

    Planned first, and refused where the engine would refuse the setting or fake it. Nothing is
    started, and no secret is written.
    """
    from nybble.serving.deploy import deploy
    from nybble.serving.render import render, written

    deployed = deploy(shared.request(model, options, here=this_machine))
    if out is None:
        click.echo(render(deployed, form).rstrip("\n"))
        return
    for path in written(deployed, out):
        click.echo(path)
