"""What one lane leaves of one prompt, and the name it is kept under."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nybble.formats import KVSetting
from nybble.results.store import RunStore, content_key
from nybble.scoring.compare import ROW, Rows
from nybble.scoring.generation.backend import Backend
from nybble.scoring.generation.gather import Prompt
from nybble.scoring.prepare import PreparedModel
from nybble.scoring.request import FLOOR, REFERENCE

GENERATION_VERSION = 1  # raised when the same request would leave other cells
NONE = -1  # in a column of token ids: past the end

# One place of an answer. `token` is what this lane generated, up to its own end; all that follows
# compares it with the 16-bit cache where both read the 16-bit answer, up to that one's end.
_COMPARED = {"token_ref": "token"} | {
    n: n for n in ROW.names or () if n not in ("position", "token")
}  # by column: the field of ROW
PLACE = np.dtype(
    [("place", np.int32), ("token", np.int32), *((c, ROW[f]) for c, f in _COMPARED.items())]
)
_READ = np.dtype([*((n, PLACE[n]) for n in PLACE.names or ()), ("ended", np.int32)])


@dataclass(frozen=True)
class LaneSpec:
    """One cache; `copy` 1 is a second f16/f16."""

    setting: KVSetting
    copy: int = 0

    @property
    def role(self) -> str:
        """As the record has it: "reference", "identity", "floor" or "candidate"."""
        if self.setting == REFERENCE:
            return "identity" if self.copy else "reference"
        return "floor" if self.setting == FLOOR else "candidate"


@dataclass(frozen=True)
class Kept:
    """One lane on one prompt.

    Attributes:
        tokens: ids it generated; the last one is the end token where it ended.
        ended: whether it ended within the limit.
        rows: comparison with the reference at each token of the reference's answer (`position` is
            the place in it, from 0); empty for the reference itself.
    """

    tokens: npt.NDArray[np.int32]
    ended: bool
    rows: Rows


def wanted_lanes(settings: tuple[KVSetting, ...]) -> list[LaneSpec]:
    """The reference, its guards, and what the request names."""
    reference = [LaneSpec(REFERENCE), LaneSpec(REFERENCE, 1), LaneSpec(FLOOR)]
    return list(dict.fromkeys([*reference, *map(LaneSpec, settings)]))


def applies(lane: LaneSpec, place: int) -> bool:
    """Whether a lane answers the prompt of this number.

    Identity is exact or broken, so the first prompt tells.
    """
    return lane.role != "identity" or place == 0


def lane_threads(threads: int, backend: Backend) -> int:
    """Threads of one lane, the same in every run: sums of floats may be split by them."""
    return threads // min(backend.at_once, threads)


class CellNames:
    """Names of cells: readable in front, a hash of everything that decides the numbers behind.

    Args:
        model: that generates.
        limit: most tokens of an answer.
        context: tokens of the lanes' caches.
        threads: of the run.
        backend: the engine.
    """

    def __init__(
        self, model: PreparedModel, limit: int, context: int, threads: int, backend: Backend
    ) -> None:
        self._limit, self._backend = limit, backend
        self._fixed = {
            "generation": GENERATION_VERSION,
            "model": (model.sha256, model.record.scored_weights),
            "limit": limit,
            "context": context,
            "threads": lane_threads(threads, backend),
        }

    def name(self, lane: LaneSpec, prompt: Prompt) -> str:
        """File name, without suffix, of one prompt in one lane."""
        own = {"setting": str(lane.setting), "copy": lane.copy, "prompt": prompt.sha256(),
               "engine": self._backend.identity(lane.setting)}  # fmt: skip
        setting = re.sub(r"[^A-Za-z0-9_.+-]", "-", str(lane.setting))[:80]
        return f"g{self._limit}-{setting}-{content_key({**self._fixed, **own})}"


def write(store: RunStore, name: str, kept: Kept, constants: dict[str, str | int]) -> None:
    """Keep one lane's answer and comparison as one file."""
    n = max(len(kept.tokens), len(kept.rows))
    places = np.zeros(n, dtype=PLACE)
    places["place"] = np.arange(1, n + 1)
    places["token"] = NONE
    places["token"][: len(kept.tokens)] = kept.tokens
    for column, field in _COMPARED.items():
        places[column] = np.nan if places[column].dtype.kind == "f" else NONE
        places[column][: len(kept.rows)] = kept.rows[field]
    store.write_cell(name, places, {**constants, "ended": int(kept.ended)})


def read(store: RunStore, name: str) -> Kept | None:
    """Read one back; None where it is missing or damaged."""
    places = store.read_cell(name, _READ)
    if places is None or not len(places):
        return None
    compared = places[places["token_ref"] != NONE]
    rows = np.zeros(len(compared), dtype=ROW)
    rows["position"] = compared["place"] - 1
    for column, field in _COMPARED.items():
        rows[field] = compared[column]
    tokens = places["token"][places["token"] != NONE].astype(np.int32)
    return Kept(tokens, bool(places["ended"][0]), rows)
