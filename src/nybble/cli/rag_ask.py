"""`nybble rag ask`: an answer from your documents, with sources that are checked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nybble.cli import console
from nybble.cli.rag_options import answering, one_server

if TYPE_CHECKING:
    from nybble.rag.answers import CutOffError, Event, Options, Server

_PATH = click.Path(path_type=Path)
_WIDE = 30  # characters of the line that tells how much is read
_KEYS = ("NYBBLE_API_KEY", "OPENAI_API_KEY")
_EXAMPLES = """\b
Examples:
  nybble rag ask "how is the cache rotated?" --model model.gguf
  nybble rag ask "and for V?" --model model.gguf --same
  nybble rag ask "what changed?" --model model.gguf --kv q8_0/q4_0 --over docs/plan.md
  nybble rag ask "how is the cache rotated?" --url http://127.0.0.1:8000 --json
"""


@click.command(epilog=_EXAMPLES)
@click.argument("question")
@click.option("--index", "place", type=_PATH, default=Path(".nybble-rag"), show_default=True,
              help="The index's folder.")  # fmt: skip
@answering
@click.option("--over", metavar="DOC,DOC",
              help="Answer from whole documents; their prefix is kept.")  # fmt: skip
@click.option("--same", is_flag=True, help="Over the context of the last question.")
@click.option("--no-prefix", is_flag=True, help="Keep no file, and no last question.")
@click.option("--timeout", type=float, default=1800.0, show_default=True, metavar="SECONDS",
              help="Of silence, after which a server counts as gone.")  # fmt: skip
@click.option("--embedding", metavar="NAME",
              help="The one of the index, named again: only for a server elsewhere.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Answer, sources and numbers as one object.")
@click.option("--quiet", "-q", is_flag=True, help="No progress and no numbers on stderr.")
def ask(question: str, place: Path, as_json: bool, quiet: bool, **options: Any) -> int:
    """Answer QUESTION from an index: retrieve, pack, ask a model, check what it cites.

    The answer and its sources go to stdout. With llama.cpp the context's cache is kept in a file
    in the KV setting, so that another question over the same documents starts at once.

    What documents say is put before the model as quoted material that cannot end its own frame;
    that a model never follows what stands in it cannot be promised. Exit code 1 where the answer
    cites a source that is not there.
    """
    from nybble.rag.answers import CutOffError
    from nybble.rag.ask import ask as answer_to
    from nybble.rag.index import open_index

    asked = _options(options)
    one_server(options)
    embedding = {n: options[n] for n in ("embedding", "embedding_model")}
    shown = _Shown(as_json, quiet)
    with open_index(place, **embedding) as index:
        with _server(options, index.path / "prefixes", shown) as server:
            shown.tell("retrieving")
            try:
                answer = answer_to(index, question, server, asked, shown.event)
            except CutOffError as error:
                shown.cut(question, error)
                raise
    return 0 if all(c.exists for c in answer.citations) else 1


def _options(options: dict[str, Any]) -> Options:
    from nybble.rag.answers import Options

    # A context of --model is what its server gets; of --url, what is known of it.
    names = ("k", "mode", "same", "answer_tokens", "temperature", "keep_prefixes", "timeout")
    return Options(
        **{name: options[name] for name in names}, over=console.names(options["over"]) or (),
        context=options["context"], prefix=not options["no_prefix"],
    )  # fmt: skip


@contextmanager
def _server(options: dict[str, Any], prefixes: Path, shown: _Shown) -> Iterator[Server]:
    """The server that answers: the one of --url, or one that is started and ended here."""
    from nybble.rag.answers import Server

    if options["url"]:
        key = next((os.environ[n].strip() for n in _KEYS if os.environ.get(n, "").strip()), None)
        yield Server(options["url"], options["served_model"], key, options["slots"],
                     frame=options["frame"])  # fmt: skip
        return
    from nybble.cli.rag_server import started

    with started(options["model"], options["kv"], options["context"],
                 None if options["no_prefix"] else prefixes, shown.tell) as server:  # fmt: skip
        yield server if options["frame"] == "auto" else _framed(server, options["frame"])


def _framed(server: Server, frame: str) -> Server:
    from dataclasses import replace

    return replace(server, frame=frame)


class _Shown:
    """The answer as it comes, its sources and what is to be known of it."""

    def __init__(self, as_json: bool, quiet: bool) -> None:
        self._json, self._quiet = as_json, quiet
        self._err = console.err()
        self._streamed = self._reading = False

    def tell(self, text: str) -> None:
        """A line of progress."""
        if not self._quiet:
            self._err.print(text, markup=False, highlight=False)

    def event(self, event: Event) -> None:
        """Show what happens."""
        if event.kind == "reading":
            self._read(event.done / event.total)
            return
        self._read(None)
        if event.kind == "text" and not self._json:
            click.echo(printable(event.text), nl=False)
            self._streamed = True
        elif event.kind == "note":
            self.end()
            self.tell(f"note: {printable(event.text)}")
        elif event.kind == "sources" and event.packed is not None:
            self.tell(event.packed.told())
        elif event.kind == "done":
            self.end()
            self._done(event)

    def _read(self, share: float | None) -> None:
        """How much of the prompt is read, in a line that is overwritten; None clears it."""
        if self._quiet or not self._err.is_terminal or share is None and not self._reading:
            return
        self._reading = share is not None
        text = "" if share is None else f"reading the sources: {share:.0%}"
        self._err.print(text.ljust(_WIDE), end="\r", highlight=False)

    def end(self) -> None:
        """End the line of a streamed answer, also of one that was cut off."""
        if self._streamed:
            click.echo()
            self._streamed = False

    def cut(self, question: str, error: CutOffError) -> None:
        """Keep what had come of an answer."""
        import json

        self.end()
        if self._json:
            told = {"question": question, "partial": error.partial, "error": error.what}
            click.echo(json.dumps(told, indent=1))

    def _done(self, event: Event) -> None:
        import json
        from dataclasses import asdict

        from nybble.report.format import clean

        answer = event.answer
        assert answer is not None
        if self._json:
            click.echo(json.dumps(asdict(answer), indent=1))
            return
        cited = {c.number for c in answer.citations}
        click.echo()
        for source in answer.sources:
            mark = "*" if source.number in cited else " "
            click.echo(f"{mark}[{source.number}] {clean(source.title, 80)} "
                       f"({clean(source.place, 120)})")  # fmt: skip
        if answer.prefix is not None:
            self.tell(answer.prefix.told())
        times, used = answer.timings, answer.usage
        first = "" if times.first is None else f"first token after {times.first:.2f} s, "
        rate = times.rate(used.answer)
        speed = "" if rate is None else f", {rate:.1f} tokens/s"
        self.tell(f"retrieved in {times.retrieve * 1000:.0f} ms, {first}{used.answer or 0:,} "
                  f"tokens in {times.total:.1f} s{speed}")  # fmt: skip


def printable(text: str) -> str:
    """Text of a model or server without what a terminal would obey; lines are kept."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
