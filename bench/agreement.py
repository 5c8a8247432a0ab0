"""Do the simulated caches agree with llama.cpp's own? Both demo models, the same token ids.

    python bench/agreement.py --smollm2 FILE.gguf [--documents 4]

The same settings are measured in llama.cpp (real caches, F32 copy of the weights) and in
transformers (simulated, float32), rotation on and off. They agree where each mean is inside the
other's interval over documents. The interval of the difference, paired by document, is stricter
and is given beside it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from common import save
from nybble import MeasureRequest, measure, parse_setting
from nybble.results.records import Measurement

CONTEXT = 640  # past the demo model's window of 512
SETTINGS = tuple(
    f"{kv}{off}" for kv in ("q8_0/q8_0", "q8_0/q4_0", "q4_0/q4_0") for off in ("", "-norot")
)


def run(model: Path | None, engine: str, documents: int, out: Path) -> Measurement:
    """Measure all settings in one engine."""
    request = MeasureRequest(
        model=model, settings=tuple(map(parse_setting, SETTINGS)), engine=engine, weights="f32",
        categories=("prose", "code"), documents=documents, contexts=(CONTEXT,), out=out,
        framing="raw",
    )  # fmt: skip
    return measure(request).measurement


def by_document(folder: Path, setting: str) -> dict[tuple[str, str, int], float]:
    """Mean KLD of every chunk of a setting."""
    import duckdb

    rows = duckdb.sql(
        "select category, document, chunk, avg(kld) from read_parquet(?) "
        "where setting = ? and role = 'candidate' group by all",
        params=[str(folder / "rows" / "*.parquet"), setting],
    ).fetchall()
    return {(c, d, i): float(k) for c, d, i, k in rows}


def compare(a: Path, b: Path, setting: str) -> dict[str, Any]:
    """Means of both engines, and the interval of their difference over documents."""
    left, right = by_document(a, setting), by_document(b, setting)
    assert left.keys() == right.keys()
    x = np.array([left[k] for k in left])
    y = np.array([right[k] for k in left])
    draws = np.random.default_rng(0).integers(0, len(x), (10_000, len(x)))
    spans = [np.quantile(z[draws].mean(1), (0.025, 0.975)).tolist() for z in (x, y, y - x)]
    own, simulated = float(x.mean()), float(y.mean())
    inside = spans[0][0] <= simulated <= spans[0][1] and spans[1][0] <= own <= spans[1][1]
    return {
        "llama.cpp": own, "llama.cpp interval": spans[0],
        "transformers": simulated, "transformers interval": spans[1],
        "ratio": simulated / own, "difference": spans[2], "agree": inside, "documents": len(x),
    }  # fmt: skip


def main() -> None:
    """Measure both models in both engines and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smollm2", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=4)
    parser.add_argument("--keep", type=Path, help="folder to continue in")
    args = parser.parse_args()
    keep = args.keep or Path(tempfile.mkdtemp())
    found: dict[str, Any] = {}
    for name, model in (("gemma-3-270m", None), ("SmolLM2-135M", args.smollm2)):
        folders = [keep / f"{name}-{engine}" for engine in ("llama.cpp", "transformers")]
        for folder in folders:
            run(model, folder.name.removeprefix(f"{name}-"), args.documents, folder)
        found[name] = {s: compare(*folders, s) for s in SETTINGS}
    path = save("agreement", {"context": CONTEXT, "models": found})
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
