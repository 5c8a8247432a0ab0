"""How far a calibrated plan lies from what is then measured, on the demo model and this machine.

    python bench/plan_calibrate.py [--seconds 60] [--steps 32] [--threads N] [--dry]

Calibrates at two depths with q8_0/q8_0 and with f16/f16, then measures a third depth in between
with those settings and with q4_0/q4_0, which neither calibration has seen. `off` is 1 where the
estimate's interval holds the measurement, else how many times it lies outside the nearer end.
"""

from __future__ import annotations

import argparse
from typing import Any

from common import save
from nybble.engines.llamacpp.speed import SpeedRun, measure_speed
from nybble.environment import cache_dir, usable_cpus
from nybble.formats.setting import parse
from nybble.models.demo import demo_model
from nybble.models.geometry import Geometry
from nybble.models.gguf_geometry import geometry_of_gguf
from nybble.planning.calibration import Calibration
from nybble.planning.cards import Card
from nybble.planning.interval import Interval
from nybble.planning.measured import depths_for, from_run
from nybble.planning.throughput import decode, prefill

CALIBRATED, UNSEEN = ("q8_0/q8_0", "f16/f16"), "q4_0/q4_0"
HERE = Card(name="this machine", vendor="cpu", memory_bytes=0)


def off(measured: float, estimate: Interval) -> float:
    """1 inside, else the ratio to the nearer end, above 1."""
    return round(max(1.0, estimate.low / measured, measured / estimate.high), 3)


def compare(run: SpeedRun, calibration: Calibration, geometry: Geometry) -> list[dict[str, Any]]:
    """Each measured speed of a run beside its estimate."""
    rows = []
    setting = parse(run.setting)
    for d in run.depths:
        size, last = d.full[0].tokens, d.full[-1]
        pairs = [
            ("decode", d.tokens_per_second,
             decode(geometry, setting, HERE, d.context, calibration=calibration).tokens),
        ]  # fmt: skip
        if calibration.prefill is not None:
            estimate = prefill(
                geometry, setting, HERE, size, depth=last.depth, micro_batch=size,
                calibration=calibration,
            ).tokens  # fmt: skip
            pairs.append((f"prefill behind {last.depth}", size / last.seconds, estimate))
        for what, measured, found in pairs:
            rows.append(
                {
                    "calibrated": calibration.setting, "setting": run.setting, "what": what,
                    "context": d.context, "measured": round(measured, 2),
                    "low": round(found.low, 2), "high": round(found.high, 2),
                    "off": off(measured, found), "spread": round(d.spread, 3),
                    "fastest_step": round(1 / min(d.seconds), 2),
                    "slowest_step": round(1 / max(d.seconds), 2),
                }
            )  # fmt: skip
    return rows


def main() -> None:
    """Calibrate, measure, print, save."""
    ask = argparse.ArgumentParser()
    ask.add_argument("--seconds", type=float, default=60.0)
    ask.add_argument("--steps", type=int, default=32)
    ask.add_argument("--threads", type=int, default=usable_cpus())
    ask.add_argument("--dry", action="store_true", help="write no result file")
    given = ask.parse_args()
    path = demo_model(cache_dir())
    geometry = geometry_of_gguf(path)
    short, long = depths_for(geometry)
    how = {"threads": given.threads, "steps": given.steps, "seconds": given.seconds}
    made = {}
    for name in CALIBRATED:
        run = measure_speed(path, parse(name), (short, long), **how)
        made[name] = run, from_run(run, geometry, parse(name))
    rows = []
    for name in (*CALIBRATED, UNSEEN):
        third = measure_speed(path, parse(name), ((short + long) // 2,), **how)
        for seen, (run, calibration) in made.items():
            if seen == name:
                rows += compare(run, calibration, geometry)
            rows += compare(third, calibration, geometry)
    for row in rows:
        print(" ".join(f"{key}={value}" for key, value in row.items()))
    rates = {
        name: {
            key: None if rate is None else [rate.low, rate.high]
            for key, rate in (("weights", c.weights), ("cache", c.cache), ("prefill", c.prefill))
        }
        for name, (_, c) in made.items()
    }
    print(rates)
    if not given.dry:
        complete = all(run.complete for run, _ in made.values())
        print(save("plan_calibrate", {**how, "complete": complete, "rates": rates, "rows": rows}))


if __name__ == "__main__":
    main()
