"""What to plan: a model, cards, a load, and what it may cost in quality."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nybble.errors import NybbleError
from nybble.formats.setting import KVSetting
from nybble.planning.interval import positive

CONTEXTS = (8192, 32_768, 131_072)  # tokens; columns of the table, besides the model's own longest
MOST_CARDS = 1024
MOST_CONTEXT = 1 << 30
RESERVE_GIB = 0.5  # of a GPU: a desktop's own, and what an allocator cannot use
RESERVE_SHARED_GIB = 4.0  # of a memory shared with an operating system and its programs


@dataclass(frozen=True)
class CardChoice:
    """Which cards, and what of their data a user knows better.

    Attributes:
        name: of `planning.cards.card`, as NAME or NxNAME; None for no card unless `here`.
        here: the cards of this machine.
        count: of cards; None for what the name or the machine says.
        memory_gib: of one card.
        bandwidth_gbs: of its memory, GB/s.
        tflops: dense FP16 rate.
        reserve_gib: of one card left free; None for 0.5 on a GPU and 4 in a shared memory.

    Raises:
        NybbleError: a number that is not above zero, or no number of cards.
    """

    name: str | None = None
    here: bool = False
    count: int | None = None
    memory_gib: float | None = None
    bandwidth_gbs: float | None = None
    tflops: float | None = None
    reserve_gib: float | None = None

    def __post_init__(self) -> None:
        if self.name is not None and self.here:
            raise NybbleError("a plan is for cards that are named or for those of this machine",
                              seen="--gpu and --this-machine", hint="leave one out")  # fmt: skip
        if self.name is None and not self.here:
            for option in ("count", "memory_gib", "bandwidth_gbs", "tflops", "reserve_gib"):
                if getattr(self, option) is not None:
                    raise NybbleError("no card to change", seen=f"{option} without a card",
                                      hint="--gpu rtx-4090 or --this-machine")  # fmt: skip
        if self.count is not None and not 1 <= self.count <= MOST_CARDS:
            raise NybbleError("the number of cards must be a whole number above 0",
                              seen=self.count, allowed=f"1 to {MOST_CARDS:,}")  # fmt: skip
        if self.reserve_gib is not None:
            positive("memory left free", self.reserve_gib, "GiB", zero=True)


@dataclass(frozen=True)
class PlanRequest:
    """Everything that defines a plan.

    Attributes:
        model: what `models.found.find` takes.
        file: of a model of the catalogue, which of its published files.
        cards: which; without any, sizes are told and nothing is fitted.
        engines: names; empty for all that run the model on such cards.
        settings: KV settings; empty for those that each engine lists.
        context: tokens of each sequence that must fit; None for no such demand.
        users: sequences held at once.
        max_kld: only KV settings whose stored measurement is at most this, in nat.
        results: folders of measurements; empty for ./nybble-results where it is there.
        split: "layer" or "tensor"; None for each engine's own.
        ubatch: tokens of a micro-batch of the prefill; None for each engine's own.
        curve: also sizes between the columns, for a picture.
        brief: of all engines but the first that runs it, tell the largest contexts alone.
        calibration: a file of measured rates, of `planning.measured.save`.

    Raises:
        NybbleError: a number that means nothing.
    """

    model: str
    file: str | None = None
    cards: CardChoice = CardChoice()
    engines: tuple[str, ...] = ()
    settings: tuple[KVSetting, ...] = ()
    context: int | None = None
    users: int = 1
    max_kld: float | None = None
    results: tuple[Path, ...] = ()
    split: str | None = None
    ubatch: int | None = None
    curve: bool = False
    brief: bool = False
    calibration: Path | None = None

    def __post_init__(self) -> None:
        for name, value, most in (
            ("the context", self.context, MOST_CONTEXT),
            ("the micro-batch", self.ubatch, MOST_CONTEXT),
            ("the number of users", self.users, 1 << 20),
        ):
            if value is not None and not 1 <= value <= most:
                raise NybbleError(f"{name} must be a whole number above 0", seen=value,
                                  allowed=f"1 to {most:,}")  # fmt: skip
        if self.max_kld is not None:
            positive("the largest mean KLD", self.max_kld, "nat", zero=True)
        if self.split not in (None, "layer", "tensor"):
            raise NybbleError("unknown way to split a model over cards", seen=self.split,
                              allowed="layer, tensor")  # fmt: skip
