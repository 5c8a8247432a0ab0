"""What makes a cache robust: training weights for 4 bits, or training with the cache's noise?

    python bench/qat_claim.py train measure --work FOLDER
    python bench/qat_claim.py              # docs/qat-claim.md from the numbers kept

Every arm starts from Gemma 3 270M and trains the matrices and norms of all blocks for the same
steps on the same text with the same rates and seed. The target is the original's distribution, as
in Google's QAT, but for one control that learns the text itself: to its own distribution a model
without noise has a KLD of zero and no gradient, so that control would be the original.
Every arm is exported as GGUF and measured in llama.cpp. What is done in FOLDER is kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from common import RESULTS, save
from nybble import HardenRequest, MeasureRequest, measure, parse_setting
from nybble.environment import cache_dir, usable_cpus
from nybble.hardening.export import export_gguf
from nybble.hardening.harden import source
from nybble.hardening.train.loop import train
from nybble.hardening.train.request import TrainRequest
from nybble.hardening.train.start import calibrated, folds_of, loaded, texts
from nybble.hardening.train.student import KVStudent
from nybble.results.records import Row
from nybble.scoring.request import Silent
from qat_page import write_page

KINDS = ("prose", "code", "scripts")
SETTINGS = ("q8_0/q8_0", "q5_1/q5_1", "q4_0/q4_0", "q4_0/f16", "f16/q4_0")
RATES = (("matrices", 2e-5), ("norms", 1e-4))


class Told(Silent):
    """Notes on stderr."""

    def note(self, text: str) -> None:
        """Pass one on."""
        print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Arm:
    """One way to make a model.

    Attributes:
        name: as the page calls it.
        fold: start from the fold.
        kv: the KV setting in training; None for an arm that is not trained.
        stored: type the weights are read through in training, and stored in.
        target: what is learned: the original's distribution ("teacher") or the text ("text").
    """

    name: str
    fold: bool = False
    kv: str | None = None
    stored: str | None = None
    target: str = "teacher"


ARMS = (
    Arm("untouched"),
    Arm("weights rounded to q4_0", stored="q4_0"),
    Arm("continued training", kv="f16", target="text"),
    Arm("weight-QAT", kv="f16", stored="q4_0"),
    Arm("KV-QAT", kv="q4_0/q4_0"),
    Arm("weight-QAT and KV-QAT", kv="q4_0/q4_0", stored="q4_0"),
    Arm("fold", fold=True),
    Arm("fold and KV-QAT", fold=True, kv="q4_0/q4_0"),
)


class NextToken(KVStudent):
    """Learns the text: cross-entropy of the next token, nothing quantized."""

    def compute(
        self, ids: torch.Tensor, setting: str, positions: torch.Tensor | None
    ) -> torch.Tensor:
        """As KVStudent's; the held-out KLD stays what it is."""
        if positions is None:
            return super().compute(ids, setting, positions)
        positions = positions[positions < ids.shape[1] - 1]
        logits = self._student.head(self._student.states(ids, None)[:, positions])
        return F.cross_entropy(logits.float().flatten(0, 1), ids[:, positions + 1].flatten())


def make(arm: Arm, given: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Train and export one arm; what it took."""
    request = HardenRequest(out=out, model=given.model, fresh=True)
    training = TrainRequest(
        out=out.with_suffix(".train"), scope="all", settings=(arm.kv or "f16",),
        stored=arm.stored, steps=given.steps, batch=1, accumulate=given.batch,
        lr=RATES, context=given.context, eval_every=given.steps, patience=None, keep_best=False,
        held_out=4, seed=given.seed, threads=given.threads,
    )  # fmt: skip
    progress = Told()
    checkpoint = source(request)
    calibration, pool = texts(checkpoint, request, training, progress)
    model, family, sites = loaded(checkpoint)
    folds = {}
    if arm.fold:
        folds = folds_of(calibrated(model, calibration, usable_cpus(), progress), family, sites)
    student = (KVStudent if arm.target == "teacher" else NextToken)(model, family, sites, training)
    if arm.fold:
        student.set_scales({i: f.scale for i, f in folds.items()})
    # The same numbers are trained in every arm; without noise e would have no gradient at all.
    scales = next(group for group in student.groups if group["name"] == "scales")
    student.groups.remove(scales)
    for parameter in scales["params"]:
        parameter.requires_grad_(False)
    told: dict[str, Any] = {}
    if arm.kv:
        result = train(student, pool, training, checkpoint.fingerprint(cache_dir()), progress)
        told = {"steps": result.steps, "tokens": result.tokens, "seconds": round(result.seconds),
                "held out": {"before": result.start, "after": result.best}}  # fmt: skip
    tensors = {name: t.numpy() for name, t in student.changed().items()}
    if arm.fold and not arm.kv:
        folded = {name for site in sites for name in (*site.queries, *site.keys)}
        tensors = {name: values for name, values in tensors.items() if name in folded}
    part = out.with_suffix(".part")
    export_gguf(checkpoint.path, part, tensors, arm.stored or "f16", {}, lambda _: None)
    part.rename(out)
    return told


def numbers(row: Row) -> dict[str, Any]:
    """What the page needs of a row."""
    kept = {name: vars(row.metrics[name]) for name in ("mean_kld", "same_top", "ppl", "ppl_ref")
            if name in row.metrics}  # fmt: skip
    kinds = {s.name: s.metrics["mean_kld"].value for s in row.by_category}
    return {**kept, "by kind": kinds, "tokens": row.n_tokens, "documents": row.n_documents}


def compare(arm: Path | None, given: argparse.Namespace, run: Path) -> dict[str, Any]:
    """An arm against itself and against the original: setting -> reference -> numbers."""
    request = MeasureRequest(
        model=given.model, against=arm, settings=tuple(map(parse_setting, SETTINGS)),
        categories=KINDS, documents=given.documents, contexts=(given.context,), out=run,
        threads=given.threads,
    )  # fmt: skip
    rows = measure(request, Told()).measurement.rows
    of = "b" if arm else "a"
    found: dict[str, Any] = {}
    for row in rows:
        if row.status == "failed":
            raise RuntimeError(f"{arm}: {row.setting}: {row.error}")
        if row.model == of and row.role in ("candidate", "cross", "floor"):
            reference = "own" if row.reference == of else "original"
            name = "bf16 against f16" if row.role == "floor" else row.setting
            found.setdefault(name, {})[reference] = numbers(row)
    return found


def main() -> None:
    """Do what is asked for, keep the rest of the last result, and remake the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help="train, measure, or none: the page only")
    parser.add_argument("--work", type=Path, default=Path("qat-claim"))
    parser.add_argument("--model", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--context", type=int, default=640)  # past the window of 512
    parser.add_argument("--documents", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", nargs="*", help="names of arms; the page needs all")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.only:
        chosen = [arm for arm in ARMS if arm.name in given.only]
        if "train" in given.parts:
            _train(chosen, given)
        if "measure" in given.parts:
            for arm in chosen:
                _measured(arm, given)
        return
    if "train" in given.parts:
        _train(ARMS, given)
    if "measure" in given.parts:
        arms = {arm.name: _measured(arm, given) for arm in ARMS}
        kept = {k: getattr(given, k) for k in ("steps", "batch", "context", "documents", "seed")}
        print(save("qat_claim", {**kept, "rates": dict(RATES), "arms": arms}))
    write_page(json.loads((RESULTS / "qat_claim.json").read_text(encoding="utf-8")))


def _path(arm: Arm, given: argparse.Namespace) -> Path:
    folder: Path = given.work
    return folder / f"{arm.name.replace(' ', '-')}.gguf"


def _train(arms: Sequence[Arm], given: argparse.Namespace) -> None:
    for arm in arms:
        out = _path(arm, given)
        if arm == ARMS[0] or out.is_file():
            continue
        print(f"== {arm.name}", flush=True)
        told = make(arm, given, out)
        out.with_suffix(".json").write_text(json.dumps(told, indent=1), encoding="utf-8")
        shutil.rmtree(out.with_suffix(".train"), ignore_errors=True)


def _measured(arm: Arm, given: argparse.Namespace) -> dict[str, Any]:
    out = _path(arm, given)
    kept = out.with_suffix(".measured.json")
    if not kept.is_file():
        print(f"== {arm.name}", flush=True)
        file = None if arm == ARMS[0] else out
        found = compare(file, given, given.work / "measured")
        kept.write_text(json.dumps(found, indent=1), encoding="utf-8")
    training = out.with_suffix(".json")
    told = json.loads(training.read_text(encoding="utf-8")) if training.is_file() else {}
    return {"training": told, "rows": json.loads(kept.read_text(encoding="utf-8"))}


if __name__ == "__main__":
    main()
