"""From rows to the record: accuracy of every setting, paired with the 16-bit cache."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nybble.formats import KVSetting
from nybble.results.tasks import ALL_TASKS, TaskCell
from nybble.scoring.tasks.cells import Rows, logprobs, role
from nybble.scoring.tasks.making import MadeItem
from nybble.scoring.tasks.paired import (
    LEVEL,
    accuracy,
    holm,
    mcnemar,
    mean_change,
    paired_change,
    smallest_loss,
)
from nybble.scoring.tasks.run import TaskRunner

DEPTHS = ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))
OWN_WORDS = 0.5  # share answered in own words from which these are what is tested


@dataclass(frozen=True)
class Answers:
    """All questions of one setting at one length, in a fixed order.

    Attributes:
        task: of each question.
        context: of each question: task and text.
        depth: of each question.
        exact: whether the model's own words are right.
        choice: whether the true option is the likeliest.
        truth: log-probability of the true option; nan where options were not weighed.
        chance: of `choice` by guessing; nan where options were not weighed.
    """

    task: npt.NDArray[np.str_]
    context: npt.NDArray[np.str_]
    depth: npt.NDArray[np.float64]
    exact: npt.NDArray[np.bool_]
    choice: npt.NDArray[np.bool_]
    truth: npt.NDArray[np.float64]
    chance: npt.NDArray[np.float64]

    def of(self, mask: npt.NDArray[np.bool_]) -> Answers:
        """Those of a part of the questions."""
        return Answers(*(getattr(self, name)[mask] for name in self.__dataclass_fields__))

    @property
    def weighed(self) -> bool:
        """Whether options were weighed, of all questions."""
        return bool(np.isfinite(self.truth).all())

    @property
    def n_items(self) -> int:
        """Contexts."""
        return len(set(self.context.tolist()))


def gather(runner: TaskRunner, setting: KVSetting, items: Sequence[MadeItem]) -> Answers | None:
    """A setting's answers to these items; None where some are missing."""
    found: list[tuple[MadeItem, Rows]] = []
    for item in items:
        rows = runner.rows(setting, item)
        if rows is None:
            return None
        found.append((item, rows))
    options = [p for _, rows in found for p in logprobs(rows)]
    every = np.concatenate([rows for _, rows in found])
    n = [len(rows) for _, rows in found]
    return Answers(
        task=np.repeat([item.task for item, _ in found], n),
        # By its text: a context of a user's with many questions makes several items.
        context=np.repeat([f"{item.task} {item.context_sha256}" for item, _ in found], n),
        depth=every["depth"],
        exact=every["exact"],
        choice=every["choice"],
        truth=np.array([p[0] if p else math.nan for p in options]),
        chance=np.array([1 / len(p) if p else math.nan for p in options]),
    )


def collect(runner: TaskRunner, items: Sequence[MadeItem], seed: int) -> list[TaskCell]:
    """Cells by length, task ("all" first) and setting; then the same by depth."""
    whole: list[TaskCell] = []
    parts: list[TaskCell] = []
    for length in dict.fromkeys(i.length for i in items):
        mine = [i for i in items if i.length == length]
        reference = gather(runner, runner.reference, mine)
        if reference is None:  # the run would have ended; only a deleted file can be the cause
            continue
        names = list(dict.fromkeys(i.task for i in mine))
        for name in [ALL_TASKS, *names] if len(names) > 1 else names:
            mask = np.isin(reference.task, [name] if name != ALL_TASKS else names)
            able = reference.exact[mask].mean() >= OWN_WORDS
            by = "exact" if able or not reference.weighed else "choice"
            for setting in runner.settings:
                cell = TaskCell(str(setting), role(setting, runner.reference), name, length, by=by)
                answers = gather(runner, setting, mine)
                if answers is None:
                    error = runner.outcome.failed.get((setting, length), "not asked")
                    whole.append(replace(cell, status="failed", error=error))
                    continue
                whole.append(_cell(cell, reference, answers, mask, seed))
                for low, high in DEPTHS:
                    inside = (reference.depth >= low) & ((reference.depth < high) | (high == 1.0))
                    if (mask & inside).any():
                        depth = f"{low:.0%}-{high:.0%}".replace("%-", "-").replace("%", " %")
                        at = replace(cell, depth=depth)
                        parts.append(_cell(at, reference, answers, mask & inside, seed))
    return corrected(whole) + parts


def _cell(
    cell: TaskCell, reference: Answers, answers: Answers, mask: npt.NDArray[np.bool_], seed: int
) -> TaskCell:
    before, after = reference.of(mask), answers.of(mask)
    contexts = after.context.tolist()
    found = replace(
        cell,
        n_items=after.n_items,
        n_queries=len(contexts),
        chance=float(after.chance.mean()) if after.weighed else 0.0,
        exact=accuracy(after.exact, contexts, seed),
        choice=accuracy(after.choice, contexts, seed) if after.weighed else None,
    )
    if cell.role == "reference":
        return found
    tested = (before.exact, after.exact) if cell.by == "exact" else (before.choice, after.choice)
    gained, lost = int((~tested[0] & tested[1]).sum()), int((tested[0] & ~tested[1]).sum())
    found = replace(
        found,
        exact_change=paired_change(before.exact, after.exact, contexts, seed),
        gained=gained,
        lost=lost,
        p=mcnemar(gained, lost),
    )
    if not (before.weighed and after.weighed):
        return found
    return replace(
        found,
        choice_change=paired_change(before.choice, after.choice, contexts, seed),
        answer_nll=mean_change(before.truth - after.truth, contexts, seed),
    )


def corrected(cells: Sequence[TaskCell]) -> list[TaskCell]:
    """Cells with Holm's correction: over all candidates, tasks and lengths; "all" apart.

    "all" holds the same answers once more, so it is a family of its own.
    """
    found = list(cells)
    for pooled in (False, True):
        places = [
            i for i, c in enumerate(cells)
            if c.role == "candidate" and c.p is not None and (c.task == ALL_TASKS) == pooled
        ]  # fmt: skip
        ps = holm([p for i in places if (p := cells[i].p) is not None])
        for i, p in zip(places, ps, strict=True):
            found[i] = replace(cells[i], p_corrected=p)
    return found


def conclusions(cells: Sequence[TaskCell]) -> list[str]:
    """One sentence for each candidate: what breaks first, or what the questions could have told.

    Args:
        cells: of all depths together, corrected.
    """
    candidates = [c for c in cells if c.role == "candidate" and not c.depth]
    n_tests = sum(c.p is not None and c.task != ALL_TASKS for c in candidates)
    found = []
    for setting in dict.fromkeys(c.setting for c in candidates):
        mine = [c for c in candidates if c.setting == setting]
        done = [c for c in mine if c.status == "done"]
        if not done:
            found.append(f"{setting}: failed, {(mine[0].error or '').splitlines()[0]}.")
            continue
        found.append(f"{setting}: {_conclusion(done, n_tests)}")
    return found


def _conclusion(cells: Sequence[TaskCell], n_tests: int) -> str:
    single = [c for c in cells if c.task != ALL_TASKS]
    broken = [c for c in single if _significant(c)]
    if broken:
        worst = max(broken, key=lambda c: (c.lost / c.n_queries, -c.length))
        more = f", and {len(broken) - 1} more" if len(broken) > 1 else ""
        return (
            f"{worst.task} at {worst.length:,} tokens breaks first: {worst.lost} of "
            f"{worst.n_queries} questions lost, {worst.gained} gained ({_kind(worst)}; "
            f"p {_p(worst.p_corrected)} after Holm's correction){more}."
        )
    pooled = [c for c in cells if c.task == ALL_TASKS and _significant(c)]
    if pooled:
        worst = max(pooled, key=lambda c: c.lost / c.n_queries)
        return (
            f"no single task shows it, but all together at {worst.length:,} tokens do: "
            f"{worst.lost} of {worst.n_queries} questions lost, {worst.gained} gained "
            f"(p {_p(worst.p_corrected)})."
        )
    total = sum(c.n_queries for c in single)
    lost, gained = sum(c.lost for c in single), sum(c.gained for c in single)
    n = Counter(c.n_queries for c in single).most_common(1)[0][0]
    least = smallest_loss(n_tests)
    if least > n:
        limit = f"{least} of one task would have to be lost, and it has {n}; more --documents"
    else:
        limit = f"the smallest loss that would show is {least} of a task's {n} ({least / n:.0%})"
    return (
        f"nothing breaks within what these {total:,} questions can tell, {lost} lost and {gained} "
        f"gained: {limit}."
    )


def _significant(cell: TaskCell) -> bool:
    return cell.lost > cell.gained and cell.p_corrected is not None and cell.p_corrected < LEVEL


def _kind(cell: TaskCell) -> str:
    return "in its own words" if cell.by == "exact" else "by forced choice"


def _p(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "unknown"
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"
