"""A document's text out of its passages, which overlap, with one stretch of it marked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nybble.rag.passages import Passage

AROUND = 4000  # characters shown before and after what is marked
WHOLE = 20_000  # characters of a document that is opened from its start


@dataclass(frozen=True)
class Stitched:
    """A stretch of a document with its surroundings.

    Attributes:
        before: text before it.
        marked: the stretch.
        after: text after it.
        cut_before: whether the document has more before.
        cut_after: whether it has more after.
    """

    before: str
    marked: str
    after: str
    cut_before: bool
    cut_after: bool


def stitch(passages: Iterable[Passage], start: int | None, end: int | None) -> Stitched:
    """The text around characters `start` to `end`; the beginning of all where they are None.

    What no passage holds, white space between them, is shown as a space or an empty line.

    Args:
        passages: of one document.
        start: first character to mark.
        end: one past the last.
    """
    whole = start is None or end is None
    low = 0 if start is None else start
    high = WHOLE if end is None else end
    first, last = (0, WHOLE) if whole else (low - AROUND, high + AROUND)
    sides: dict[str, list[str]] = {"before": [], "marked": [], "after": []}
    reached: int | None = None
    cut_before = cut_after = False
    for passage in sorted(passages, key=lambda p: (p.start, p.end)):
        begins, ends = passage.start, passage.start + len(passage.text)
        cut_before = cut_before or begins < first
        cut_after = cut_after or ends > last
        if ends <= max(first, reached or 0) or begins >= last:
            continue
        if reached is not None and begins > reached:
            side = "before" if begins <= low else "marked" if begins < high else "after"
            sides[side].append(" " if begins - reached == 1 else "\n\n")
        seen = first if reached is None else max(first, reached)
        for side, a, b in (("before", first, low), ("marked", low, high), ("after", high, last)):
            a, b = max(a, seen, begins), min(b, ends)
            if a < b:
                sides[side].append(passage.text[a - begins : b - begins])
        reached = ends
    return Stitched("".join(sides["before"]), "".join(sides["marked"]), "".join(sides["after"]),
                    cut_before, cut_after)  # fmt: skip
