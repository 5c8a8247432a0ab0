"""Whether a measurement's guards held: identity, noise floor, drift, order of the types."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence

from nybble.results.records import Measurement, Row
from nybble.results.validate.check import Check, verdict

MOST_FLOOR = 1e-2  # nats; a noise floor above it drowns what a safe setting costs
_PLAIN = ("f32", "f16", "bf16")

Smaller = Callable[[str, str], bool]


def label(row: Row) -> str:
    """A row's name in a reason."""
    pair = "" if row.model == row.reference else f", {row.model} against {row.reference}"
    return f"{row.role} {row.setting} at {row.context:,}{pair}"


def done(record: Measurement) -> list[Row]:
    """Rows with numbers."""
    return [r for r in record.rows if r.status == "done" and "mean_kld" in r.metrics]


def quantized(row: Row) -> bool:
    """Whether it is a candidate with a side below 16 bits."""
    return row.role == "candidate" and not {row.k_type, row.v_type} <= set(_PLAIN)


def identity(record: Measurement) -> Check:
    """The reference against itself is exactly 0: the runner adds no error of its own."""
    name = "identity row is zero"
    rows = [r for r in done(record) if r.role == "identity"]
    if not rows:
        return Check(name, "fail", "no identity row")
    if all(r.served for r in rows):
        worst = max(r.metrics["mean_kld"].value for r in rows)
        return Check(
            name, "skipped", f"through a server, which need not repeat itself: {worst:.2g}"
        )
    wrong = [
        f"{label(r)}: {m} {r.metrics[m].value:.2g}"
        for r in rows for m in ("mean_kld", "max_kld") if m in r.metrics and r.metrics[m].value != 0
    ]  # fmt: skip
    return verdict(name, wrong)


def floor(record: Measurement) -> Check:
    """Every context has a noise floor, and the quantized candidates stand above it."""
    name = "noise floor present and small"
    rows = done(record)
    floors = {(r.model, r.context): r for r in rows if r.role == "floor"}
    costs: dict[tuple[str, int], list[float]] = defaultdict(list)
    for row in rows:
        if quantized(row) and row.model == row.reference:
            costs[row.model, row.context].append(row.metrics["mean_kld"].value)
    if not floors and rows and all(r.served for r in rows):
        return Check(name, "skipped", "through a server; its identity row stands for it")
    if not floors:
        return Check(name, "fail", "no floor row")
    wrong = [
        f"no floor row for model {model} at {context:,}"
        for model, context in sorted(costs.keys() - floors.keys())
    ]
    for key, row in floors.items():
        value = row.metrics["mean_kld"].value
        most = min(MOST_FLOOR, statistics.median(costs.get(key, [MOST_FLOOR])))
        if value >= most:
            wrong.append(f"{label(row)}: {value:.2g}, at most {most:.2g}")
    return verdict(
        name, wrong, f"up to {max(r.metrics['mean_kld'].value for r in floors.values()):.2g}"
    )


def drift(record: Measurement) -> Check:
    """A quantized cache that was read leaves a trace: KLD above 0."""
    rows = [r for r in done(record) if quantized(r)]
    if not rows:
        return Check("quantized caches were read", "skipped", "no quantized candidate")
    zero = [f"{label(r)}: KLD exactly 0" for r in rows if r.metrics["mean_kld"].value == 0]
    return verdict("quantized caches were read", zero, f"{len(rows)} candidates")


def order(record: Measurement, smaller: Smaller) -> Check:
    """A type with fewer bits does not beat one with more beyond both intervals.

    Args:
        record: the measurement.
        smaller: whether the first KV setting stores fewer bits than the second, and both are of
            a family that is ordered by bits.
    """
    name = "fewer bits are not better"
    groups: dict[tuple[str, str, int], list[Row]] = defaultdict(list)
    for row in done(record):
        if row.role == "candidate":
            groups[row.model, row.reference, row.context].append(row)
    pairs = [(a, b) for rows in groups.values() for a in rows for b in rows
             if a is not b and smaller(a.setting, b.setting)]  # fmt: skip
    if not pairs:
        return Check(name, "skipped", "no two settings that are ordered by their bits")
    return verdict(name, _beaten(pairs), f"{len(pairs)} pairs")


def _beaten(pairs: Sequence[tuple[Row, Row]]) -> list[str]:
    found = []
    for a, b in pairs:
        high, low = a.metrics["mean_kld"].high, b.metrics["mean_kld"].low
        if high is not None and low is not None and high < low:
            found.append(f"{label(a)} ends at {high:.2g}, {b.setting} begins at {low:.2g}")
    return found
