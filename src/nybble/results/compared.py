"""What `nybble results compare` found: plain records."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from nybble.results.records import Estimate

COMPARED_SCHEMA_VERSION = 1
# The better side in words, or "no difference resolved", "same within X", "not judged".
A_BETTER, B_BETTER = "A is better", "B is better"
UNRESOLVED, NOT_JUDGED = "no difference resolved", "not judged"


@dataclass(frozen=True)
class Side:
    """One of the two that are compared: a KV setting of a model in a run.

    Attributes:
        run: its folder, as given.
        model: name of the model.
        sha256: of its weights as shipped; its own 16-bit cache is its reference.
        scored: what was scored, for example "f16 copy".
        engine: "llama.cpp", "transformers", or the server's.
        engine_version: of that engine, or of the package that carries it.
        via: "prefill" or "decode".
        cpu: processor it ran on.
        setting: KV setting.
        simulated: whether the cache's bytes were only simulated.
        top_k: tokens that a server's comparison saw; 0 for the full vocabulary.
    """

    run: str
    model: str
    sha256: str
    scored: str
    engine: str
    engine_version: str
    via: str
    cpu: str
    setting: str
    simulated: bool
    top_k: int


@dataclass(frozen=True)
class Contrast:
    """A mean over tokens on both sides.

    Attributes:
        a: of A.
        b: of B.
        difference: of B less that of A, from the same drawn documents; None where unpaired.
    """

    a: Estimate
    b: Estimate
    difference: Estimate | None = None


@dataclass(frozen=True)
class Changed:
    """What the two say where they say something else.

    "Right" is a most likely token that is the true next one.

    Attributes:
        differs: share of shared tokens at which their most likely tokens differ.
        n_differs: their number.
        lost: tokens that A has right and B has not.
        gained: tokens that B has right and A has not.
        p: exact two-sided McNemar test of lost against gained. It takes tokens as independent,
            which those of one document are not, so the verdict does not rest on it.
        p_corrected: after Holm's correction over all pairs of the comparison.
    """

    differs: Estimate
    n_differs: int
    lost: int
    gained: int
    p: float
    p_corrected: float


@dataclass(frozen=True)
class Pair:
    """A and B at one context length.

    Attributes:
        a: one side.
        b: the other.
        context: tokens.
        paired: whether the numbers come from the tokens that both scored.
        n_documents: shared documents, the sampling unit.
        n_tokens: shared tokens with finite numbers on both sides.
        n_nonfinite: shared tokens left out.
        only_a: tokens that only A has.
        only_b: tokens that only B has.
        metrics: mean_kld, same_top, flips, and where paired nll (nats) and right (share).
        ratio: mean KLD of B over that of A; None where A's is 0 or unpaired.
        changed: most likely tokens that differ; None where unpaired.
        p: two-sided Student test over documents of the difference of mean KLD.
        p_corrected: after Holm's correction over all pairs of the comparison.
        margin: nats within which the two count as the same; None where there is none.
        verdict: in words.
        reason: what decided it.
    """

    a: Side
    b: Side
    context: int
    paired: bool = False
    n_documents: int = 0
    n_tokens: int = 0
    n_nonfinite: int = 0
    only_a: int = 0
    only_b: int = 0
    metrics: dict[str, Contrast] = field(default_factory=dict)
    ratio: Estimate | None = None
    changed: Changed | None = None
    p: float | None = None
    p_corrected: float | None = None
    margin: float | None = None
    verdict: str = NOT_JUDGED
    reason: str = ""


@dataclass(frozen=True)
class Compared:
    """Two runs, or two settings of one, pair by pair.

    Attributes:
        pairs: by setting and context.
        notes: what a reader must know: what else the two differ in, what is left out.
    """

    pairs: list[Pair]
    notes: list[str] = field(default_factory=list)
    schema_version: int = COMPARED_SCHEMA_VERSION

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON takes it."""
        return dataclasses.asdict(self)
