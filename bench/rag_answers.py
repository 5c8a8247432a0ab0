"""Does the cache type change answers over documents? Forced choice over retrieved sources.

    python bench/rag_retrieval.py FOLDER      (makes FOLDER/ix, the index)
    python bench/rag_answers.py FOLDER [--hardened FILE.gguf]

Questions are generated from the Debian manuals of bench/rag_retrieval.py and put over the passages
that the hybrid finds, with wrong options out of the same sources; `nybble measure --tasks` then
asks both demo models at each KV setting. All of it resumes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common import save
from long_context import SETTINGS, models
from nybble import MeasureRequest, parse_setting
from nybble.rag.index import open_index
from nybble.rag.questions import generate
from nybble.rag.task_file import write_tasks
from nybble.results.tasks import ALL_TASKS, TaskCell
from nybble.scoring.request import Silent
from nybble.scoring.tasks.measure import measure_tasks
from nybble.scoring.tasks.request import TaskRequest

SEED, QUESTIONS, PASSAGES, LENGTH = 3, 80, 3, 1536


def numbers(cell: TaskCell) -> dict[str, Any]:
    """What a table shows of a cell."""
    named = {"choice": cell.choice, "exact": cell.exact, "choice_change": cell.choice_change,
             "answer_nll": cell.answer_nll}  # fmt: skip
    plain = ("setting", "role", "n_items", "n_queries", "lost", "gained", "p", "p_corrected",
             "chance", "by")  # fmt: skip
    return {
        **{name: getattr(cell, name) for name in plain},
        **{name: e and vars(e) for name, e in named.items()},
    }


def main() -> None:
    """Measure, and write bench/results/rag_answers.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", help="one model's name")
    parser.add_argument("--hardened", type=Path, help="Gemma 3 270M, folded for q4_0")
    given = parser.parse_args()
    file = given.folder / "rag.jsonl"
    with open_index(given.folder / "ix") as index:
        questions = generate(index, QUESTIONS, SEED, ("cloze",))
        written = write_tasks(index, questions, PASSAGES, "hybrid", SEED, file, Silent())
    found: dict[str, Any] = {}
    asked = models(None) | ({"gemma-3-270m-hardened": given.hardened} if given.hardened else {})
    for name, path in asked.items():
        if given.only not in (None, name):
            continue
        # A hardened model's other types are of no interest here, and each takes its time.
        settings = SETTINGS[-1:] if path == given.hardened else SETTINGS
        run = measure_tasks(TaskRequest(
            MeasureRequest(
                model=path, settings=tuple(map(parse_setting, settings)), contexts=(LENGTH,),
                out=given.folder / f"answers-{name}", command="python bench/rag_answers.py",
            ),
            own=file,
        )).run  # fmt: skip
        whole = [c for c in run.cells if not c.depth]
        pooled = any(c.task == ALL_TASKS for c in whole)
        found[name] = {
            "rows": [numbers(c) for c in whole if c.task == ALL_TASKS or not pooled],
            "conclusions": run.conclusions,
            "engine": run.versions,
        }
        print(name, *run.conclusions, sep="\n")
    if given.only:
        return  # the others' numbers belong beside it
    print(save("rag_answers", {
        "questions": vars(written), "passages": PASSAGES, "seed": SEED, "models": found,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
