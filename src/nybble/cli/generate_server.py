"""`nybble generate --serve`: the runtime's OpenAI-compatible server, until a signal ends it."""

from __future__ import annotations

import importlib.util
import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from nybble.errors import MissingExtraError, NybbleError

if TYPE_CHECKING:
    from nybble.cli.generate_text import ModelText
    from nybble.runtime.generate import Runtime
    from nybble.runtime.sampling import Sampling

INSTALL = 'pip install -c constraints.txt -e ".[runtime]"'
_PACKAGES = ("pydantic", "starlette", "uvicorn")
_MOST_KEY = 4096  # bytes; a longer file is not a key


def address(host: str, port: int, file: Path | None) -> str | None:
    """Check where to listen, before a model is loaded; return the API key, if there is one.

    Raises:
        MissingExtraError: the server's packages are not installed.
        NybbleError: the address cannot be used, or a key is needed and not given or not readable.
    """
    absent = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        raise MissingExtraError("the server is not installed", hint=INSTALL,
                                seen=f"missing: {', '.join(absent)}")  # fmt: skip
    from nybble.cli.options import key as from_environment
    from nybble.runtime.server.listen import listen

    key = from_environment() if file is None else _read(file)
    listen(host, port, key).close()
    return key


def _read(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            key = opened.read(_MOST_KEY + 1).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it holds more than ASCII"
        raise NybbleError("cannot read the API key", seen=f"{file}: {why}",
                          hint=f"openssl rand -hex 24 > {file}") from error  # fmt: skip
    if not 0 < len(key) <= _MOST_KEY or any(c.isspace() for c in key):
        raise NybbleError("this file does not hold one API key", seen=file,
                          allowed="one word", hint=f"openssl rand -hex 24 > {file}")  # fmt: skip
    return key


def run(
    runtime: Runtime,
    text: ModelText,
    name: str,
    sampling: Sampling,
    key: str | None,
    options: dict[str, Any],
) -> None:
    """Serve; the address is printed on stdout once requests are answered.

    Args:
        runtime: the model in its KV setting.
        text: its tokenizer.
        name: what clients call it.
        sampling: for requests that do not say.
        key: API key that clients must show.
        options: host, port and quiet of the command.
    """
    from nybble.runtime.server.app import Server
    from nybble.runtime.server.endpoints import Served

    def ready(url: str) -> None:
        if not options["quiet"]:
            click.echo(
                f"{name}, KV {runtime.kv}, {runtime.context:,} tokens of context, kernel: "
                f"{runtime.kernel}\none answer at a time: others wait until it is done",
                err=True,
            )
        click.echo(url)

    def end(number: int, frame: FrameType | None) -> None:
        """Uvicorn raises the signal again once it has ended."""

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    served = Served(runtime, text, name, sampling)
    Server(served, options["host"], options["port"], key, ready).run()
    if not options["quiet"]:
        click.echo("ended", err=True)
