"""How fast llama.cpp reads prompts and decodes on this machine, by what is in the cache.

`measure_speed` runs this module as a child process; what the child does is `run_lanes`. Every
depth has a context of its own, all are filled first and then decode in turn, one step each: what
else the machine does meanwhile slows all depths alike, so their difference stays the cache's.
Tokens are drawn at random, as llama-bench does: a text that repeats itself would meet the same
experts again and again.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nybble.engines.child import EngineProcess, Frame
from nybble.engines.llamacpp.ffi import PINNED, engine_identity, own_library
from nybble.engines.llamacpp.model import UBATCH, Context, Model
from nybble.engines.worker import BaseWorker, serve
from nybble.errors import EngineError, NybbleError
from nybble.formats import KVSetting, parse

WORKER = "nybble.engines.llamacpp.speed"
SKIP = 2  # first steps of every depth, which are not counted: they fault in pages and buffers
STEPS = 32
_FEWEST = 3  # counted steps of each depth, even where time is up
_PIECE = 8  # tokens of the smallest micro-batch that time is still found for
_FILLING = 0.65  # share of the time for filling; decoding gets the rest
_SILENCE = 600.0  # seconds without a sign of life: loading from a slow disk is the longest

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Piece:
    """One micro-batch of a prefill.

    Attributes:
        tokens: of it.
        depth: tokens in the cache before it.
        seconds: it took.
    """

    tokens: int
    depth: int
    seconds: float


@dataclass(frozen=True)
class DepthSpeed:
    """What was measured at one depth.

    Attributes:
        wanted: depth that was asked for, cut to the model's context, in tokens.
        depth: tokens in the cache before the first counted step.
        seconds: of each counted step of one token, in order.
        pieces: micro-batches that filled the cache from 0 on.
    """

    wanted: int
    depth: int
    seconds: tuple[float, ...]
    pieces: tuple[Piece, ...]

    @property
    def median(self) -> float:
        """Median seconds of a step."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the steps' quartiles, as a share of their median."""
        low, high = np.quantile(self.seconds, (0.25, 0.75))
        return float(high - low) / 2 / self.median

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed of one sequence, from the median step."""
        return 1 / self.median

    @property
    def context(self) -> int:
        """Tokens in the cache in the middle of the counted steps."""
        return self.depth + (len(self.seconds) - 1) // 2

    @property
    def full(self) -> tuple[Piece, ...]:
        """The largest micro-batches: smaller ones are rests, or what time was left for."""
        size = max(p.tokens for p in self.pieces)
        return tuple(p for p in self.pieces if p.tokens == size)


@dataclass(frozen=True)
class SpeedRun:
    """One run of the engine.

    Attributes:
        setting: KV setting in effect, as the engine's own log confirms.
        threads: CPU threads.
        micro_batch: tokens, the most of one.
        engine: for example "llama.cpp b11549".
        depths: shallowest first.
        complete: False where time was up before all depths were full or all steps done.
    """

    setting: str
    threads: int
    micro_batch: int
    engine: str
    depths: tuple[DepthSpeed, ...]
    complete: bool


def measure_speed(
    path: Path,
    setting: KVSetting,
    depths: Sequence[int] = (512, 4096),
    *,
    threads: int,
    micro_batch: int = UBATCH,
    steps: int = STEPS,
    seconds: float = 60.0,
    progress: Progress | None = None,
    timeout: float = _SILENCE,
) -> SpeedRun:
    """Measure a GGUF in a child process, its weights as they are in the file.

    Args:
        path: a GGUF.
        setting: of the cache; flash attention is on.
        depths: tokens in the cache; those beyond the model's own context are cut to it.
        threads: CPU threads.
        micro_batch: tokens read together.
        steps: decoding steps counted at each depth.
        seconds: bound on filling and decoding. Where it is reached, depths are smaller than
            asked for (in the same proportion) and steps fewer; one micro-batch of 8 tokens and
            5 steps a depth are always done. Loading and 16 tokens to warm up come on top.
        progress: told what is going on, and the share of it that is done.
        timeout: seconds of silence after which the engine counts as hung.

    Raises:
        EngineError: llama.cpp refuses the model or the setting, or its log shows another cache;
            EngineCrashError (a subclass) where it died or hung.
        NybbleError: a number that is not above 0, or a setting that llama.cpp does not have.
    """
    _check(setting, depths, threads, micro_batch, steps, seconds)
    request = {
        "op": "speed", "path": str(path), "setting": str(setting), "depths": sorted(set(depths)),
        "threads": threads, "micro_batch": micro_batch, "steps": steps, "seconds": seconds,
    }  # fmt: skip

    def on_event(event: dict[str, Any]) -> None:
        if progress is not None:
            progress(str(event["stage"]), float(event["done"]))

    with closing(EngineProcess(WORKER, timeout=timeout)) as child:
        answer = child.request(request, on_event=on_event).header
    try:
        return SpeedRun(
            setting=str(setting), threads=threads, micro_batch=micro_batch,
            engine=str(answer["engine"]), depths=tuple(map(_depth, answer["depths"])),
            complete=bool(answer["complete"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EngineError("the engine process sent a malformed answer", seen=error) from error


def _check(
    setting: KVSetting,
    depths: Sequence[int],
    threads: int,
    micro_batch: int,
    steps: int,
    seconds: float,
) -> None:
    numbers = {
        "threads": threads, "the micro-batch": micro_batch, "steps": steps, "seconds": seconds,
        "the depth": min(depths, default=0),
    }  # fmt: skip
    for name, value in numbers.items():
        if not (math.isfinite(value) and value > 0):
            raise NybbleError(
                f"a measurement of speed needs {name} above 0", seen=value, allowed="above 0"
            )
    if not setting.llamacpp:
        raise NybbleError(
            "speed is measured in llama.cpp, which does not have this KV setting",
            seen=setting,
            allowed="llama.cpp's own types, for example q8_0/q8_0",
            hint="nybble formats",
        )


def _depth(data: dict[str, Any]) -> DepthSpeed:
    seconds = tuple(map(float, data["seconds"]))
    pieces = tuple(Piece(int(n), int(d), float(s)) for n, d, s in data["pieces"])
    if not seconds or not pieces or min(*seconds, *(p.seconds for p in pieces)) <= 0:
        raise ValueError("no step, or one that took no time")
    return DepthSpeed(int(data["wanted"]), int(data["depth"]), seconds, pieces)


@dataclass
class _Lane:
    """A context that is filled to a depth and then decodes."""

    context: Context
    wanted: int
    at: int = 0
    pieces: list[Piece] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def read(self, ids: Sequence[int], n: int) -> float:
        """Prefill the next `n` tokens; tokens/s."""
        began = time.perf_counter()
        for _ in self.context.prefill(ids[self.at : self.at + n], self.at):
            pass
        took = time.perf_counter() - began
        self.pieces.append(Piece(n, self.at, took))
        self.at += n
        return n / took

    def step(self, ids: Sequence[int]) -> float:
        """Decode one token, logits included; seconds."""
        began = time.perf_counter()
        self.context.score([ids[self.at]], self.at)
        self.at += 1
        return time.perf_counter() - began

    def clear(self) -> None:
        """Forget everything."""
        self.context.clear()
        self.at = 0
        self.pieces.clear()


def run_lanes(
    model: Model,
    setting: KVSetting,
    depths: Sequence[int],
    *,
    threads: int,
    micro_batch: int,
    steps: int,
    seconds: float,
    tell: Progress,
) -> tuple[DepthSpeed, ...]:
    """Fill and decode in this process; see `measure_speed`.

    Raises:
        EngineError: refused, another cache than asked for, or no room for a single token.
    """
    turns = SKIP + steps
    room = model.context_length - turns
    if room < 1:
        raise EngineError(
            "the model's context is too short for a measurement of speed",
            seen=f"{model.context_length:,} tokens",
            allowed=f"more than {turns:,}",
        )
    wanted = sorted({min(depth, room) for depth in depths})
    words = model.vocabulary
    ids = np.random.default_rng(0).integers(0, words.n_tokens, wanted[-1] + turns).tolist()
    ids[0] = max(words.bos, 0)
    with ExitStack() as stack:
        lanes = []
        for depth in wanted:
            context = model.context(
                setting, depth + turns, rows=1, threads=threads, ubatch=micro_batch
            )
            stack.callback(context.close)
            lanes.append(_Lane(context, depth))
        for _ in range(2):  # the second one tells how fast it goes
            rate = lanes[0].read(ids, min(_PIECE, micro_batch, wanted[0]))
            lanes[0].clear()
        began = time.perf_counter()
        by, whole = began, sum(wanted)
        for lane in lanes:
            by += seconds * _FILLING * lane.wanted / whole
            rate = _fill(lane, ids, micro_batch, by, rate, tell)
        _decode(lanes, ids, turns, began + seconds, tell)
        return tuple(
            DepthSpeed(
                lane.wanted, lane.at - len(lane.seconds), tuple(lane.seconds), tuple(lane.pieces)
            )
            for lane in lanes
        )


def _fill(
    lane: _Lane, ids: Sequence[int], size: int, by: float, rate: float, tell: Progress
) -> float:
    """Prefill in micro-batches of `size` until the time `by`; `rate` is the tokens/s to expect."""
    while lane.at < lane.wanted:
        tell(f"filling the cache to {lane.wanted:,} tokens", lane.at / lane.wanted)
        affordable = int(max(by - time.perf_counter(), 0.0) * rate)
        if lane.at and affordable < min(_PIECE, lane.wanted - lane.at):
            break
        rate = lane.read(ids, min(size, lane.wanted - lane.at, max(affordable, _PIECE)))
    return rate


def _decode(
    lanes: Sequence[_Lane], ids: Sequence[int], turns: int, by: float, tell: Progress
) -> None:
    where = " and ".join(f"{lane.at:,}" for lane in lanes)
    for turn in range(turns):
        if turn >= SKIP + _FEWEST and time.perf_counter() > by:
            break
        tell(f"decoding behind {where} tokens", turn / turns)
        for lane in lanes:
            took = lane.step(ids)
            if turn >= SKIP:
                lane.seconds.append(took)


def _answer(request: dict[str, Any], tell: Progress) -> dict[str, Any]:
    tell("loading the weights", 0.0)
    own = own_library() is not None
    engine = f"llama.cpp, {engine_identity()}" if own else f"llama.cpp b{PINNED.split('.')[-1]}"
    numbers = {k: request[k] for k in ("threads", "micro_batch", "steps", "seconds")}
    with closing(Model(Path(request["path"]))) as model:
        found = run_lanes(model, parse(request["setting"]), request["depths"], tell=tell, **numbers)
    complete = all(len(d.seconds) == request["steps"] and d.depth == d.wanted + SKIP for d in found)
    depths = [
        {
            "wanted": d.wanted, "depth": d.depth, "seconds": d.seconds,
            "pieces": [(p.tokens, p.depth, p.seconds) for p in d.pieces],
        }
        for d in found
    ]  # fmt: skip
    return {"engine": engine, "depths": depths, "complete": complete}


class _Worker(BaseWorker):
    def do_speed(self, request: Frame) -> Frame:
        return Frame(
            _answer(request.header, lambda stage, done: self.event(stage=stage, done=done))
        )


if __name__ == "__main__":
    serve(_Worker)
