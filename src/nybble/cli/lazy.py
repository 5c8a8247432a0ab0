"""Groups of commands: imported when called, and the nearest one named when one is mistyped."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click

from nybble.errors import unknown


class NamedGroup(click.Group):
    """A group that names the nearest of its commands."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Resolve, or fail with the nearest name."""
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            raise unknown(f"unknown command of {ctx.command_path}", args[0], known,
                          hint=f"{ctx.command_path} --help")  # fmt: skip
        return super().resolve_command(ctx, args)


class LazyGroup(NamedGroup):
    """A group whose commands are each in a file of their own, `nybble.cli.GROUP_COMMAND`.

    Args:
        commands: name -> function in its file, in the order of the work.
        given: as click.Group.
    """

    def __init__(self, *, commands: Mapping[str, str], **given: Any) -> None:
        super().__init__(**given)
        self._files = dict(commands)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the work."""
        return list(self._files)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command's file."""
        if cmd_name not in self._files:
            return None
        file = importlib.import_module(f"nybble.cli.{self.name}_{cmd_name}")
        found: click.Command = getattr(file, self._files[cmd_name])
        return found
