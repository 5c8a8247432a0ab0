"""What a run of long-context tasks leaves behind, and one of free-running generation."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nybble.results.records import Estimate, ModelRecord, read_record

TASKS_SCHEMA_VERSION = 1
ALL_TASKS = "all"  # name of the cells that pool them


@dataclass(frozen=True)
class TaskCell:
    """One KV setting on one task at one length, paired with the 16-bit cache.

    Accuracies are fractions of questions; `low` and `high` come from a paired bootstrap that draws
    contexts, since questions about one context err together.

    Attributes:
        setting: for example "q4_0/q4_0".
        role: "reference" (f16/f16), "floor" (bf16/bf16) or "candidate".
        task: name; "all" for all tasks of this length together.
        length: tokens of context and question.
        depth: "0-25 %", ... or "" for all depths together.
        n_items: contexts.
        n_queries: questions.
        chance: expected accuracy of `choice` by guessing.
        exact: fraction answered rightly in the model's own words; None where not asked.
        choice: fraction where the true answer is the likeliest option; None where options were not
            weighed.
        exact_change: candidate less reference, paired.
        choice_change: the same of `choice`.
        gained: questions that only the candidate has right (by `by`).
        lost: questions that only the reference has right.
        by: "exact" or "choice": what gained, lost and p are of.
        p: exact two-sided McNemar test over the questions, which takes them as independent.
        p_corrected: the same after Holm's correction over all candidates, tasks and lengths of the
            run; "all" cells are corrected among themselves. None by depth.
        answer_nll: mean change of the true answer's negative log-likelihood, nats an answer.
        simulated: whether the cache was only simulated.
        status: "done" or "failed".
        error: why it failed.
    """

    setting: str
    role: str
    task: str
    length: int
    depth: str = ""
    n_items: int = 0
    n_queries: int = 0
    chance: float = 0.0
    exact: Estimate | None = None
    choice: Estimate | None = None
    exact_change: Estimate | None = None
    choice_change: Estimate | None = None
    gained: int = 0
    lost: int = 0
    by: str = "exact"
    p: float | None = None
    p_corrected: float | None = None
    answer_nll: Estimate | None = None
    simulated: bool = False
    status: str = "done"
    error: str | None = None


@dataclass(frozen=True)
class TaskRun:
    """One command's result.

    Attributes:
        model: what was asked.
        cells: by setting, task and length; then the same by depth.
        warnings: what a reader must know.
        conclusions: a sentence for each candidate: what breaks first.
        command: that makes it again.
        protocol: engine, tasks with source, lengths, items, questions, seed, framing, hash of the
            items.
        versions: of nybble and the engine.
        hardware: it ran on.
    """

    model: ModelRecord
    cells: list[TaskCell]
    warnings: list[str]
    conclusions: list[str]
    command: str
    created: str
    protocol: dict[str, Any]
    versions: dict[str, str]
    hardware: dict[str, Any]
    schema_version: int = TASKS_SCHEMA_VERSION


@dataclass(frozen=True)
class Divergence:
    """One KV setting, generating greedily from the same prompts as the 16-bit cache.

    An end token is a token, and inside the limit it counts as an end whatever the model was doing:
    a reasoning model that thinks beyond the limit has not ended, and nothing here tells thinking
    from answering or right from wrong. A longer answer is seen, a worse one is not.

    Attributes:
        setting: for example "q4_0/q4_0".
        role: "reference", "identity" (f16 again, on the first prompt), "floor" or "candidate".
        n_prompts: prompts, the unit that intervals resample.
        first_median: median of the first differing token, from 1; None where over half of the
            prompts never differ. `high` alone is None where that end is beyond the limit.
        first_at: the first differing token of every prompt, ascending; 0 for none.
        same_at: by number of tokens (64, 256, 1,024, the limit): fraction of prompts that have not
            differed until there.
        agreement_at: by number of tokens: mean fraction of the first n tokens that are equal,
            place by place.
        agreement_change: agreement over the limit less that of the noise floor, paired: below 0
            where the cache parts further from the reference than 16-bit rounding does.
        kld_at: by "from-to" in generated tokens: mean KLD against the 16-bit cache where both read
            the reference's own tokens, everything before them quantized. Answers that end before
            a stretch are not in it.
        kld_along: the same in stretches that double, for pictures.
        trend: slope of log KLD over log place: 0 for none, above 0 where the error grows.
        mean_length: tokens of an answer, end token included, at most the limit.
        length_ratio: tokens until the end over the reference's, geometric mean over prompts where
            both end; None where too few do.
        ended: fraction of prompts that ended by themselves within the limit.
        failed_to_stop: of the prompts that the reference ended, the fraction that this setting did
            not; None where it ended none.
        looped: fraction that ended in a loop (the last 64 tokens repeat the same 1 to 16 tokens).
        status: "done" or "failed".
        error: why it failed.
        simulated: whether the cache was only simulated.
    """

    setting: str
    role: str
    n_prompts: int = 0
    first_median: Estimate | None = None
    first_at: list[int] = field(default_factory=list)
    same_at: dict[str, Estimate] = field(default_factory=dict)
    agreement_at: dict[str, Estimate] = field(default_factory=dict)
    agreement_change: Estimate | None = None
    kld_at: dict[str, Estimate] = field(default_factory=dict)
    kld_along: dict[str, Estimate] = field(default_factory=dict)
    trend: Estimate | None = None
    mean_length: Estimate | None = None
    length_ratio: Estimate | None = None
    ended: Estimate | None = None
    failed_to_stop: Estimate | None = None
    looped: Estimate | None = None
    status: str = "done"
    error: str | None = None
    simulated: bool = False


@dataclass(frozen=True)
class GenerationRun:
    """One command's result.

    Attributes:
        model: what was asked.
        rows: candidates, noise floor, identity, reference.
        recommendation: in words, what the numbers say.
        warnings: what a reader must know.
        command: that makes it again.
        protocol: engine, limit, prompts with source and hash, seed, framing.
        versions: of nybble and the engine.
        hardware: it ran on.
    """

    model: ModelRecord
    rows: list[Divergence]
    recommendation: str
    warnings: list[str]
    command: str
    created: str
    protocol: dict[str, Any]
    versions: dict[str, str]
    hardware: dict[str, Any]
    schema_version: int = TASKS_SCHEMA_VERSION


Run = TypeVar("Run", TaskRun, GenerationRun)


def to_json(run: TaskRun | GenerationRun) -> str:
    """Canonical JSON: sorted keys, no NaN."""
    data = dataclasses.asdict(run)
    return json.dumps(data, sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False)


def from_json(kind: type[Run], text: str) -> Run:
    """Read a run back.

    Args:
        kind: TaskRun or GenerationRun.
        text: what `to_json` wrote.

    Raises:
        NybbleError: no such run, or of a newer schema.
    """
    name = "run of tasks" if kind is TaskRun else "run of generation"
    found = read_record(text, kind, TASKS_SCHEMA_VERSION, name)
    assert isinstance(found, kind)
    return found
