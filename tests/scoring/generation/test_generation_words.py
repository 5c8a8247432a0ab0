"""What the sentences say, and when."""

from __future__ import annotations

import pytest

from nybble.results.records import Estimate
from nybble.results.tasks import Divergence
from nybble.scoring.generation.words import recommend, warnings_of

UP, DOWN, OPEN, FEW = (
    Estimate(0.2, 0.1, 0.3), Estimate(-0.2, -0.3, -0.1), Estimate(0.1, -0.1, 0.3), Estimate(0.2),
)  # fmt: skip


def row(setting: str, role: str = "candidate", **fields: object) -> Divergence:
    return Divergence(setting, role, 6, **{"first_median": Estimate(7, 3, 12), **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("trends", "says"),
    [
        ((UP, DOWN), "The error of q8_0/q8_0 grows along the answer."),
        ((DOWN, DOWN), "No error grows along the answer; all of them fall."),
        ((OPEN, DOWN), "No error grows along the answer for sure."),
        ((FEW, DOWN), None),
        ((None, DOWN), None),
    ],
)
def test_whether_errors_grow(trends: tuple[Estimate | None, ...], says: str | None) -> None:
    rows = [row(s, trend=t) for s, t in zip(("q8_0/q8_0", "q4_0/q4_0"), trends, strict=True)]
    said = recommend(rows)
    assert said.endswith(says) if says else "along the answer" not in said


def test_where_answers_part_beside_rounding() -> None:
    floor = row("bf16/bf16", "floor", first_median=None)
    said = recommend([row("q4_0/q4_0"), floor])
    assert "q4_0/q4_0 token 7." in said
    assert "(bf16 against f16): nowhere in over half of the answers." in said
    failed = row("q4_0/q4_0", status="failed")
    assert "nothing to compare" in recommend([failed, floor])


def test_what_makes_numbers_doubtful() -> None:
    zero, some = {"1-64": Estimate(0.0)}, {"1-64": Estimate(1e-4)}
    sure = row("q4_0/q4_0", agreement_change=Estimate(-0.3, -0.5, -0.1))
    equal = row("f16/f16", "identity", first_at=[0], kld_at=zero)
    assert warnings_of([sure, equal]) == []
    for broken in ({"first_at": [9], "kld_at": zero}, {"first_at": [0], "kld_at": some}):
        (said,) = warnings_of([sure, row("f16/f16", "identity", **broken)])
        assert "not deterministic" in said
    for unsure in (Estimate(-0.3, -0.5, 0.1), Estimate(-0.3)):
        (said,) = warnings_of([row("q8_0/q8_0", agreement_change=unsure), equal])
        assert said.startswith("q8_0/q8_0: so few prompts (6")
