"""Which lanes run, what is compared with what, and the name each finished cell is kept under."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from nybble.formats import KVSetting, make, unique
from nybble.formats.around import At
from nybble.results.records import METRICS_VERSION, Part
from nybble.results.store import content_key
from nybble.scoring.backend import Backend
from nybble.scoring.chunks import Chunk
from nybble.scoring.prepare import PreparedModel
from nybble.scoring.request import FLOOR, REFERENCE, MeasureRequest


@dataclass(frozen=True)
class LaneSpec:
    """One context of the engine: which model, which setting; `copy` 1 is a second f16/f16."""

    model: str
    setting: KVSetting
    copy: int = 0


@dataclass(frozen=True)
class Series:
    """What becomes one row of the result: a lane compared with a model's 16-bit reference."""

    lane: LaneSpec
    reference: str
    role: str
    part: Part | None = None

    @property
    def reference_lane(self) -> LaneSpec:
        """The f16/f16 lane of the reference model."""
        return LaneSpec(self.reference, REFERENCE)


def part_series(
    setting: KVSetting, layers: Sequence[dict[str, int]], by: str, label: str = "a"
) -> list[Series]:
    """One series for every layer (or KV head) and side of a setting, all else in f16.

    Args:
        setting: a quantized setting.
        layers: index, number of the model's layers and KV heads of every layer that owns keys.
        by: "layer" or "head".
        label: the model.
    """
    found = []
    for layer in layers:
        if setting.at_layer(layer["index"], layer["count"])[-1] == (None, "f16", "f16"):
            continue  # skipped by the setting: there is nothing to measure
        for head in range(layer["heads"]) if by == "head" else (None,):
            for side, k, v in (("K", setting.k, "f16"), ("V", "f16", setting.v)):
                if (setting.k if side == "K" else setting.v) == "f16":
                    continue
                at = At((layer["index"],), k, v, head)
                alone = replace(setting.around, at=(at,))
                found.append(
                    Series(
                        LaneSpec(label, make("f16", "f16", setting.rotation, alone)), label,
                        "part", Part(str(setting), layer["index"], side, head),
                    )
                )  # fmt: skip
    return found


def wanted_series(request: MeasureRequest) -> list[Series]:
    """Every comparison the request asks for, references and guards included."""
    settings = list(request.settings)
    if request.split_kv:
        settings += [half for s in request.settings if s.quantized for half in s.halves()]
    candidates = [s for s in unique(settings) if s not in (REFERENCE, FLOOR)]
    labels = ("a", "b") if request.against else ("a",)
    found: list[Series] = []
    for label in labels:
        found += [Series(LaneSpec(label, s), label, "candidate") for s in candidates]
    for label in labels:
        found.append(Series(LaneSpec(label, FLOOR), label, "floor"))
        found.append(Series(LaneSpec(label, REFERENCE, 1), label, "identity"))
    for label, other in (("a", "b"), ("b", "a")) if request.against else ():
        found.append(Series(LaneSpec(label, REFERENCE), other, "cross"))
        found += [Series(LaneSpec(label, s), other, "candidate") for s in candidates]
    return found


def lanes_of(series: Sequence[Series]) -> list[LaneSpec]:
    """The lanes these series need, references first."""
    references = [s.reference_lane for s in series]
    return list(dict.fromkeys([*references, *(s.lane for s in series)]))


def applies(series: Series, chunk: Chunk, chunks: Sequence[Chunk]) -> bool:
    """Whether a series is scored on a chunk.

    Identity is exact or broken, so one chunk tells; the floor is a yardstick, so every other
    chunk is enough. Both are then cheap.
    """
    if series.role == "identity":
        return chunk is chunks[0]
    if series.role == "floor":
        return next(i for i, c in enumerate(chunks) if c is chunk) % 2 == 0
    return True


class CellNames:
    """Names of cells: readable in front, a hash of everything that decides the numbers behind."""

    def __init__(
        self, models: Sequence[PreparedModel], request: MeasureRequest, backend: Backend
    ) -> None:
        self._models = {m.label: (m.sha256, m.record.scored_weights) for m in models}
        self._via = request.via
        self._backend = backend

    def name(self, series: Series, chunk: Chunk, first: int) -> str:
        """File name, without suffix, of one chunk under one series."""
        tokens = np.ascontiguousarray(chunk.tokens, dtype="<i4").tobytes()
        key = content_key(
            {
                "metrics": METRICS_VERSION,
                "engine": self._backend.identity(series.lane.setting, series.lane.model),
                "model": self._models[series.lane.model],
                "reference": self._models[series.reference],
                "setting": str(series.lane.setting),
                "copy": series.lane.copy,
                "via": self._via,
                "first": first,
                "tokens": hashlib.sha256(tokens).hexdigest(),
            }
        )
        # A setting that names many layers is longer than a file name may be.
        setting = re.sub(r"[^A-Za-z0-9_.+-]", "-", str(series.lane.setting))[:80]
        return f"c{len(chunk.tokens)}-{setting}-{key}"


def first_scored(context: int, score_from: float) -> int:
    """First scored position: half the context by default, as llama-perplexity does."""
    return min(max(1, int(context * score_from)), context - 2)
