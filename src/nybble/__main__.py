"""`python -m nybble` is the `nybble` command."""

from nybble.cli.main import run

run()
