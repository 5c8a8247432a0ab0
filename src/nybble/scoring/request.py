"""What to measure, and how progress is told."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nybble.environment import usable_cpus
from nybble.errors import NybbleError
from nybble.formats import KVSetting, parse

# The three that users weigh against each other: 8.5, 6.5 and 4.5 bits an element.
DEFAULT_SETTINGS = ("q8_0/q8_0", "q8_0/q4_0", "q4_0/q4_0")
DEFAULT_CONTEXT = 1024  # twice the demo model's window, so every scored token looks past it
MOST_CONTEXT = 1 << 24  # tokens to state bytes for; llama.cpp's dry run takes 52 bytes each
MOST_THREADS = 512  # GGML_MAX_N_THREADS
FILE_CHUNKS = 8  # chunks scored by default of the user's own text
REFERENCE = KVSetting("f16", "f16")
FLOOR = KVSetting("bf16", "bf16")
WEIGHTS = ("f16", "f32", "as-shipped")
FRAMINGS = ("auto", "template", "raw")
VIAS = ("prefill", "decode")
ENGINES = ("auto", "llama.cpp", "transformers", "vllm", "sglang")
SERVED = ("vllm", "sglang", "llama.cpp")  # can be scored through a server
DEFAULT_TOP_K = 64
BYS = ("layer", "head")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class MeasureRequest:
    """Everything that defines a measurement.

    Attributes:
        model: a GGUF; None for the demo model.
        against: a second GGUF with the same vocabulary.
        settings: KV settings to compare with f16/f16.
        contexts: tokens of a chunk, one or more.
        categories: built-in categories; None for all, unless text is given.
        text: the user's UTF-8 files.
        jsonl: a file of texts or conversations.
        documents: chunks per category; None for 1 of each category, 8 of own text.
        draw: which draw of documents: 0 the first `documents` of each category, 1 the next as many.
        score_from: fraction of the context that is not scored.
        via: "prefill" (blocks) or "decode" (token by token).
        weights: score on an "f16" or "f32" copy of quantized weights, or "as-shipped".
        framing: "template", "raw", or "auto": the template if the model has one.
        by: also measure every "layer" or "head" of each setting alone, on each model against its
            own 16-bit reference; None for neither.
        budget: mean bits an element to spread over layers and sides; None for no proposal.
        split_kv: also measure K alone and V alone of every setting.
        memory_at: further contexts to state the cache's bytes for.
        engine: "llama.cpp", "transformers", or "auto": llama.cpp for what it can do itself. With
            `urls`, which kind of server they are of: one of SERVED.
        urls: addresses of running servers, one for each of `settings`; then they score.
        top_k: tokens of each position that servers are asked for.
        device: where torch runs: "auto", "cpu" or "cuda".
        calibration: statistics of `model`; None for the file beside it, made when missing.
        out: run folder; None for one under ./nybble-results.
        fresh: score again what is there already.
        threads: CPU threads; None for all usable cores.
        seed: of the bootstrap.
        thresholds: a TOML file; None for the shipped one.
        timeout: seconds of silence after which the engine counts as hung.
        command: the command line, kept in the record.
    """

    model: Path | None = None
    against: Path | None = None
    settings: tuple[KVSetting, ...] = tuple(parse(s) for s in DEFAULT_SETTINGS)
    contexts: tuple[int, ...] = (DEFAULT_CONTEXT,)
    categories: tuple[str, ...] | None = None
    text: tuple[Path, ...] = ()
    jsonl: Path | None = None
    documents: int | None = None
    draw: int = 0
    score_from: float = 0.5
    via: str = "prefill"
    weights: str = "f16"
    framing: str = "auto"
    by: str | None = None
    budget: float | None = None
    split_kv: bool = False
    memory_at: tuple[int, ...] = ()
    engine: str = "auto"
    urls: tuple[tuple[KVSetting, str], ...] = ()
    top_k: int = DEFAULT_TOP_K
    device: str = "auto"
    calibration: Path | None = None
    out: Path | None = None
    fresh: bool = False
    threads: int | None = None
    seed: int = 0
    thresholds: Path | None = None
    timeout: float = 1800.0
    command: str = ""

    @property
    def cpu_threads(self) -> int:
        """Threads to use: those asked for, or one for every usable core."""
        return self.threads or usable_cpus()

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            NybbleError: names the option, the value and the allowed values.
        """
        _choice("--via", self.via, VIAS)
        _choice("--weights", self.weights, WEIGHTS)
        _choice("--framing", self.framing, FRAMINGS)
        _choice("--engine", self.engine, ENGINES)
        if self.by is not None:
            _choice("--by", self.by, BYS)
        if self.budget is not None and not 0 < self.budget <= 16:
            raise NybbleError(
                "--budget is in bits an element", seen=self.budget, allowed="more than 0, up to 16"
            )
        if self.budget is not None and self.against is not None:
            raise NybbleError(
                "--budget is about one model", seen=f"--against {self.against}",
                hint="leave --against out, then compare what it proposes",
            )  # fmt: skip
        if self.urls or self.engine in ("vllm", "sglang"):
            self._check_urls()
        if self.engine == "llama.cpp" and (self.by or self.budget):
            raise NybbleError(
                "llama.cpp stores every layer alike, so it cannot measure one alone",
                seen="--by or --budget with --engine llama.cpp",
                hint="--engine transformers",
            )
        _choice("--device", self.device, DEVICES)
        if not self.settings:
            raise NybbleError("no KV settings given", hint="--kv q8_0/q4_0")
        if not self.contexts or min(self.contexts) < 32:
            seen = ", ".join(map(str, self.contexts)) or "none"
            raise NybbleError("a context is too short to score", seen=seen, allowed="32 or more")
        if not 0.0 <= self.score_from <= 0.95:
            raise NybbleError(
                "--score-from is a fraction of the context", seen=self.score_from,
                allowed="0 to 0.95",
            )  # fmt: skip
        _range("--documents", self.documents, 1)
        _range("the draw of documents", self.draw, 0, 1000)
        _range("--threads", self.threads, 1, MOST_THREADS)
        _range("--seed", self.seed, 0)
        for context in self.memory_at:
            _range("--memory-at", context, 1, MOST_CONTEXT)
        if not 0 < self.timeout <= threading.TIMEOUT_MAX:
            raise NybbleError(
                "--timeout is out of range", seen=self.timeout,
                allowed=f"more than 0 s, up to {threading.TIMEOUT_MAX:.0f} s",
            )  # fmt: skip

    def _check_urls(self) -> None:
        example = (
            "--url f16/f16=http://127.0.0.1:8000 --url fp8_e4m3/fp8_e4m3=http://127.0.0.1:8001"
        )
        if not self.urls:
            raise NybbleError(f"{self.engine} is scored through running servers", seen="no --url",
                              hint=f"--engine {self.engine} {example}")  # fmt: skip
        _choice("--engine with --url", self.engine, SERVED)
        named = tuple(s for s, _ in self.urls)
        if named != self.settings or len(set(named)) < len(named):
            raise NybbleError(
                "with --url, its settings are what is measured, each once",
                seen=", ".join(str(s) for s, _ in self.urls), hint=example,
            )  # fmt: skip
        _range("--top-k", self.top_k, 2)
        barred = {"--against": self.against, "--by": self.by, "--budget": self.budget,
                  "--split-kv": self.split_kv, "--calibration": self.calibration}  # fmt: skip
        for name, value in barred.items():
            if value:
                raise NybbleError("this cannot be asked of servers", seen=f"{name} with --url",
                                  hint="--engine transformers simulates it")  # fmt: skip


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise NybbleError(f"unknown value for {name}", seen=value, allowed=allowed)


def _range(name: str, value: int | None, least: int, most: int | None = None) -> None:
    if value is not None and not (least <= value and (most is None or value <= most)):
        allowed = f"{least} or more" if most is None else f"{least} to {most:,}"
        raise NybbleError(f"{name} is out of range", seen=value, allowed=allowed)


class Progress(Protocol):
    """Where a long run tells how far it is; the CLI draws it, the library stays silent."""

    def stage(self, text: str) -> None:
        """A new step without a known length."""

    def begin(self, text: str, total: float) -> None:
        """A new step of `total` units."""

    def advance(self, done: float) -> None:
        """Units done since the last call."""

    def note(self, text: str) -> None:
        """Something the user must know now."""


class Silent:
    """Progress that nobody sees."""

    def stage(self, text: str) -> None:
        """Ignore."""

    def begin(self, text: str, total: float) -> None:
        """Ignore."""

    def advance(self, done: float) -> None:
        """Ignore."""

    def note(self, text: str) -> None:
        """Ignore."""
