"""What the main job does when the engine misbehaves."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import DOCUMENTS, SCORED, cells, kld, request, row

from nybble.engines.child import EngineCrashError
from nybble.errors import EngineError
from nybble.formats import parse
from nybble.results.records import from_json
from nybble.scoring import backend, run
from nybble.scoring.measure import Result, measure
from nybble.scoring.request import MeasureRequest

WORKER = """
import os, sys, time
import numpy as np
from nybble.engines.llamacpp import model
from nybble.errors import EngineError
from nybble.formats import parse
from nybble.scoring import worker
from nybble.engines.worker import serve

make, score = model.Model.context, model.Context.score
calls = [0]

def context(self, setting, *args, **kwargs):
    {context}
    lane = make(self, setting, *args, **kwargs)
    lane.setting = str(asked)
    return lane

def scored(self, tokens, first):
    logits = score(self, tokens, first)
    {score}
    return logits

model.Model.context, model.Context.score = context, scored
serve(worker.Worker)
"""
Patch = Callable[..., None]


@pytest.fixture
def misbehave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Patch:
    """Score with a worker whose contexts or scores do something else."""

    def patch(*, context: str = "", score: str = "pass") -> None:
        folder = tmp_path / "workers"
        folder.mkdir(exist_ok=True)
        name = f"bad_worker_{len(list(folder.iterdir()))}"
        source = WORKER.replace("{context}", f"asked = setting; {context}")
        (folder / f"{name}.py").write_text(source.replace("{score}", score))
        path = f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        monkeypatch.setenv("PYTHONPATH", path)
        monkeypatch.setattr(backend, "WORKER", name)

    return patch


def on(setting: str, what: str) -> str:
    return f"if self.setting == {str(parse(setting))!r}: {what}"


ASSERTION = (
    "print('/src/ggml.c:7: GGML_ASSERT(false) failed', file=sys.stderr, flush=True); os.abort()"
)


class TestMisbehaviour:
    @pytest.fixture
    def wanted(self, tiny_model: Path, text: Path, tmp_path: Path) -> MeasureRequest:
        return request(tiny_model, text, tmp_path / "run", "q8_0", "q4_0", documents=2)

    def check_only_q4_0_failed(self, result: Result, *reasons: str) -> None:
        (failed,) = result.failed
        assert (failed.setting, failed.role) == ("q4_0/q4_0", "candidate")
        for reason in reasons:
            assert reason in str(failed.error)
        assert failed.metrics == {} and failed.verdict is None
        assert failed.cache_bytes > 0
        assert kld(row(result, "q8_0")) > 0
        assert row(result, "f16", "identity").metrics["max_kld"].value == 0
        stored = from_json((result.folder / "summary.json").read_text(encoding="utf-8"))
        assert stored == result.measurement

    def test_the_patch_itself_changes_nothing(
        self, wanted: MeasureRequest, misbehave: Patch, base: Result
    ) -> None:
        misbehave()
        result = measure(dataclasses.replace(wanted, documents=DOCUMENTS))
        assert row(result, "q4_0").metrics == row(base, "q4_0").metrics

    def test_a_cache_that_is_not_read(self, wanted: MeasureRequest, misbehave: Patch) -> None:
        misbehave(context="setting = parse('f16') if str(setting) == 'q4_0/q4_0' else setting")
        result = measure(wanted)
        self.check_only_q4_0_failed(
            result, "the quantized cache was not read", f"q4_0/q4_0, {SCORED} tokens"
        )
        assert not [n for n in cells(result.folder) if "q4_0" in n]

    def test_a_lane_that_aborts(
        self, wanted: MeasureRequest, misbehave: Patch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        misbehave(score=on("q4_0", ASSERTION))
        result = measure(wanted)
        self.check_only_q4_0_failed(result, "SIGABRT", "GGML_ASSERT(false) failed")
        # With a sound engine the same command goes on where it stopped.
        before = cells(result.folder)
        monkeypatch.undo()
        monkeypatch.setenv("NYBBLE_CACHE", str(wanted.out / "cache"))  # type: ignore[operator]
        repaired = measure(wanted)
        assert repaired.failed == []
        after = cells(result.folder)
        assert {k: after[k] for k in before} == before and len(after) == len(before) + 2

    def test_a_crash_that_does_not_repeat(self, wanted: MeasureRequest, misbehave: Patch) -> None:
        """In the second chunk; the restarted child counts anew, and nothing is lost."""
        misbehave(score=on("q4_0", "calls[0] += 1\n    if calls[0] == 2: " + ASSERTION))
        result = measure(wanted)
        assert result.failed == []
        assert row(result, "q4_0").n_tokens == 2 * SCORED

    def test_a_lane_that_aborts_late(
        self, wanted: MeasureRequest, misbehave: Patch, tmp_path: Path
    ) -> None:
        """The first chunk was fine and its cell stays, but half a row is no row."""
        count = repr(str(tmp_path / "count"))  # a file, so that a new child goes on counting
        misbehave(
            score=on(
                "q4_0",
                f"""
        with open({count}, "a") as file: file.write("x")
        if os.path.getsize({count}) > 1: {ASSERTION}""",
            )
        )
        result = measure(wanted)
        self.check_only_q4_0_failed(result, "SIGABRT")
        assert len([n for n in cells(result.folder) if "q4_0" in n]) == 1

    def test_two_lanes_that_abort(self, wanted: MeasureRequest, misbehave: Patch) -> None:
        misbehave(score=f"if self.setting in ('q4_0/q4_0', 'bf16/bf16'): {ASSERTION}")
        result = measure(wanted)
        assert {r.setting for r in result.failed} == {"q4_0/q4_0", "bf16/bf16"}
        assert kld(row(result, "q8_0")) > 0

    def test_the_reference_aborts(self, wanted: MeasureRequest, misbehave: Patch) -> None:
        misbehave(score=on("f16", ASSERTION))
        with pytest.raises(EngineCrashError, match="SIGABRT"):
            measure(wanted)
        # The folder is free again.
        misbehave()
        assert measure(wanted).failed == []

    def test_a_lane_killed_for_memory(self, wanted: MeasureRequest, misbehave: Patch) -> None:
        misbehave(context="str(setting) == 'q4_0/q4_0' and os.kill(os.getpid(), 9)")
        self.check_only_q4_0_failed(measure(wanted), "SIGKILL", "too little memory")

    def test_a_lane_that_hangs(self, wanted: MeasureRequest, misbehave: Patch) -> None:
        misbehave(score=on("q4_0", "time.sleep(600)"))
        result = measure(dataclasses.replace(wanted, timeout=2.5))
        self.check_only_q4_0_failed(result, "hung and was ended")

    def test_a_refused_context(self, wanted: MeasureRequest, misbehave: Patch) -> None:
        misbehave(
            context="""
    if str(setting) == 'q4_0/q4_0': raise EngineError('refused', seen='no room')"""
        )
        self.check_only_q4_0_failed(measure(wanted), "refused", "no room")

    def test_a_refused_reference(self, wanted: MeasureRequest, misbehave: Patch) -> None:
        misbehave(
            context="""
    if str(setting) == 'f16/f16': raise EngineError('refused', seen='no room')"""
        )
        with pytest.raises(EngineError, match="refused"):
            measure(wanted)

    def test_a_decode_that_fails(self, wanted: MeasureRequest, misbehave: Patch) -> None:
        """llama_decode may also just return an error code; the child then lives on."""
        misbehave(score=on("q4_0", "raise EngineError('llama_decode failed', seen='code -3')"))
        self.check_only_q4_0_failed(measure(wanted), "llama_decode failed", "code -3")

    def test_the_references_decode_fails(self, wanted: MeasureRequest, misbehave: Patch) -> None:
        misbehave(score=on("f16", "raise EngineError('llama_decode failed', seen='code -3')"))
        with pytest.raises(EngineError, match="llama_decode failed"):
            measure(wanted)

    def test_tokens_without_finite_logits(
        self, wanted: MeasureRequest, misbehave: Patch, base: Result
    ) -> None:
        misbehave(score=on("q4_0", "logits = np.where(first == 64, np.nan, logits)"))
        result = measure(dataclasses.replace(wanted, documents=DOCUMENTS))
        # All 63 positions of a chunk are one block here, so every token of this row is lost ...
        (failed,) = result.failed
        assert failed.setting == "q4_0/q4_0"
        assert f"not one of {DOCUMENTS * SCORED} tokens had finite logits" in str(failed.error)
        assert row(result, "q8_0").metrics == row(base, "q8_0").metrics

    def test_some_tokens_without_finite_logits(
        self, wanted: MeasureRequest, misbehave: Patch
    ) -> None:
        spoil = "logits = logits.copy(); logits[3] = np.nan; logits[5, 7] = np.inf"
        misbehave(score=on("q4_0", spoil))
        result = measure(dataclasses.replace(wanted, documents=DOCUMENTS))
        found = row(result, "q4_0")
        assert found.status == "done"
        assert (found.n_nonfinite, found.n_tokens) == (2 * DOCUMENTS, (SCORED - 2) * DOCUMENTS)
        assert any("12 tokens had non-finite logits" in w for w in result.measurement.warnings)
        assert np.isfinite([e.value for e in found.metrics.values()]).all()

    def test_ctrl_c_leaves_whole_cells_and_a_free_folder(
        self, wanted: MeasureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keep = run.CellRunner._keep
        kept = [0]

        def interrupted(*args: Any) -> None:
            kept[0] += 1
            if kept[0] == 4:
                raise KeyboardInterrupt
            keep(*args)

        monkeypatch.setattr(run.CellRunner, "_keep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            measure(wanted)
        assert wanted.out is not None
        before = cells(wanted.out)
        assert len(before) == 3
        monkeypatch.setattr(run.CellRunner, "_keep", keep)
        assert measure(wanted).failed == []
        after = cells(wanted.out)
        assert {k: after[k] for k in before} == before
