"""Prompts of a given number of tokens, without the server's tokenizer.

Text is drawn word by word from a short list of common English words, most of which are one token
in today's vocabularies. Two short requests show how many tokens a word and the frame around the
text (chat template, first words) take; lengths are then right to a few percent, and every result
carries what the server itself counted.

No two prompts begin alike: the first words are the number of the request and a mark of the run,
drawn anew each time. So neither the run's own prompts nor those of an earlier run are found in a
prefix cache, in any engine, whatever its flags (llama.cpp's cache_prompt, vLLM's
--enable-prefix-caching, SGLang's radix cache). With `shared`, the mark and the words behind it
are the same in all prompts of a run, up to that share of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nybble.serving.load.profile import generator

WORDS = tuple(
    """
    the and for that with this from have they will when what your said there each which their
    time many then them these some her would make like him into has look two more write see
    number way could people than first water been call who oil its now find long down day did
    get come made may part over new sound take only little work know place year live back give
    most very after thing our just name good sentence man think say great where help through
    much before line right too means old any same tell boy follow came want show also around
    form three small set put end does another well large must big even such because turn here
    why ask went men read need land different home move try kind hand picture again change off
    play spell air away animal house point page letter mother answer found study still learn
    should world high every near add food between own below country plant last school father
    keep tree never start city earth eye light thought head under story saw left few while along
    might close something seem next hard open example begin life always those both paper
    together got group often run important until children side feet car mile night walk white sea
    began grow took river four carry state once book hear stop without second later miss idea
    enough eat face watch far really almost let above girl sometimes mountain cut young talk soon
    list song being leave family body music color stand sun question fish area mark dog horse
    birds problem complete room knew since ever piece told usually friends easy heard order red
    door sure become top ship across today during short better best however low hours black
    products happened whole measure remember early waves reached
    """.split()
)


@dataclass(frozen=True)
class Fit:
    """Tokens of a prompt: frame + per_word * words.

    Attributes:
        frame: chat template and first words.
        per_word: tokens of a word, the space before it included.
        known: whether the server counted them, else usual numbers.
    """

    frame: float = 24.0
    per_word: float = 1.05
    known: bool = False

    @classmethod
    def of(cls, short: tuple[int, int], long: tuple[int, int]) -> Fit:
        """From two prompts, each (words, tokens); usual numbers where these make no sense."""
        words, tokens = long[0] - short[0], long[1] - short[1]
        if words <= 0 or tokens <= 0:
            return cls()
        each = tokens / words
        return cls(max(0.0, short[1] - each * short[0]), each, known=True)

    def words(self, tokens: int) -> int:
        """Words of a prompt of that many tokens; at least one."""
        return max(1, round((tokens - self.frame) / self.per_word))


@dataclass(frozen=True)
class Prompts:
    """All prompts of one run.

    Attributes:
        seed: of the words.
        mark: a word of letters that no earlier run has used.
        shared: share of each prompt that all have in common.
    """

    seed: int
    mark: str
    shared: float = 0.0

    def text(self, index: int, words: int) -> str:
        """Prompt of a request: `words` words behind its first ones."""
        common = round(words * self.shared) if self.shared else 0
        own = _words(generator(self.seed, "words", index), words - common)
        if not common:
            return f"{_spelled(index)} {self.mark}: {' '.join(own)}"
        # A longer prompt has more of the same common text: the shorter one's is its beginning.
        begin = " ".join(_words(generator(self.seed, "shared", 0), common))
        return f"{self.mark}: {begin} {_spelled(index)}: {' '.join(own)}"


def _words(rng: np.random.Generator, n: int) -> list[str]:
    return [WORDS[i] for i in rng.integers(0, len(WORDS), n)]


def _spelled(index: int) -> str:
    """Digits, the fastest changing first, so that prompts part at once."""
    return ("w" if index < 0 else "") + str(abs(index))[::-1]


def new_mark(letter: str = "") -> str:
    """A mark for one run; not of the seed, since equal prompts would be found in a cache."""
    return letter + "".join(
        "abcdefghijklmnopqrstuvwxyz"[i] for i in np.random.default_rng().integers(0, 26, 6)
    )
