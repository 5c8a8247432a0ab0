"""What to train, and for how long. No torch, so the command line starts without it."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nybble.environment import usable_cpus
from nybble.errors import NybbleError
from nybble.formats import KVSetting, parse

SCOPES = ("scales", "kv", "all")
LOGS = ("csv", "tensorboard")
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "bf16", "f32")
STORED = ("q4_0", "q8_0")  # what train/weights.py can train weights as
MOST_THREADS = 512  # GGML_MAX_N_THREADS, as in scoring
MOST_RANK = 4096
# A resumed run may change these: where it runs and how it is told, when it stops.
FREE = ("steps", "patience", "log", "checkpoint_every", "threads", "device", "out", "resume")


@dataclass(frozen=True)
class TrainRequest:
    """Everything that defines a training.

    Attributes:
        out: folder of checkpoints and logs; every process must see it.
        scope: what is trained: "scales" (per-channel scales, norms), "kv" (W_k and W_v too) or
            "all".
        lora: rank of low-rank updates of the matrices in scope; 0 trains the matrices.
        settings: KV settings, one drawn for every step; kept as `str(parse(...))` writes them.
        weights: how often each is drawn, in any unit; empty for equally often.
        stored: type that the matrices in training are read through, as a GGUF would hold them;
            None trains them as they are.
        held_out: chunks of text that are looked at and never trained on.
        steps: optimizer steps. The cosine ends with them, so another number is another schedule.
        batch: sequences of one forward pass, in every process.
        accumulate: forward passes of one step.
        context: tokens of a sequence.
        score_from: fraction of held-out text that no KLD is taken of, as when measuring.
        positions: random positions of every sequence whose loss is taken in a step. An unbiased
            estimate of all, for vocabularies whose head would cost more than the blocks. Half of
            them, rather than an eighth, doubles to triples how far gradients of two sequences
            agree (SmolLM2, W_k: cosine 0.07 at 128, 0.17 at 512, 0.25 at 960 of 1,024).
        lr: (group, peak learning rate) pairs; the student's own where a group is not named.
        warmup: share of the steps in which the learning rate rises linearly.
        precision: of the forward pass: "f32", "bf16" (mixed), or "auto": bf16 on a GPU only.
        keep_best: leave the state with the lowest held-out KLD in the student; else the last one,
            for experiments that compare at equal steps.
        eval_every: steps between two looks at the held-out text.
        patience: looks without 1 % gain after which training stops; None for never.
        checkpoint_every: seconds; 0 for every step.
        seed: of text order, positions and settings.
        threads: CPU threads; None for all usable cores.
        device: "auto", "cpu" or "cuda".
        log: "csv", or "tensorboard" for that and CSV.
        resume: go on from the last checkpoint in `out`; else what is there is removed.
    """

    out: Path
    scope: str = "kv"
    lora: int = 0
    settings: tuple[str, ...] = ("q4_0/q4_0",)
    weights: tuple[float, ...] = ()
    stored: str | None = None
    held_out: int = 8
    steps: int = 200
    batch: int = 4
    accumulate: int = 1
    context: int = 1024
    score_from: float = 0.5
    positions: int = 512
    lr: tuple[tuple[str, float], ...] = ()
    warmup: float = 0.05
    precision: str = "auto"
    keep_best: bool = True
    eval_every: int = 20
    patience: int | None = 5
    checkpoint_every: float = 600.0
    seed: int = 0
    threads: int | None = None
    device: str = "auto"
    log: str = "csv"
    resume: bool = True

    @property
    def cpu_threads(self) -> int:
        """Threads to use: those asked for, or one for every usable core."""
        return self.threads or usable_cpus()

    @property
    def start(self) -> int:
        """First position of held-out text that a KLD is taken of."""
        return int(self.context * self.score_from)

    @property
    def kv_settings(self) -> tuple[KVSetting, ...]:
        """`settings`, read."""
        return tuple(parse(text) for text in self.settings)

    @property
    def shares(self) -> tuple[float, ...]:
        """Probability of each setting; they add up to 1."""
        weights = self.weights or (1.0,) * len(self.settings)
        return tuple(w / math.fsum(weights) for w in weights)

    def defining(self) -> dict[str, Any]:
        """Fields that decide the numbers, as JSON gives them back."""
        fields = {k: v for k, v in dataclasses.asdict(self).items() if k not in FREE}
        found: dict[str, Any] = json.loads(json.dumps(fields))
        return found

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            NybbleError: names the option, the value and the allowed values.
        """
        _choice("--scope", self.scope, SCOPES)
        _choice("--log", self.log, LOGS)
        _choice("--device", self.device, DEVICES)
        _choice("--precision", self.precision, PRECISIONS)
        _range("--lora", self.lora, 0, MOST_RANK)
        if self.stored is not None:
            _choice("--stored", self.stored, STORED)
            if self.scope != "all" or self.lora:
                raise NybbleError(
                    "weights are trained as stored only when all of them are trained whole",
                    seen=f"--stored {self.stored} --scope {self.scope} --lora {self.lora}",
                    allowed="--scope all without --lora",
                )  # fmt: skip
        if self.lora and self.scope == "scales":
            raise NybbleError(
                "--lora is about matrices, and --scope scales trains none",
                seen=f"--lora {self.lora}", allowed="--scope kv, --scope all",
            )  # fmt: skip
        self._check_settings()
        object.__setattr__(self, "settings", tuple(map(str, self.kv_settings)))
        for name in ("steps", "batch", "accumulate", "eval_every", "held_out"):
            _range(f"--{name.replace('_', '-')}", getattr(self, name), 1)
        _range("--context", self.context, 32)
        _range("--score-from", self.score_from, 0.0, 0.95)
        _range("--positions", self.positions, 1, self.context)
        for group, rate in self.lr:
            if not 0 < rate <= 1:
                raise NybbleError(
                    "a learning rate is out of range", seen=f"{group}={rate}",
                    allowed="more than 0, up to 1",
                )  # fmt: skip
        _range("--warmup", self.warmup, 0.0, 1.0)
        if self.patience is not None:
            _range("--patience", self.patience, 1)
        if not 0 <= self.checkpoint_every < math.inf:
            raise NybbleError(
                "--checkpoint-every is in seconds", seen=self.checkpoint_every,
                allowed="0 (every step) or more",
            )  # fmt: skip
        _range("--seed", self.seed, 0)
        if self.threads is not None:
            _range("--threads", self.threads, 1, MOST_THREADS)

    def _check_settings(self) -> None:
        settings = self.kv_settings
        nothing = self.keep_best and self.stored is None
        if not settings or (nothing and not any(s.quantized for s in settings)):
            raise NybbleError(
                "nothing to train for: no KV setting is quantized",
                seen=", ".join(self.settings) or "none", hint="--kv q4_0/q4_0",
            )  # fmt: skip
        if len(set(settings)) < len(settings):
            raise NybbleError(
                "a KV setting is given twice", seen=", ".join(self.settings),
                allowed="each once; weights say how often it is drawn",
            )  # fmt: skip
        if self.weights and len(self.weights) != len(settings):
            raise NybbleError(
                "every KV setting needs a weight, or none has one",
                seen=f"{len(self.weights)} weights", allowed=f"{len(settings)} weights",
            )  # fmt: skip
        if not all(0 < w < math.inf for w in self.weights):
            raise NybbleError(
                "the weight of a KV setting is out of range",
                seen=", ".join(map(str, self.weights)), allowed="more than 0, finite",
            )  # fmt: skip


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise NybbleError(f"unknown value for {name}", seen=value, allowed=allowed)


def _range(name: str, value: float, least: float, most: float = math.inf) -> None:
    if not least <= value <= most:
        allowed = f"{least} or more" if most == math.inf else f"{least} to {most:,}"
        raise NybbleError(f"{name} is out of range", seen=value, allowed=allowed)
