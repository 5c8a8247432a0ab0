"""Labels from thresholds, warnings about the order of types, and the one-sentence answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nybble.errors import NybbleError
from nybble.formats import KVSetting, parse
from nybble.results.records import Estimate, Row, Verdict
from nybble.scoring.compare import ROW
from nybble.scoring.statistics import Sample, ScoredChunk
from nybble.scoring.verdict import (
    Limit,
    judge,
    load_thresholds,
    order_warnings,
    recommend,
    smaller,
)

LIMITS = {"mean_kld": Limit(0.01, 0.1), "flips": Limit(0.005, 0.05)}


def estimates(
    kld: tuple[float, float | None, float | None], flips: tuple[float, float | None, float | None]
) -> dict[str, Estimate]:
    return {"mean_kld": Estimate(*kld), "flips": Estimate(*flips)}


SAFE = (0.005, 0.004, 0.006)
DEGRADED = (0.05, 0.03, 0.07)
BROKEN = (0.5, 0.3, 0.7)
SPANS_SAFE = (0.012, 0.008, 0.02)
SPANS_BROKEN = (0.11, 0.05, 0.2)
FLIPS_SAFE = (0.001, 0.0, 0.003)
FLIPS_DEGRADED = (0.02, 0.01, 0.04)
FLIPS_BROKEN = (0.2, 0.1, 0.3)
FLIPS_SPANS = (0.004, 0.002, 0.008)


class TestJudge:
    @pytest.mark.parametrize(
        ("kld", "flips", "label"),
        [
            (SAFE, FLIPS_SAFE, "safe"),
            (DEGRADED, FLIPS_SAFE, "degraded"),
            (SAFE, FLIPS_DEGRADED, "degraded"),
            (BROKEN, FLIPS_SAFE, "broken"),
            (SAFE, FLIPS_BROKEN, "broken"),
            (SPANS_SAFE, FLIPS_SAFE, "unresolved"),
            (SPANS_BROKEN, FLIPS_SAFE, "unresolved"),
            # Broken for sure is broken, whatever else is open.
            (BROKEN, FLIPS_SPANS, "broken"),
            (SPANS_SAFE, FLIPS_BROKEN, "broken"),
            # Degraded for sure, and the open one can only be safe or degraded.
            (DEGRADED, FLIPS_SPANS, "degraded"),
            (SPANS_SAFE, FLIPS_DEGRADED, "degraded"),
            # Degraded for sure, but the open one may be broken.
            (SPANS_BROKEN, FLIPS_DEGRADED, "unresolved"),
            (SPANS_SAFE, FLIPS_SPANS, "unresolved"),
        ],
    )
    def test_label(self, kld: tuple[float, ...], flips: tuple[float, ...], label: str) -> None:
        assert judge(estimates(kld, flips), LIMITS).label == label  # type: ignore[arg-type]

    @pytest.mark.parametrize("value", [0.0, 0.005, 0.05, 5.0])
    def test_without_intervals_nothing_is_decided(self, value: float) -> None:
        got = judge(estimates((value, None, None), (0.0, None, None)), LIMITS)
        assert got.label == "unresolved"
        assert "(too few documents for an interval)" in got.reason
        got = judge(estimates((value, None, None), FLIPS_DEGRADED), LIMITS)
        assert got.label == "unresolved"
        assert judge(estimates((value, None, None), FLIPS_BROKEN), LIMITS).label == "broken"

    @pytest.mark.parametrize(
        ("low", "high", "label"),
        [
            (0.001, 0.01, "safe"),
            (0.01, 0.02, "unresolved"),
            (0.0101, 0.1, "degraded"),
            (0.05, 0.101, "unresolved"),
            (0.1, 0.2, "unresolved"),
            (0.1001, 0.2, "broken"),
            (0.001, 0.5, "unresolved"),
        ],
    )
    def test_ends_of_the_interval(self, low: float, high: float, label: str) -> None:
        limits = {"mean_kld": LIMITS["mean_kld"]}
        assert judge({"mean_kld": Estimate(0.05, low, high)}, limits).label == label

    def test_not_a_number_is_never_safe(self) -> None:
        got = judge(estimates((float("nan"), None, None), FLIPS_SAFE), LIMITS)
        assert got.label == "unresolved"

    def test_reason_names_the_number_that_decided(self) -> None:
        reason = judge(estimates(BROKEN, FLIPS_SPANS), LIMITS).reason
        assert reason == "mean KLD 0.5 (0.3 to 0.7), safe up to 0.01, broken above 0.1"
        reason = judge(estimates(SAFE, FLIPS_DEGRADED), LIMITS).reason
        assert reason == "flips 2.00% (1.00% to 4.00%), safe up to 0.50%, broken above 5.00%"
        reason = judge(estimates(SAFE, FLIPS_SAFE), LIMITS).reason
        assert reason.count(";") == 1 and "mean KLD" in reason and "flips" in reason


class TestThresholds:
    def test_shipped(self) -> None:
        limits = load_thresholds()
        assert "mean_kld" in limits
        assert all(0 < x.safe < x.broken for x in limits.values())

    def test_own_file(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.toml"
        path.write_text("[p99_kld]\nsafe = 1\nbroken = 2.5\n[rms_dp]\nsafe=0.01\nbroken=0.02\n")
        assert load_thresholds(path) == {"p99_kld": Limit(1, 2.5), "rms_dp": Limit(0.01, 0.02)}

    @pytest.mark.parametrize(
        ("text", "what", "seen"),
        [
            ("[mean_kl]\nsafe=1\nbroken=2", "did you mean mean_kld?", "mean_kl in"),
            ("[nonsense]\nsafe=1\nbroken=2", "unknown metric in thresholds", "nonsense in"),
            ("[mean_kld]\nsafe=2\nbroken=2", "needs safe and broken", "mean_kld"),
            ("[mean_kld]\nsafe=3\nbroken=2", "needs safe and broken", "mean_kld"),
            ("[mean_kld]\nsafe=0\nbroken=2", "needs safe and broken", "mean_kld"),
            ("[mean_kld]\nsafe=nan\nbroken=2", "needs safe and broken", "mean_kld"),
            ("[mean_kld]\nsafe=1", "needs safe and broken", "mean_kld"),
            ("[mean_kld]\nsafe='a'\nbroken=2", "needs safe and broken", "mean_kld"),
            ("[mean_kld]\nsafe=[1]\nbroken=2", "needs safe and broken", "mean_kld"),
            ("mean_kld = 0.1", "needs safe and broken", "mean_kld = 0.1"),
            ("mean_kld = [1, 2]", "needs safe and broken", "mean_kld"),
            ("mean_kld: 0.1", "cannot read the thresholds", "mine.toml"),
            ("", "no thresholds given", "mine.toml"),
        ],
    )
    def test_refused(self, tmp_path: Path, text: str, what: str, seen: str) -> None:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        with pytest.raises(NybbleError) as caught:
            load_thresholds(path)
        assert what in caught.value.what
        assert seen in str(caught.value.seen) and "mine.toml" in str(caught.value.seen)

    def test_unreadable(self, tmp_path: Path) -> None:
        with pytest.raises(NybbleError, match="cannot read the thresholds"):
            load_thresholds(tmp_path / "none.toml")
        (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(NybbleError, match="cannot read the thresholds"):
            load_thresholds(tmp_path / "binary.toml")


def test_smaller() -> None:
    def is_smaller(a: str, b: str) -> bool:
        return smaller(parse(a), parse(b))

    assert is_smaller("q4_0", "q8_0")
    assert is_smaller("q8_0/q4_0", "q8_0/q8_0")
    assert is_smaller("q4_0", "f16")
    assert not is_smaller("q8_0", "q4_0")
    assert not is_smaller("q4_0", "q4_0")
    assert not is_smaller("q4_0", "iq4_nl")  # equal bits
    assert not is_smaller("q8_0/q4_0", "q4_0/q8_0")  # neither way
    assert not is_smaller("q4_0-norot", "q8_0")  # rotation changes more than bits do


def sample(scale: float, n: int = 12, spread: float = 0.3, seed: int = 0) -> Sample:
    """Documents whose mean KLD is about `scale`; equal seeds share the document effects."""
    effects = np.exp(np.random.default_rng(0).normal(0, 1, n))
    rng = np.random.default_rng(seed + 1)
    chunks = []
    for i, effect in enumerate(effects):
        rows = np.zeros(15, dtype=ROW)
        rows["kld"] = scale * effect * np.exp(rng.normal(0, spread, 15))
        chunks.append(ScoredChunk("c", f"d{i}", rows))
    return Sample(chunks)


class TestOrder:
    def found(self, small: float, large: float, **kwargs: float) -> list[str]:
        samples: dict[KVSetting, Sample] = {
            parse("q8_0"): sample(large, seed=1, **kwargs),  # type: ignore[arg-type]
            parse("q4_0"): sample(small, seed=2, **kwargs),  # type: ignore[arg-type]
        }
        return order_warnings(samples, 2048)

    def test_warns_when_fewer_bits_score_better(self) -> None:
        (text,) = self.found(0.01, 0.02)
        assert text.startswith("q4_0/q4_0 stores fewer bits than q8_0/q8_0 and yet scores better")
        assert "at context 2,048" in text

    def test_silent_in_the_usual_order(self) -> None:
        assert self.found(0.02, 0.01) == []

    def test_silent_within_the_intervals(self) -> None:
        assert self.found(0.0099, 0.01, spread=1.0) == []

    def test_silent_with_too_few_documents(self) -> None:
        assert self.found(0.01, 0.02, n=4) == []

    def test_silent_where_bits_cannot_be_compared(self) -> None:
        samples = {parse("q8_0/q4_0"): sample(0.01), parse("q4_0/q8_0"): sample(0.02, seed=1)}
        assert order_warnings(samples, 64) == []


def row(setting: str, label: str | None, kld: float = 0.01, **changes: object) -> Row:
    base: dict[str, object] = {
        "setting": str(parse(setting)), "role": "candidate", "context": 1024,
        "k_type": parse(setting).k, "v_type": parse(setting).v, "bits": parse(setting).bits,
        "metrics": {"mean_kld": Estimate(kld, kld / 2, kld * 2), "same_top": Estimate(0.987)},
        "verdict": Verdict(label, "why") if label else None,
    }  # fmt: skip
    return Row(**{**base, **changes})  # type: ignore[arg-type]


class TestRecommend:
    def test_smallest_safe(self) -> None:
        rows = [row("q8_0", "safe"), row("q5_1", "safe"), row("q4_0", "degraded")]
        assert recommend(rows) == (
            "q5_1/q5_1 at 6 bits an element is safe here: 62% less cache than f16, "
            "mean KLD 0.01 (0.005 to 0.02), same top token at 98.7% of positions."
        )

    def test_safe_before_smaller_degraded_or_unresolved(self) -> None:
        rows = [row("q4_0", "unresolved"), row("q8_0", "safe"), row("q5_0", "degraded")]
        assert recommend(rows).startswith("q8_0/q8_0 at 8.5 bits an element is safe here")

    def test_equal_bits_the_better_one(self) -> None:
        rows = [row("q8_0/q4_0", "safe", 0.009), row("q4_0/q8_0", "safe", 0.003)]
        assert recommend(rows).startswith("q4_0/q8_0 at 6.5 bits")

    def test_degraded(self) -> None:
        rows = [row("q8_0", "unresolved"), row("q4_0", "broken"), row("q5_1", "degraded")]
        text = recommend(rows)
        assert text.startswith("No measured type is safe for sure; q5_1/q5_1 at 6 bits")
        assert "is degraded here" in text

    def test_all_broken(self) -> None:
        text = recommend([row("q8_0", "broken"), row("q4_0", "broken")])
        assert text == "Every measured type breaks this model's output; keep the cache in f16."

    def test_unresolved(self) -> None:
        text = recommend([row("q8_0", "unresolved"), row("q4_0", "broken")])
        assert text.startswith("Not resolved with this little text")
        assert "--documents" in text

    @pytest.mark.parametrize(
        "rows",
        [
            [],
            [row("f16/f16", None, role="identity"), row("bf16/bf16", None, role="floor")],
            [row("bf16/f16", "safe")],
            [row("q4_0", None, status="failed", metrics={})],
            [row("q4_0", "safe", model="a", reference="b")],
        ],
    )
    def test_nothing_quantized(self, rows: list[Row]) -> None:
        assert recommend(rows).startswith("No quantized KV setting was measured")

    def test_failed_rows_are_passed_over(self) -> None:
        rows = [row("q4_0", None, status="failed", metrics={}), row("q8_0", "safe")]
        assert recommend(rows).startswith("q8_0/q8_0")

    def test_longest_context_decides(self) -> None:
        rows = [row("q4_0", "safe"), row("q4_0", "broken", context=8192)]
        rows += [row("q8_0", "safe"), row("q8_0", "safe", context=8192)]
        assert recommend(rows).startswith("q8_0/q8_0")

    def test_without_intervals(self) -> None:
        got = recommend(
            [row("q8_0", "safe", metrics={"mean_kld": Estimate(0.002), "same_top": Estimate(1)})]
        )
        assert "mean KLD 0.002, same top token at 100.0%" in got
