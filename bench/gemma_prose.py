"""The yardstick: Gemma 3 270M, technical prose, 1,024-token chunks, against known ranges.

    python bench/gemma_prose.py [--documents 12]

Independent measurements with other builds (llama-cpp-python 0.3.36, torch fake quantization)
put q4_0/q4_0 between 0.10 and 0.17 mean KLD here and q8_0/q8_0 between 5e-4 and 1.6e-3.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from common import save
from nybble import MeasureRequest, measure, parse_setting

RANGES = {
    "q4_0/q4_0": (0.10, 0.17),
    "q8_0/q8_0": (5e-4, 1.6e-3),
    "bf16/bf16": (0.0, 1e-4),
    "f16/f16": (0.0, 0.0),
}


def main() -> None:
    """Measure and compare with the ranges."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=12)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        request = MeasureRequest(
            settings=tuple(map(parse_setting, ("q8_0/q8_0", "q8_0/q4_0", "q4_0/q4_0"))),
            categories=("prose",),
            documents=args.documents,
            out=Path(folder),
        )
        measurement = measure(request).measurement
        # The floor alone is cheap, and one forked token in 500 moves its mean: use more text.
        wider = replace(request, settings=(parse_setting("bf16/bf16"),), documents=36)
        floor = next(r for r in measure(wider).measurement.rows if r.role == "floor")
    rows = {
        row.setting: {
            "documents": row.n_documents,
            "tokens": row.n_tokens,
            **{name: vars(e) for name, e in row.metrics.items()},
        }
        for row in [*(r for r in measurement.rows if r.role != "floor"), floor]
    }
    inside = {s: low <= rows[s]["mean_kld"]["value"] <= high for s, (low, high) in RANGES.items()}
    path = save("gemma_prose", {"ranges": RANGES, "inside": inside, "rows": rows})
    print(path.read_text())
    raise SystemExit(0 if all(inside.values()) else 1)


if __name__ == "__main__":
    main()
