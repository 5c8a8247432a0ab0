"""`nybble verify`: what a running server's KV cache really is."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nybble.cli import console

if TYPE_CHECKING:
    from nybble.results.verification import Verification

_PATH = click.Path(path_type=Path)
_EXAMPLES = """\b
Examples:
  nybble verify http://127.0.0.1:8080
  nybble verify http://127.0.0.1:8080 --kv q8_0/q4_0 --log server.log --model model.gguf
  nybble verify http://127.0.0.1:8000 --reference http://127.0.0.1:8001
  nybble verify -- llama-server -m model.gguf -ctk q4_0 -ctv q4_0 --port 8090
"""


@click.command(epilog=_EXAMPLES)
@click.argument("target", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--kv", metavar="K/V", help="Asked for.  [default: as nybble serve or ps tell]")
@click.option("--engine", help="Name.  [default: recognised]")
@click.option(
    "--model", type=_PATH, metavar="PATH", help="The GGUF or folder it runs, to compare with."
)
@click.option("--log", type=_PATH, metavar="FILE", help="The server's output.")
@click.option("--slots", type=_PATH, metavar="FOLDER", help="Where llama-server saves slots.")
@click.option("--reference", metavar="URL", help="A server of this model with a 16-bit cache.")
@click.option("--no-probe", is_flag=True, help="Do not look at the model's behaviour.")
@click.option("--timeout", type=float, default=1800.0, show_default=True, metavar="SECONDS",
              help="A command's start may take.")  # fmt: skip
@click.option("--json", "form", flag_value="json", help="The whole record on stdout.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
def verify(
    target: tuple[str, ...],
    no_probe: bool,
    timeout: float,
    form: str | None,
    quiet: bool,
    kv: str | None,
    **options: Any,
) -> int:
    """Prove which KV setting a server has in effect.

    TARGET is its address, or -- and a command that is started, verified and ended. Asked,
    reported and observed stand side by side. Exit code 1 unless the setting is confirmed.
    """
    from nybble.formats.setting import parse
    from nybble.serving.verify import VerifyRequest

    setting = parse(kv) if kv else None
    first = target[0]
    with console.err().status("", spinner="dots") as status:

        def tell(text: str) -> None:
            if not quiet:
                status.update(text)

        if len(target) == 1 and (":" in first or not shutil.which(first)):
            request = VerifyRequest(first, setting, probe=not no_probe, **options)
            found = _run(request, tell)
        else:
            found = _command(target, setting, not no_probe, timeout, options, tell)
    _show(found, form)
    return 0 if found.outcome == "confirmed" else 1


def _run(request: Any, tell: Any) -> Verification:
    from nybble.serving.verify import verify as look

    return look(request, tell)


def _command(
    words: tuple[str, ...],
    setting: Any,
    probe: bool,
    timeout: float,
    options: dict[str, Any],
    tell: Any,
) -> Verification:
    """Start a command, verify what it serves, and end it."""
    from nybble.errors import NybbleError
    from nybble.serving.listener import port_of
    from nybble.serving.supervisor import Program, Supervisor
    from nybble.serving.verify import VerifyRequest

    if shutil.which(words[0]) is None:
        raise NybbleError("neither an address nor a program", seen=words[0],
                          allowed="http://HOST:PORT, or -- and a command",
                          hint="nybble verify http://127.0.0.1:8080")  # fmt: skip
    port = port_of(words)
    if port is None:
        raise NybbleError("the command names no port", seen=" ".join(words)[:120],
                          allowed="--port N in the command", hint="add --port 8090")  # fmt: skip
    base = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="nybble-verify-") as folder:
        log = options.pop("log") or Path(folder) / "server.log"
        supervisor = Supervisor(Program(words, f"{base}/health", log))
        try:
            supervisor.start()
            began = time.monotonic()
            supervisor.wait_ready(
                timeout, lambda _: tell(f"loading, {time.monotonic() - began:.0f} s")
            )
            request = VerifyRequest(base, setting, log=log, probe=probe, **options)
            return _run(request, tell)
        finally:
            supervisor.stop()


def _show(found: Verification, form: str | None) -> None:
    if form == "json":
        click.echo(json.dumps(found.as_dict(), indent=1))
        return
    from nybble.report.verify_table import verification_table

    out = console.out()
    head = f"{found.model} in {found.engine} {found.version} at {found.url}"
    out.print(head, style="bold", markup=False, highlight=False)
    out.print(verification_table(found))
    for note in found.notes:
        out.print(f"note: {note}", markup=False, highlight=False)
    out.print(f"{found.outcome}: {found.why}", style="bold", markup=False, highlight=False)
