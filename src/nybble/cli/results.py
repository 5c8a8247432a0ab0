"""`nybble results`: what many runs found, asked, compared, checked and exported. A group."""

from __future__ import annotations

import importlib

import click

from nybble.errors import NybbleError, nearest

# Each in a file of its own, imported when called; `import` is a word of Python.
COMMANDS = {
    "query": "query", "compare": "compare", "gate": "gate", "export": "export",
    "import": "import_", "validate": "validate",
}  # fmt: skip


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        file = importlib.import_module(f"nybble.cli.results_{cmd_name}")
        found: click.Command = getattr(file, COMMANDS[cmd_name])
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = nearest(args[0], COMMANDS)
            raise NybbleError(
                "unknown command of results" + (f"; did you mean {near}?" if near else ""),
                seen=args[0], allowed=COMMANDS, hint="nybble results --help",
            )  # fmt: skip
        return super().resolve_command(ctx, args)


@click.group(cls=_Group)
def results() -> None:
    """Ask, compare, check and export what the runs in a folder found: a result base."""
