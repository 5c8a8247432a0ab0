"""`nybble rag`: answers from your documents, over a cache that is checked. A group of commands."""

from __future__ import annotations

import click

from nybble.cli.lazy import LazyGroup

COMMANDS = ("index", "search", "ask", "eval", "serve")  # in the order of the work


@click.group(cls=LazyGroup, commands={name: name for name in COMMANDS})
def rag() -> None:
    """Answer from your own documents, through a cache in 4, 8 or 16 bits, with checked sources."""
