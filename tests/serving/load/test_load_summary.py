"""Numbers of runs whose times are known by hand."""

from __future__ import annotations

import dataclasses

import pytest

from load_builders import SHAPE, answer, in_blocks, report_of, run_of
from nybble.errors import NybbleError
from nybble.results.loads import LoadBlock
from nybble.serving.load.summary import Limits, check_same, numbers, per_token, ratio


class TestNumbers:
    def test_by_hand(self) -> None:
        """20 requests of 0.2 s each in a row: 11 tokens in 0.2 s is 55 a second."""
        n = run_of([answer(i) for i in range(20)]).numbers
        assert (n.answered, n.failed, n.tokens_in, n.tokens_out) == (20, 0, 100, 11)
        assert n.seconds == pytest.approx(4.0)
        assert n.rates["tokens_out"].value == pytest.approx(55)
        assert n.rates["tokens"].value == pytest.approx(555)
        assert n.rates["requests"].value == pytest.approx(5)
        assert n.seconds_at["ttft"]["p50"].value == 0.1
        assert n.seconds_at["itl"]["p99"].value == 0.01
        assert n.seconds_at["tpot"]["p90"].value == pytest.approx(0.01)
        assert n.seconds_at["total"]["p50"].value == pytest.approx(0.2)
        assert n.per_piece == 1 and n.as_asked == 1 and n.cached == 0

    def test_a_steady_rate_has_a_narrow_interval(self) -> None:
        rate = run_of([answer(i) for i in range(20)]).numbers.rates["tokens_out"]
        assert rate.low is not None and rate.high is not None
        assert 52 < rate.low <= 55 <= rate.high < 58

    def test_a_short_run_has_none(self) -> None:
        """All at once: no stretch of time is longer than a request."""
        rate = run_of([answer(i, at=0.0) for i in range(20)]).numbers.rates["tokens_out"]
        assert rate.value == pytest.approx(20 * 11 / 0.2) and rate.low is None

    def test_failures_are_counted_and_give_no_tokens(self) -> None:
        broken = [answer(i, error="cut off", detail=f"d{i}") for i in range(20, 25)]
        broken.append(answer(25, error="HTTP 500", detail="x"))
        n = run_of([*(answer(i) for i in range(20)), *broken]).numbers
        assert (n.answered, n.failed) == (20, 6)
        assert [(f.error, f.count, f.detail) for f in n.failures] == [
            ("cut off", 5, "d20"), ("HTTP 500", 1, "x"),
        ]  # fmt: skip
        assert n.rates["tokens_out"].value == pytest.approx(20 * 11 / (26 * 0.2))

    def test_nothing_at_all(self) -> None:
        n = numbers([], [LoadBlock(0, 0.0, 0.0, 0.0, 0.0)])
        assert n.answered == 0 and n.rates["tokens"].value == 0
        assert n.seconds_at["ttft"] == {} and n.tokens_in is None

    def test_pieces_of_several_tokens(self) -> None:
        one = answer(0, gaps=(0.05, 0.05), tokens_out=11)
        assert per_token(one) == pytest.approx(0.01)
        assert run_of([one]).numbers.per_piece == pytest.approx(11 / 3)
        assert per_token(answer(0, tokens_out=1)) is None

    def test_good_ones(self) -> None:
        requests = [answer(i, first=0.1 if i % 2 else 0.3) for i in range(20)]
        requests.append(answer(20, error="cut off"))
        good = run_of(requests, limits=Limits(ttft=0.2)).numbers.good
        assert good is not None and good.share.value == pytest.approx(10 / 21)
        good = run_of(requests, limits=Limits(ttft=0.2, tpot=0.001)).numbers.good
        assert good is not None and good.share.value == 0 and good.rate.value == 0
        assert run_of(requests).numbers.good is None

    @pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf")])
    def test_limits_are_above_zero(self, limit: float) -> None:
        with pytest.raises(NybbleError):
            Limits(ttft=limit)


class TestRatio:
    def test_noise_of_the_machine_cancels_in_turns(self) -> None:
        """The second half of both runs is 3 times slower; one is 1.5 times the other."""

        def noise(block: int) -> float:
            return 3.0 if block > 2 else 1.0

        one = run_of(in_blocks(5, 8, noise), blocks=5)
        two = run_of(in_blocks(5, 8, lambda b: 1.5 * noise(b)), "two", blocks=5)
        found = ratio(two, one, in_turns=True)
        rate, first = found.rates["tokens_out"], found.seconds_at["ttft"]["p50"]
        for estimate, value in ((rate, 1 / 1.5), (first, 1.5)):
            assert estimate.value == pytest.approx(value)
            assert estimate.low == pytest.approx(value, rel=1e-6)
            assert estimate.high == pytest.approx(value, rel=1e-6)
        apart = ratio(two, one, in_turns=False)
        low, high = apart.seconds_at["ttft"]["p50"].low, apart.seconds_at["ttft"]["p50"].high
        assert low is not None and high is not None and high / low > 2
        assert "not driven in turns" in apart.notes[0]

    def test_of_itself_is_one(self) -> None:
        one = run_of(in_blocks(5, 8), blocks=5)
        found = ratio(one, one, in_turns=True)
        assert found.rates["tokens"].value == 1 and found.seconds_at["itl"]["p99"].value == 1

    def test_other_models_are_named(self) -> None:
        one = run_of([answer(i) for i in range(20)])
        found = ratio(dataclasses.replace(one, model="other"), one, in_turns=True)
        assert any("models differ" in n for n in found.notes)

    def test_one_without_an_answer(self) -> None:
        one = run_of([answer(i) for i in range(20)])
        none = run_of([answer(i, error="refused") for i in range(20)], "none")
        assert report_of(one, none).ratios[0].rates["tokens"].value == 0
        assert report_of(none, one).ratios[0].rates["tokens"].value == 0

    def test_other_profiles_are_refused(self) -> None:
        check_same(SHAPE, dataclasses.replace(SHAPE, blocks=7), "x")
        for change in ({"tokens_in": "101"}, {"concurrency": 2}, {"seed": 1}, {"rate": 1.0},
                       {"api": "completions"}, {"shared": 0.5}):  # fmt: skip
            with pytest.raises(NybbleError) as caught:
                check_same(SHAPE, dataclasses.replace(SHAPE, **change), "old.json")
            assert next(iter(change)) in str(caught.value) and "old.json" in str(caught.value)
