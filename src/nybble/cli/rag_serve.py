"""`nybble rag serve`: a page on this machine to ask, read the sources and watch the cache."""

from __future__ import annotations

import importlib.util
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from nybble.cli import console
from nybble.cli.rag_options import answering, one_server
from nybble.errors import MissingExtraError, NybbleError
from nybble.rag.packages import INSTALL

if TYPE_CHECKING:
    from nybble.rag.answers import Options
    from nybble.rag.answers import Server as Reached
    from nybble.rag.index import Index
    from nybble.rag.web.desk import Desk
    from nybble.rag.web.gauge import Engine
    from nybble.rag.web.job import Job, Told
    from nybble.serving.serve import Server

_PATH = click.Path(path_type=Path)
_PACKAGES = ("starlette", "uvicorn")
_SERVER_KEYS = ("OPENAI_API_KEY", "NYBBLE_API_KEY")
_EXAMPLES = """\b
Examples:
  nybble rag serve notes --model model.gguf
  nybble rag serve notes --model model.gguf --kv q8_0/q4_0 --context 16384
  nybble rag serve --index .nybble-rag --url http://127.0.0.1:8000
  NYBBLE_API_KEY=... nybble rag serve notes --model model.gguf --host 0.0.0.0 --api-key
"""


@click.command(epilog=_EXAMPLES)
@click.argument("folder", metavar="[DIR]", type=_PATH, required=False)
@click.option("--index", "place", type=_PATH, metavar="PATH",
              help="The index.  [default: .nybble-rag in DIR, or here]")  # fmt: skip
@answering
@click.option("--url-key-env", metavar="NAME",
              help="Variable with that server's key.  [default: OPENAI_API_KEY, or NYBBLE_API_KEY "
              "without --api-key]")  # fmt: skip
@click.option("--no-prefix", is_flag=True, help="Keep no files of contexts.")
@click.option("--timeout", type=float, default=600.0, show_default=True, metavar="SECONDS",
              help="Of silence, after which the model's server counts as gone.")  # fmt: skip
@click.option("--include", multiple=True, metavar="GLOB",
              help="Only these paths or names; else what the index was told.")  # fmt: skip
@click.option("--exclude", multiple=True, metavar="GLOB", help="Not these paths or names.")
@click.option("--embedding", metavar="NAME",
              help="Of a new index, as in nybble rag index; of one made with a server elsewhere, "
              "that server again.")  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True,
              help="Address of the page; another than loopback needs --api-key.")  # fmt: skip
@click.option("--port", type=int, default=8090, show_default=True, help="Of the page.")
@click.option("--api-key", "keyed", is_flag=True,
              help="Demand the key in the variable NYBBLE_API_KEY.")  # fmt: skip
@click.option("--quiet", "-q", is_flag=True, help="Only the address.")
def serve(folder: Path | None, place: Path | None, quiet: bool, **options: Any) -> int:
    """Serve a page over the documents of DIR: ask, follow citations, see the cache.

    DIR is indexed first if it has no index yet. The address is printed on stdout once the page is
    served. Ctrl-C ends it, and the model with it.
    """
    key = _check(options)
    from nybble.rag.index import open_index

    where = _indexed(folder, place, options, quiet)
    embedding = {n: options[n] for n in ("embedding", "embedding_model")}
    with open_index(where, **embedding) as index:
        _tell("loading the embedding", quiet)
        index.warm()
        with _server(options, index, quiet) as (reached, engine, trouble):
            desk = _desk(index, reached, engine, options, trouble)
            try:
                _run(desk, engine, key, options, quiet)
            finally:
                desk.close()
    _tell("ended", quiet)
    return 0


def _check(options: dict[str, Any]) -> str | None:
    """Refuse what cannot work before anything is loaded; the page's key, if it has one."""
    absent = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        raise MissingExtraError("the page's server is not installed", hint=INSTALL,
                                seen=f"missing: {', '.join(absent)}")  # fmt: skip
    from nybble.cli.options import key as from_environment
    from nybble.runtime.server.listen import listen

    one_server(options)
    _asked(options, None)
    _reached(options)
    key = from_environment() if options["keyed"] else None
    if options["keyed"] and key is None:
        raise NybbleError("there is no key for --api-key", seen="NYBBLE_API_KEY is not set",
                          hint="export NYBBLE_API_KEY=$(openssl rand -hex 24)")  # fmt: skip
    listen(options["host"], options["port"], key).close()
    return key


def _indexed(
    folder: Path | None, place: Path | None, options: dict[str, Any], quiet: bool
) -> Path:  # fmt: skip
    """The index's folder; a folder without an index is indexed first."""
    from nybble.rag.build import IndexOptions, build
    from nybble.rag.index import FOLDER
    from nybble.rag.store import FILE

    where = place or (folder or Path()) / FOLDER
    if folder is not None and not (where / FILE).is_file():
        asked = IndexOptions(
            embedding=options["embedding"], embedding_model=options["embedding_model"],
            include=options["include"] or None, exclude=options["exclude"] or None,
        )  # fmt: skip
        with console.BarProgress(quiet) as progress:
            report = build(folder, where, asked, progress)
        _tell(f"indexed {report.documents:,} documents, {report.passages:,} passages; "
              f"{len(report.skipped):,} files skipped (nybble rag index tells why)",
              quiet)  # fmt: skip
    return where


@contextmanager
def _server(
    options: dict[str, Any], index: Index, quiet: bool
) -> Iterator[tuple[Reached, Engine, list[NybbleError]]]:
    """The model's server: started here and ended at the end, or one that runs already.

    The list is for errors of a server that dies again and again.
    """
    from nybble.cli.rag_serve_engine import reached, started
    from nybble.engines.server.http import check_url

    if options["url"]:
        base, key = check_url(options["url"]), _url_key(options)
        engine = reached(base, key, options["served_model"])
        yield _reached(options, base, model=options["served_model"], key=key,
                       slots=options["slots"], setting=engine.kv or ""), engine, []  # fmt: skip
        return
    from nybble.cli.rag_server import prepared

    key = secrets.token_hex(16)
    slots = None if options["no_prefix"] else index.path / "prefixes"
    server = prepared(options["model"], options["kv"], options["context"], slots, key,
                      partial(_tell, quiet=quiet))  # fmt: skip
    failed: list[NybbleError] = []
    with server:
        server.start()
        keeper = threading.Thread(target=_keep, args=(server, failed), daemon=True)
        keeper.start()
        asked = server.deployed.deployment
        at = _reached(options, server.url, model=asked.name or "", key=key, slots=slots,
                      weights=Path(asked.model), setting=str(asked.setting))  # fmt: skip
        yield at, started(server), failed


def _keep(server: Server, failed: list[NybbleError]) -> None:
    try:
        server.keep()
    except NybbleError as error:
        failed.append(error)


def _url_key(options: dict[str, Any]) -> str | None:
    """The key of --url's server; the page's own is never sent there."""
    if options["url_key_env"]:
        found = os.environ.get(options["url_key_env"], "").strip()
        if not found:
            raise NybbleError("there is no key in this variable", seen=options["url_key_env"],
                              hint=f"export {options['url_key_env']}=...")  # fmt: skip
        return found
    names = _SERVER_KEYS[:1] if options["keyed"] else _SERVER_KEYS
    return next((os.environ[n].strip() for n in names if os.environ.get(n, "").strip()), None)


def _asked(options: dict[str, Any], context: int | None) -> Options:
    from nybble.rag.answers import Options

    names = ("k", "mode", "answer_tokens", "temperature", "keep_prefixes", "timeout")
    return Options(**{name: options[name] for name in names}, context=context,
                   prefix=not options["no_prefix"])  # fmt: skip


def _reached(options: dict[str, Any], url: str = "", **known: Any) -> Reached:
    from nybble.rag.answers import Server

    return Server(url, frame=options["frame"], **known)


def _desk(
    index: Index, reached: Reached, engine: Engine, options: dict[str, Any],
    failed: list[NybbleError],
) -> Desk:  # fmt: skip
    from nybble.rag.ask import ask
    from nybble.rag.web.desk import Desk
    from nybble.rag.web.job import Job

    asked = _asked(options, engine.context)
    folder = Path(index.about().folder)

    def again(job: Job) -> Told:
        from nybble.rag.build import IndexOptions, build

        how = IndexOptions(include=options["include"] or None, exclude=options["exclude"] or None)
        report = build(folder, index.path, how, job)
        changes = (("added", report.added), ("changed", report.changed), ("moved", report.moved),
                   ("deleted", report.deleted), ("kept", report.kept))  # fmt: skip
        said = ", ".join(f"{n:,} {name}" for name, n in changes if n)
        text = (
            f"{said or 'nothing'}: {report.new_passages:,} new passages in {report.seconds:.1f} s"
        )
        return text, [(s.path, s.reason) for s in report.skipped]

    job = Job(again) if folder.is_dir() else None
    return Desk(index, reached, engine, asked, ask, job,
                lambda: failed[0] if failed else None)  # fmt: skip


def _run(
    desk: Desk, engine: Engine, key: str | None, options: dict[str, Any], quiet: bool
) -> None:  # fmt: skip
    from nybble.rag.web.server import PageServer

    def ready(url: str) -> None:
        known = [f"KV {engine.kv}" if engine.kv else "KV setting not told by the server"]
        known += [f"{engine.context:,} tokens of context"] if engine.context else []
        _tell(f"{engine.model or 'model'}: {', '.join(known)}", quiet)
        click.echo(url)

    def end(number: int, frame: FrameType | None) -> None:
        """Uvicorn raises the signal again once it has ended."""

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    PageServer(desk, options["host"], options["port"], key, ready).run()


def _tell(text: str, quiet: bool) -> None:
    if not quiet:
        console.err().print(text, markup=False, highlight=False)
