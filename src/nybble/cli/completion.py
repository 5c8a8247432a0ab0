"""`nybble completion`: the script that completes nybble's commands in a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    r"""Print the completion script for SHELL.

    \b
    bash:  nybble completion bash >> ~/.bashrc
    zsh:   nybble completion zsh >> ~/.zshrc
    fish:  nybble completion fish > ~/.config/fish/completions/nybble.fish
    """
    from nybble.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "nybble", "_NYBBLE_COMPLETE").source())
