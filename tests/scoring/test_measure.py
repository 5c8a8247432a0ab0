"""The main job end to end on tiny models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import DOCUMENTS, SCORED, SETTINGS, cells, comparable, kld, request, row

from nybble.errors import NybbleError
from nybble.formats import parse
from nybble.results.records import from_json
from nybble.scoring.backend import LlamaCpp
from nybble.scoring.measure import Result, measure, plan_cells


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
        monkeypatch.setattr(LlamaCpp, "open", None)  # nobody may be asked to score
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
