"""A whole run on a tiny model: numbers, resuming, and an engine that misbehaves."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pytest
from generation_runs import LIMIT, PROMPTS, cells, request, row

from nybble.errors import EngineError, NybbleError
from nybble.formats import parse
from nybble.results.tasks import GenerationRun, TaskRun, from_json, to_json
from nybble.scoring.generation import backend
from nybble.scoring.generation.generate import Generated, generate
from nybble.scoring.generation.plan import plan_lanes
from nybble.scoring.request import Silent

WORKER = """
import os, sys
from nybble.engines.llamacpp import model
from nybble.engines.worker import serve
from nybble.errors import EngineError
from nybble.formats import parse
from nybble.scoring.generation.worker import GenerationWorker

make, last = model.Model.context, model.Context.last

def context(self, setting, *args, **kwargs):
    asked = setting
    {context}
    lane = make(self, setting, *args, **kwargs)
    lane.setting = str(asked)
    return lane

def answered(self, tokens, first):
    {last}
    return last(self, tokens, first)

model.Model.context, model.Context.last = context, answered
serve(GenerationWorker)
"""
Patch = Callable[..., None]


class Told(Silent):
    """Progress that remembers."""

    def __init__(self) -> None:
        self.total = self.done = 0.0
        self.notes: list[str] = []

    def begin(self, text: str, total: float) -> None:
        self.total = total

    def advance(self, done: float) -> None:
        self.done += done

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def misbehave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Patch:
    """Generate with a worker whose contexts or answers do something else."""

    def patch(*, context: str = "pass", last: str = "pass") -> None:
        folder = tmp_path / "workers"
        folder.mkdir()
        source = WORKER.replace("{context}", context).replace("{last}", last)
        (folder / "bad_generation_worker.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        workers = ("bad_generation_worker", backend.WORKERS[1])
        monkeypatch.setattr(backend.LlamaGeneration, "workers", workers)

    return patch


def query(folder: Path, sql: str) -> list[tuple[object, ...]]:
    return duckdb.sql(sql.format(f"'{folder}/generated/*.parquet'")).fetchall()


class TestAPlainRun:
    def test_f16_against_itself_is_equal_token_for_token(self, generated: Generated) -> None:
        identity = row(generated, "f16", "identity")
        assert identity.n_prompts == 1 and identity.first_at == [0]
        assert identity.first_median is None
        assert identity.agreement_at[str(LIMIT)].value == 1
        assert identity.kld_at[f"1-{LIMIT}"].value == 0
        assert not any("deterministic" in w for w in generated.run.warnings)

    def test_fewer_bits_part_sooner_and_err_more(self, generated: Generated) -> None:
        floor, q8, q4 = (
            row(generated, "bf16", "floor"), row(generated, "q8_0"), row(generated, "q4_0")
        )  # fmt: skip
        at, stretch = str(LIMIT), f"1-{LIMIT}"
        assert 0 < floor.kld_at[stretch].value < q8.kld_at[stretch].value
        assert 10 * q8.kld_at[stretch].value < q4.kld_at[stretch].value
        assert q4.agreement_at[at].value < q8.agreement_at[at].value
        assert q4.first_median is not None and q8.first_median is not None
        assert q4.first_median.value <= q8.first_median.value
        assert q4.agreement_change is not None and q4.agreement_change.high is not None
        assert q4.agreement_change.high < 0
        assert q4.trend is not None and q4.trend.low is not None
        assert q4.n_prompts == len(q4.first_at) == PROMPTS

    def test_numbers_follow_from_the_cells(self, generated: Generated) -> None:
        (mean,) = query(generated.folder, "select avg(kld)::double from {} where "
                        "setting = 'q4_0/q4_0' and token_ref >= 0")[0]  # fmt: skip
        q4 = row(generated, "q4_0")
        assert q4.kld_at[f"1-{LIMIT}"].value == pytest.approx(mean, rel=1e-6)
        found = query(generated.folder, """
            select q.document, min(q.place) from {0} q join {0} r using (document, place)
            where q.setting = 'q4_0/q4_0' and r.role = 'reference' and q.token != r.token
            group by 1""")  # fmt: skip
        assert sorted(place for _, place in found) == [f for f in q4.first_at if f]  # type: ignore[type-var]

    def test_the_replay_reads_the_reference_s_answer(self, generated: Generated) -> None:
        wrong = query(generated.folder, """
            select count(*) from {0} q join {0} r using (document, place)
            where q.setting = 'q4_0/q4_0' and r.role = 'reference' and q.token_ref != r.token
            """)  # fmt: skip
        assert wrong == [(0,)]
        # Block by block as one by one: mostly the reference's own choice is its top token.
        ((same,),) = query(generated.folder, """
            select avg((top_ref = token_ref)::int)::double from {} where role = 'candidate'
            """)  # fmt: skip
        assert isinstance(same, float) and same > 0.95

    def test_the_record_reads_back(self, generated: Generated) -> None:
        text = (generated.folder / "generation.json").read_text(encoding="utf-8")
        again = from_json(GenerationRun, text)
        assert to_json(again) == text == to_json(generated.run)
        assert again == generated.run
        with pytest.raises(NybbleError, match="does not know"):
            from_json(TaskRun, text)
        with pytest.raises(NybbleError, match="newer"):
            from_json(GenerationRun, text.replace('"schema_version": 1', '"schema_version": 99'))
        with pytest.raises(NybbleError, match="not a nybble run"):
            from_json(GenerationRun, "[]")

    def test_prompts_are_documents_and_are_named(self, generated: Generated) -> None:
        protocol = generated.run.protocol
        assert protocol["n_prompts"] == PROMPTS and protocol["text"][0]["prompts"] == PROMPTS
        named = query(generated.folder, "select distinct document, prompt_tokens from {}")
        assert len(named) == PROMPTS
        assert {n for _, n in named} == {64}


class TestGoingOn:
    def test_the_same_again_generates_nothing(
        self, generated: Generated, once_more: Path, tiny_model: Path
    ) -> None:
        before, told = cells(once_more), Told()
        again = generate(request(tiny_model, once_more), told)
        assert cells(once_more) == before and told.total == 0 and "there already" in told.notes[0]
        assert again.run.rows == generated.run.rows

    def test_a_new_setting_is_compared_with_the_answers_there_are(
        self, generated: Generated, once_more: Path, tiny_model: Path
    ) -> None:
        before, told = cells(once_more), Told()
        wider = generate(request(tiny_model, once_more, "q8_0", "q5_0", "q4_0"), told)
        new = {k: v for k, v in cells(once_more).items() if k not in before}
        assert len(new) == PROMPTS and all("q5_0" in name for name in new)
        assert {k: v for k, v in cells(once_more).items() if k in before} == before
        assert told.done == told.total == PROMPTS * LIMIT
        assert row(wider, "q4_0") == row(generated, "q4_0")
        error = [row(wider, s).kld_at[f"1-{LIMIT}"].value for s in ("q8_0", "q5_0", "q4_0")]
        assert error == sorted(error)

    def test_damaged_cells_are_made_again_and_are_the_same(
        self, generated: Generated, once_more: Path, tiny_model: Path
    ) -> None:
        *cut, hollow = sorted(cells(once_more))[:4]
        for name in cut:
            path = once_more / "generated" / name
            path.write_bytes(path.read_bytes()[:100])
        (once_more / "generated" / hollow).write_bytes(b"PAR1" + b"\0" * 200 + b"PAR1")
        again = generate(request(tiny_model, once_more))
        assert again.run.rows == generated.run.rows


class TestMisbehaviour:
    def only_q4_0_failed(self, found: Generated, *reasons: str) -> None:
        (failed,) = found.failed
        assert failed.setting == "q4_0/q4_0" and failed.role == "candidate"
        for reason in reasons:
            assert reason in str(failed.error)
        assert row(found, "q8_0").kld_at and row(found, "f16", "identity").first_at == [0]

    def test_a_lane_that_aborts(self, tiny_model: Path, tmp_path: Path, misbehave: Patch) -> None:
        misbehave(last="if self.setting == 'q4_0/q4_0' and first == 70: os.abort()")
        told = Told()
        found = generate(request(tiny_model, tmp_path / "run", prompts=2), told)
        self.only_q4_0_failed(found, "SIGABRT")
        assert any("lane by lane" in n for n in told.notes)
        assert not [n for n in cells(found.folder) if "q4_0" in n]

    def test_a_lane_that_is_refused(
        self, tiny_model: Path, tmp_path: Path, misbehave: Patch
    ) -> None:
        misbehave(context="if str(setting) == 'q4_0/q4_0': raise EngineError('no such cache here')")
        found = generate(request(tiny_model, tmp_path / "run", prompts=1))
        self.only_q4_0_failed(found, "no such cache here")

    def test_a_context_that_aborts(
        self, tiny_model: Path, tmp_path: Path, misbehave: Patch
    ) -> None:
        misbehave(context="if str(setting) == 'q4_0/q4_0': os.abort()")
        found = generate(request(tiny_model, tmp_path / "run", prompts=1))
        self.only_q4_0_failed(found, "SIGABRT")

    def test_a_cache_that_is_not_read(
        self, tiny_model: Path, tmp_path: Path, misbehave: Patch
    ) -> None:
        misbehave(context="setting = parse('f16') if str(setting) == 'q4_0/q4_0' else setting")
        found = generate(request(tiny_model, tmp_path / "run", prompts=1))
        self.only_q4_0_failed(found, "the quantized cache was not read")

    def test_a_reference_that_fails_ends_the_run(
        self, tiny_model: Path, tmp_path: Path, misbehave: Patch
    ) -> None:
        misbehave(context="if str(setting) == 'f16/f16': raise EngineError('no such cache here')")
        with pytest.raises(EngineError, match="no such cache here"):
            generate(request(tiny_model, tmp_path / "run", prompts=1))


class TestAsking:
    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"limit": 63}, "64 to 4,096"),
            ({"limit": 5000}, "64 to 4,096"),
            ({"prompts": 0}, "--prompts"),
            ({"prompt_tokens": 8}, "--prompt-tokens"),
            ({"weights": "q8_0"}, "--weights"),
            ({"seed": -1}, "--seed"),
        ],
    )
    def test_values_out_of_range(self, changes: dict[str, object], says: str) -> None:
        with pytest.raises(NybbleError, match=says):
            request(Path("model.gguf"), Path("out"), **changes)

    def test_answers_beyond_the_model_s_context(
        self, make_tiny: Callable[..., Path], tmp_path: Path
    ) -> None:
        model = make_tiny(tmp_path / "short.gguf", context_length=128)
        wanted = request(model, tmp_path / "run", prompt_tokens=65)
        for act in (generate, plan_lanes):
            with pytest.raises(NybbleError, match="longer than the model was trained for"):
                act(wanted)  # type: ignore[operator]

    def test_unknown_category_and_no_document(self, tiny_model: Path, tmp_path: Path) -> None:
        with pytest.raises(NybbleError, match="did you mean prose"):
            generate(request(tiny_model, tmp_path / "run", categories=("pose",)))
        talk = tmp_path / "talk.jsonl"
        question = '{"role": "user", "content": "' + "word " * 100 + '"}'
        talk.write_text('{"messages": [' + question + "]}\n")
        with pytest.raises(NybbleError, match="no document gives a prompt"):
            generate(request(tiny_model, tmp_path / "run", categories=None, jsonl=talk))

    def test_fewer_prompts_than_asked_for_are_told(
        self, tiny_instruct: Path, tmp_path: Path
    ) -> None:
        talk = tmp_path / "talk.jsonl"
        talk.write_text('{"messages": [{"role": "user", "content": "hello"}]}\n')
        found = generate(
            request(tiny_instruct, tmp_path / "run", "q4_0", categories=None, jsonl=talk)
        )
        assert any(w.startswith("1 prompts, not 6") for w in found.run.warnings)
        assert found.run.protocol["prompts"] == ["conversation, template"]
        assert row(found, "q4_0").kld_at[f"1-{LIMIT}"].low is None

    def test_a_plan_without_a_run(self, tiny_model: Path, tmp_path: Path) -> None:
        lanes = plan_lanes(request(tiny_model, tmp_path / "run"))
        assert [(x.role, x.prompts, x.tokens) for x in lanes] == [
            ("reference", 6, 384), ("identity", 1, 64), ("floor", 6, 384),
            ("candidate", 6, 384), ("candidate", 6, 384),
        ]  # fmt: skip
        size = {(x.role, x.setting): x.cache_bytes for x in lanes}
        assert size["reference", "f16/f16"] > size["candidate", "q8_0/q8_0"] > 0
        assert all(np.isfinite(x.seconds) and x.seconds > 0 for x in lanes)
        assert not (tmp_path / "run").exists()


def test_settings_that_are_the_reference_s_own_run_once(tiny_model: Path, tmp_path: Path) -> None:
    wanted = request(tiny_model, tmp_path / "run", "f16", "bf16", "q8_0", prompts=1)
    found = generate(dataclasses.replace(wanted, threads=1))
    assert [r.role for r in found.run.rows] == ["candidate", "floor", "identity", "reference"]
    assert parse(found.run.rows[0].setting).quantized
