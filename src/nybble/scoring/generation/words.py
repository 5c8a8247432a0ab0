"""What a run of generation says, in words."""

from __future__ import annotations

from collections.abc import Sequence

from nybble.results.tasks import Divergence


def recommend(rows: Sequence[Divergence]) -> str:
    """How far the settings follow the 16-bit cache, against what 16-bit rounding alone does."""
    candidates = [r for r in rows if r.role == "candidate" and r.status == "done"]
    if not candidates:
        return "No KV setting generated to the end, so there is nothing to compare."
    floor = next((r for r in rows if r.role == "floor" and r.status == "done"), None)
    parts = [f"{r.setting} {_parts_at(r)}" for r in candidates]
    said = f"Median of where answers part from the 16-bit cache's: {'; '.join(parts)}."
    if floor is not None:
        said += f" Rounding alone (bf16 against f16): {_parts_at(floor)}."
    return said + _along(candidates)


def _along(rows: Sequence[Divergence]) -> str:
    """Whether errors grow, as far as slopes have intervals."""
    known = {r.setting: r.trend for r in rows if r.trend and r.trend.low is not None}
    growing = [s for s, t in known.items() if t.low is not None and t.low > 0]
    if growing:
        return f" The error of {', '.join(growing)} grows along the answer."
    if len(known) < len(rows):
        return ""
    if all(t.high is not None and t.high < 0 for t in known.values()):
        return " No error grows along the answer; all of them fall."
    return " No error grows along the answer for sure."


def _parts_at(row: Divergence) -> str:
    if row.first_median is None:
        return "nowhere in over half of the answers"
    return f"token {row.first_median.value:,.0f}"


def warnings_of(rows: Sequence[Divergence]) -> list[str]:
    """What makes the numbers doubtful."""
    found = []
    identity = next((r for r in rows if r.role == "identity" and r.status == "done"), None)
    if identity is not None and not _equal(identity):
        found.append(
            "f16 against itself is not equal token for token: this engine build is not "
            "deterministic, so part of every divergence below is not the cache's"
        )
    for row in rows:
        less = row.agreement_change
        if less is not None and (less.high is None or less.high >= 0):
            few = "" if less.high is not None else ": too few for an interval"
            found.append(
                f"{row.setting}: so few prompts ({row.n_prompts:,}{few}) do not tell whether it "
                "parts further from the 16-bit cache than 16-bit rounding does"
            )
    return found


def _equal(row: Divergence) -> bool:
    same = not any(row.first_at)
    return same and all(e.value == 0 for e in row.kld_at.values())
