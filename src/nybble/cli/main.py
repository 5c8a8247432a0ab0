"""The `nybble` command: parse, call the library, print; no logic.

Exit codes: 0 done; 1 an error the user can act on, a failed row or a failed gate; 2 a bug;
130 interrupted.
"""

from __future__ import annotations

import errno
import importlib
import io
import sys
import traceback
from collections.abc import Sequence

import click

from nybble.cli.lazy import NamedGroup
from nybble.environment import VERSION
from nybble.errors import NybbleError

_GREEDY = ("--text",)
_KEPT = ("measure", "sweep", "calibrate", "harden")  # what they have finished is found again


# In the order of the work. Imported when called: a plan takes less time than measuring's imports.
COMMANDS = (
    "measure", "sweep", "results", "report", "plan", "cost", "harden", "calibrate", "generate",
    "engines", "config", "serve", "verify", "bench", "rag", "watch", "doctor", "formats",
    "completion",
)  # fmt: skip


def command(name: str) -> click.Command:
    """The command of this name, one of `COMMANDS`, out of its file."""
    found: click.Command = getattr(importlib.import_module(f"nybble.cli.{name}"), name)
    return found


class Group(NamedGroup):
    """Loads a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command's file."""
        return command(cmd_name) if cmd_name in COMMANDS else None


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, "-V", "--version", prog_name="nybble")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def cli(debug: bool) -> None:
    """4-bit and 8-bit KV caches that can be trusted: measure what a KV type costs."""


def spread(args: Sequence[str]) -> list[str]:
    """Let an option take several words, as shells expand `--text docs/*.txt`."""
    done: list[str] = []
    greedy = None
    for arg in args:
        if arg.startswith("-"):
            greedy = None
        elif greedy and done[-1] != greedy and not arg.lower().endswith(".gguf"):
            done.append(greedy)
        done.append(arg)
        if arg in _GREEDY:
            greedy = arg
    return done


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    words = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in words
    # Accepted anywhere, since it is added to a command that has just failed.
    words = [*(["--debug"] if debug else []), *(w for w in spread(words) if w != "--debug")]
    try:
        code = cli.main(args=words, prog_name="nybble", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except NybbleError as error:
        return _fail(f"error: {error}", debug)
    except click.exceptions.NoArgsIsHelpError as error:
        return _fail(error.format_message(), debug)
    except click.UsageError as error:
        command = next((w for w in words if w in COMMANDS), "")  # a parser's has no context
        where = error.ctx.command_path if error.ctx else f"nybble {command}".rstrip()
        return _fail(f"error: {error.format_message()}\n  try:     {where} --help", debug)
    except click.ClickException as error:
        return _fail(f"error: {error.format_message()}", debug)
    except (KeyboardInterrupt, click.Abort):
        command = next((w for w in words if w in COMMANDS), "")
        kept = "; finished cells are kept, the same command continues"
        click.echo(f"interrupted{kept if command in _KEPT else ''}", err=True)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return _fail("error: the disk is full\n  try:     free space; finished cells are kept, "
                         "the same command continues", debug)  # fmt: skip
        _fail(
            f"unexpected error: {type(error).__name__}: {error}\n"
            "  this is a bug in nybble; finished cells are kept\n"
            "  try:     the same command with --debug, and report what it prints",
            debug,
        )
        return 2


def _fail(message: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    click.echo(message, err=True)
    return 1


def run() -> None:
    """Console entry point."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an arrow in a table must not end a run
    sys.exit(main())
