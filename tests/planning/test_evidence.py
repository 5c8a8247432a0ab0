"""Stored measurements as evidence: whose they are, which one counts, what is passed over."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nybble.errors import NybbleError
from nybble.planning.evidence import Identity, qualities
from nybble.results.records import Estimate, Measurement, ModelRecord, Row, Verdict, to_json
from nybble.results.store import RunStore, write_text

MODEL = Identity("gemma3", "m.gguf", 1000, ("gemma3_text",))


def row(setting: str = "q4_0/q4_0", kld: float = 0.02, **more: Any) -> Row:
    fields: dict[str, Any] = {
        "role": "candidate", "context": 4096, "k_type": "q4_0", "v_type": "q4_0",
        "n_documents": 8, "verdict": Verdict("degraded", "why"),
        "metrics": {"mean_kld": Estimate(kld, kld / 2, 2 * kld), "same_top": Estimate(0.95)},
    }  # fmt: skip
    return Row(setting, **(fields | more))


def model(label: str = "a", **more: Any) -> ModelRecord:
    fields: dict[str, Any] = {
        "name": "Model", "file": "m.gguf", "sha256": "0" * 64, "architecture": "gemma3",
        "size_bytes": 1000, "shipped_weights": "Q4_K", "scored_weights": "as shipped",
        "context_length": 32768, "sliding_window": 512, "framing": "raw text",
    }  # fmt: skip
    return ModelRecord(label, **(fields | more))


def store(folder: Path, *rows: Row, models: tuple[ModelRecord, ...] = (model(),)) -> Path:
    """Write a run folder as `nybble measure` does."""
    record = Measurement(
        list(models), list(rows), "r", [], "nybble measure", "2026-01-01", {}, {}, {}, {}
    )
    with RunStore(folder) as run:
        write_text(run.folder / "summary.json", to_json(record))
    return folder


def test_a_measurement_is_read(tmp_path: Path) -> None:
    folder = store(tmp_path / "run", row(), row("q8_0/q8_0", 0.001, verdict=Verdict("safe", "")))
    found = qualities([folder], MODEL)
    assert set(found) == {"q4_0/q4_0", "q8_0/q8_0"}
    quality = found["q4_0/q4_0"]
    assert quality.mean_kld == Estimate(0.02, 0.01, 0.04)
    assert quality.same_top == Estimate(0.95)
    assert (quality.verdict, quality.model, quality.context) == ("degraded", "Model", 4096)
    assert quality.same_model
    assert not quality.simulated
    assert quality.source == str(folder)
    # A folder of run folders does as well, and more than one folder.
    assert qualities([tmp_path], MODEL) == found
    assert qualities([tmp_path, folder], MODEL) == found
    assert qualities([], MODEL) == {}


def test_the_same_model_goes_before_another_of_its_architecture(tmp_path: Path) -> None:
    store(tmp_path / "a", row(kld=0.5, n_documents=99, context=9999),
          models=(model(file="other.gguf", name="Other"),))  # fmt: skip
    found = qualities([tmp_path], MODEL)
    assert (found["q4_0/q4_0"].same_model, found["q4_0/q4_0"].model) == (False, "Other")
    store(tmp_path / "b", row(kld=0.02, n_documents=1))
    assert qualities([tmp_path], MODEL)["q4_0/q4_0"].mean_kld.value == 0.02
    assert qualities([tmp_path], MODEL)["q4_0/q4_0"].same_model
    # Of that name but another size, or planned from the catalogue: not the same.
    for other in (replace(MODEL, size_bytes=999), Identity("gemma3")):
        assert not qualities([tmp_path / "b"], other)["q4_0/q4_0"].same_model


def test_more_documents_then_longer_contexts_count(tmp_path: Path) -> None:
    store(tmp_path / "a", row(kld=0.1, n_documents=8, context=8192))
    store(tmp_path / "b", row(kld=0.2, n_documents=9, context=1024))
    store(tmp_path / "c", row(kld=0.3, n_documents=9, context=512))
    assert qualities([tmp_path], MODEL)["q4_0/q4_0"].mean_kld.value == 0.2


def test_aliases_of_an_architecture(tmp_path: Path) -> None:
    store(tmp_path / "a", row(), models=(model(architecture="gemma3_text"),))
    assert not qualities([tmp_path], Identity("gemma3"))
    assert qualities([tmp_path], MODEL)["q4_0/q4_0"].same_model
    assert not qualities([tmp_path], Identity("llama", "m.gguf", 1000))


@pytest.mark.parametrize(
    "change",
    [
        {"role": "floor"}, {"role": "identity"}, {"role": "cross"}, {"role": "part"},
        {"status": "failed"}, {"metrics": {}},
        {"model": "b", "reference": "a"},  # one model's quantized cache against another's raw one
        {"model": "c", "reference": "c"},
    ],
)  # fmt: skip
def test_rows_that_say_nothing_of_a_setting(change: dict[str, Any], tmp_path: Path) -> None:
    store(tmp_path, row(**change), models=(model(), model("b")))
    assert qualities([tmp_path], MODEL) == {}


def test_the_second_model_of_a_comparison_counts_for_itself(tmp_path: Path) -> None:
    store(tmp_path, row(kld=0.3), row(kld=0.1, model="b", reference="b"),
          models=(model(file="other.gguf"), model("b")))  # fmt: skip
    found = qualities([tmp_path], MODEL)["q4_0/q4_0"]
    assert (found.mean_kld.value, found.same_model) == (0.1, True)


def test_no_verdict_is_unresolved_and_simulated_is_said(tmp_path: Path) -> None:
    store(tmp_path, row(verdict=None, simulated=True, metrics={"mean_kld": Estimate(0.1)}))
    found = qualities([tmp_path], MODEL)["q4_0/q4_0"]
    assert (found.verdict, found.same_top, found.simulated) == ("unresolved", None, True)


def damaged(**changes: Any) -> str:
    """A summary in which a row, the model or the record is not what it should be."""
    record = Measurement([model()], [row()], "r", [], "c", "d", {}, {}, {}, {})
    data = json.loads(to_json(record))
    data["rows"][0] |= changes.get("row", {})
    data["models"][0] |= changes.get("model", {})
    return json.dumps(data | changes.get("record", {}))


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", '{"schema_version": "x"}', '{"schema_version": 1}',
        '{"metrics": {"acc": 0.5}}', "[" * 100_000, "\ufeff{}",
        damaged(record={"schema_version": 99}),
        damaged(record={"rows": None}), damaged(record={"rows": 3}),
        damaged(record={"models": None}), damaged(record={"unknown": 1}),
        damaged(row={"metrics": None}), damaged(row={"metrics": {"mean_kld": 0.1}}),
        damaged(row={"metrics": {"mean_kld": {"value": "low"}}}),
        damaged(row={"metrics": {"mean_kld": {"value": None}}}),
        damaged(row={"n_documents": "many"}), damaged(row={"context": None}),
        damaged(row={"setting": ["q4_0"]}), damaged(row={"verdict": "safe"}),
        damaged(model={"architecture": ["gemma3"]}),
    ],
)  # fmt: skip
def test_damaged_and_foreign_files_are_passed_over(text: str, tmp_path: Path) -> None:
    folder = tmp_path / "0-first"
    folder.mkdir()
    (folder / "summary.json").write_text(text, encoding="utf-8")
    store(tmp_path / "good", row(kld=0.125))
    assert qualities([tmp_path], MODEL)["q4_0/q4_0"].mean_kld.value == 0.125
    assert qualities([folder], MODEL) == {}


def test_what_is_written_by_damaged_is_whole_otherwise(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(damaged(), encoding="utf-8")
    assert set(qualities([tmp_path], MODEL)) == {"q4_0/q4_0"}


def test_other_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bytes").mkdir()
    (tmp_path / "bytes/summary.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "folder/summary.json").mkdir(parents=True)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/summary.json").symlink_to(tmp_path / "nowhere")
    assert qualities([tmp_path], MODEL) == {}
    store(tmp_path / "good", row())
    assert qualities([tmp_path], MODEL)
    monkeypatch.setattr("nybble.planning.evidence.MAX_BYTES", 100)
    assert qualities([tmp_path], MODEL) == {}


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for name in ("missing", "file"):
        with pytest.raises(NybbleError, match="no measurements here") as caught:
            qualities([tmp_path / name], MODEL)
        assert caught.value.seen == str(tmp_path / name)
        assert caught.value.hint == "nybble measure MODEL"
