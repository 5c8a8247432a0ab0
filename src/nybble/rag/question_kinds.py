"""The three kinds of question, each from one passage."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from dataclasses import dataclass

from nybble.rag.passages import Passage
from nybble.rag.question_corpus import CorpusWords
from nybble.rag.question_words import (
    KEPT,
    STOP,
    SYNONYMS,
    content,
    pieces,
    plain,
    sentences,
    variants,
)

BLANK = "____"
_FEW = 0.01  # share of the passages that a telling word may be in
_SOME = 0.05
_HELD = 5  # passages that an answer may be in
_REWORDED = 0.5  # of the words that have another form
_DROPPED, _DROPPED_OWN, _DROPPED_STOP = 0.15, 0.5, 0.3  # of content words, of those that this
# passage alone has, which few users would know, and of the others
_RUN = 6  # words in a row that may stand as in the sentence
_WINDOW = 14  # words of a sentence that are kept: users ask in few
_THINGS = (
    ("quoted", re.compile(r"``?([^`\n]{3,40})``?|\"([^\"\n]{3,40})\"|“([^”\n]{3,40})”")),
    ("identifier", re.compile(
        r"(?<![\w.])([A-Za-z_]\w*(?:[._]\w+)+(?:\(\))?|[a-z]+[A-Z]\w+|--[a-z][\w-]+"
        r"|[A-Z]{2,}[A-Z0-9_]+)(?![\w])")),
    ("number", re.compile(
        r"(?<![\w.,:-])(\d[\d.,:]*\d(?:\s?(?:%|KB|MB|GB|ms|bits?|bytes?))?)(?!\w)")),
    ("name", re.compile(r"(?<=[a-z,] )([A-Z][a-z]{2,}(?: [A-Z][a-z]+){0,2})(?!\w)")),
)  # fmt: skip
_REMARK = re.compile(r"\s*\([^()]*\)")
_LEAD = re.compile(r"^(?:However|Therefore|Thus|Also|Note that|For example|In addition|Then|If so"
                   r"|Moreover|Otherwise|Usually|By default),?\s+", re.I)  # fmt: skip
_VERBS = frozenset(
    "is are was were has can returns return raises provides defines contains supports specifies "
    "creates represents controls describes implements gives takes allows means requires sets"
    .split()
)  # fmt: skip
_BEFORE = frozenset("is are by called named raises returns defaults to means equals".split())
_SECTION = (
    "What does {title} say about {heading}?",
    "{heading} in {title}: how does it work?",
    "Where is {heading} explained for {title}, and what is said?",
)
_TITLE = 80  # characters of a title or heading that a user would type


@dataclass(frozen=True)
class Made:
    """A question from a passage; `also` are places, not ids."""

    text: str
    answer: str
    also: tuple[int, ...] = ()
    answers: tuple[str, ...] = ()


def cloze(words: CorpusWords, at: int, rng: random.Random) -> Made | None:
    """A sentence less one specific thing, which few passages have."""
    text = words.passage(at).text
    whole = sentences(text)
    rng.shuffle(whole)
    for sentence in whole:
        things = _things(sentence, words)
        if things:
            thing = rng.choice(things)
            made = _blanked(sentence, thing, words, rng)
            if made is not None:
                return made
    return None


def section(words: CorpusWords, at: int, rng: random.Random) -> Made | None:
    """What a document says about a heading that only it has."""
    passage = words.passage(at)
    title, heading = words.title(passage), plain(passage.heading)
    if not (0 < len(heading) <= _TITLE and 0 < len(title) <= _TITLE):
        return None
    named, entitled = pieces(heading), pieces(title)
    if set(named) <= set(entitled) or not any(words.rare(w, _SOME) for w in named):
        return None
    same = words.sections[passage.title.lower(), passage.heading.lower()]
    if len({words.places[o].document for o in same}) > 1:
        return None
    terms = _terms(words, passage, {*named, *entitled})
    if len(terms) < 3:
        return None
    said = " ".join(_other(w, _REWORDED, words, rng) for w in heading.split())
    text = rng.choice(_SECTION).format(title=title, heading=said)
    # A chunk that the section starts in the middle of has another heading, and answers too.
    starts = [o for o in words.holding(named) if _starts(words, o, passage.document, named)]
    also = sorted({*same, *starts} - {at})
    return Made(text, terms[0], tuple(also), tuple(terms[1:3]))


def _starts(words: CorpusWords, at: int, document: str, heading: list[str]) -> bool:
    """Whether a passage of this document has the heading's words in a row."""
    if words.places[at].document != document:
        return False
    return f" {' '.join(heading)} " in f" {' '.join(pieces(words.passage(at).text))} "


def keywords(words: CorpusWords, at: int, rng: random.Random) -> Made | None:
    """Five to seven of the passage's rarer words, as a user types them into a search box."""
    text = words.passage(at).text
    known = {w for w in pieces(text) if content(w) and w.isalpha()}
    rare = sorted(w for w in known if words.rare(w, _SOME))
    shared = [w for w in rare if words.df(w) > 1]
    # A word of one passage alone finds it in any index, and few users would know it.
    enough = shared if len(shared) >= 7 else rare
    if len(enough) < 7:
        return None
    chosen = rng.sample(enough, rng.randint(5, 7))
    also = [o for o in words.holding(chosen) if o != at]
    typed = [_other(w, _REWORDED, words, rng) for w in chosen]
    return Made(" ".join(typed), "", tuple(also))


def things_in(text: str) -> list[tuple[str, str]]:
    """Specific things that a text names, (kind, thing), each once."""
    found: list[tuple[str, str]] = []
    for kind, pattern in _THINGS:
        for match in pattern.finditer(text):
            raw = next(g for g in match.groups() if g)
            thing = raw.strip(" .,;:")
            parts = pieces(thing)
            if len(thing) < 2 or not parts or any(thing == t for _, t in found):
                continue
            if raw != raw.strip() or thing[0] in ")]}/" or thing.count("(") != thing.count(")"):
                continue  # what is between two quotations
            if not set(parts) <= STOP:
                found.append((kind, thing))
    return found


def _things(sentence: str, words: CorpusWords) -> list[tuple[str, str]]:
    """Those of a sentence that are once in it and in few passages."""
    low = sentence.lower()
    return [
        (kind, thing)
        for kind, thing in things_in(sentence)
        if low.count(thing.lower()) == 1 and len(words.holding(pieces(thing))) <= _HELD
    ]


def _blanked(
    sentence: str, thing: tuple[str, str], words: CorpusWords, rng: random.Random
) -> Made | None:
    """The sentence without the thing, shorter and partly in other words."""
    kind, answer = thing
    text = re.sub(rf"[`\"“]*{re.escape(answer)}[`\"”]*", f" {BLANK} ", sentence, count=1)
    text = _LEAD.sub("", _REMARK.sub(lambda m: m[0] if BLANK in m[0] else "", text))
    tokens = _window(text.rstrip(" .!?").split())
    if BLANK not in tokens:
        return None
    kept, used = _shorten(tokens, words, rng)
    telling = [w for w in used if words.rare(w, _FEW)]
    if len(set(telling)) < 2 or len(used) < 4 or set(pieces(answer)) <= set(pieces(" ".join(kept))):
        return None
    also = words.holding({*telling, *pieces(answer)})
    return Made(_frame(kept, kind).replace("`", ""), answer, tuple(also))


def _window(tokens: list[str]) -> list[str]:
    """The words about the blank."""
    if BLANK not in tokens or len(tokens) <= _WINDOW:
        return tokens
    start = max(0, min(tokens.index(BLANK) - _WINDOW // 2, len(tokens) - _WINDOW))
    return tokens[start : start + _WINDOW]


def _shorten(
    tokens: list[str], words: CorpusWords, rng: random.Random
) -> tuple[list[str], list[str]]:
    """Drop and replace words; also the sentence's own content pieces that still stand for it."""
    kept: list[str] = []
    used: list[str] = []
    run = 0  # words in a row as the sentence has them
    for i, token in enumerate(tokens):
        low = token.lower().strip("\"'`“”,;:()")
        if token == BLANK:
            kept.append(token)
            run = 0
            continue
        other = _other(token, _REWORDED, words, rng)
        if other != token:
            kept.append(other)
            used += [w for w in pieces(token) if content(w)]
            run = 0
            continue
        verb = i == 1 and tokens[0] == BLANK and low in _VERBS  # the frame needs it
        drop = rng.random() < _share_dropped(low, words)
        if not verb and low not in KEPT and (drop or run >= _RUN):
            run = 0
            continue
        kept.append(token)
        used += [w for w in pieces(token) if content(w)]
        run += 1
    return kept, used


def _share_dropped(word: str, words: CorpusWords) -> float:
    """How often a word is left out; often where it is in this passage alone, as users' words."""
    if word in STOP:
        return _DROPPED_STOP
    return _DROPPED_OWN if any(words.df(w) == 1 for w in pieces(word)) else _DROPPED


def _frame(tokens: list[str], kind: str) -> str:
    """As a question where the grammar allows, else as a gap to fill."""
    if tokens[0] == BLANK and len(tokens) > 1 and tokens[1].lower() in _VERBS:
        what = {"number": "Which number", "identifier": "What", "name": "Who or what"}
        return f"{what.get(kind, 'What')} {' '.join(tokens[1:])}?"
    if tokens[-1] == BLANK and len(tokens) > 1 and tokens[-2].lower() in _BEFORE:
        return f"{' '.join(tokens[:-1])} what?"
    return f"Complete: {' '.join(tokens)}"


def _other(word: str, share: float, words: CorpusWords, rng: random.Random) -> str:
    """Another form of a word, in this share of the cases where there is one."""
    inside = word.strip("\"'`“”,;:()")
    known = SYNONYMS.get(inside.lower())
    found = [v for v in variants(inside) if v == known or words.df(v)]
    # Drawn whether or not there is one: a longer list of variants moves no other choice.
    drawn, which = rng.random(), rng.random()
    if not found or drawn >= share:
        return word
    # A synonym counts for two: another word is what tells users' questions from documents.
    weighed = [v for v in found for _ in range(2 if v == known else 1)]
    return weighed[int(which * len(weighed))]


def _terms(words: CorpusWords, passage: Passage, known: set[str]) -> list[str]:
    """Words that are most the passage's own, the best first."""
    n = len(words.places)
    counts = Counter(w for w in pieces(passage.text) if content(w) and w.isalpha() and len(w) > 4)
    scored = {
        w: c * math.log(n / words.df(w))
        for w, c in counts.items()
        if w not in known and words.rare(w, _SOME)
    }
    return sorted(scored, key=lambda w: (-scored[w], w))[:6]
