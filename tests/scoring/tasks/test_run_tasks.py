"""Whole runs on a tiny random model: children, cells, resume, refusals and the record."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import duckdb
import pytest

from nybble.engines.child import EngineCrashError, EngineProcess
from nybble.errors import NybbleError
from nybble.formats import parse
from nybble.results.tasks import TaskCell, TaskRun, from_json
from nybble.scoring.request import MeasureRequest
from nybble.scoring.tasks import backend, cells, run
from nybble.scoring.tasks.measure import TaskResult, measure_tasks, plan_tasks
from nybble.scoring.tasks.request import TaskRequest

LENGTH = 700


def _request(model: Path, out: Path, *settings: str, **changes: Any) -> TaskRequest:
    own = {n: changes.pop(n) for n in ("tasks", "queries") if n in changes}
    measured: dict[str, Any] = {
        "model": model, "out": out, "contexts": (LENGTH,), "documents": 2, "threads": 2,
        "settings": tuple(parse(s) for s in settings or ("q8_0", "q4_0")), **changes,
    }  # fmt: skip
    return TaskRequest(MeasureRequest(**measured), **{"tasks": ("needle",), "queries": 3, **own})


def _cell(result: TaskResult, setting: str, **fields: Any) -> TaskCell:
    fields = {"task": "needle", "depth": "", **fields}
    (found,) = [
        c for c in result.run.cells
        if c.setting == str(parse(setting)) and all(getattr(c, k) == v for k, v in fields.items())
    ]  # fmt: skip
    return found


def _files(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in (folder / "tasks").glob("*.parquet")}


def _rows(folder: Path, setting: str) -> list[tuple[Any, ...]]:
    query = (
        f"select task, item, number, logprobs, answer from '{folder}/tasks/*.parquet' "
        "where setting = ? order by 1, 2, 3"
    )
    return duckdb.execute(query, [str(parse(setting))]).fetchall()


@pytest.fixture(scope="module")
def done(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> TaskResult:
    return measure_tasks(_request(tiny_model, tmp_path_factory.mktemp("run")))


def test_record_and_rows(done: TaskResult) -> None:
    text = (done.folder / "tasks.json").read_text(encoding="utf-8")
    assert from_json(TaskRun, text) == done.run
    reference = _cell(done, "f16")
    assert (reference.role, reference.n_items, reference.n_queries) == ("reference", 2, 6)
    assert reference.chance == 0.25
    assert reference.exact_change is None and reference.p is None
    candidate = _cell(done, "q4_0")
    assert candidate.role == "candidate" and not candidate.simulated
    assert candidate.choice is not None and candidate.choice.low is None  # two contexts
    assert candidate.p is not None and candidate.p_corrected is not None
    assert candidate.answer_nll is not None and candidate.answer_nll.value != 0
    assert {c.setting for c in done.run.cells} == {
        "f16/f16", "bf16/bf16", "q8_0/q8_0", "q4_0/q4_0",
    }  # fmt: skip
    deep = [c for c in done.run.cells if c.depth and c.setting == "q4_0/q4_0"]
    assert sum(c.n_queries for c in deep) == 6
    assert sum(c.lost for c in deep) == candidate.lost
    assert any("--documents" in w for w in done.run.warnings)


def test_rows_hold_all_that_a_reader_needs_to_count_again(done: TaskResult) -> None:
    found = duckdb.execute(
        "select setting, number, text_id, question, expected, depth, logprobs, answer, exact, "
        f"choice from '{done.folder}/tasks/*.parquet'"
    ).fetchall()
    assert len(found) == 4 * 6
    for _, _, text_id, question, expected, depth, logprobs, _, _, choice in found:
        options = json.loads(logprobs)
        assert len(options) == 4 and all(p < 0 for p in options)
        assert choice == (options[0] > max(options[1:]))
        assert len(text_id) == 16 and question and json.loads(expected)
        assert 0 <= depth <= 1
    assert len({row[2] for row in found}) == 6
    shares = {s: sum(r[9] for r in found if r[0] == s) / 6 for s in {r[0] for r in found}}
    for setting, share in shares.items():
        choice = _cell(done, setting).choice
        assert choice is not None and choice.value == pytest.approx(share)


def test_reference_asked_twice_gives_the_same_rows(done: TaskResult, tiny_model: Path) -> None:
    again = measure_tasks(_request(tiny_model, done.folder.with_name("again"), "q5_0"))
    for setting in ("f16", "bf16"):
        assert _rows(done.folder, setting) == _rows(again.folder, setting)
    assert _rows(done.folder, "q8_0") != _rows(done.folder, "f16")


def test_same_command_reads_what_is_there(done: TaskResult, tiny_model: Path) -> None:
    before = _files(done.folder)
    again = measure_tasks(_request(tiny_model, done.folder))
    assert _files(done.folder) == before
    same = dataclasses.replace(done.run, created=again.run.created)
    assert again.run == same


def test_wider_command_adds_and_a_damaged_cell_is_asked_again(
    done: TaskResult, tiny_model: Path
) -> None:
    before = _files(done.folder)
    broken = sorted((done.folder / "tasks").glob("*q8_0*.parquet"))[0]
    whole = broken.read_bytes()
    broken.write_bytes(whole[:100])
    wider = measure_tasks(_request(tiny_model, done.folder, "q8_0", "q4_0", "q5_1"))
    after = _files(done.folder)
    assert set(before) < set(after) and len(after) == len(before) + 2
    assert {n for n in before if before[n] != after[n]} == {broken.name}
    assert _cell(wider, "q8_0") == _cell(done, "q8_0")


@pytest.mark.slow
def test_template_frames_questions(tiny_instruct: Path, tmp_path: Path) -> None:
    made = measure_tasks(_request(tiny_instruct, tmp_path / "a", "q4_0", documents=1))
    raw = measure_tasks(_request(tiny_instruct, tmp_path / "b", "q4_0", documents=1, framing="raw"))
    assert made.run.protocol["framing"] == "chat template"
    assert raw.run.protocol["framing"] == "plain text"
    assert made.run.protocol["items_sha256"] != raw.run.protocol["items_sha256"]


def test_crash_in_a_candidates_lane_costs_that_candidate_only(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = EngineProcess.request

    def request(self: EngineProcess, header: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if header["op"] == "lanes":
            self.lanes = [s for _, s in header["lanes"]]  # type: ignore[attr-defined]
        if header["op"] == "ask" and "q4_0/q4_0" in [
            self.lanes[i] for i in header["lanes"]  # type: ignore[attr-defined]
        ]:  # fmt: skip
            lane = self.lanes.index("q4_0/q4_0")  # type: ignore[attr-defined]
            self._where = {"op": "ask", "step": "decode", "lane": lane}
            self.kill()
            raise EngineCrashError("the engine process was ended by SIGABRT", where=self._where)
        return asked(self, header, *args, **kwargs)

    monkeypatch.setattr(EngineProcess, "request", request)
    result = measure_tasks(_request(tiny_model, tmp_path))
    failed = _cell(result, "q4_0")
    assert failed.status == "failed" and "SIGABRT" in (failed.error or "")
    assert _cell(result, "q8_0").n_queries == 6
    assert [c.setting for c in result.failed] == ["q4_0/q4_0"]
    assert any(s.startswith("q4_0/q4_0: failed") for s in result.run.conclusions)


def test_cache_that_was_not_read_is_refused(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_same", lambda rows, reference: len(rows) == len(reference))
    result = measure_tasks(_request(tiny_model, tmp_path, "q4_0", documents=1))
    assert "was not read" in (_cell(result, "q4_0").error or "")
    assert _cell(result, "bf16").status == "done"
    assert not list((tmp_path / "tasks").glob("*q4_0*"))


def test_same_means_every_option_of_every_question() -> None:
    import numpy as np

    a = np.zeros(2, dtype=cells.ROW)
    a["logprobs"] = ["[-1.0, -2.0]", "[-3.0, -4.0]"]
    b = a.copy()
    assert run._same(a, b)
    b["logprobs"] = ["[-1.0, -2.0]", "[-3.0, -4.000001]"]
    assert not run._same(a, b)


def test_task_without_room_is_left_out_and_said(tiny_model: Path, tmp_path: Path) -> None:
    wanted = _request(tiny_model, tmp_path, "q8_0", documents=1, tasks=("needle", "tools"))
    short = dataclasses.replace(wanted, measured=dataclasses.replace(
        wanted.measured, contexts=(500,)))  # fmt: skip
    result = measure_tasks(short)
    assert {c.task for c in result.run.cells} == {"needle"}
    assert any(w.startswith("tools at 500 tokens left out") for w in result.run.warnings)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"tasks": ("neddle",)}, "did you mean needle"),
        ({"tasks": ()}, "no task named"),
        ({"queries": 0}, "--queries"),
        ({"contexts": (128,)}, "too short"),
        ({"split_kv": True}, "cannot be combined"),
        ({"by": "layer"}, "cannot be combined"),
    ],
)
def test_refusals(tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(NybbleError, match=what):
        _request(tmp_path / "none.gguf", tmp_path, **changes)


def test_context_beyond_the_model(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(NybbleError, match="trained for"):
        measure_tasks(_request(tiny_model, tmp_path, contexts=(8192,)))


def test_nothing_fits(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(NybbleError, match="too short for the task tools"):
        measure_tasks(_request(tiny_model, tmp_path, contexts=(256,), tasks=("tools",)))


def test_dry_run_runs_nothing(tiny_model: Path, tmp_path: Path) -> None:
    wanted = _request(tiny_model, tmp_path / "x", contexts=(512, 1024), tasks=None)
    planned = plan_tasks(wanted)
    assert len(planned) == 16 and not (tmp_path / "x").exists()
    assert all(p.settings == 4 and p.seconds > 0 and p.cache_bytes > 0 for p in planned)


def test_reference_and_floor_are_asked_once() -> None:
    settings = backend.wanted_settings([parse(s) for s in ("f16", "q8_0", "bf16", "q8_0")])
    assert [str(s) for s in settings] == ["f16/f16", "bf16/bf16", "q8_0/q8_0"]


@pytest.mark.slow
def test_packed_cache_of_transformers(tiny_model: Path, tmp_path: Path) -> None:
    """Types that llama.cpp lacks go through nybble.Cache; 16 bit agrees with llama.cpp."""
    pytest.importorskip("transformers")
    packed = measure_tasks(_request(tiny_model, tmp_path / "a", "int4_per_token_head", threads=1))
    assert packed.run.protocol["engine"].startswith("nybble.Cache")
    assert not any(c.simulated for c in packed.run.cells)
    native = measure_tasks(_request(tiny_model, tmp_path / "b", "q8_0"))
    for a, b in zip(_rows(packed.folder, "f16"), _rows(native.folder, "f16"), strict=True):
        assert a[:3] == b[:3]
        assert json.loads(a[3]) == pytest.approx(json.loads(b[3]), abs=0.2)
    candidate = _cell(packed, "int4_per_token_head")
    assert candidate.answer_nll is not None and candidate.answer_nll.value != 0


@pytest.mark.slow
def test_a_model_folder_is_asked_with_its_own_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from torch_runs import write_folder

    folder = write_folder(tmp_path / "tiny-gemma", "gemma3")
    wanted = _request(folder, tmp_path / "out", "q4_0", threads=1, documents=1)
    result = measure_tasks(wanted)
    candidate = _cell(result, "q4_0")
    assert candidate.answer_nll is not None and candidate.answer_nll.value != 0
    assert result.run.model.scored_weights == "f32 in torch"
    assert not any(c.simulated for c in result.run.cells)
