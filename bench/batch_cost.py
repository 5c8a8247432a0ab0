"""What settings cost: eight in one pass against one, on the demo model in transformers.

    python bench/batch_cost.py

The weights are read once for all rows of the batch. Both runs score the same chunk; each is
repeated and the fastest counts, so that a busy machine does not decide.
"""

from __future__ import annotations

import numpy as np

from common import save
from nybble.engines.child import EngineProcess
from nybble.environment import cache_dir, usable_cpus
from nybble.models.checkpoint import resolve
from nybble.models.demo import demo_model
from nybble.scoring.torch_backend import TORCH_WORKER

EIGHT = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "q8_0/q4_0", "exl3_4")
CONTEXT, REPEATS = 512, 2


def seconds(child: EngineProcess, settings: tuple[str, ...], tokens: np.ndarray) -> float:
    """Time of one pass over `tokens`, reference included."""
    lanes = [[0, "f16/f16"], *([0, s] for s in settings)]
    child.request({"op": "lanes", "context": CONTEXT, "via": "prefill", "lanes": lanes})
    best = float("inf")
    for _ in range(REPEATS):
        reply = child.request(
            {"op": "score", "first": CONTEXT // 2, "one_by_one": False,
             "comparisons": [[i + 1, 0] for i in range(len(settings))]},
            tokens.tobytes(),
        )  # fmt: skip
        best = min(best, reply.header["decode"] + reply.header["compare"])
    return best


def main() -> None:
    """Time both and print the ratio."""
    model = demo_model(cache_dir())
    child = EngineProcess(TORCH_WORKER)
    child.request(
        {"op": "open", "paths": [str(model)], "cache": str(cache_dir()), "device": "cpu",
         "fingerprints": [resolve(model).fingerprint(cache_dir())], "threads": usable_cpus()}
    )  # fmt: skip
    tokens = np.random.default_rng(0).integers(100, 50_000, CONTEXT).astype(np.int32)
    one = seconds(child, EIGHT[4:5], tokens)
    eight = seconds(child, EIGHT, tokens)
    child.close()
    ratio = eight / one
    save("batch_cost", {"one_s": one, "eight_s": eight, "ratio": ratio, "limit": 6.0})
    print(f"one {one:.1f} s, eight {eight:.1f} s, ratio {ratio:.2f} (limit 6)")
    raise SystemExit(0 if ratio <= 6 else 1)


if __name__ == "__main__":
    main()
