"""bench/decode and its neighbours on tiny sizes: what is measured is what is said."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

BENCH = Path(__file__).parents[2] / "bench"
sys.path.append(str(BENCH))  # behind everything: its modules have short names

import decode  # noqa: E402
import runtime_page  # noqa: E402
import runtime_tables  # noqa: E402
from decode_measure import Bench, Way, speedup  # noqa: E402
from decode_packed import Shape, fill, make, read_bytes  # noqa: E402

CPU = torch.device("cpu")
TINY = ["--device", "cpu", "--runs", "2", "--flush", "4096", "--copied", "4096", "--no-save"]


def measured(*given: str) -> list[dict[str, Any]]:
    return decode.measure(decode.arguments([*TINY, *given]))["cases"]


def test_all_ways_agree_and_are_told_apart() -> None:
    (case,) = measured("--shapes", "1x256", "--contexts", "128", "--no-old")
    ways = case["ways"]
    assert list(ways) == ["bf16", "f32", "f16", "q8_0", "q4_0", "nyb4"]
    assert case["left_out"] == {} or all(n.startswith(("bf16 ", "f32 ")) for n in case["left_out"])
    assert ways["f32"]["error"] == 0 and ways["bf16"]["error"] < 0.02
    errors = [ways[name]["error"] for name in ("f16", "q8_0", "q4_0")]
    assert errors == sorted(errors) and errors[0] < 0.01 < errors[2] < 0.5
    # 256 channels of K and V: 2 bytes each in bf16, 18 bytes a block of 32 in q4_0.
    assert ways["bf16"]["moved_bytes"] == 128 * 2 * 512
    assert ways["q4_0"]["moved_bytes"] == 128 * 2 * 144
    assert set(ways["q4_0"]["faster_than"]) == {"bf16", "f32"}
    assert ways["q4_0"]["kernel"] in ("reference", "native-avx2", "native-avx512",
                                      "native-baseline")  # fmt: skip


def test_latent_reads_half_and_steps_meet_transformers_caches() -> None:
    found = measured("--shapes", "4x512", "--contexts", "64", "--types", "q4_0", "--batches", "2")
    ways = found[0]["ways"]
    assert ways["latent q4_0"]["moved_bytes"] * 2 == ways["q4_0"]["moved_bytes"]
    assert ways["latent q4_0"]["error"] < 0.5
    assert set(ways["latent q4_0"]["faster_than"]) == {"bf16", "f32", "q4_0"}
    assert {"dynamic step", "fp8 step"} <= set(ways["q4_0 step"]["faster_than"])
    assert decode.lines(found).count("\n") == 2


def test_filled_layer_is_the_one_that_update_makes() -> None:
    data = make(Shape(2, 64), 96, 3, 2, CPU)
    layer = fill(data, "q4_0/q4_0", latent=False)
    keys, values = (x.expand(3, -1, -1, -1) for x in (data.k, data.v))
    other = fill(data, "q4_0/q4_0", latent=False)
    other.crop(-96)
    other.update(keys, values)
    for one, two in zip(layer.states(0), other.states(0), strict=True):
        assert torch.equal(one, two)
    assert read_bytes(layer) == 96 * 3 * 2 * 2 * 36


def test_tokens_repeat_by_blocks() -> None:
    data = make(Shape(1, 64), 2048, 1, 1, CPU)
    layer = fill(data, "q8_0/q8_0", latent=False)
    keys, _ = layer.states(0)
    assert keys.shape[2] == layer.length == 2048
    assert torch.equal(keys[:, :, :1024], keys[:, :, 1024:])
    with pytest.raises(ValueError, match="multiple"):
        make(Shape(1, 64), 1500, 1, 1, CPU)


def test_what_does_not_fit_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "free_bytes", lambda device: 1 << 16)
    (case,) = measured("--shapes", "8x128", "--contexts", "2K")
    assert "GiB" in case["skipped"] and "ways" not in case


def test_slow_ways_stop_and_ratios_are_taken_in_turns() -> None:
    class Fake(Bench):
        def run(self, way: Way) -> float:
            return 10.0 if way.name == "slow" else 0.1

    found = Fake(CPU, flush=4096).turns([Way("slow", int), Way("quick", int)], 20, most=3.0)
    assert np.isfinite(found["slow"]).sum() == 5 and np.isfinite(found["quick"]).all()
    ratio = speedup(found["slow"], found["quick"])
    assert ratio == {"value": pytest.approx(100), "low": pytest.approx(100),
                     "high": pytest.approx(100)}  # fmt: skip
    noise = np.random.default_rng(1).lognormal(0, 0.3, 40)
    one = speedup(3 * noise, noise * np.random.default_rng(2).lognormal(0, 0.05, 40))
    assert one["low"] < 3 < one["high"] < 3.5


def test_rounds_are_put_together() -> None:
    run = {"model": "m", "prompt": 8, "cache": "q4_0/q4_0", "dtype": "float32", "over": 0.1,
           "bytes_stored": 1 << 20, "weights_bytes": 1 << 20}  # fmt: skip
    rates = ((30.0, 3.0, 5), (10.0, 1.0, 9), (20.0, 2.0, 7))
    runs = [
        {**run, "prefill_tokens_per_s": p, "decode_tokens_per_s": d, "peak_bytes": b << 20}
        for p, d, b in rates
    ]
    failed = {**run, "cache": "quanto 4", "failed": "ImportError: no quanto"}
    whole, other = runtime_tables.summary([*runs, failed])
    assert (whole["prefill_tokens_per_s"], whole["decode_tokens_per_s"]) == (20.0, 2.0)
    assert whole["peak_bytes"] == 9 << 20 and whole["rounds"] == 3 and other["failed"]
    assert "no quanto" in runtime_tables.generate_lines([*runs, failed])


def test_targets_say_what_was_not_measured_and_not_reached() -> None:
    nothing = runtime_page.targets(None, None, None, None)
    assert nothing.count(runtime_page.NOT_MEASURED) == nothing.count("\n") - 1
    faster = {"bf16": {"value": 2.5, "low": 2.4, "high": 2.6}}
    case = {"shape": "8x128", "group": 4, "batch": 1, "context": 32768,
            "ways": {"q4_0": {"faster_than": faster}}}  # fmt: skip
    cpu = {"cases": [case], "hardware": {"cores": 2, "cpu": "a CPU"}, "device": "cpu",
           "cpu_capability": "AVX2"}  # fmt: skip
    lines = runtime_page.targets(cpu, None, None, None).splitlines()
    (line,) = [x for x in lines if "not reached" in x]
    assert "2.5x [2.4, 2.6]" in line and "8x128: q4_0" in line and "(AVX2)" in line
    faster["bf16"]["value"] = 3.0
    assert "| reached |" in runtime_page.targets(cpu, None, None, None)


def test_kept_page_is_current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = runtime_page.PAGE.read_text(encoding="utf-8")
    monkeypatch.setattr(runtime_page, "PAGE", tmp_path / "page.md")
    runtime_page.write()
    made = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert made == written, "run python bench/runtime_page.py"


@pytest.mark.parametrize("name", ["decode-cpu", "generate", "runtime_quality"])
def test_kept_results_name_their_machine(name: str) -> None:
    path = BENCH / "results" / f"{name}.json"
    if not path.is_file():
        pytest.skip("not measured yet")
    result = json.loads(path.read_text(encoding="utf-8"))
    assert runtime_page.caption(result).startswith(runtime_page.machine(result))
