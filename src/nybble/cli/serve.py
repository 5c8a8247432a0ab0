"""`nybble serve`: an OpenAI-compatible server with the KV setting that was asked for."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from nybble.cli import console
from nybble.cli import options as shared

if TYPE_CHECKING:
    from nybble.serving.deploy import Deployed

_PATH = click.Path(path_type=Path)
_EXAMPLES = """\b
Examples:
  nybble serve model.gguf --kv q8_0/q4_0
  nybble serve model.gguf --kv auto --max-kld 0.02 --results nybble-results
  nybble serve model.gguf --kv q4_0/q4_0 --context 65536 --users 2
  NYBBLE_API_KEY=... nybble serve model.gguf --host 0.0.0.0 --api-key
  nybble serve google/gemma-4-31B-it --engine vllm --kv fp8_e4m3/fp8_e4m3
"""


@click.command(epilog=_EXAMPLES)
@click.argument("model")
@shared.deployment
@click.option("--program", help="The engine's program.  [default: llama.cpp in process, or PATH]")
@click.option("--log", type=_PATH, metavar="FILE",
              help="Output of the engine.  [default: in the cache folder]")  # fmt: skip
@click.option("--slots", type=_PATH, metavar="FOLDER",
              help="Let clients save slots there (llama.cpp), for nybble verify.")  # fmt: skip
@click.option("--timeout", type=float, default=1800.0, show_default=True, metavar="SECONDS",
              help="A start may take.")  # fmt: skip
@click.option("--quiet", "-q", is_flag=True, help="Only the address.")
def serve(
    model: str,
    program: str | None,
    log: Path | None,
    slots: Path | None,
    timeout: float,
    quiet: bool,
    **options: Any,
) -> int:
    """Serve MODEL in a KV setting: plan for this machine, start the engine, keep it alive.

    llama.cpp runs from the installed wheel; other engines must be installed. The address is
    printed on stdout once requests are served. Ctrl-C ends the engine.
    """
    from nybble.serving.serve import ServeRequest, watch
    from nybble.serving.serve import serve as prepare

    err = console.err()

    def tell(text: str) -> None:
        err.print(text, markup=False, highlight=False)

    asked = shared.request(model, options, here=True)
    server = prepare(ServeRequest(asked, program, log, timeout, slots), tell)
    stopped = threading.Event()
    _on_signals(stopped)
    with server:
        if not quiet:
            for note in server.notes:
                tell(f"note: {note}")
            tell(_about(server.deployed))
            tell(f"log: {server.log}")
        if not err.is_terminal and not quiet:
            tell("loading")
        with err.status("loading", spinner="dots") as status:

            def waited(seconds: float) -> None:
                status.update(f"loading, {seconds:.0f} s")
                if stopped.is_set():
                    server.stop()

            server.start(waited)
        if stopped.is_set():
            return 130
        if server.applied is not None and not quiet:
            tell(f"in effect: {server.applied.told()}")
        click.echo(server.url)
        watch(server, stopped)
    if not quiet:
        tell("ended")
    return 0


def _about(deployed: Deployed) -> str:
    asked = deployed.deployment
    text = (
        f"KV {asked.setting}, {asked.sequences} x {asked.context:,} tokens, "
        f"{deployed.fit.bytes_per_token:,} bytes a token in {deployed.engine.name}"
    )
    return f"{text}; {deployed.quality}" if deployed.quality else text


def _on_signals(stopped: threading.Event) -> None:
    def end(number: int, frame: FrameType | None) -> None:
        stopped.set()

    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, end)
