"""`nybble rag`: answers from your documents, over a cache that is checked. A group of commands."""

from __future__ import annotations

import importlib

import click

from nybble.errors import NybbleError, nearest

# In the order of the work; each in a file of its own, imported when called.
COMMANDS = ("index", "search", "ask", "eval", "serve")


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = getattr(
            importlib.import_module(f"nybble.cli.rag_{cmd_name}"), cmd_name
        )
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = nearest(args[0], COMMANDS)
            raise NybbleError(
                "unknown command of rag" + (f"; did you mean {near}?" if near else ""),
                seen=args[0], allowed=COMMANDS, hint="nybble rag --help",
            )  # fmt: skip
        return super().resolve_command(ctx, args)


@click.group(cls=_Group)
def rag() -> None:
    """Answer from your own documents, through a cache in 4, 8 or 16 bits, with checked sources."""
