"""Texts cut into passages by tokens, with overlap, at the text's own joints.

The cutting is semantic-text-splitter's: headings, paragraphs, lines, sentences, words, in that
order of preference, measured by the embedding model's tokenizer. What it leaves too short to be
found by is joined to its neighbour.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Any

from nybble.errors import NybbleError
from nybble.rag.loaders import Part
from nybble.rag.markup import headings
from nybble.rag.packages import need

_LONG_WORD = 64  # characters
_KNOWN = 200_000  # words that are remembered
_HEADER = 120  # characters of title and heading each that go into what is embedded


@dataclass(frozen=True)
class Chunk:
    """A piece of a document's text.

    Attributes:
        start: first character in the document's text.
        end: one past the last.
        tokens: of its text, without those that a model adds.
        heading: of the section that it starts in; "" for none.
        page: 1-based, for PDFs.
        text: of the piece.
    """

    start: int
    end: int
    tokens: int
    heading: str
    page: int | None
    text: str


class Chunker:
    """Cuts texts into chunks.

    Args:
        tokenizer: a `tokenizers.Tokenizer`; it is set to neither truncate nor pad.
        size: tokens of a chunk at most.
        overlap: tokens that neighbours may share.

    Raises:
        NybbleError: the sizes make no sense.
    """

    def __init__(self, tokenizer: Any, size: int, overlap: int) -> None:
        need("semantic_text_splitter")
        from semantic_text_splitter import MarkdownSplitter, TextSplitter

        if size < 16:
            raise NybbleError("a chunk is too small to be found", seen=size,
                              allowed="16 tokens or more", hint="--chunk-tokens 200")  # fmt: skip
        if not 0 <= overlap <= size // 2:
            raise NybbleError("the overlap does not fit the chunks", seen=overlap,
                              allowed=f"0 to {size // 2}, half a chunk",
                              hint="--overlap 40")  # fmt: skip
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._count, self._size = _Counter(tokenizer), size
        self._splitters: dict[bool, Any] = {
            markdown: kind.from_callback(self._count, size, overlap)
            for markdown, kind in ((True, MarkdownSplitter), (False, TextSplitter))
        }

    def cut(self, part: Part, *, markdown: bool, heading: str = "") -> list[Chunk]:
        """Cut one piece of a text.

        Args:
            part: to cut.
            markdown: whether its structure is Markdown's.
            heading: that was in force where the piece starts.
        """
        found = self._splitters[markdown].chunk_indices(part.text)
        spans = self._joined(part.text, [(at, at + len(text)) for at, text in found if text])
        marks = headings(part.text) if markdown else []
        starts = [h.start for h in marks]
        chunks = []
        for start, end, tokens in spans:
            above = bisect.bisect_right(starts, start)
            # A chunk that opens with headings, one under the other, is of the last of them.
            while 0 < above < len(marks) and marks[above - 1].start >= start:
                line = part.text.find("\n", starts[above - 1])
                if part.text[line : starts[above]].strip():
                    break
                above += 1
            words = marks[above - 1].words if above else heading
            at = part.start + start
            page = bisect.bisect_right(part.pages, at) if part.pages else None
            chunks.append(Chunk(at, part.start + end, tokens, words, page, part.text[start:end]))
        return chunks

    def _joined(self, text: str, spans: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
        """Spans with their tokens, short ones joined to the one before if both fit a chunk."""
        made: list[tuple[int, int, int]] = []
        for start, end in spans:
            tokens = self._count(text[start:end])
            if made and min(tokens, made[-1][2]) < self._size // 3:
                first = made[-1][0]
                both = self._count(text[first:end])
                if both <= self._size:
                    made[-1] = (first, end, both)
                    continue
            made.append((start, end, tokens))
        return made


class _Counter:
    """Counts tokens word by word, and remembers the words.

    The splitter asks for the size of every piece it tries. Tokenizers do not join what white
    space parts, so a sum over words is the count of the whole; it is ten times as fast.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        known, total = self._known, 0
        for word in text.split():
            n = known.get(word)
            total += self._ask(word) if n is None else n
        return total

    def _ask(self, word: str) -> int:
        n = len(self._tokenizer.encode(" " + word, add_special_tokens=False).ids)
        if len(word) > _LONG_WORD:
            # Some tokenizers take any long run for one unknown word; it must be cut all the same.
            return max(n, len(word) // 4)
        if len(self._known) >= _KNOWN:
            self._known.clear()
        self._known[word] = n
        return n


def framed(title: str, heading: str, text: str) -> str:
    """What of a passage is embedded and looked up by words: its title and heading come first.

    A passage deep in a document often does not name what it is about; its title does.
    """
    lines = [title[:_HEADER]]
    if heading and heading != title:
        lines.append(heading[:_HEADER])
    return "\n".join([*lines, text])
