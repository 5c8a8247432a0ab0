"""The main job end to end on tiny models, and what it does when the engine misbehaves."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nybble.engines.child import EngineCrashError
from nybble.errors import EngineError, NybbleError
from nybble.formats import parse
from nybble.results.records import Measurement, Row, from_json
from nybble.scoring import run
from nybble.scoring.measure import Result, measure, plan_cells
from nybble.scoring.request import MeasureRequest

CONTEXT, DOCUMENTS = 128, 6
SCORED = CONTEXT - 1 - CONTEXT // 2  # positions 64 to 126
SETTINGS = ("q8_0", "q5_0", "q4_0", "q4_0-norot")


def request(model: Path, text: Path, out: Path, *settings: str, **changes: Any) -> MeasureRequest:
    base: dict[str, Any] = {
        "model": model, "text": (text,), "out": out, "contexts": (CONTEXT,), "threads": 2,
        "documents": DOCUMENTS, "settings": tuple(parse(s) for s in settings or SETTINGS),
    }  # fmt: skip
    return MeasureRequest(**{**base, **changes})


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pydoc_data.topics import topics

    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text("".join(topics[k] for k in sorted(topics))[:4000], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def base(
    tiny_model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Result]:
    """One plain run that several tests look at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NYBBLE_CACHE", str(tmp_path_factory.mktemp("cache")))
        out = tmp_path_factory.mktemp("run")
        yield measure(request(tiny_model, text, out, memory_at=(4096,)))


@pytest.fixture
def again(base: Result, tmp_path: Path) -> Path:
    """A copy of that run's folder to go on with."""
    return shutil.copytree(base.folder, tmp_path / "again")


def row(result: Result, setting: str, role: str = "candidate", **fields: Any) -> Row:
    (found,) = [
        r for r in result.measurement.rows
        if r.setting == str(parse(setting)) and r.role == role
        and all(getattr(r, k) == v for k, v in fields.items())
    ]  # fmt: skip
    return found


def kld(found: Row) -> float:
    return found.metrics["mean_kld"].value


def cells(folder: Path) -> dict[str, int]:
    """Finished cells and when they were written."""
    return {p.name: p.stat().st_mtime_ns for p in (folder / "rows").glob("*.parquet")}


def comparable(found: Measurement) -> Measurement:
    return dataclasses.replace(found, created="", timing={}, command="")


class TestPlainRun:
    def test_rows(self, base: Result) -> None:
        assert [(r.setting, r.role, r.status) for r in base.measurement.rows] == [
            ("q8_0/q8_0", "candidate", "done"), ("q5_0/q5_0", "candidate", "done"),
            ("q4_0/q4_0", "candidate", "done"), ("q4_0/q4_0-norot", "candidate", "done"),
            ("bf16/bf16", "floor", "done"), ("f16/f16", "identity", "done"),
        ]  # fmt: skip
        assert base.failed == []

    def test_identity_is_zero(self, base: Result) -> None:
        identity = row(base, "f16", "identity")
        assert identity.metrics["max_kld"].value == 0
        assert identity.metrics["same_top"].value == 1
        assert identity.metrics["ppl"].value == identity.metrics["ppl_ref"].value
        assert (identity.n_documents, identity.n_tokens) == (1, SCORED)

    def test_floor_is_far_below_every_quantized_type(self, base: Result) -> None:
        floor = kld(row(base, "bf16", "floor"))
        assert 0 < floor < 0.5 * kld(row(base, "q8_0"))
        assert row(base, "bf16", "floor").n_documents == DOCUMENTS / 2

    def test_larger_types_score_better(self, base: Result) -> None:
        small, middle, large = (kld(row(base, s)) for s in ("q4_0", "q5_0", "q8_0"))
        assert large < 0.2 * middle and middle < 0.7 * small
        assert not [w for w in base.measurement.warnings if "scores better" in w]

    def test_every_token_is_counted_once(self, base: Result) -> None:
        for found in base.measurement.rows:
            if found.role != "candidate":
                continue
            assert (found.n_documents, found.n_tokens) == (DOCUMENTS, DOCUMENTS * SCORED)
            assert found.n_nonfinite == 0
            assert [s.n_tokens for s in found.by_category] == [DOCUMENTS * SCORED]
            assert sum(s.n_tokens for s in found.by_position) == DOCUMENTS * SCORED
            assert found.by_position[0].name.startswith("64-")
            assert found.by_position[-1].name.endswith("-126")
            weighted = sum(s.n_tokens * s.metrics["mean_kld"].value for s in found.by_position)
            assert weighted / found.n_tokens == pytest.approx(kld(found))

    def test_bytes_and_rotation(self, base: Result) -> None:
        for found in base.measurement.rows:
            bits = parse(found.setting).bits
            assert found.bits == bits
            # Two layers of one KV head of 64; llama.cpp gives at least 256 cells.
            assert found.bytes_per_token == 2 * 2 * 64 * bits / 8
            assert found.cache_bytes == 256 * found.bytes_per_token
            assert found.cache_bytes_at == {
                "128": found.cache_bytes, "4096": 4096 * found.bytes_per_token,
            }  # fmt: skip
            rotated = parse(found.setting).quantized and parse(found.setting).rotation
            assert found.rotation_k == found.rotation_v == (64 if rotated else 0)

    def test_verdicts_for_candidates_only(self, base: Result) -> None:
        for found in base.measurement.rows:
            assert (found.verdict is not None) == (found.role == "candidate")
            assert not found.simulated
        intervals = row(base, "q4_0").metrics
        assert all(e.low is not None for e in intervals.values())

    def test_summary_is_the_measurement(self, base: Result) -> None:
        stored = (base.folder / "summary.json").read_text(encoding="utf-8")
        assert from_json(stored) == base.measurement

    def test_what_the_record_says(self, base: Result, tiny_model: Path) -> None:
        found = base.measurement
        (model,) = found.models
        assert (model.label, model.name, model.file) == ("a", "tiny", tiny_model.name)
        assert model.scored_weights == "as shipped"
        assert model.framing == "raw text (base model: it has no chat template)"
        assert found.protocol["framing"] == ["raw text"]
        assert found.protocol["text"][0]["chunks"] == {"128": DOCUMENTS}
        assert found.versions["llama.cpp"] and found.hardware["engine_features"]
        assert found.timing["decode_s"] > 0

    def test_one_cell_a_chunk(self, base: Result) -> None:
        assert len(cells(base.folder)) == 4 * DOCUMENTS + DOCUMENTS // 2 + 1


class TestGoingOn:
    def test_again_scores_nothing_and_gives_the_same(
        self, base: Result, again: Path, tiny_model: Path, text: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        before = cells(again)
        monkeypatch.setattr(run, "WORKER", "no_such_worker")  # nobody may be asked to score
        result = measure(request(tiny_model, text, again, memory_at=(4096,)))
        assert cells(again) == before
        assert comparable(result.measurement) == comparable(base.measurement)

    def test_a_setting_more(self, base: Result, again: Path, tiny_model: Path, text: Path) -> None:
        before = cells(again)
        result = measure(request(tiny_model, text, again, *SETTINGS, "q8_0/q4_0"))
        after = cells(again)
        assert {k: after[k] for k in before} == before
        assert len(after) == len(before) + DOCUMENTS
        assert row(result, "q4_0").metrics == row(base, "q4_0").metrics
        assert kld(row(result, "q8_0")) < kld(row(result, "q8_0/q4_0")) < kld(row(result, "q4_0"))

    def test_more_documents(self, again: Path, tiny_model: Path, text: Path) -> None:
        before = cells(again)
        result = measure(request(tiny_model, text, again, "q4_0", documents=DOCUMENTS + 2))
        after = cells(again)
        assert {k: after[k] for k in before} == before
        assert len(after) == len(before) + 2 + 1  # two of q4_0, one of the floor
        assert row(result, "q4_0").n_documents == DOCUMENTS + 2

    def test_fewer_documents_read_only_those(
        self, again: Path, tiny_model: Path, text: Path
    ) -> None:
        result = measure(request(tiny_model, text, again, "q4_0", documents=2))
        assert row(result, "q4_0").n_tokens == 2 * SCORED
        assert row(result, "q4_0").metrics["mean_kld"].low is None

    def test_a_damaged_cell_is_scored_again(
        self, base: Result, again: Path, tiny_model: Path, text: Path
    ) -> None:
        before = cells(again)
        name = next(n for n in before if "q5_0" in n)
        cell = again / "rows" / name
        cell.write_bytes(cell.read_bytes()[:300])
        result = measure(request(tiny_model, text, again, memory_at=(4096,)))
        after = cells(again)
        assert {n for n in before if before[n] != after[n]} == {name}
        assert comparable(result.measurement) == comparable(base.measurement)

    def test_fresh(self, base: Result, again: Path, tiny_model: Path, text: Path) -> None:
        before = cells(again)
        wanted = request(tiny_model, text, again, memory_at=(4096,), fresh=True)
        result = measure(wanted)
        after = cells(again)
        assert set(after) == set(before)
        assert all(after[n] > before[n] for n in before)
        assert comparable(result.measurement) == comparable(base.measurement)

    @pytest.mark.parametrize(
        "changes", [{"via": "decode"}, {"score_from": 0.25}, {"contexts": (96,)}]
    )
    def test_another_protocol_shares_no_cell(
        self, again: Path, tiny_model: Path, text: Path, changes: dict[str, Any]
    ) -> None:
        before = cells(again)
        measure(request(tiny_model, text, again, "q4_0", documents=1, **changes))
        after = cells(again)
        assert {k: after[k] for k in before} == before
        assert len(after) == len(before) + 3


class TestProtocol:
    def test_decode_replay_agrees_with_blocks(
        self, base: Result, tiny_model: Path, text: Path, tmp_path: Path
    ) -> None:
        replay = measure(request(tiny_model, text, tmp_path, "q8_0", "q4_0", via="decode"))
        floor = kld(row(base, "bf16", "floor"))
        for setting in ("q8_0", "q4_0"):
            a, b = kld(row(base, setting)), kld(row(replay, setting))
            assert abs(a - b) <= 3 * floor + 0.1 * a
        assert row(replay, "f16", "identity").metrics["max_kld"].value == 0

    def test_several_contexts(self, tiny_model: Path, text: Path, tmp_path: Path) -> None:
        result = measure(request(tiny_model, text, tmp_path, "q4_0", contexts=(64, 300)))
        short, long = (row(result, "q4_0", context=c) for c in (64, 300))
        assert short.n_tokens == DOCUMENTS * 31 and long.n_tokens == DOCUMENTS * 149
        assert (short.cache_bytes, long.cache_bytes) == (
            256 * short.bytes_per_token, 512 * long.bytes_per_token,
        )  # fmt: skip

    def test_split_kv(self, tiny_model: Path, text: Path, tmp_path: Path) -> None:
        wanted = request(tiny_model, text, tmp_path, "q4_0/q4_0-norot", split_kv=True)
        result = measure(wanted)
        whole = kld(row(result, "q4_0/q4_0-norot"))
        halves = [kld(row(result, s)) for s in ("q4_0/f16-norot", "f16/q4_0-norot")]
        assert all(0 < h < 1.2 * whole for h in halves)

    def test_float_copy_of_quantized_weights(
        self, tiny_q8: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NYBBLE_CACHE", str(tmp_path / "cache"))
        result = measure(request(tiny_q8, text, tmp_path / "a", "q8_0", documents=2))
        assert result.measurement.models[0].scored_weights == "f16 copy"
        (copy,) = (tmp_path / "cache" / "weights").glob("*.gguf")
        written = copy.stat().st_mtime_ns
        shipped = measure(
            request(tiny_q8, text, tmp_path / "b", "q8_0", documents=2, weights="as-shipped")
        )
        assert shipped.measurement.models[0].scored_weights == "as shipped"
        # Quantized weights round activations, which is what the copy is there to avoid.
        assert kld(row(result, "bf16", "floor")) < kld(row(shipped, "bf16", "floor"))
        measure(request(tiny_q8, text, tmp_path / "c", "q4_0", documents=1))
        assert copy.stat().st_mtime_ns == written
        assert [p.suffix for p in copy.parent.iterdir() if p != copy] in ([], [".lock"])

    def test_plan_matches_what_is_done(
        self, base: Result, tiny_model: Path, text: Path, tmp_path: Path
    ) -> None:
        planned = plan_cells(request(tiny_model, text, tmp_path / "none"))
        assert not (tmp_path / "none").exists()
        assert [
            (p.setting, p.role, p.context, p.chunks, p.bits, p.cache_bytes) for p in planned
        ] == [
            (r.setting, r.role, r.context, r.n_documents, r.bits, r.cache_bytes)
            for r in base.measurement.rows
        ]
        assert all(p.seconds > 0 for p in planned)


class TestFraming:
    def test_instruct_model_gets_its_template(
        self, tiny_instruct: Path, text: Path, tmp_path: Path
    ) -> None:
        framed = measure(request(tiny_instruct, text, tmp_path / "a", "q4_0", documents=2))
        raw = measure(
            request(tiny_instruct, text, tmp_path / "b", "q4_0", documents=2, framing="raw")
        )
        said = framed.measurement.models[0].framing
        assert said == "chat template (instruct model: it has chat template)"
        assert framed.measurement.protocol["framing"] != ["raw text"]
        assert raw.measurement.models[0].framing.startswith("raw text (instruct model")
        assert raw.measurement.protocol["framing"] == ["raw text"]
        hashes = [m.measurement.protocol["text_sha256"] for m in (framed, raw)]
        assert hashes[0] != hashes[1]
        assert kld(row(framed, "q4_0")) != kld(row(raw, "q4_0"))

    def test_template_demanded_of_a_base_model(
        self, tiny_model: Path, text: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(NybbleError, match="has no chat template"):
            measure(request(tiny_model, text, tmp_path, framing="template"))


@pytest.fixture(scope="module")
def other(make_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same vocabulary, other weights."""
    return make_tiny(tmp_path_factory.mktemp("models") / "other.gguf", seed=1, name="other")


class TestTwoModels:
    def test_rows_of_both(self, tiny_model: Path, other: Path, text: Path, tmp_path: Path) -> None:
        wanted = request(tiny_model, text, tmp_path, "q4_0", documents=2, against=other)
        result = measure(wanted)
        found = result.measurement
        assert [(r.setting, r.role, r.model, r.reference) for r in found.rows] == [
            ("q4_0/q4_0", "candidate", "a", "a"), ("q4_0/q4_0", "candidate", "b", "b"),
            ("bf16/bf16", "floor", "a", "a"), ("f16/f16", "identity", "a", "a"),
            ("bf16/bf16", "floor", "b", "b"), ("f16/f16", "identity", "b", "b"),
            ("f16/f16", "cross", "a", "b"), ("q4_0/q4_0", "candidate", "a", "b"),
            ("f16/f16", "cross", "b", "a"), ("q4_0/q4_0", "candidate", "b", "a"),
        ]  # fmt: skip
        assert [m.name for m in found.models] == ["tiny", "other"]
        for label in "ab":
            assert kld(row(result, "f16", "identity", model=label)) == 0
            own = row(result, "q4_0", model=label, reference=label)
            cross = row(result, "f16", "cross", model=label)
            mixed = row(result, "q4_0", model=label, reference="ba"["ab".index(label)])
            # Two random models differ far more than one does from its own 4-bit cache.
            assert kld(own) < 0.2 * kld(cross)
            assert kld(mixed) == pytest.approx(kld(cross), rel=0.3)
            assert own.verdict is not None
            assert cross.verdict is None and mixed.verdict is None
        # Own numbers do not depend on who else was there.
        alone = measure(request(other, text, tmp_path / "alone", "q4_0", documents=2))
        assert kld(row(alone, "q4_0")) == kld(row(result, "q4_0", model="b", reference="b"))

    def test_the_same_model_twice(self, tiny_model: Path, text: Path, tmp_path: Path) -> None:
        wanted = request(tiny_model, text, tmp_path, "q4_0", documents=1, against=tiny_model)
        result = measure(wanted)
        for found in result.measurement.rows:
            if found.role == "cross":
                assert found.metrics["max_kld"].value == 0

    def test_other_vocabulary(self, tiny_model: Path, text: Path, tmp_path: Path) -> None:
        other = tmp_path / "other.gguf"
        data = tiny_model.read_bytes()
        assert data.count("\u2581the".encode()) == 1
        other.write_bytes(data.replace("\u2581the".encode(), "\u2581tha".encode()))
        with pytest.raises(NybbleError, match="different vocabularies"):
            measure(request(tiny_model, text, tmp_path / "run", against=other))
        assert not (tmp_path / "run").exists()


class TestRefusals:
    def test_context_beyond_the_model(self, tiny_model: Path, text: Path, tmp_path: Path) -> None:
        with pytest.raises(NybbleError, match="longer than the model was trained for") as caught:
            measure(request(tiny_model, text, tmp_path, contexts=(8192,)))
        assert caught.value.hint == "--context 4096"

    def test_text_too_short(self, tiny_model: Path, text: Path, tmp_path: Path) -> None:
        with pytest.raises(NybbleError, match="no text fills one context of 4,096") as caught:
            measure(request(tiny_model, text, tmp_path, contexts=(4096,)))
        assert "too few for a context of 4,096" in str(caught.value.seen)

    def test_head_size(self, make_tiny: Callable[..., Path], text: Path, tmp_path: Path) -> None:
        odd = make_tiny(tmp_path / "odd.gguf", head_dim=80)
        with pytest.raises(NybbleError, match="does not divide this model's K head size"):
            measure(request(odd, text, tmp_path / "run", "q4_0"))

    def test_few_documents_resolve_nothing(
        self, tiny_model: Path, text: Path, tmp_path: Path
    ) -> None:
        result = measure(request(tiny_model, text, tmp_path, "q8_0", documents=2))
        found = row(result, "q8_0")
        assert found.verdict is not None and found.verdict.label == "unresolved"
        assert result.measurement.recommendation.startswith("Not resolved with this little text")


WORKER = """
import os, sys, time
import numpy as np
from nybble.engines.llamacpp import model
from nybble.errors import EngineError
from nybble.formats import parse
from nybble.scoring import worker

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
worker.main()
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
        monkeypatch.setattr(run, "WORKER", name)

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
