"""Fold and KV-aware training on a CPU: what an hour gains, and what it costs the model.

    python bench/train.py smollm2 --smollm2 FILE.gguf --work FOLDER
    python bench/train.py gemma --work FOLDER
    python bench/train.py                     # the table of docs/harden.md from the numbers kept

Measured as `fold.py` does, in llama.cpp on text that no step has seen. FOLDER keeps checkpoints:
run again to go on after a kill.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

from common import RESULTS, put, save
from fold import KINDS, gains_table, numbers
from nybble import HardenRequest, parse_setting
from nybble.hardening.train.request import TrainRequest
from nybble.hardening.train.run import harden_by_training
from nybble.scoring.request import Silent

ROOT = Path(__file__).parents[1]
NAMES = {"gemma": "Gemma 3 270M", "smollm2": "SmolLM2 135M"}
# All matrices, four texts of 1,024 tokens a step; peaks found on runs of 60 texts (docs/log.md).
RECIPES: dict[str, dict[str, Any]] = {
    "smollm2": {"steps": 140, "lr": (("matrices", 2.5e-5), ("norms", 1e-4), ("scales", 5e-3))},
    "gemma": {"steps": 140, "lr": (("matrices", 2e-5), ("norms", 1e-4), ("scales", 5e-3))},
}


class Told(Silent):
    """Notes on stderr."""

    def note(self, text: str) -> None:
        """Pass one on."""
        print(text, file=sys.stderr, flush=True)


def trained(name: str, model: Path | None, given: argparse.Namespace) -> dict[str, Any]:
    """Train one model, or go on, and measure it."""
    out = given.work / f"{name}.gguf"
    request = HardenRequest(
        out=out, model=model, settings=(parse_setting("q4_0/q4_0"),), categories=KINDS,
        documents=given.documents, fresh=True,
    )  # fmt: skip
    training = TrainRequest(
        out=given.work / f"{name}.gguf.train", scope="all", batch=1, accumulate=4, precision="bf16",
        eval_every=35, patience=None, **RECIPES[name],
    )  # fmt: skip
    found = harden_by_training(request, training, Told())
    assert found is not None and found.training is not None
    with (training.out / "held_out.csv").open(newline="", encoding="utf-8") as file:
        curve = [{k: row[k] for k in ("step", "setting", "kld")} for row in csv.DictReader(file)]
    run = found.training
    return {
        **numbers(found), "steps": run.steps, "best_step": run.best_step,
        "training_tokens": run.tokens, "training_seconds": round(run.seconds), "held_out": curve,
        "lr": dict(training.lr), "documents": given.documents,
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """As the fold's, with what training cost."""
    models = {NAMES[k]: v for k, v in result.items()}
    lines = gains_table(models).split("\n")
    for i, run in enumerate(models.values()):
        ppl, drift = run["ppl"], run["drift"]
        tokens, minutes = run["training_tokens"] / 1e6, run["training_seconds"] / 60
        cost = [f"{ppl['change %']:+.2f} %", f"{drift['value']:.2g}", f"{tokens:.2f} M"]
        lines[2 + i] += f" {' | '.join(cost)} | {minutes:.0f} |"
    lines[0] += " f16 perplexity | f16 KLD | tokens | minutes |"
    lines[1] += "--:|--:|--:|--:|"
    return "\n".join(lines)


def main() -> None:
    """Train what is asked for, keep the rest of the last result, and remake the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help="gemma, smollm2, or none: the page only")
    parser.add_argument("--work", type=Path, default=Path("trained"))
    parser.add_argument("--model", type=Path)
    parser.add_argument("--smollm2", type=Path)
    parser.add_argument("--documents", type=int, default=3)
    given = parser.parse_args()
    path = RESULTS / "train.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    result = {k: kept[k] for k in RECIPES if k in kept}
    given.work.mkdir(parents=True, exist_ok=True)
    for name in given.parts:
        result[name] = trained(name, given.smollm2 if name == "smollm2" else given.model, given)
        print(save("train", result))
    put(ROOT / "docs" / "harden.md", "training", table(result))


if __name__ == "__main__":
    main()
