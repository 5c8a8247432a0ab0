"""Finds in release notes what concerns KV caches: sentence by sentence, by stated patterns.

No network and no model: a sentence matches or it does not, the words that matched are kept, and
its score is the sum of the weights below. Tags are removed by a pattern that runs in linear time,
since notes are written by anybody.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass

from nybble.watch.parse import Release, plain
from nybble.watch.records import NoteLine

MAX_LINES = 200  # kept of one engine
_MAX_HTML = 1 << 18
_MAX_SENTENCE = 600

_KV = r"\b(?:kv|key[ /-]?value)(?:[ _-]?cache)?s?\b|kv[_-]cache|quantizedcache"
_BITS = (
    r"\b(?:fp8|fp4|nvfp4|mxfp[48]|int[248]|u?int4|[248]-?bit|e4m3|e5m2|"
    r"i?q[2-8]_(?:[0-9k]|nl)\w*|turbo_?quant\w*|per[ _-]token[ _-]head)\b"
)
_QUANT = rf"(?:\b(?:de|re)?-?quanti[sz]\w*|\bd?types?\b|{_BITS})"


@dataclass(frozen=True)
class Topic:
    """One thing that notes may be about.

    Attributes:
        name: for people.
        weight: of a match, in the score of a sentence.
        patterns: all must be found in the sentence, in any order, letters of any case.
    """

    name: str
    weight: int
    patterns: tuple[re.Pattern[str], ...]


def _topic(name: str, weight: int, *patterns: str) -> Topic:
    return Topic(name, weight, tuple(re.compile(p, re.IGNORECASE) for p in patterns))


TOPICS = (
    _topic("KV flag", 6, r"--kv-?cache-?\w[\w-]*|--cache-type-[kv]\b|(?<!\w)-ct[kv]d?\b|"
           r"\bkv_cache_(?:dtype|config|scheme|quant\w*)\b|\bkvcacheconfig\b|\bcachedtype\b|"
           r"\bquant[_-]policy\b|\bcache_mode\b|\bollama_kv_cache_type\b|--kv-(?:bits|group-size)\b|"
           r"\bquantized[_-]kv[_-]start\b|\bquantizedcache\b|\bllama_attn_rot\w*|"
           r"\bGGML_CUDA_FA_\w*QUANTS\b"),
    _topic("KV type", 5, _KV, _QUANT),
    _topic("rotation", 4, r"\b(?:hadamard|fwht|walsh|quarot|spinquant|turbo_?quant\w*|"
           r"\w*attn[_-]rot\w*|(?:kv|cache|key|activation|attention)s?[ _-]rotat\w+)\b"),
    _topic("QAT", 4, r"\b(?:qat|qad)\b|\bquantization[- ]aware\b"),
    _topic("FP8/FP4 attention", 3, r"\b(?:fp8|fp4|nvfp4|mxfp[48]|e4m3|e5m2)\b",
           r"\b(?:attention|attn|flash\w*|fa[234]?|mla|kv)\b"),
    _topic("quantized attention", 3, r"\b(?:flash[ _-]?att\w+|flash[ _-]?infer|fattn|fa[234]?)\b",
           rf"{_BITS}|\bquanti[sz]\w*"),
    _topic("sliding window", 3, r"\b(?:sliding[ _-]window|i?swa|rotating ?kv ?cache\w*|"
           r"max_attention_window|hybrid (?:kv )?caches?)\b",
           r"\bcach\w*|\bkv\b|\bquanti\w*|\bcells?\b|\bcheckpoints?\b"),
    _topic("KV cache", 1, _KV),
)  # fmt: skip
# Words of change: what they stand beside is likelier to be wrong in our data now.
_CHANGE = re.compile(
    r"\b(?:break(?:s|ing)?|remov\w+|deprecat\w+|renam\w+|no longer|defaults?|drop(?:s|ped)?|"
    r"reject\w*|forbid\w*|revert\w*|add(?:s|ed)?|support(?:s|ed)?|new|fix(?:es|ed)?)\b",
    re.IGNORECASE,
)

_TAG = re.compile(r"<(/?)([a-zA-Z!?][a-zA-Z0-9]*)[^<>]*>")
_BLOCKS = frozenset("p li ul ol br hr div tr td th table h1 h2 h3 h4 h5 h6 pre blockquote details "
                    "summary section dd dt dl".split())  # fmt: skip
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6", "summary")
_HIDDEN = ("script", "style")
# A new sentence begins with a capital, a digit, a quote or a code mark: "e.g. fp8" is none.
_SENTENCE = re.compile(r"(?<=[.!?;])\s+(?=[A-Z0-9`'\"(#\[])")


@dataclass(frozen=True)
class Sentence:
    """A sentence of notes, and the heading it stands under."""

    text: str
    heading: str


def sentences(notes: str) -> Iterator[Sentence]:
    """The sentences of release notes in HTML (or plain text), in order."""
    heading = ""
    for is_heading, line in _lines(notes[:_MAX_HTML]):
        if is_heading:
            heading = plain(line, 120)
        for part in _SENTENCE.split(line):
            if text := plain(part, _MAX_SENTENCE):
                yield Sentence(text, "" if is_heading else heading)


def _lines(notes: str) -> Iterator[tuple[bool, str]]:
    """Lines between the tags of blocks, and whether each is a heading."""
    pieces: list[str] = []
    heading = hidden = False
    at = 0
    for tag in _TAG.finditer(notes):
        if not hidden:
            pieces.append(notes[at : tag.start()])
        at = tag.end()
        closes, name = tag[1] == "/", tag[2].lower()
        if name in _HIDDEN:
            hidden = not closes
        if name not in _BLOCKS:
            continue
        yield from _broken(heading, pieces)
        pieces = []
        if name in _HEADINGS:
            heading = not closes
        elif name in ("p", "ul", "ol", "li"):
            heading = False  # a heading that was never closed ends here
    if not hidden:
        pieces.append(notes[at:])
    yield from _broken(heading, pieces)


def _broken(heading: bool, pieces: list[str]) -> Iterator[tuple[bool, str]]:
    """Line breaks separate only where they stand for items: an empty line, or a mark of a list."""
    text = html.unescape("".join(pieces))
    for line in re.split(r"\n[ \t]*(?=\n|[-*+] |#)", text):
        if line.strip():
            yield heading, line.strip().lstrip("-*+# ")


def concerning(release: Release) -> tuple[NoteLine, ...]:
    """The sentences of a release's notes that concern KV caches, in their order."""
    found = []
    for sentence in sentences(release.notes):
        topics, matched, score = match(sentence.text)
        if topics:
            found.append(NoteLine(release.version, sentence.text, sentence.heading, topics, matched,
                                  score, release.url))  # fmt: skip
    return tuple(found)


def match(text: str) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """Names of the topics of a sentence, the words that matched, and its score; 0 without any."""
    topics, matched, score = [], [], 0
    for topic in TOPICS:
        hits = [pattern.search(text) for pattern in topic.patterns]
        if all(hits):
            topics.append(topic.name)
            matched += [hit[0] for hit in hits if hit]
            score += topic.weight
    if score and _CHANGE.search(text):
        score += 1
    return tuple(topics), tuple(dict.fromkeys(matched)), score


def ranked(lines: list[NoteLine]) -> tuple[NoteLine, ...]:
    """The most relevant first, each sentence once; of equal ones the order is kept."""
    once = {line.text: line for line in reversed(lines)}
    order = {line.text: n for n, line in reversed(list(enumerate(lines)))}
    best = sorted(once.values(), key=lambda line: (-line.score, order[line.text]))
    return tuple(best[:MAX_LINES])
