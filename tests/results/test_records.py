"""Measurements as JSON and back."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from nybble.errors import NybbleError
from nybble.results.records import (
    SCHEMA_VERSION,
    Estimate,
    Measurement,
    ModelRecord,
    Row,
    Slice,
    Verdict,
    from_json,
    to_json,
)


def measurement(**changes: Any) -> Measurement:
    model = ModelRecord(
        label="a", name='Ünïcode "quoted" 模型', file="m.gguf", sha256="0" * 64,
        architecture="gemma3", size_bytes=2**40, shipped_weights="Q4_K", scored_weights="f16 copy",
        context_length=32768, sliding_window=512, framing="raw text",
    )  # fmt: skip
    part = Slice("code", 3, 99, {"mean_kld": Estimate(1e-9), "flips": Estimate(0.5, 0.25, 0.75)})
    row = Row(
        setting="q8_0/q4_0", role="candidate", context=1024, k_type="q8_0", v_type="q4_0",
        rotation_k=64, bits=6.5, bytes_per_token=12.25, cache_bytes=2**34,
        cache_bytes_at={"1024": 1, "131072": 2**35}, n_documents=8, n_tokens=4096, n_nonfinite=2,
        metrics={"mean_kld": Estimate(0.1 + 0.2, 1 / 3, 5e-324), "ppl": Estimate(12.0)},
        by_category=[part], by_position=[part, part], verdict=Verdict("safe", "why"),
    )  # fmt: skip
    failed = Row(
        setting="q4_0/q4_0-norot", role="candidate", context=64, k_type="q4_0", v_type="q4_0",
        status="failed", error="one\n  seen: two",
    )  # fmt: skip
    base: dict[str, Any] = {
        "models": [model, dataclasses.replace(model, label="b", sliding_window=None)],
        "rows": [row, failed],
        "recommendation": "q8_0/q4_0 is safe here",
        "warnings": ["one", "two"],
        "command": "nybble measure --kv 'q8_0/q4_0'",
        "created": "2026-01-01T00:00:00+00:00",
        "protocol": {"contexts": [64, 1024], "text": [{"category": "code", "chunks": {"64": 1}}],
                     "deep": {"a": [1, None, True, "x", 0.5]}},
        "versions": {"nybble": "0.1"},
        "hardware": {"cores": 2, "cpu": "x"},
        "timing": {"decode_s": 1.5},
    }  # fmt: skip
    return Measurement(**{**base, **changes})


def test_round_trip() -> None:
    record = measurement()
    back = from_json(to_json(record))
    assert back == record
    assert isinstance(back.rows[0], Row) and isinstance(back.models[1], ModelRecord)
    assert isinstance(back.rows[0].metrics["mean_kld"], Estimate)
    assert isinstance(back.rows[0].by_category[0].metrics["flips"], Estimate)
    assert isinstance(back.rows[0].verdict, Verdict) and back.rows[1].verdict is None
    assert to_json(back) == to_json(record)


def test_json_is_canonical_and_readable_by_anyone() -> None:
    text = to_json(measurement())
    data = json.loads(text)
    assert list(data) == sorted(data)
    assert data["schema_version"] == SCHEMA_VERSION
    assert data["rows"][0]["metrics"]["mean_kld"]["low"] == 1 / 3
    assert "模型" in text


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_json_does_not_have_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json(measurement(timing={"decode_s": bad}))


def test_newer_schema_is_refused() -> None:
    text = to_json(measurement(schema_version=SCHEMA_VERSION + 1))
    with pytest.raises(NybbleError, match="written by a newer nybble") as caught:
        from_json(text)
    assert caught.value.seen == f"schema {SCHEMA_VERSION + 1}"
    assert caught.value.hint == "pip install --upgrade nybble"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "[1]", "null", "3", '"text"', "{}", '{"rows": []}', "\x00", "[" * 100_000],
)
def test_not_a_measurement(text: str) -> None:
    with pytest.raises(NybbleError, match="not a nybble measurement"):
        from_json(text)


def damaged(change: Any) -> str:
    data = json.loads(to_json(measurement()))
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("rows"),
        lambda d: d.update(unknown=1),
        lambda d: d.update(models=[{"label": "a"}]),
        lambda d: d["rows"][0].update(unknown=1),
        lambda d: d["rows"][0].pop("setting"),
        lambda d: d["rows"].append("text"),
        lambda d: d["rows"].append(7),
        lambda d: d["rows"][0]["metrics"].update(mean_kld=[1, 2]),
        lambda d: d["rows"][0]["metrics"].update(mean_kld=0.5),
        lambda d: d["rows"][0].update(verdict="safe"),
        lambda d: d.update(schema_version="new"),
        lambda d: d.update(schema_version=None),
        lambda d: d.update(schema_version=[1]),
    ],
)
def test_damaged(change: Any) -> None:
    with pytest.raises(NybbleError, match="nybble measurement"):
        from_json(damaged(change))


def test_cut_off() -> None:
    text = to_json(measurement())
    for end in range(0, len(text) - 1, 211):
        with pytest.raises(NybbleError, match="not a nybble measurement"):
            from_json(text[:end])
