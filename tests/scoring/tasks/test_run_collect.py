"""From right and wrong to cells and sentences, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from nybble.formats import KVSetting, parse
from nybble.results.records import Estimate
from nybble.results.tasks import TaskCell
from nybble.scoring.request import FLOOR, REFERENCE
from nybble.scoring.tasks.cells import ROW, Rows
from nybble.scoring.tasks.collect import collect, conclusions, corrected
from nybble.scoring.tasks.making import MadeItem

Q4, Q8 = parse("q4_0"), parse("q8_0")


@dataclass
class Rowed:
    """What `collect` asks of a runner."""

    kept: dict[tuple[KVSetting, str, int], Rows]
    settings: list[KVSetting] = field(default_factory=lambda: [REFERENCE, FLOOR, Q8, Q4])

    @dataclass
    class Outcome:
        failed: dict[tuple[KVSetting, int], str] = field(default_factory=dict)

    reference: KVSetting = REFERENCE
    outcome: Outcome = field(default_factory=Outcome)

    def rows(self, setting: KVSetting, item: MadeItem) -> Rows | None:
        return self.kept.get((setting, item.task, item.index))


def _rows(exact: str, choice: str, truth: float = -1.0) -> Rows:
    rows = np.zeros(len(exact), dtype=ROW)
    for i, row in enumerate(rows):
        row["number"], row["depth"] = i, (i + 0.5) / len(exact)
        row["exact"], row["choice"] = exact[i] == "1", choice[i] == "1"
        row["logprobs"] = f"[{truth}, -9.0, -9.0, -9.0]"
    return rows


def _items(*tasks: str, n: int = 6) -> list[MadeItem]:
    return [MadeItem(t, 1024, i, f"{t} {i}", (), None) for t in tasks for i in range(n)]  # type: ignore


def _run(tables: dict[tuple[KVSetting, str], tuple[str, str]], n: int = 6) -> list[TaskCell]:
    kept = {
        (setting, task, i): _rows(*marks, truth=-1.0 if setting == REFERENCE else -1.25)
        for (setting, task), marks in tables.items()
        for i in range(n)
    }
    tasks = list(dict.fromkeys(t for _, t in tables))
    return collect(Rowed(kept), _items(*tasks, n=n), 0)  # type: ignore[arg-type]


def _one(cells: list[TaskCell], setting: KVSetting, **fields: Any) -> TaskCell:
    fields = {"depth": "", "task": "needle", **fields}
    (found,) = [
        c for c in cells
        if c.setting == str(setting) and all(getattr(c, k) == v for k, v in fields.items())
    ]  # fmt: skip
    return found


ALL = {
    (REFERENCE, "needle"): ("1110", "1111"), (FLOOR, "needle"): ("1110", "1111"),
    (Q8, "needle"): ("1111", "1111"), (Q4, "needle"): ("0010", "1110"),
    (REFERENCE, "copy"): ("0000", "1100"), (FLOOR, "copy"): ("0000", "1100"),
    (Q8, "copy"): ("0000", "1100"), (Q4, "copy"): ("0000", "1010"),
}  # fmt: skip


def test_cells_by_hand() -> None:
    cells = _run(ALL)
    assert [c.task for c in cells[:9:4]] == ["all", "needle", "copy"]
    reference = _one(cells, REFERENCE)
    assert reference.by == "exact"  # three of four in own words
    assert reference.exact is not None and reference.exact.value == 0.75
    lossy = _one(cells, Q4)
    # Six contexts of four questions, alike: the first two of each are lost, none gained.
    assert (lossy.n_items, lossy.n_queries, lossy.lost, lossy.gained) == (6, 24, 12, 0)
    assert lossy.exact_change is not None and lossy.exact_change.value == -0.5
    assert lossy.choice_change is not None and lossy.choice_change.value == -0.25
    assert lossy.p == pytest.approx(2 / 2**12)
    # Four tests (two candidates, two tasks): Holm's first factor is 4.
    assert lossy.p_corrected == pytest.approx(4 * 2 / 2**12)
    assert lossy.answer_nll is not None and lossy.answer_nll.value == pytest.approx(0.25)
    better = _one(cells, Q8)
    assert (better.lost, better.gained) == (0, 6)
    copy = _one(cells, Q4, task="copy")
    assert copy.by == "choice" and (copy.lost, copy.gained) == (6, 6) and copy.p == 1.0
    assert _one(cells, FLOOR).p == 1.0 and _one(cells, FLOOR).p_corrected is None


def test_all_tasks_pool_questions_and_contexts() -> None:
    cells = _run(ALL)
    pooled = _one(cells, Q4, task="all")
    assert (pooled.n_items, pooled.n_queries) == (12, 48)
    assert pooled.by == "choice"  # 18 of 48 in own words are under half
    assert (pooled.lost, pooled.gained) == (6 + 6, 6)
    single = _run({k: v for k, v in ALL.items() if k[1] == "needle"})
    assert {c.task for c in single} == {"needle"}


def test_depths_divide_the_questions() -> None:
    cells = _run(ALL)
    deep = [c for c in cells if c.depth and c.setting == str(Q4) and c.task == "needle"]
    assert [c.depth for c in deep] == ["0-25 %", "25-50 %", "50-75 %", "75-100 %"]
    assert [c.n_queries for c in deep] == [6, 6, 6, 6]
    assert [c.lost for c in deep] == [6, 6, 0, 0]


def test_a_setting_given_up_is_a_failed_cell() -> None:
    kept = {(s, "needle", i): _rows("1111", "1111") for s in (REFERENCE, FLOOR, Q8) for i in (0, 1)}
    runner = Rowed(kept)
    runner.outcome.failed[Q4, 1024] = "out of memory\n  seen: all of it"
    cells = collect(runner, _items("needle", n=2), 0)  # type: ignore[arg-type]
    failed = _one(cells, Q4)
    assert failed.status == "failed" and failed.p is None
    assert conclusions(cells)[1] == "q4_0/q4_0: failed, out of memory."


def _cell(setting: str, task: str, length: int, lost: int, gained: int, p: float) -> TaskCell:
    share = Estimate(0.5)
    return TaskCell(
        setting, "candidate", task, length, n_items=5, n_queries=40, exact=share, choice=share,
        lost=lost, gained=gained, p=p,
    )  # fmt: skip


def test_what_breaks_first_is_the_largest_share_lost_beyond_chance() -> None:
    cells = corrected([
        _cell("q4_0/q4_0", "needle", 4096, 12, 1, 0.003),
        _cell("q4_0/q4_0", "copy", 4096, 20, 0, 1e-6),
        _cell("q4_0/q4_0", "facts", 4096, 30, 28, 0.9),  # more lost, but as many gained
        _cell("q8_0/q8_0", "copy", 4096, 0, 20, 1e-6),  # better, not broken
    ])  # fmt: skip
    broken, fine = conclusions(cells)
    assert broken == (
        "q4_0/q4_0: copy at 4,096 tokens breaks first: 20 of 40 questions lost, 0 gained (in its "
        "own words; p < 0.0001 after Holm's correction), and 1 more."
    )
    # Four tests: 4 * 2 / 2^k < 0.05 from k = 8 on.
    assert fine == (
        "q8_0/q8_0: nothing breaks within what these 40 questions can tell, 0 lost and 20 gained: "
        "the smallest loss that would show is 8 of a task's 40 (20%)."
    )


def test_all_tasks_together_may_tell_what_none_tells_alone() -> None:
    cells = corrected([
        *(_cell("q4_0/q4_0", t, 1024, 5, 0, 0.0625) for t in ("needle", "copy", "facts")),
        _cell("q4_0/q4_0", "all", 1024, 15, 0, 2 / 2**15),
    ])  # fmt: skip
    (said,) = conclusions(cells)
    assert "no single task shows it, but all together at 1,024 tokens do: 15 of 40" in said


def test_holm_counts_pooled_cells_apart() -> None:
    cells = corrected([
        *(_cell("q4_0/q4_0", t, 1024, 6, 0, 0.03) for t in ("needle", "copy", "all")),
    ])  # fmt: skip
    assert [c.p_corrected for c in cells] == [0.06, 0.06, 0.03]


def test_too_few_questions_to_tell_anything() -> None:
    (said,) = conclusions(corrected([
        TaskCell("q4_0/q4_0", "candidate", "needle", 1024, n_queries=4, lost=4, p=0.125),
    ]))  # fmt: skip
    assert "6 of one task would have to be lost, and it has 4; more --documents" in said
