"""A verdict per row from thresholds in one small file, and a sentence for the whole run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nybble.errors import NybbleError, unknown
from nybble.formats import KVSetting, parse
from nybble.results.records import Estimate, Row, Verdict
from nybble.scoring.statistics import Sample, paired_difference
from nybble.toml import read_toml

_WORDS = {"mean_kld": "mean KLD", "flips": "flips", "p99_kld": "p99 KLD", "p999_kld": "p99.9 KLD"}
_ORDER = ("safe", "degraded", "unresolved", "broken")  # the worst context decides
_ALLOWED = ("mean_kld", "median_kld", "p99_kld", "p999_kld", "max_kld", "flips", "rms_dp")


@dataclass(frozen=True)
class Limit:
    """Up to `safe` a metric is safe, above `broken` it is broken."""

    safe: float
    broken: float


def load_thresholds(path: Path | None = None) -> dict[str, Limit]:
    """Read thresholds, the shipped ones without a path.

    Raises:
        NybbleError: not TOML, an unknown metric, or limits that are not 0 < safe < broken.
    """
    name = path or Path(__file__).with_name("thresholds.toml")
    allowed = f"a TOML file with a table for one or more of {', '.join(_ALLOWED)}"
    data, _ = read_toml(name, "the thresholds", allowed,
                        "a line such as: mean_kld = { safe = 0.01, broken = 0.1 }")  # fmt: skip
    limits: dict[str, Limit] = {}
    for metric, values in data.items():
        if metric not in _ALLOWED:
            raise unknown("unknown metric in thresholds", metric, _ALLOWED,
                          seen=f"{metric} in {name}")  # fmt: skip
        try:
            limit = Limit(float(values["safe"]), float(values["broken"]))
        except (TypeError, KeyError, ValueError):
            limit = Limit(0, 0)
        if not 0 < limit.safe < limit.broken:
            raise NybbleError(
                "a threshold needs safe and broken",
                seen=f"{metric} = {values} in {name}",
                allowed="numbers with 0 < safe < broken",
            )
        limits[metric] = limit
    if not limits:
        raise NybbleError("no thresholds given", seen=name, allowed=_ALLOWED)
    return limits


def _judge(value: Estimate, limit: Limit) -> str:
    if value.low is None or value.high is None:
        return "unresolved"  # too few documents for an interval decide nothing
    low, high = value.low, value.high
    if high <= limit.safe:
        return "safe"
    if low > limit.broken:
        return "broken"
    if low > limit.safe and high <= limit.broken:
        return "degraded"
    return "unresolved"


def judge(metrics: Mapping[str, Estimate], limits: Mapping[str, Limit]) -> Verdict:
    """The worst of the single judgements; one that is broken for sure decides.

    A metric that is surely degraded also settles it when the unresolved one cannot get worse
    than degraded.
    """
    labels = {m: _judge(metrics[m], limit) for m, limit in limits.items()}
    if "broken" in labels.values():
        label = "broken"
    elif "unresolved" in labels.values():
        open_ones = [m for m, got in labels.items() if got == "unresolved"]
        could_break = any(_high(metrics[m]) > limits[m].broken for m in open_ones)
        settled = "degraded" in labels.values() and not could_break
        label = "degraded" if settled else "unresolved"
    else:
        label = "degraded" if "degraded" in labels.values() else "safe"
    deciding = [m for m, got in labels.items() if got == label] or list(labels)
    return Verdict(label, "; ".join(_reason(m, metrics[m], limits[m]) for m in deciding))


def judge_between(
    low: Mapping[str, Estimate], high: Mapping[str, Estimate], limits: Mapping[str, Limit]
) -> Verdict:
    """Judge a top-k comparison, whose KLDs are lower bounds, by both of its ends.

    What the lower bound alone says is broken is broken. Else both ends must agree.
    """
    a, b = judge(low, limits), judge(high, limits)
    if a.label == b.label or a.label == "broken":
        return Verdict(a.label, f"top-k, lower bound: {a.reason}")
    return Verdict(
        "unresolved", f"top-k: {a.label} by the lower bound ({a.reason}), {b.label} by the "
        f"estimate from above ({b.reason})",
    )  # fmt: skip


def _high(value: Estimate) -> float:
    return math.inf if value.high is None else value.high


def _reason(metric: str, value: Estimate, limit: Limit) -> str:
    percent = metric in ("flips", "rms_dp")

    def show(x: float) -> str:
        return f"{x:.2%}" if percent else f"{x:.2g}"

    span = " (too few documents for an interval)"
    if value.low is not None and value.high is not None:
        span = f" ({show(value.low)} to {show(value.high)})"
    return (
        f"{_WORDS.get(metric, metric)} {show(value.value)}{span}, "
        f"safe up to {show(limit.safe)}, broken above {show(limit.broken)}"
    )


def smaller(a: KVSetting, b: KVSetting) -> bool:
    """Whether a stores at most b's bits on both sides and fewer on one, same rotation.

    Only llama.cpp's plain types are ordered by their bits; that a better codec needs fewer is
    the point of the others.
    """
    if not (a.llamacpp and b.llamacpp):
        return False
    ka, va, kb, vb = a.k_type.bits, a.v_type.bits, b.k_type.bits, b.v_type.bits
    return a.rotation == b.rotation and ka <= kb and va <= vb and (ka, va) != (kb, vb)


def order_warnings(samples: Mapping[KVSetting, Sample], context: int) -> list[str]:
    """Warn where a smaller type scores better than a larger one beyond the intervals."""
    found = []
    for a, sample_a in samples.items():
        for b, sample_b in samples.items():
            if not smaller(a, b):
                continue
            gap = paired_difference(sample_a, sample_b)
            if gap is not None and gap.high is not None and gap.high < 0:
                found.append(
                    f"{a} stores fewer bits than {b} and yet scores better at context "
                    f"{context:,} (KLD difference {gap.value:.2g}, at most {gap.high:.2g}); "
                    "check that both are in effect before trusting either"
                )
    return found


def recommend(rows: Sequence[Row]) -> str:
    """One sentence: the smallest setting that is safe, or what the data allows to say."""
    candidates = [
        r for r in rows if r.role == "candidate" and r.status == "done" and r.verdict
        and parse(r.setting).quantized and r.model == r.reference
    ]  # fmt: skip
    if not candidates:
        return "No quantized KV setting was measured, so there is nothing to recommend."
    longest = max(r.context for r in candidates)
    labels: dict[str, str] = {}
    for row in candidates:
        assert row.verdict is not None
        worst = max(labels.get(row.setting, "safe"), row.verdict.label, key=_ORDER.index)
        labels[row.setting] = worst
    # On equal bits the one that costs less goes first.
    rows_here = [r for r in candidates if r.context == longest]
    rows_here.sort(key=lambda r: (r.bits, r.metrics["mean_kld"].value))
    for label in ("safe", "degraded"):
        best = next((r for r in rows_here if labels[r.setting] == label), None)
        if best is not None:
            head = "" if label == "safe" else "No measured type is safe for sure; "
            least = "at least " if best.served else ""
            how = f" (top-{best.served.top_k} through {best.served.engine})" if best.served else ""
            return (
                f"{head}{best.setting} at {best.bits:g} bits an element is {label} here: "
                f"{1 - best.bits / 16:.0%} less cache than f16, mean KLD {least}"
                f"{_span(best.metrics['mean_kld'])}{how}, same top token at "
                f"{best.metrics['same_top'].value:.1%} of positions."
            )
    if set(labels.values()) == {"broken"}:
        return "Every measured type breaks this model's output; keep the cache in f16."
    return (
        "Not resolved with this little text: no measured type is safe for sure. "
        "Score more documents (--documents), or keep f16."
    )


def _span(value: Estimate) -> str:
    if value.low is None or value.high is None:
        return f"{value.value:.2g}"
    return f"{value.value:.2g} ({value.low:.2g} to {value.high:.2g})"
