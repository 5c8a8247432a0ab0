"""What to generate: model, KV settings, prompts and how long an answer may become."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nybble.errors import NybbleError
from nybble.formats import KVSetting, parse
from nybble.scoring.request import DEFAULT_SETTINGS, MeasureRequest

LEAST, MOST = 64, 4096  # tokens of an answer
DEFAULT_PROMPTS = 8
DEFAULT_PROMPT_TOKENS = 512
MOST_PROMPTS = 1000
ENGINES = ("auto", "llama.cpp", "transformers")


@dataclass(frozen=True)
class GenerateRequest:
    """Everything that defines a run of greedy generation.

    Attributes:
        model: a GGUF, a folder with safetensors or a hub id; None for the demo model.
        settings: KV settings to compare with f16/f16.
        limit: most tokens of an answer, LEAST to MOST.
        prompts: how many, each from a document of its own.
        prompt_tokens: most tokens of a prompt; longer documents are cut.
        categories: built-in categories to take them from; None for all, unless text is given.
        text: the user's UTF-8 files.
        jsonl: a file of texts or conversations; a conversation is asked up to one of its answers.
        weights: generate with an "f16" or "f32" copy of quantized weights, or "as-shipped".
        framing: "template", "raw", or "auto": the template if the model has one.
        engine: "llama.cpp", "transformers" (with `nybble.Cache`), or "auto": llama.cpp where it
            reads the model and has all types.
        device: where torch runs: "auto", "cpu" or "cuda".
        calibration: statistics of `model`; None for the file beside it, made when missing.
        out: run folder; None for one under ./nybble-results.
        fresh: generate again what is there already.
        threads: CPU threads; None for all usable cores.
        seed: of the bootstrap.
        timeout: seconds of silence after which the engine counts as hung.
        command: the command line, kept in the record.
    """

    model: Path | None = None
    settings: tuple[KVSetting, ...] = tuple(parse(s) for s in DEFAULT_SETTINGS)
    limit: int = 256
    prompts: int = DEFAULT_PROMPTS
    prompt_tokens: int = DEFAULT_PROMPT_TOKENS
    categories: tuple[str, ...] | None = None
    text: tuple[Path, ...] = ()
    jsonl: Path | None = None
    weights: str = "f16"
    framing: str = "auto"
    engine: str = "auto"
    device: str = "auto"
    calibration: Path | None = None
    out: Path | None = None
    fresh: bool = False
    threads: int | None = None
    seed: int = 0
    timeout: float = 1800.0
    command: str = ""

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            NybbleError: names the option, the value and the allowed values.
        """
        _range("--generate", self.limit, LEAST, MOST)
        _range("--prompts", self.prompts, 1, MOST_PROMPTS)
        _range("--prompt-tokens", self.prompt_tokens, 32, 1 << 20)
        if self.engine not in ENGINES:
            raise NybbleError(
                "unknown value for --engine with --generate", seen=self.engine, allowed=ENGINES
            )
        self.measured()  # the options that both share

    @property
    def context(self) -> int:
        """Tokens that each lane's cache holds: a prompt and its answer."""
        return self.prompt_tokens + self.limit

    def measured(self) -> MeasureRequest:
        """The same as a measurement at the length of a prompt and its answer."""
        return MeasureRequest(
            model=self.model, settings=self.settings, contexts=(self.context,),
            categories=self.categories, text=self.text, jsonl=self.jsonl,
            documents=self.prompts, weights=self.weights, framing=self.framing,
            engine=self.engine, device=self.device, calibration=self.calibration,
            out=self.out, fresh=self.fresh, threads=self.threads, seed=self.seed,
            timeout=self.timeout, command=self.command,
        )  # fmt: skip


def _range(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise NybbleError(
            f"{name} is out of range", seen=f"{value:,}", allowed=f"{least:,} to {most:,}"
        )
