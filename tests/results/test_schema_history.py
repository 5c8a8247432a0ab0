"""Every kind of record that nybble ever wrote stays readable: one real file for each version.

Who raises a schema version adds the file of the new one to tests/data/schema and keeps the old.
Made on 2026-11-29 by the commands themselves on a tiny random model and on the demo, but for
`rag` (answers given by a double), `watch` (a server on this machine), and `compared` and `gate`
(runs that tests/run_folders.py drew).
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nybble.errors import NybbleError
from nybble.planning import measured
from nybble.planning.calibration import Calibration
from nybble.results import (
    compared,
    gate,
    loads,
    manifest,
    plans,
    rag,
    records,
    sweeps,
    tasks,
    verification,
)
from nybble.results.base import external
from nybble.results.records import read_record
from nybble.watch import records as watch

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data" / "schema"
Reader = Callable[[str], Any]


def _watch(text: str) -> watch.Watch:
    """`drifted` is written out beside the fields."""
    data = json.loads(text)
    for record in (data, *data["engines"]):
        del record["drifted"]
    found = read_record(json.dumps(data), watch.Watch, watch.WATCH_SCHEMA_VERSION, "watch")
    assert isinstance(found, watch.Watch)
    return found


def _calibration(text: str) -> Any:
    # load() checks the version, but takes files of this machine only.
    return measured._calibration(json.loads(text))


@dataclass(frozen=True)
class Kind:
    """A kind of record: its dataclass, its version today, and what every kept file of it holds."""

    record: type[Any]
    newest: int
    value: Callable[[Any], Any]
    expected: Any
    reader: Reader | None = None  # where it is not read_record

    def read(self, text: str) -> Any:
        if self.reader is not None:
            return self.reader(text)
        return read_record(text, self.record, self.newest, "record")


KINDS = {
    "measurement": Kind(
        records.Measurement, records.SCHEMA_VERSION,
        lambda r: r.rows[2].metrics["mean_kld"].value, 0.12812572222918372, records.from_json,
    ),
    "tasks": Kind(
        tasks.TaskRun, tasks.TASKS_SCHEMA_VERSION,
        lambda r: {(c.setting, c.n_queries) for c in r.cells if not c.depth},
        {("f16/f16", 2), ("bf16/bf16", 2), ("q4_0/q4_0", 2)},
        lambda t: tasks.from_json(tasks.TaskRun, t),
    ),
    "generation": Kind(
        tasks.GenerationRun, tasks.TASKS_SCHEMA_VERSION,
        lambda r: [(x.setting, x.role, x.n_prompts) for x in r.rows][:2],
        [("q4_0/q4_0", "candidate", 2), ("bf16/bf16", "floor", 2)],
        lambda t: tasks.from_json(tasks.GenerationRun, t),
    ),
    "rag": Kind(rag.RagRun, rag.RAG_SCHEMA_VERSION, lambda r: len(r.questions), 12, rag.from_json),
    "load": Kind(
        loads.LoadReport, loads.LOADS_SCHEMA_VERSION,
        lambda r: [x.tokens_out for x in r.runs[0].requests], [8, 8, 8], loads.from_json,
    ),
    "plan": Kind(
        plans.Plan, plans.PLAN_SCHEMA_VERSION, lambda r: (r.model, r.card.name, r.context_length),
        ("tiny", "rtx-3090", 4096),
    ),
    "cost": Kind(
        plans.CostComparison, plans.PLAN_SCHEMA_VERSION, lambda r: [c.how for c in r.costs],
        ["api", "rented", "owned"],
    ),
    "verification": Kind(
        verification.Verification, verification.VERIFICATION_SCHEMA_VERSION,
        lambda r: (r.outcome, r.checks[0].observed), ("broken", "q4_0"),
    ),
    "watch": Kind(
        watch.Watch, watch.WATCH_SCHEMA_VERSION, lambda r: r.engines[0].newest, "b99999", _watch
    ),
    "calibration": Kind(
        Calibration, measured.SCHEMA_VERSION, lambda r: r.setting, "f16/f16", _calibration
    ),
    "import": Kind(
        external.Imported, external.EXTERNAL_SCHEMA_VERSION,
        lambda r: (r.rows[6].metric, r.rows[6].value), ("mean_kld", 0.009278),
    ),
    "manifest": Kind(
        manifest.Manifest, manifest.MANIFEST_SCHEMA_VERSION, lambda r: r.files[-1].path,
        "summary.json",
    ),
    "sweep": Kind(
        sweeps.SweepResult, sweeps.SWEEP_SCHEMA_VERSION, lambda r: (r.runs, r.cells, r.scored),
        (["tiny-691d90b4"], 12, 12),
    ),
    "compared": Kind(
        compared.Compared, compared.COMPARED_SCHEMA_VERSION, lambda r: len(r.pairs), 3
    ),
    "gate": Kind(
        gate.Gate, gate.GATE_SCHEMA_VERSION, lambda r: (r.passed, r.checks[0].state), (True, "GO")
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_version_is_kept_and_read(kind: str) -> None:
    known = KINDS[kind]
    for version in range(1, known.newest + 1):
        path = DATA / f"{kind}-v{version}.json"
        assert path.exists(), f"keep a {kind} of schema version {version} in {path.name}"
        text = path.read_text(encoding="utf-8")
        assert json.loads(text)["schema_version"] == version
        assert known.value(known.read(text)) == known.expected


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "calibration"])  # see _calibration
def test_a_newer_one_is_refused_by_name(kind: str) -> None:
    newest, read = KINDS[kind].newest, KINDS[kind].read
    data = json.loads((DATA / f"{kind}-v{newest}.json").read_text(encoding="utf-8"))
    data["schema_version"] = newest + 1
    with pytest.raises(NybbleError, match="newer nybble|another version") as caught:
        read(json.dumps(data))
    assert f"schema {newest + 1}" in str(caught.value)


@pytest.mark.parametrize("kind", ["measurement", "tasks", "import", "manifest"])
def test_a_field_that_came_later_is_named_not_dropped(kind: str) -> None:
    data = json.loads((DATA / f"{kind}-v1.json").read_text(encoding="utf-8"))
    with pytest.raises(NybbleError, match="does not know") as caught:
        KINDS[kind].read(json.dumps({**data, "unheard_of": 1}))
    assert "unheard_of" in str(caught.value) and "--upgrade" in str(caught.value)
    with pytest.raises(NybbleError, match="not a nybble"):
        KINDS[kind].read(json.dumps({**data, "schema_version": float("inf")}))


def _versioned() -> set[str]:
    """Names of all dataclasses with a schema version, out of the sources."""
    found = set()
    for path in (ROOT / "src" / "nybble").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "schema_version: int" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                fields = [ast.unparse(f) for f in node.body if isinstance(f, ast.AnnAssign)]
                found |= {node.name for field in fields if field.startswith("schema_version:")}
    return found


def test_no_kind_is_forgotten() -> None:
    known = {kind.record.__name__ for kind in KINDS.values()} - {"Calibration"}  # has no field
    assert _versioned() == known, "a kind without a file in tests/data/schema"
    files = {p.name.rpartition("-v")[0] for p in DATA.glob("*.json")}
    assert files == set(KINDS)
