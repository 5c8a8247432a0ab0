"""What is asked of a measurement before a hardened model is kept, and what is taken apart after."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from nybble.errors import EngineError, MissingExtraError, NybbleError
from nybble.formats import parse
from nybble.hardening import verify as verify_module
from nybble.hardening.verify import summary, verify
from nybble.results.records import Estimate, Measurement, ModelRecord, Row
from nybble.scoring.measure import Result
from nybble.scoring.request import MeasureRequest, Silent

FLOOR, DRIFT = 4.7e-5, 3.8e-6
BEFORE = {"q4_0/q8_0": 0.11, "q8_0/q8_0": 0.0007}


def row(setting: str, role: str, model: str, reference: str, kld: float) -> Row:
    k, v = setting.split("/")
    metrics = {
        "mean_kld": Estimate(kld), "ppl_ref": Estimate(9.9178), "ppl": Estimate(9.9176),
    }  # fmt: skip
    return Row(setting, role, 1024, k, v, model=model, reference=reference, metrics=metrics)


def measured(shrink: float = 0.25, drift: float = DRIFT, floor: float = FLOOR) -> Measurement:
    """A measurement of two models as llama.cpp gives it, the second one better by `shrink`."""
    rows = []
    for label, other in (("a", "b"), ("b", "a")):
        for setting, kld in BEFORE.items():
            mine = kld * (shrink if label == "b" else 1.0)
            rows.append(row(setting, "candidate", label, label, mine))
            rows.append(row(setting, "candidate", label, other, mine * 1.01))
        rows.append(row("bf16/bf16", "floor", label, label, floor))
        rows.append(row("f16/f16", "identity", label, label, 0.0))
        rows.append(row("f16/f16", "cross", label, other, drift))
    models = [
        ModelRecord(x, "tiny", f"{x}.gguf", "00", "gemma3", 1, "F32", "as shipped", 1024, None, "")
        for x in "ab"
    ]
    return Measurement(models, rows, "", [], "", "", {}, {}, {}, {})


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


Answer = Callable[[MeasureRequest], Measurement]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[MeasureRequest]:
    """Every measurement that is asked for; `answers` decides what comes back."""
    return answers(monkeypatch, lambda request: measured())


def answers(monkeypatch: pytest.MonkeyPatch, answer: Answer) -> list[MeasureRequest]:
    found: list[MeasureRequest] = []

    def measure(request: MeasureRequest, progress: object) -> Result:
        found.append(request)
        assert request.out is not None and request.out.parent.is_dir()
        return Result(answer(request), request.out)

    monkeypatch.setattr(verify_module, "measure", measure)
    return found


def wanted(by: str | None = None) -> MeasureRequest:
    settings = tuple(parse(s) for s in ("q8_0/q8_0", "q4_0/q8_0"))
    return MeasureRequest(
        model=Path("a.gguf"), against=Path("b.gguf"), settings=settings, by=by, documents=3,
        weights="as-shipped", threads=1,
    )  # fmt: skip


def test_before_and_after() -> None:
    found = summary(measured())
    assert found.drift.value == DRIFT and found.floor.value == FLOOR
    assert found.ppl == (9.9178, 9.9176) and found.split is None
    gains = {g.setting: g for g in found.gains}
    # After is the hardened model against the original's 16-bit cache, not against its own.
    assert gains["q4_0/q8_0"].before.value == 0.11
    assert gains["q4_0/q8_0"].after.value == pytest.approx(0.11 * 0.25 * 1.01)
    assert gains["q8_0/q8_0"].factor == pytest.approx(4 / 1.01)


def test_a_failed_row_fails_all() -> None:
    m = measured()
    rows = [
        dataclasses.replace(r, status="failed", error="out of memory", metrics={})
        if r.setting == "q8_0/q8_0" and r.model == r.reference == "b" else r
        for r in m.rows
    ]  # fmt: skip
    with pytest.raises(NybbleError, match="could not be measured") as caught:
        summary(dataclasses.replace(m, rows=rows))
    assert caught.value.seen == "q8_0/q8_0: out of memory"


@pytest.mark.parametrize("drift", [1.9 * FLOOR, 0.0])
def test_drift_within_twice_the_floor_passes(drift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, lambda request: measured(drift=drift))
    assert verify(wanted(), Silent()).drift.value == drift


@pytest.mark.parametrize(
    ("m", "what"),
    [
        (measured(drift=2.1 * FLOOR), "not the same model"),
        (measured(drift=1e-5, floor=0.0), "not the same model"),
        (measured(shrink=1.0), "does not help"),
    ],
)
def test_refused_before_anything_is_taken_apart(
    m: Measurement, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answers(monkeypatch, lambda request: m)
    with pytest.raises(NybbleError, match=what):
        verify(wanted("layer"), Silent())
    assert len(asked) == 1
    assert asked[0].out is not None and not asked[0].out.parent.exists()


def test_not_taken_apart_unless_asked(asked: list[MeasureRequest]) -> None:
    assert verify(wanted(), Silent()).split is None
    assert [r.by for r in asked] == [None]


def test_keys_of_the_worst_setting_alone(asked: list[MeasureRequest]) -> None:
    """The proof is llama.cpp's, on all texts; what is taken apart is one document in torch."""
    found = verify(wanted("layer"), Silent())
    proof, split = asked
    assert proof == dataclasses.replace(wanted(), out=proof.out)
    assert found.split is not None
    assert (split.by, split.engine, split.documents) == ("layer", "transformers", 1)
    assert split.settings == (parse("q4_0/f16"),) and split.categories == ("prose",)
    assert (split.model, split.against) == (proof.model, proof.against)
    assert split.weights == "f16", "torch has no kernels for the weights as shipped"
    assert split.out != proof.out
    assert split.out is not None and not split.out.parent.exists()


@pytest.mark.parametrize(
    "error",
    [
        MissingExtraError("torch is not installed", hint='pip install "nybble[torch]"'),
        EngineError("the engine died"),
    ],
)
def test_a_proof_stands_without_its_layers(
    error: NybbleError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(request: MeasureRequest) -> Measurement:
        if request.by:
            raise error
        return measured()

    answers(monkeypatch, answer)
    progress = Notes()
    found = verify(wanted("layer"), progress)
    assert found.split is None and len(found.gains) == 2
    hint = f" ({error.hint})" if error.hint else ""
    assert progress.notes == [f"not compared layer by layer: {error.what}{hint}"]
