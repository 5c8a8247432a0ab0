"""Markdown as a parser made it of a page: what is no text of the page goes, headings are found."""

from __future__ import annotations

import re
from dataclasses import dataclass

# kreuzberg puts the page's <meta> in front, ended by a heading "title: ...". No pattern here can
# match one text in two ways: pages are hostile, and backtracking must stay linear.
_FRONT = re.compile(r"\A---\n(?:[\w.:-]+: [^\n]*\n|\n)*(?:#+ title: [^\n]*\n+|---\n+)")
_IMAGE = re.compile(r"!\[[^\[\]]*\]\((?:[^()]|\([^()]*\))*\)")
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\((?:[^()\n]|\([^()\n]*\))*\)")
_FENCE = re.compile(r"^ {0,3}(```+|~~~+)")
_HEADING = re.compile(r"^ {0,3}(#{1,6})[ \t]")
_UNDERLINE = re.compile(r"^ {0,3}(?:=+|-{3,})[ \t]*$")
_LONGEST = 500  # characters of a heading's line
_MARKS = re.compile(r"\\([\W_])|[*`]{1,3}|(?<!\w)_{1,3}(?=\w)|(?<=\w)_{1,3}(?!\w)")


@dataclass(frozen=True)
class Heading:
    """A heading of a text: where its line starts, its level from 1, its words."""

    start: int
    level: int
    words: str


def without_links(markdown: str) -> str:
    """Markdown of a web page without its front matter, pictures and the targets of its links.

    The targets are paths that no reader sees; in a chunk they take the room of words. Code
    blocks stay as they are.
    """
    lines, fence = [], ""
    for line in _FRONT.sub("", markdown).split("\n"):
        if found := _FENCE.match(line):
            mark = found[1]
            fence = mark if not fence else "" if mark.startswith(fence) else fence
        elif not fence and "](" in line:
            # Twice, for a picture in a link.
            line = _LINK.sub(r"\1", _LINK.sub(r"\1", _IMAGE.sub("", line)))
        if not fence and _HEADING.match(line):
            line = line.rstrip().removesuffix("¶").rstrip()  # Sphinx's link to the heading itself
        lines.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def headings(text: str) -> list[Heading]:
    """The headings outside code blocks, in order: `# ...`, or a line underlined with = or -."""
    lines = text.split("\n")
    found: list[Heading] = []
    fence, start = "", 0
    for at, line in enumerate(lines):
        if mark := _FENCE.match(line):
            fence = mark[1] if not fence else "" if mark[1].startswith(fence) else fence
        elif not fence and len(line) <= _LONGEST:
            if mark := _HEADING.match(line):
                words = plain(line[mark.end() :].strip().rstrip("#"))
                found += [Heading(start, len(mark[1]), words)] if words else []
            elif _UNDERLINE.match(line) and _title(lines, at - 1):
                above = lines[at - 1]
                level = 1 if "=" in line else 2
                found.append(Heading(start - len(above) - 1, level, plain(above)))
        start += len(line) + 1
    return found


def _title(lines: list[str], at: int) -> bool:
    """Whether a line stands alone: the last line of a paragraph before a rule is no heading."""
    if at < 0 or (at > 0 and lines[at - 1].strip()):
        return False
    return 0 < len(lines[at]) <= _LONGEST and lines[at][0] not in "#|>-*+ `~"


def plain(heading: str) -> str:
    """A heading's words without links and marks of emphasis, on one line."""
    words = _LINK.sub(r"\1", _IMAGE.sub("", heading))
    return " ".join(_MARKS.sub(r"\1", words).split())
