"""Gather the prompts of a run: from which documents, tokenized by the model's own tokenizer."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nybble.engines.child import EngineProcess
from nybble.errors import NybbleError
from nybble.scoring.generation.backend import Backend
from nybble.scoring.generation.request import GenerateRequest
from nybble.scoring.prepare import PreparedModel
from nybble.scoring.request import Progress
from nybble.scoring.text import Source, describe, sources


@dataclass(frozen=True)
class Prompt:
    """One prompt, the sampling unit of every interval.

    Attributes:
        category: of its document.
        document: id, unique within the category.
        tokens: int32, BOS included.
    """

    category: str
    document: str
    tokens: npt.NDArray[np.int32]

    def sha256(self) -> str:
        """Hash of its tokens."""
        return hashlib.sha256(np.ascontiguousarray(self.tokens, dtype="<i4").tobytes()).hexdigest()


@dataclass
class Prompts:
    """The prompts of a run.

    Attributes:
        all: from one category after the other in turns, so that few come from many.
        sources: what the record says of each category: title, licence, source, prompts.
        how: what the prompts ask.
        warnings: what a reader must know.
        ends: ids that end an answer.
    """

    all: list[Prompt] = field(default_factory=list)
    sources: list[dict[str, Any]] = field(default_factory=list)
    how: set[str] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def sha256(self) -> str:
        """Hash of all tokens."""
        return hashlib.sha256("".join(p.sha256() for p in self.all).encode()).hexdigest()


def gather(
    model: PreparedModel, request: GenerateRequest, progress: Progress, backend: Backend
) -> Prompts:
    """Take the prompts that the request asks for.

    Raises:
        NybbleError: unknown category, text that cannot be read, a template that holds none of
            it, or no document that gives a prompt.
    """
    named = sources(request.measured())
    found = Prompts()
    progress.stage("tokenizing")
    child, extra = backend.maker(model)
    try:
        piles = [
            _category(child, extra, source, model.template, request, found) for source in named
        ]
    finally:
        child.close()
    for place in range(max(map(len, piles), default=0)):
        found.all += [pile[place] for pile in piles if place < len(pile)]
    del found.all[request.prompts :]
    if not found.all:
        raise NybbleError(
            "no document gives a prompt",
            seen=f"{', '.join(s.category for s in named)} with {request.prompt_tokens:,} tokens",
            hint="a larger --prompt-tokens, more --text, or the built-in categories",
        )
    if len(found.all) < request.prompts:
        found.warnings.append(
            f"{len(found.all):,} prompts, not {request.prompts:,}: there are no more documents "
            f"that give one of up to {request.prompt_tokens:,} tokens"
        )
    found.sources = [_describe(s, found.all) for s in named]
    return found


def _category(
    child: EngineProcess, extra: dict[str, Any], source: Source, template: str | None,
    request: GenerateRequest, into: Prompts,
) -> list[Prompt]:  # fmt: skip
    given = source.documents
    reply = child.request(
        {
            **extra,
            "op": "prompts",
            "category": source.category,
            "documents": None if given is None else [dataclasses.asdict(d) for d in given],
            "template": template,
            "tokens": request.prompt_tokens,
            "wanted": request.prompts,
        }
    )
    into.how.update(reply.header["how"])
    into.ends = reply.header["ends"]
    lengths = reply.header["lengths"]
    every = np.frombuffer(reply.payload, dtype="<i4").astype(np.int32)
    parts = np.split(every, np.cumsum(lengths)[:-1]) if lengths else []
    return [
        Prompt(source.category, name, tokens)
        for name, tokens in zip(reply.header["documents"], parts, strict=True)
    ]


def _describe(source: Source, prompts: Sequence[Prompt]) -> dict[str, Any]:
    return {
        **describe(source),
        "prompts": sum(p.category == source.category for p in prompts),
    }
