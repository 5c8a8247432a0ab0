"""Whole runs of `harden --train` on tiny models, and what came of their students.

Import this after pytest.importorskip("torch").
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from trained_models import kld, llama_cpp_logits, stored

from nybble.formats import parse
from nybble.hardening.harden import HardenRequest
from nybble.hardening.train.request import TrainRequest
from nybble.hardening.train.run import harden_by_training
from nybble.results.hardened import Hardened
from nybble.scoring.request import MeasureRequest, Silent

Q4 = "q4_0/q4_0"
RATES = (("scales", 3e-3), ("norms", 1e-3), ("matrices", 3e-4))
MEASURED = ("drift", "floor", "ppl", "gains", "measurement", "split")
IDS = np.random.default_rng(4).integers(4, 260, 48).tolist()


@dataclass
class Bench:
    """What a run is given, and what came of its student."""

    texts: tuple[Path, ...]
    unseen: Path
    logits: Any = None  # of the student, on IDS
    notes: tuple[str, ...] = ()

    def request(self, model: Path, out: Path, **changes: Any) -> HardenRequest:
        unseen = self.unseen

        class Short(HardenRequest):
            """Verified on short chunks of one text."""

            def measurement(self, model: Path, against: Path | None = None) -> MeasureRequest:
                whole = super().measurement(model, against)
                return replace(whole, contexts=(128,), text=(unseen,), documents=3, by=None)

        base: dict[str, Any] = {
            "settings": (parse("q4_0"),), "tokens": 256, "threads": 1, "text": self.texts,
        }  # fmt: skip
        return Short(out=out, model=model, **{**base, **changes})

    def train(
        self, model: Path, target: Path, progress: Silent | None = None, *,
        asked: dict[str, Any] | None = None, **changes: Any,
    ) -> Hardened:  # fmt: skip
        request = self.request(model, target, **(asked or {}))
        base: dict[str, Any] = {
            "out": target.with_name(f"{target.name}.train"), "context": 64, "positions": 32,
            "steps": 8, "batch": 2, "held_out": 4, "eval_every": 4, "threads": 1, "device": "cpu",
            "settings": tuple(map(str, request.settings)), "lr": RATES, "checkpoint_every": 0.0,
        }  # fmt: skip
        notes = Notes()
        try:
            found = harden_by_training(
                request, TrainRequest(**{**base, **changes}), progress or notes
            )
        finally:
            self.notes = tuple(notes.notes)
        assert found is not None
        return found


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def changed(before: Path, after: Path) -> set[str]:
    """Names of tensors that are not byte for byte what they were, without block numbers."""
    old, new = stored(before), stored(after)
    assert old.keys() == new.keys()
    return {plain(name) for name in old if old[name] != new[name]}


def plain(name: str) -> str:
    """A tensor's name without its block's number."""
    return name.split(".", 2)[-1] if name.startswith("blk.") else name


def check_export(student: Any, out: Path, original: Path, most: float = 1e-6) -> None:
    """llama.cpp reads what torch trained, which is far from the original in comparison."""
    theirs = llama_cpp_logits(out, IDS)
    apart = abs(kld(student, theirs))
    assert apart < most
    assert kld(llama_cpp_logits(original, IDS), theirs) > 20 * apart
