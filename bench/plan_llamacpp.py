"""Memory that nybble plans for llama.cpp against llama.cpp's own account, model by model.

    python bench/plan_llamacpp.py

Models of real shape are written as GGUF headers over holes (tests/planning/sparse_gguf.py), so
nothing is downloaded and no weights are read; the demo model is real. llama.cpp is asked in a
child process for each model (tests/planning/dry_runs.py). Its weights are compared with the sum
over the file's tensors; a tied embedding that it makes twice where a file is not mapped (Gemma 3n
and 4) is left out of the totals and listed.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import save
from nybble.formats.setting import parse
from nybble.models.demo import demo_model
from nybble.models.gguf_geometry import geometry_of_gguf
from nybble.planning.memory.base import Load
from nybble.planning.memory.llamacpp import LlamaCpp

sys.path.append(str(Path(__file__).parents[1] / "tests" / "planning"))
from dry_runs import Case, dry_runs
from sparse_gguf import MODELS, gemma4
from sparse_hybrids import HYBRIDS

SETTINGS = ("f16/f16", "q8_0/q8_0", "q8_0/q4_0", "q4_0/q4_0")
CONTEXTS = (512, 8192, 131_072)
SLOTS = ((1, False), (4, False), (4, True))
MODELS_ASKED: dict[str, Callable[[Path], Path]] = {
    "gemma-3-270m (real)": lambda path: demo_model(path.parent), **MODELS,
    "gemma-4-e2b": lambda path: gemma4(path, size="E2B"),
    "gemma-4-12b": lambda path: gemma4(path, size="12B"), **HYBRIDS,
}  # fmt: skip


def rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Planned and accounted bytes of all cases of one model, and what is made twice of it."""
    model = geometry_of_gguf(path)
    weights = model.weights
    assert weights is not None
    cases = [Case(kv, context, slots, unified) for kv in SETTINGS for context in CONTEXTS
             for slots, unified in SLOTS]  # fmt: skip
    found, twice = [], 0
    for case, account in zip(cases, dry_runs(path, cases), strict=True):
        if account.refused:
            continue
        plan = LlamaCpp(unified=case.unified).memory(
            model, parse(case.kv), Load(case.context, case.slots)
        )
        twice = account.weights - weights.n_bytes
        total = weights.n_bytes + account.memory + account.compute + account.output
        found.append({
            "setting": case.kv, "context": case.context, "slots": case.slots,
            "unified": case.unified, "kv_planned": plan.of("cache", "state"),
            "kv_engine": account.memory, "compute_planned": plan.of("compute"),
            "compute_engine": account.compute + account.output, "total_planned": plan.total,
            "total_engine": total, "error": round(plan.total / total - 1, 6),
        })  # fmt: skip
    return found, twice


def main() -> None:
    """Ask about every model, print one line each, save all rows."""
    models: dict[str, Any] = {}
    print("| model | cases | worst KV error, B | worst total error | worst compute error |")
    print("|---|--:|--:|--:|--:|")
    for name, make in MODELS_ASKED.items():
        with tempfile.TemporaryDirectory() as folder:
            found, twice = rows(make(Path(folder) / f"{name}.gguf"))
        kv = max((r["kv_planned"] - r["kv_engine"] for r in found), key=abs)
        total = max((r["error"] for r in found), key=abs)
        compute = max((r["compute_planned"] / r["compute_engine"] - 1 for r in found), key=abs)
        models[name] = {"made_twice": twice, "worst_kv": kv, "worst_total": total,
                        "worst_compute": round(compute, 6), "rows": found}  # fmt: skip
        print(f"| {name} | {len(found)} | {kv} | {total:+.2%} | {compute:+.1%} |", flush=True)
    worst = max((m["worst_total"] for m in models.values()), key=abs)
    print(f"\nworst total error {worst:+.2%}")
    save("plan_llamacpp", {"version": LlamaCpp.version, "worst_total": worst, "models": models})


if __name__ == "__main__":
    main()
