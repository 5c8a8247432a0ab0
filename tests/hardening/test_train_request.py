"""What a training may be asked for, and how a wrong wish is answered."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nybble.errors import NybbleError
from nybble.hardening.train.request import FREE, TrainRequest

OUT = Path("out")


class TestRanges:
    @pytest.mark.parametrize(
        ("field", "value", "named"),
        [
            ("scope", "everything", "scales, kv, all"),
            ("lora", -1, "0 to 4,096"),
            ("lora", 5000, "0 to 4,096"),
            ("steps", 0, "1 or more"),
            ("batch", 0, "1 or more"),
            ("accumulate", -3, "1 or more"),
            ("context", 31, "32 or more"),
            ("score_from", 0.96, "0.0 to 0.95"),
            ("score_from", math.nan, "0.0 to 0.95"),
            ("positions", 0, "1 to 1,024"),
            ("positions", 1025, "1 to 1,024"),
            ("warmup", 1.1, "0.0 to 1.0"),
            ("precision", "fp16", "auto, bf16, f32"),
            ("eval_every", 0, "1 or more"),
            ("patience", 0, "1 or more"),
            ("checkpoint_every", -1.0, "0 (every step)"),
            ("checkpoint_every", math.nan, "0 (every step)"),
            ("checkpoint_every", math.inf, "0 (every step)"),
            ("seed", -1, "0 or more"),
            ("threads", 0, "1 to 512"),
            ("threads", 10**9, "1 to 512"),
            ("device", "tpu", "auto, cpu, cuda"),
            ("log", "wandb", "csv, tensorboard"),
            ("lr", (("kv", 0.0),), "more than 0, up to 1"),
            ("lr", (("kv", math.nan),), "more than 0, up to 1"),
            ("lr", (("kv", 1.5),), "more than 0, up to 1"),
        ],
    )
    def test_refused(self, field: str, value: Any, named: str) -> None:
        with pytest.raises(NybbleError) as caught:
            TrainRequest(OUT, **{field: value})
        assert named in str(caught.value.allowed)
        assert caught.value.seen is not None
        shown = value[0][1] if field == "lr" else value
        assert str(shown) in caught.value.seen

    @pytest.mark.parametrize(
        ("field", "value"),
        [("lora", 4096), ("score_from", 0.95), ("positions", 1024), ("warmup", 0.0),
         ("warmup", 1.0), ("patience", None), ("checkpoint_every", 0.0), ("lr", (("kv", 1.0),)),
         ("seed", 2**80)],
    )  # fmt: skip
    def test_allowed(self, field: str, value: Any) -> None:
        assert getattr(TrainRequest(OUT, **{field: value}), field) == value

    def test_positions_come_from_the_whole_context(self) -> None:
        assert TrainRequest(OUT, context=100, score_from=0.25, positions=100).start == 25
        with pytest.raises(NybbleError, match="--positions"):
            TrainRequest(OUT, context=100, score_from=0.25, positions=101)

    def test_low_rank_scales(self) -> None:
        with pytest.raises(NybbleError, match="--lora is about matrices"):
            TrainRequest(OUT, scope="scales", lora=8)


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "weights", "what"),
        [
            ((), (), "no KV setting is quantized"),
            (("f16",), (), "no KV setting is quantized"),
            (("f16", "bf16/f16"), (), "no KV setting is quantized"),
            (("q4_0", "q4_0/q4_0"), (), "given twice"),
            (("q4_0", "q8_0"), (1.0,), "every KV setting needs a weight"),
            (("q4_0",), (0.0,), "weight of a KV setting"),
            (("q4_0",), (math.nan,), "weight of a KV setting"),
            (("q4_0",), (math.inf,), "weight of a KV setting"),
            (("q4_0", "q8_0"), (1.0, -1.0), "weight of a KV setting"),
            (("q4_7",), (), "unknown KV type"),
            (("../q4_0",), (), "unknown KV type"),
        ],
    )
    def test_refused(
        self, settings: tuple[str, ...], weights: tuple[float, ...], what: str
    ) -> None:
        with pytest.raises(NybbleError, match=what):
            TrainRequest(OUT, settings=settings, weights=weights)

    @given(st.lists(st.floats(1e-6, 1e6), min_size=3, max_size=3))
    def test_shares_are_probabilities(self, weights: list[float]) -> None:
        asked = TrainRequest(OUT, settings=("q4_0", "q8_0", "f16"), weights=tuple(weights))
        assert math.fsum(asked.shares) == pytest.approx(1)
        assert asked.shares[0] * weights[1] == pytest.approx(asked.shares[1] * weights[0])

    def test_equal_shares_without_weights(self) -> None:
        assert TrainRequest(OUT, settings=("q4_0", "f16")).shares == (0.5, 0.5)


class TestDefining:
    def test_json_gives_it_back(self) -> None:
        found = TrainRequest(OUT, lr=(("kv", 1e-5),), settings=("q4_0", "f16")).defining()
        assert json.loads(json.dumps(found)) == found
        assert found["lr"] == [["kv", 1e-5]]

    def test_one_name_a_setting(self) -> None:
        short, long = (TrainRequest(OUT, settings=(s,)) for s in ("Q4_0", "q4_0/q4_0"))
        assert short.defining() == long.defining()

    def test_every_other_field_counts(self) -> None:
        fields = {f.name for f in dataclasses.fields(TrainRequest)}
        assert set(TrainRequest(OUT).defining()) == fields - set(FREE)


def test_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['accelerate'] = None\n"
        "from nybble.hardening.train.request import TrainRequest\n"
        "from nybble.hardening.train.data import TokenPool\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
