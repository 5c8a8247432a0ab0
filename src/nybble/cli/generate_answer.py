"""One answer or a chat on the terminal: text on stdout, progress and numbers on stderr."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING

import click

from nybble.cli.console import BarProgress
from nybble.cli.generate_text import ModelText
from nybble.errors import NybbleError

if TYPE_CHECKING:
    from nybble.runtime.generate import Runtime, Session
    from nybble.runtime.generate_report import Report
    from nybble.runtime.sampling import Sampling

_ENDED = {"stop": "its own end", "length": "--max-new-tokens", "context": "the end of the context",
          "cancelled": "Ctrl-C"}  # fmt: skip
_NEW = "/new"


@dataclass
class Teller:
    """Asks a session and shows what comes.

    Attributes:
        runtime: the model in its KV setting.
        text: its tokenizer.
        sampling: how tokens are drawn.
        new_tokens: most of an answer, or None.
        system: what the conversation begins with, or None.
        quiet: no progress and no numbers.
        session: the sequence so far.
    """

    runtime: Runtime
    text: ModelText
    sampling: Sampling
    new_tokens: int | None = None
    system: str | None = None
    quiet: bool = False
    session: Session = field(init=False)

    def __post_init__(self) -> None:
        self.session = self.runtime.session()

    def ids(self, prompt: str) -> list[int]:
        """What the model is to read for this prompt: a turn, or plain text that goes on.

        Raises:
            NybbleError: the prompt is empty, or the chat template refuses it.
        """
        if not prompt.strip():
            raise NybbleError("the prompt is empty", hint='--prompt "Once upon a time"')
        begun = bool(self.session.tokens)
        if not self.text.has_template:
            return self.text.more(prompt) if begun else self.text.prompt(prompt)
        if begun:
            return self.text.turn(prompt)
        messages = [{"role": "user", "content": prompt}]
        if self.system:
            messages.insert(0, {"role": "system", "content": self.system})
        return self.text.chat(messages)

    def answer(self, prompt: str, *, shown: bool) -> tuple[str, Report]:
        """Generate; Ctrl-C ends the answer.

        Args:
            prompt: of the user.
            shown: print the text as it comes.
        """
        from nybble.runtime.generate import CHUNK, Limits

        ids = self.ids(prompt)
        decoder = self.text.decoder(ids)
        parts: list[str] = []

        def show(text: str) -> None:
            parts.append(text)
            if shown and text:
                click.echo(text, nl=False)
                sys.stdout.flush()

        with _ctrl_c() as stopped:
            limits = Limits(self.new_tokens, self.text.ends, lambda: bool(stopped))
            with BarProgress(self.quiet or len(ids) <= CHUNK) as progress:
                read = _Reading(progress)
                stream = self.session.stream(ids, limits, self.sampling, read)
                first = next(stream, None)
            for token in [] if first is None else [first]:
                show(decoder.add(token))
            for token in stream:
                show(decoder.add(token))
            show(decoder.end())
        text = "".join(parts)
        if shown:
            click.echo()
        return text, self.session.report

    @property
    def spoiled(self) -> bool:
        """Whether a pass failed within the layers, so that some hold a token and some do not."""
        lengths = {layer.length for layer in self.session.cache.packed}
        return lengths - {len(self.session.tokens)} != set()

    def told(self, report: Report) -> None:
        """The numbers of an answer, on stderr."""
        if not self.quiet:
            click.echo(summary(report), err=True)


class _Reading:
    """The bar of a prompt."""

    def __init__(self, progress: BarProgress) -> None:
        self._progress, self._done = progress, 0

    def __call__(self, done: int, total: int) -> None:
        if not self._done:
            self._progress.begin("reading the prompt", total)
        self._progress.advance(done - self._done)
        self._done = done


@contextmanager
def _ctrl_c() -> Iterator[list[int]]:
    """A list that is no longer empty after Ctrl-C; a second one interrupts as usual."""
    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if stopped:
            raise KeyboardInterrupt
        stopped.append(number)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def once(teller: Teller, prompt: str, form: str | None) -> int:
    """One prompt, one answer.

    Returns:
        The exit code: 130 where Ctrl-C ended the answer.
    """
    text, report = teller.answer(prompt, shown=form is None)
    if form == "json":
        click.echo(json.dumps({"text": text, **report.as_dict()}, indent=1))
    teller.told(report)
    return 130 if report.finish == "cancelled" else 0


def chat(teller: Teller) -> int:
    """Prompts from the terminal until Ctrl-D; each answer stays in the cache for the next."""
    import readline  # noqa: F401  input() then has a line editor

    kind = "Chat" if teller.text.has_template else "A base model: it goes on with your text"
    click.echo(f"{kind}. {_NEW} starts over, Ctrl-C ends an answer, Ctrl-D ends all.", err=True)
    while True:
        try:
            prompt = input("> ")
        except EOFError:
            click.echo()
            return 0
        if prompt.strip() == _NEW:
            teller.session = teller.runtime.session()
        elif prompt.strip():
            try:
                teller.told(teller.answer(prompt, shown=True)[1])
            except NybbleError as error:
                click.echo(f"error: {error}", err=True)
                if teller.spoiled:
                    teller.session = teller.runtime.session()
                    click.echo("the cache holds half a token, so the chat starts over", err=True)


def summary(report: Report) -> str:
    """An answer's numbers in one line."""
    prompt = f"prompt {report.prompt_tokens:,} tokens"
    if report.cached_tokens:
        prompt += f" ({report.cached_tokens:,} from the cache)"
    if report.prefill_rate:
        prompt += f", {report.prefill_rate:,.4g} tokens/s"
    answer = f"answer {report.new_tokens:,} tokens"
    if report.decode_rate:
        answer += f", {report.decode_rate:,.4g} tokens/s"
    answer += f", ended by {_ENDED[report.finish]}"
    cache = f"cache {_size(report.bytes_stored)} in {report.kv}"
    if report.bytes_16bit:
        cache += f" ({_size(report.bytes_16bit)} at 16 bits)"
    return f"{prompt}; {answer}; {cache}; kernel: {report.kernel}"


def _size(n: int) -> str:
    return f"{n / 2**20:,.1f} MiB" if n >= 1 << 20 else f"{n / 2**10:,.1f} KiB"
