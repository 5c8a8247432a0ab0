"""Lengths, arrivals and prompts follow from the seed, and prompts share no beginning."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nybble.errors import NybbleError
from nybble.serving.load.lengths import Lengths
from nybble.serving.load.profile import BenchProfile
from nybble.serving.load.prompts import WORDS, Fit, Prompts, new_mark


class TestLengths:
    @pytest.mark.parametrize("text", ["512", "1", "1..1", "128..1024", "lognormal:400,3000"])
    def test_written_as_read(self, text: str) -> None:
        assert str(Lengths.parse(text)) == text

    @pytest.mark.parametrize(
        "text",
        ["", "0", "-5", "9..3", "1..", "..", "lognormal:9", "lognormal:9,3", "normal:1,2", "1e3",
         "99999999999", "lognormal:0,5", "12tokens"],
    )  # fmt: skip
    def test_refused(self, text: str) -> None:
        with pytest.raises(NybbleError, match="lognormal:400,3000"):
            Lengths.parse(text)

    @given(low=st.integers(1, 10**6), more=st.integers(0, 10**6), seed=st.integers(0, 99),
           kind=st.sampled_from(["fixed", "uniform", "lognormal"]))  # fmt: skip
    def test_within(self, low: int, more: int, seed: int, kind: str) -> None:
        found = Lengths(kind, low, low if kind == "fixed" else low + more)
        drawn = found.draw(np.random.default_rng(seed))
        assert 1 <= drawn <= found.longest
        assert kind == "lognormal" or found.low <= drawn <= found.high

    def test_lognormal_has_the_stated_percentiles(self) -> None:
        found, rng = Lengths.parse("lognormal:400,3000"), np.random.default_rng(0)
        drawn = np.array([found.draw(rng) for _ in range(20_000)])
        assert np.quantile(drawn, 0.5) == pytest.approx(400, rel=0.05)
        assert np.quantile(drawn, 0.95) == pytest.approx(3000, rel=0.06)


class TestProfile:
    def test_the_same_for_every_server_and_order(self) -> None:
        one = BenchProfile(tokens_in=Lengths.parse("1..999"), tokens_out=Lengths.parse("1..99"))
        forward = [one.asked(i) for i in range(50)]
        assert forward == [one.asked(i) for i in reversed(range(50))][::-1]
        assert len(set(forward)) > 40 and one.asked(-1) != one.asked(1)

    def test_arrivals_are_poisson(self) -> None:
        waits = [BenchProfile(rate=4.0).wait(i) for i in range(4000)]
        assert np.mean(waits) == pytest.approx(0.25, rel=0.05)
        assert np.std(waits) == pytest.approx(0.25, rel=0.08)
        assert BenchProfile().wait(3) == 0.0

    @pytest.mark.parametrize(
        "bad",
        [{"concurrency": 0}, {"concurrency": 1001}, {"requests": 0}, {"requests": None},
         {"duration": 0.0}, {"duration": math.nan}, {"rate": 0.0}, {"rate": math.inf},
         {"shared": 1.0}, {"shared": -0.1}, {"seed": -1}, {"warmup": -1}, {"blocks": 0},
         {"requests": 3, "blocks": 4}, {"api": "embeddings"}],
    )  # fmt: skip
    def test_refused(self, bad: dict[str, object]) -> None:
        with pytest.raises(NybbleError):
            BenchProfile(**bad)  # type: ignore[arg-type]

    def test_no_block_is_empty(self) -> None:
        assert BenchProfile().n_blocks(1) == 1 and BenchProfile().n_blocks(2) == 5
        assert BenchProfile(requests=3).n_blocks(2) == 3
        assert BenchProfile(requests=None, duration=1.0).n_blocks(2) == 5


class TestPrompts:
    def test_no_two_begin_alike(self) -> None:
        texts = [Prompts(0, "abcdef").text(i, 50) for i in range(-5, 200)]
        assert len({t[:3] for t in texts}) > 150 and len({t[:12] for t in texts}) == 205
        assert len({t.split(": ", 1)[1] for t in texts}) == 205

    def test_another_run_begins_otherwise(self) -> None:
        assert new_mark() != new_mark() and new_mark("a").startswith("a")
        one, other = (Prompts(0, new_mark()).text(7, 50) for _ in range(2))
        assert one != other and one.split(": ")[1] == other.split(": ")[1]

    def test_the_shared_part_is_a_beginning(self) -> None:
        prompts = Prompts(0, "abcdef", shared=0.5)
        short, long = prompts.text(1, 100).split(), prompts.text(2, 200).split()
        same = next(i for i, (a, b) in enumerate(zip(short, long, strict=False)) if a != b)
        assert same == 51, "the mark and half of 100 words"

    @given(words=st.integers(1, 500), index=st.integers(-9, 999), shared=st.floats(0, 0.95))
    @settings(max_examples=50)
    def test_has_the_words(self, words: int, index: int, shared: float) -> None:
        text = Prompts(1, "mark", shared).text(index, words)
        assert sum(w in WORDS for w in text.split()) == words
        assert text == Prompts(1, "mark", shared).text(index, words)

    @given(frame=st.integers(0, 300), each=st.floats(0.5, 9), tokens=st.integers(400, 10_000))
    def test_fit(self, frame: int, each: float, tokens: int) -> None:
        fit = Fit.of((8, frame + round(8 * each)), (400, frame + round(400 * each)))
        assert fit.known
        assert frame + fit.words(tokens) * each == pytest.approx(tokens, rel=0.04, abs=each + 8)

    def test_nonsense_gives_usual_numbers(self) -> None:
        assert Fit.of((8, 50), (8, 90)) == Fit.of((8, 50), (40, 20)) == Fit()
        assert Fit().words(1) == 1
