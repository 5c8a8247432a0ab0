"""`nybble bench`: a running server under load, alone or in turns with a second one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nybble.cli import console
from nybble.errors import NybbleError

if TYPE_CHECKING:
    from nybble.results.loads import LoadReport

_PATH = click.Path(path_type=Path)
_EXAMPLES = """\b
Examples:
  nybble bench http://127.0.0.1:8080 --prompt 2048 --output 256 --concurrency 16
  nybble bench http://127.0.0.1:8080 http://127.0.0.1:8081 --names f16,q4_0 --save load.json
  nybble bench https://host --rate 2 --duration 300 --prompt lognormal:800,6000 --max-ttft 1
  nybble bench localhost:8080 --concurrency 1 --prompt 256..2048 --calibration rates.json \\
      --weights model.gguf --kv q4_0/q4_0
"""


@click.command(epilog=_EXAMPLES)
@click.argument("url")
@click.argument("url2", required=False)
@click.option("--concurrency", type=int, metavar="N",
              help="Requests at once.  [default: 8; with --rate at most 1000]")  # fmt: skip
@click.option("--requests", type=int, metavar="N",
              help="Of each server.  [default: 100; with --duration no limit]")  # fmt: skip
@click.option("--duration", type=float, metavar="SECONDS",
              help="Of each server; then no request is sent any more.")  # fmt: skip
@click.option("--prompt", default="512", show_default=True, metavar="TOKENS",
              help="N, LOW..HIGH or lognormal:P50,P95.")  # fmt: skip
@click.option("--output", default="128", show_default=True, metavar="TOKENS",
              help="Of an answer, likewise.")  # fmt: skip
@click.option("--rate", type=float, metavar="PER_SECOND",
              help="Requests arrive at random at this rate.  [default: one after the other]",
              )  # fmt: skip
@click.option("--shared", type=float, default=0.0, show_default=True, metavar="SHARE",
              help="Of each prompt, common to all: what a prefix cache may save.")  # fmt: skip
@click.option("--warmup", type=int, metavar="N",
              help="Requests that do not count.  [default: as --concurrency, at most 8]",
              )  # fmt: skip
@click.option("--blocks", type=int, metavar="N",
              help="Parts of a run, by which servers take turns.  [default: 1; 5 with two]",
              )  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Of lengths and texts.")
@click.option("--model", help="Name of the model.  [default: the server's only one]")
@click.option("--api", type=click.Choice(["chat", "completions"]), default="chat",
              show_default=True, help="Which API.")  # fmt: skip
@click.option("--stop-early", is_flag=True, help="Let answers end where the model ends them.")
@click.option("--api-key-env", metavar="NAME",
              help="Variable with the key.  [default: NYBBLE_API_KEY, OPENAI_API_KEY]",
              )  # fmt: skip
@click.option("--timeout", type=float, default=600.0, show_default=True, metavar="SECONDS",
              help="Of a request.")  # fmt: skip
@click.option("--names", metavar="NAME[,NAME]", help="Of the servers, for the tables.")
@click.option("--max-ttft", type=float, metavar="SECONDS", help="Limit for a good answer.")
@click.option("--max-tpot", type=float, metavar="SECONDS", help="Likewise, a token.")
@click.option("--save", type=_PATH, metavar="FILE", help="Keep the run, every request of it.")
@click.option("--against", type=_PATH, metavar="FILE", help="Compare with a run kept before.")
@click.option("--calibration", type=_PATH, metavar="FILE",
              help="Write this machine's rates, for nybble plan.")  # fmt: skip
@click.option("--weights", metavar="MODEL", help="With --calibration: the served model.")
@click.option("--kv", metavar="SETTING", help="With --calibration: its KV setting.")
@click.option("--json", "form", flag_value="json", help="The whole record on stdout.")
@click.option("--csv", "form", flag_value="csv", help="One line per number on stdout.")
@click.option("--markdown", "form", flag_value="markdown", help="A table to paste on stdout.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
def bench(
    url: str,
    url2: str | None,
    names: str | None,
    save: Path | None,
    calibration: Path | None,
    weights: str | None,
    kv: str | None,
    form: str | None,
    quiet: bool,
    **options: Any,
) -> int:
    """Drive the OpenAI-compatible server at URL and time every answer.

    With URL2 two servers take turns, block by block, so that what else the machine does hits both
    alike. Prompts differ from their first word on: no prefix cache makes them faster.
    """
    from nybble.results import loads
    from nybble.serving.load.client import openai
    from nybble.serving.load.run import bench as run

    openai()  # a missing extra is said before anything else
    for path in (save, calibration):
        loads.check_writable(path)
    urls = (url,) if url2 is None else (url, url2)
    rates = _rates_of(calibration, weights, kv, len(urls), options)
    request = _request(urls, console.names(names) or (), options)
    try:
        with console.BarProgress(quiet) as progress:
            found = run(request, progress)
    except KeyboardInterrupt:
        click.echo("interrupted; a load test has no half", err=True)
        return 130
    if save is not None:
        loads.write(found, save)
    _show(found, form)
    if save is not None:
        click.echo(f"run: {save} (--against compares with it)", err=True)
    if rates is not None and calibration is not None:
        from nybble.planning.measured import save as keep
        from nybble.planning.measured_load import rates as measured

        keep(measured(found, found.runs[-1], *rates), calibration)
        click.echo(f"rates of this machine: {calibration} (nybble plan --calibration)", err=True)
    return 0


def _request(urls: tuple[str, ...], names: tuple[str, ...], options: dict[str, Any]) -> Any:
    from nybble.serving.load.lengths import Lengths
    from nybble.serving.load.profile import CONCURRENCY, MOST_AT_ONCE, REQUESTS, BenchProfile
    from nybble.serving.load.run import BenchRequest
    from nybble.serving.load.summary import Limits

    concurrency, requests = options.pop("concurrency"), options.pop("requests")
    if concurrency is None:
        concurrency = CONCURRENCY if options["rate"] is None else MOST_AT_ONCE
    if requests is None and options["duration"] is None:
        requests = REQUESTS
    profile = BenchProfile(
        tokens_in=Lengths.parse(options.pop("prompt"), "--prompt"),
        tokens_out=Lengths.parse(options.pop("output"), "--output"),
        concurrency=concurrency,
        requests=requests,
        ignore_eos=not options.pop("stop_early"),
        **{n: options.pop(n)
           for n in ("duration", "rate", "shared", "seed", "warmup", "blocks", "api")},
    )  # fmt: skip
    limits = Limits(options.pop("max_ttft"), options.pop("max_tpot"))
    return BenchRequest(urls, profile, names=names, limits=limits, **options)


def _rates_of(
    calibration: Path | None, weights: str | None, kv: str | None, servers: int,
    options: dict[str, Any],
) -> tuple[Any, Any, Any] | None:  # fmt: skip
    """Geometry, setting and experts of a calibration, looked at before minutes are spent."""
    if calibration is None:
        if weights is not None or kv is not None:
            raise NybbleError("--weights and --kv belong to --calibration", seen="without it",
                              hint="--calibration FILE")  # fmt: skip
        return None
    if weights is None or kv is None:
        raise NybbleError("a calibration needs the served model and its KV setting",
                          seen="no --weights" if weights is None else "no --kv",
                          hint="--weights model.gguf --kv q4_0/q4_0")  # fmt: skip
    if servers > 1 or options["concurrency"] != 1 or options["rate"] is not None:
        raise NybbleError("rates of a machine come from one server and one request at a time",
                          seen=f"--concurrency {options['concurrency'] or 8}",
                          allowed="one URL, --concurrency 1, no --rate",
                          hint="--concurrency 1")  # fmt: skip
    from nybble.formats.setting import parse
    from nybble.models.found import find
    from nybble.planning.roofline import experts_of

    geometry = find(weights).geometry
    return geometry, parse(kv), experts_of(geometry)


def _show(found: LoadReport, form: str | None) -> None:
    from nybble.report import load_table as table

    if console.shown(found, form, table):
        return
    out = console.out()
    out.print(table.heading(found), style="bold", markup=False, highlight=False)
    out.print()
    out.print(table.rich_table(found))
    for text in table.notes(found):
        out.print(f"note: {text}", markup=False, highlight=False)
