"""`nybble results`: what many runs found, asked, compared, checked and exported. A group."""

from __future__ import annotations

import click

from nybble.cli.lazy import LazyGroup

COMMANDS = {
    "query": "query", "compare": "compare", "gate": "gate", "export": "export",
    "import": "import_", "validate": "validate",
}  # fmt: skip


@click.group(cls=LazyGroup, commands=COMMANDS)
def results() -> None:
    """Ask, compare, check and export what the runs in a folder found: a result base."""
