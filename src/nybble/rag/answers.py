"""What goes into a question over documents, and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nybble.errors import NybbleError

MODES = ("hybrid", "dense", "lexical")
FRAMES = ("auto", "chat", "plain")


@dataclass(frozen=True)
class Server:
    """A server that answers.

    Attributes:
        url: OpenAI-compatible address, with or without /v1.
        model: name to put into requests; "" for the first that the server lists.
        key: API key; None for none.
        slots: folder that this llama.cpp server saves slots to, on this disk; None for no files
            of prefixes.
        weights: the GGUF that it runs, for the prefix's key; None for the path the server tells.
        setting: its KV setting, "q8_0/q4_0"; "" where it is not known.
        frame: "chat" (its template), "plain" (a base model), or "auto": plain where llama.cpp
            runs without a template of the model's own.
    """

    url: str
    model: str = ""
    key: str | None = field(default=None, repr=False)
    slots: Path | None = None
    weights: Path | None = None
    setting: str = ""
    frame: str = "auto"

    def __post_init__(self) -> None:
        if self.frame not in FRAMES:
            raise NybbleError("unknown frame of a prompt", seen=self.frame, allowed=FRAMES)


@dataclass(frozen=True)
class Options:
    """How to ask.

    Attributes:
        k: passages to retrieve.
        mode: "hybrid", "dense" or "lexical".
        over: whole documents to answer from, in place of retrieval.
        same: over the passages of the last question.
        passages: ids of passages to answer from, in place of all these.
        context: tokens of the server's context, where it does not tell; None for 4,096 then.
        answer_tokens: kept free for the answer, and its longest.
        temperature: 0 takes the likeliest token.
        seed: of the draws.
        prefix: keep the context's cache in a file and read it back (llama.cpp with `slots`), and
            remember the question for `same`; without, every question is computed from nothing.
        keep_prefixes: GiB of such files; the longest unused go first.
        timeout: seconds of silence after which the server counts as gone.

    Raises:
        NybbleError: a value out of range, or two ways of choosing passages at once.
    """

    k: int = 8
    mode: str = "hybrid"
    over: tuple[str, ...] = ()
    same: bool = False
    passages: tuple[int, ...] = ()
    context: int | None = None
    answer_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0
    prefix: bool = True
    keep_prefixes: float = 4.0
    timeout: float = 1800.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise NybbleError("unknown --mode", seen=self.mode, allowed=MODES)
        for name, value, least, most in (
            ("--k", self.k, 1, 1000), ("--answer-tokens", self.answer_tokens, 1, 1 << 20),
            ("--context", self.context, 64, 1 << 24),
        ):  # fmt: skip
            if value is not None and not least <= value <= most:
                raise NybbleError(f"{name} is out of range", seen=value,
                                  allowed=f"{least} to {most:,}")  # fmt: skip
        if not 0 <= self.temperature <= 5:
            raise NybbleError("--temperature is out of range", seen=self.temperature,
                              allowed="0 to 5")  # fmt: skip
        if not self.keep_prefixes >= 0:
            raise NybbleError("--keep-prefixes is out of range", seen=self.keep_prefixes,
                              allowed="0 GiB or more")  # fmt: skip
        ways = {"--over": self.over, "--same": self.same, "passages": self.passages}
        given = [name for name, value in ways.items() if value]
        if len(given) > 1:
            raise NybbleError("one of these chooses what is read", seen=" with ".join(given),
                              hint=f"leave out {given[0]}")  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A piece of a document as it was put before the model.

    Attributes:
        number: as cited, from 1.
        document: its path in the index.
        title: of the document.
        heading: of the section it starts in; "" for none.
        page: 1-based page it starts on; None for none.
        start: first character in the document's extracted text.
        end: one past the last.
        tokens: of its text and header, as counted for packing.
        text: what the model was shown.
        passages: ids of the passages it was made of.
    """

    number: int
    document: str
    title: str
    heading: str
    page: int | None
    start: int
    end: int
    tokens: int
    text: str
    passages: tuple[int, ...]

    @property
    def place(self) -> str:
        """Where it is from: path, page, heading."""
        parts = [self.document]
        if self.page is not None:
            parts.append(f"page {self.page}")
        if self.heading:
            parts.append(self.heading)
        return ", ".join(parts)


@dataclass(frozen=True)
class Packed:
    """What fits into the context.

    Attributes:
        sources: in the order they are shown.
        found: passages that were offered.
        used: passages of them that are in.
        tokens: of the sources with their headers and frames, as counted.
        room: tokens they had.
    """

    sources: tuple[Source, ...]
    found: int
    used: int
    tokens: int
    room: int

    def told(self) -> str:
        """In words."""
        return (f"packed {self.used} of {self.found} passages: {self.tokens:,} of "
                f"{self.room:,} tokens")  # fmt: skip


@dataclass(frozen=True)
class Citation:
    """A number in square brackets in the answer.

    Attributes:
        number: as written.
        exists: whether there is such a source.
        quote_ok: whether the words in quotation marks before it are in that source; None where
            nothing is quoted.
        start: first character in the answer.
        end: one past the last.
        quote: what is quoted; "" for nothing.
    """

    number: int
    exists: bool
    quote_ok: bool | None
    start: int
    end: int
    quote: str = ""


@dataclass(frozen=True)
class Usage:
    """Tokens, as the server counted them.

    Attributes:
        prompt: of the prompt; None where it does not tell.
        cached: of these, read from a cache; None where it does not tell.
        answer: of the answer.
    """

    prompt: int | None = None
    cached: int | None = None
    answer: int | None = None


@dataclass(frozen=True)
class Timings:
    """Seconds.

    Attributes:
        retrieve: until the passages were found.
        pack: until they were packed and counted.
        first: from the request to the first piece of the answer, the context's cache read or
            computed in between; None where none came.
        total: from the question to the end of the answer.
        generate: from the first piece to the last.
    """

    retrieve: float
    pack: float
    first: float | None
    total: float
    generate: float

    def rate(self, tokens: int | None) -> float | None:
        """Tokens a second of the answer; None where not known."""
        if tokens is None or tokens < 2 or self.generate <= 0:
            return None
        return (tokens - 1) / self.generate


@dataclass(frozen=True)
class PrefixUse:
    """What became of the context's cache.

    Attributes:
        state: "read" from a file, "made" and saved, or "off".
        tokens: of the prefix.
        reused: tokens that the server says it did not compute again.
        seconds: reading it from the file, or computing it.
        prefill: seconds that computing took when the file was made; None where the server had
            most of it in its cache then.
        file_bytes: of the file.
        cache_bytes: of the cells' K and V in it.
        why: why it was made anew or is off; "" for nothing to say.
    """

    state: Literal["read", "made", "off"]
    tokens: int = 0
    reused: int = 0
    seconds: float = 0.0
    prefill: float | None = None
    file_bytes: int = 0
    cache_bytes: int = 0
    why: str = ""

    def told(self) -> str:
        """In words."""
        if self.state == "read":
            text = f"{self.tokens:,} tokens of context read from a file in {self.seconds:.2f} s"
            return text if self.prefill is None else f"{text} (prefill took {self.prefill:.1f} s)"
        if self.state == "made":
            text = (f"{self.tokens:,} tokens of context computed in {self.seconds:.1f} s and kept: "
                    f"{self.file_bytes / 1e6:,.1f} MB for the next question")  # fmt: skip
            return f"{text}; {self.why}" if self.why else text
        return f"no prefix kept: {self.why}"


@dataclass(frozen=True)
class Answer:
    """An answer and what it rests on.

    Attributes:
        question: as asked.
        text: of the model; data, never instructions.
        sources: that it was shown.
        citations: in order of the answer, each checked.
        packed: what fitted.
        usage: tokens.
        timings: seconds.
        prefix: what became of the context's cache; None where no llama.cpp server answered.
        notes: what a user should know.
        finish: "stop", "length", or the server's own word.
    """

    question: str
    text: str
    sources: tuple[Source, ...]
    citations: tuple[Citation, ...]
    packed: Packed
    usage: Usage
    timings: Timings
    prefix: PrefixUse | None = None
    notes: tuple[str, ...] = ()
    finish: str = ""


@dataclass(frozen=True)
class Event:
    """Something that happened while an answer is made.

    Attributes:
        kind: "note" and "text" carry `text`; "sources" carries `packed`; "reading" carries `done`
            and `total`; "done" carries `answer`.
        text: words of a note, or the next piece of the answer.
        packed: the sources and how many fitted.
        answer: the whole of it, last.
        done: tokens of the prompt that the server has read.
        total: tokens of the prompt.
    """

    kind: Literal["note", "sources", "reading", "text", "done"]
    text: str = ""
    packed: Packed | None = None
    answer: Answer | None = None
    done: int = 0
    total: int = 0


class CutOffError(NybbleError):
    """The server went away in mid-answer.

    Attributes:
        partial: what had come of the answer.
    """

    def __init__(self, what: str, partial: str, *, seen: object | None = None,
                 hint: str | None = None) -> None:  # fmt: skip
        super().__init__(what, seen=seen, hint=hint)
        self.partial = partial
