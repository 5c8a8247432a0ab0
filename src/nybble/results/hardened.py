"""What hardening a model did, as plain records."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass

from nybble.results.records import Estimate, Measurement


@dataclass(frozen=True)
class LayerGain:
    """What the formula promises for one layer.

    Attributes:
        layer: its index.
        gain: factor by which the variance of scores' errors falls.
        bound: the same if RoPE's pairs did not have to share a scale.
    """

    layer: int
    gain: float
    bound: float


@dataclass(frozen=True)
class Gain:
    """One KV setting before and after, against the original's 16-bit cache.

    Attributes:
        setting: the KV setting.
        before: mean KLD of the original, in nats.
        after: mean KLD of the hardened model.
    """

    setting: str
    before: Estimate
    after: Estimate

    @property
    def factor(self) -> float:
        """How many times lower it is now."""
        return self.before.value / self.after.value if self.after.value > 0 else float("inf")


@dataclass(frozen=True)
class Training:
    """A training, as its own held-out text saw it (torch, simulated caches).

    Attributes:
        scope: what was trained: "scales", "kv" or "all".
        settings: KV settings that were drawn.
        improved: whether the held-out KLD ever was below the start's.
        start: mean held-out KLD by KV setting of the fold; "f16" is what the 16-bit model moved.
        best: the same of the state that was kept.
        best_step: after which step that was.
        steps: steps done.
        stopped: "steps" or "plateau".
        skipped: steps that were not finite.
        tokens: trained on.
        seconds: of training, over all sessions.
    """

    scope: str
    settings: tuple[str, ...]
    improved: bool
    start: Mapping[str, float]
    best: Mapping[str, float]
    best_step: int
    steps: int
    stopped: str
    skipped: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Hardened:
    """A hardened model and what was measured of it on held-out text.

    Attributes:
        file: name of the file or folder.
        method: "fold" or "train".
        family: name of the rule.
        statistics: engine that showed keys and queries.
        tokens: tokens they were taken over.
        layers: promise of the formula for every layer that owns keys.
        drift: mean KLD between the two models' 16-bit caches.
        floor: mean KLD of bf16 against f16 of the original.
        ppl: perplexity with 16-bit caches, of the original and of the hardened model.
        gains: every setting.
        measurement: all of it; model "a" is the original.
        training: how the training went; None after a fold.
        split: one setting layer by layer in both models; None where nobody asked, or where no
            engine here can do it.
    """

    file: str
    method: str
    family: str
    statistics: str
    tokens: int
    layers: tuple[LayerGain, ...]
    drift: Estimate
    floor: Estimate
    ppl: tuple[float, float]
    gains: tuple[Gain, ...]
    measurement: Measurement
    training: Training | None = None
    split: Measurement | None = None


def to_json(found: Hardened) -> str:
    """All but the measurement, which has a JSON of its own: sorted keys, no NaN."""
    data = dataclasses.asdict(found)
    del data["measurement"]
    return json.dumps(data, sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False)
