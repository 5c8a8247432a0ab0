"""Documents read as text: plain ones here and in pieces, others by kreuzberg in a child process.

A document is data of strangers. A parser that crashes, hangs or takes too much memory costs
that document and no more; a text of any size is read in pieces, so memory stays bounded.
"""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import IO

from nybble.engines.child import EngineCrashError, EngineProcess
from nybble.errors import NybbleError
from nybble.rag.documents import Found
from nybble.rag.packages import need

# What a parser reads, by suffix. All else is plain text, or no text.
PARSED = {
    ".htm": ("html", "text/html"),
    ".html": ("html", "text/html"),
    ".xhtml": ("html", "text/html"),
    ".pdf": ("pdf", "application/pdf"),
    ".docx": ("docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
    ".odt": ("odt", "application/vnd.oasis.opendocument.text"),
    ".rtf": ("rtf", "application/rtf"),
}
_MARKDOWN = (".md", ".markdown", ".mdown")
_PIECE = 1 << 20  # characters of a plain text that are held at once
_HEAD = 1 << 16  # bytes that a text's encoding is told from
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class UnreadableError(Exception):
    """A document cannot be read; the message is the reason, fit for a table. Never shown raw.

    `again` says that the next run may succeed on the same bytes.
    """

    def __init__(self, reason: str, *, again: bool = False) -> None:
        self.again = again
        super().__init__(reason)


@dataclass(frozen=True)
class Part:
    """A piece of a document's text.

    Attributes:
        text: extracted.
        start: characters of the document before it.
        pages: where each page starts, in characters of the document; for PDFs, else empty.
    """

    text: str
    start: int
    pages: tuple[int, ...] = ()


@dataclass(frozen=True)
class Opened:
    """A document about to be read: what it is, and its pieces, to be read once.

    Attributes:
        kind: text, markdown, or the parsed kind.
        title: as its format states it; "" where it does not.
        markdown: whether its text is Markdown.
        parts: in order; reading them raises UnreadableError.
    """

    kind: str
    title: str
    markdown: bool
    parts: Iterator[Part]


class Reader:
    """Reads documents one after the other; a context manager that ends the parser's process.

    Args:
        seconds: a document may take in the parser.
        memory: bytes that the parser's process may take.
    """

    def __init__(self, *, seconds: float = 60.0, memory: int = 4 << 30) -> None:
        self._seconds, self._memory = seconds, memory
        self._child: EngineProcess | None = None

    def __enter__(self) -> Reader:
        """Nothing is started before it is needed."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """End the parser's process."""
        self._drop()

    def open(self, found: Found) -> Opened:
        """Look at a document and prepare to read it.

        Raises:
            UnreadableError: it is no document, or the parser failed on it.
        """
        suffix = found.place.suffix.lower()
        if suffix in PARSED:
            kind, mime = PARSED[suffix]
            return self._parsed(found, kind, mime)
        markdown = suffix in _MARKDOWN
        try:
            with found.place.open("rb") as file:
                encoding = encoding_of(file.read(_HEAD))
        except OSError as error:
            raise UnreadableError(f"cannot be read: {error.strerror or error}") from error
        parts = _pieces(found, encoding)
        return Opened("markdown" if markdown else "text", "", markdown, parts)

    def _parsed(self, found: Found, kind: str, mime: str) -> Opened:
        try:
            data = found.place.read_bytes()
        except OSError as error:
            raise UnreadableError(f"cannot be read: {error.strerror or error}") from error
        need("kreuzberg")
        try:
            answer = self._process().request(
                {"op": "extract", "mime": mime}, data, timeout=self._seconds
            )
        except EngineCrashError as error:
            self._drop()
            if "hung" in error.what:
                what = f"the parser took over {self._seconds:g} s (--timeout)"
                raise UnreadableError(what, again=True) from error
            raise UnreadableError("the parser crashed on it", again=True) from error
        except NybbleError as error:
            raise UnreadableError(error.what) from error
        text = answer.payload.decode("utf-8", "replace").replace("\x00", "")
        if not text.strip():
            scan = " (a scan? pictures of text are not read)" if kind == "pdf" else ""
            raise UnreadableError("no text in it" + scan)
        part = Part(text, 0, tuple(int(p) for p in answer.header["pages"]))
        return Opened(kind, str(answer.header["title"] or ""), True, iter([part]))

    def _process(self) -> EngineProcess:
        if self._child is None or not self._child.alive:
            self._drop()
            self._child = EngineProcess("nybble.rag.loader_worker", timeout=self._seconds)
            self._child.request({"op": "limits", "memory": self._memory}, timeout=60.0)
        return self._child

    def _drop(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None


def digest(found: Found) -> str:
    """SHA-256 of a file in hex.

    Raises:
        UnreadableError: it cannot be read, or is not as it was when it was listed.
    """
    try:
        with found.place.open("rb") as file:
            made = hashlib.file_digest(file, "sha256").hexdigest()
            unchanged(found, file)
    except OSError as error:
        raise UnreadableError(f"cannot be read: {error.strerror or error}") from error
    return made


def unchanged(found: Found, file: IO[bytes] | None = None) -> None:
    """Check that a file has the size and time of change it had when it was listed.

    Raises:
        UnreadableError: it has not.
    """
    try:
        now = os.fstat(file.fileno()) if file else found.place.stat()
    except OSError as error:
        raise UnreadableError("it went away while it was read", again=True) from error
    if (now.st_size, now.st_mtime_ns) != (found.size, found.mtime_ns):
        raise UnreadableError("it changed while it was read; index again", again=True)


def encoding_of(head: bytes) -> str:
    """The encoding of a text, told from its first bytes: by mark, as UTF-8, else by statistics.

    Raises:
        UnreadableError: it is not text.
    """
    for bom, name in _BOMS:
        if head.startswith(bom):
            return name
    if b"\x00" in head:
        raise UnreadableError("not text")
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        import charset_normalizer

        best = charset_normalizer.from_bytes(head).best()
        if best is None or charset_normalizer.is_binary(head):
            raise UnreadableError("not text, or of an unknown encoding") from None
        return best.encoding
    if sum(c < 9 or 13 < c < 27 for c in head) > len(head) // 50:
        raise UnreadableError("not text")
    return "utf-8"


def _pieces(found: Found, encoding: str) -> Iterator[Part]:
    """A plain text in pieces that end where a paragraph or a line does, if one is near."""
    held, start = "", 0
    try:
        with found.place.open(encoding=encoding, newline=None) as file:
            while True:
                more = file.read(_PIECE - len(held))
                held += more.replace("\x00", "")
                if not more:
                    break
                if len(held) >= _PIECE:
                    cut = _cut(held)
                    yield Part(held[:cut], start)
                    held, start = held[cut:], start + cut
    except UnicodeDecodeError as error:
        raise UnreadableError(f"not {encoding} throughout") from error
    except OSError as error:
        raise UnreadableError(f"cannot be read: {error.strerror or error}") from error
    if held:
        yield Part(held, start)


def _cut(text: str) -> int:
    for mark in ("\n\n", "\n", " "):
        at = text.rfind(mark, len(text) // 2)
        if at > 0:
            return at + len(mark)
    return len(text)
