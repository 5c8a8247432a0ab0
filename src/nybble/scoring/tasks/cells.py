"""What one cache leaves of one context's questions, and the name it is kept under."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nybble.formats import KVSetting
from nybble.results.store import RunStore, content_key
from nybble.scoring.prepare import PreparedModel
from nybble.scoring.request import FLOOR, REFERENCE
from nybble.scoring.tasks.asking import Answered
from nybble.scoring.tasks.backend import Backend
from nybble.scoring.tasks.base import Task
from nybble.scoring.tasks.making import MadeItem
from nybble.scoring.tasks.own import OwnTask
from nybble.scoring.worker import MAX_PARALLEL

ASKED_VERSION = 1  # raised when the same request would leave other cells
CELLS = "tasks"  # folder of the cells in a run folder

# One question. `logprobs` is a JSON list, the right option first, or empty where options were not
# weighed; `text_id` is the same for the
# same question about the same context, whatever the cache.
ROW = np.dtype(
    [
        ("number", np.int32),
        ("text_id", object),
        ("question", object),
        ("expected", object),
        ("depth", np.float64),
        ("logprobs", object),
        ("answer", object),
        ("tokens", np.int32),
        ("ended", np.bool_),
        ("exact", np.bool_),
        ("choice", np.bool_),
    ]
)
Rows = npt.NDArray[np.void]


def role(setting: KVSetting, reference: KVSetting) -> str:
    """As the record has it; a second 16-bit setting is the noise floor."""
    if setting == reference:
        return "reference"
    return "floor" if setting in (REFERENCE, FLOOR) else "candidate"


def lane_threads(threads: int) -> int:
    """Threads of one lane, the same in every run: sums of floats may be split by them."""
    return threads // min(MAX_PARALLEL, threads)


class CellNames:
    """Names of cells: readable in front, a hash of everything that decides the numbers behind.

    Args:
        model: that is asked.
        threads: of the run.
        backend: the engine.
    """

    def __init__(self, model: PreparedModel, threads: int, backend: Backend) -> None:
        self._backend = backend
        self._fixed = {
            "asked": ASKED_VERSION,
            "model": (model.sha256, model.record.scored_weights),
            "threads": lane_threads(threads),
        }

    def name(self, setting: KVSetting, item: MadeItem) -> str:
        """File name, without suffix, of one item under one setting."""
        own = {
            "engine": self._backend.identity(setting),
            "setting": str(setting),
            "item": item.asked.sha256(),
        }
        short = re.sub(r"[^A-Za-z0-9_.+-]", "-", str(setting))[:80]
        key = content_key({**self._fixed, **own})
        return f"{item.task}-{item.length}-{item.index}-{short}-{key}"


def make_rows(item: MadeItem, task: Task | OwnTask, answered: Sequence[Answered]) -> Rows:
    """Rows of one item under one setting, marked right or wrong."""
    rows = np.zeros(len(item.queries), dtype=ROW)
    for i, (query, found) in enumerate(zip(item.queries, answered, strict=True)):
        row = rows[i]
        row["number"] = i
        row["text_id"] = content_key([item.context_sha256, query.text, query.lead])
        row["question"] = query.text
        row["expected"] = json.dumps(query.answers, ensure_ascii=False)
        row["depth"] = query.depth
        row["logprobs"] = json.dumps(found.logprobs)
        row["answer"] = found.text.replace("\0", "\ufffd")
        row["tokens"] = found.tokens
        row["ended"] = found.ended
        row["exact"] = task.right(query, found.text)
        row["choice"] = bool(found.logprobs) and found.logprobs[0] > max(found.logprobs[1:])
    return rows


def logprobs(rows: Rows) -> list[list[float]]:
    """Log-probabilities of every question's options, the right one first."""
    return [json.loads(text) for text in rows["logprobs"]]


def read(store: RunStore, name: str) -> Rows | None:
    """A finished cell; None where it is missing or damaged."""
    rows = store.read_cell(name, ROW)
    return None if rows is None else rows[np.argsort(rows["number"])]
