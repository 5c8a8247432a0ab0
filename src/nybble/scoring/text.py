"""Gather the text of a run: which categories, which files, cut into chunks of each context."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nybble.engines.child import EngineProcess
from nybble.errors import NybbleError, unknown
from nybble.scoring.backend import Backend
from nybble.scoring.chunks import Chunk
from nybble.scoring.corpora import CATEGORIES, Document
from nybble.scoring.corpora.files import from_jsonl, from_text_files
from nybble.scoring.prepare import PreparedModel
from nybble.scoring.request import FILE_CHUNKS, MeasureRequest, Progress


@dataclass
class Text:
    """The chunks of a run.

    Attributes:
        chunks: by context length, in a fixed order.
        sources: what the record says of each category: title, licence, source, chunks.
        how: how documents were framed ("raw text", "template", ...).
        warnings: categories that are too short for a context.
    """

    chunks: dict[int, list[Chunk]] = field(default_factory=dict)
    sources: list[dict[str, Any]] = field(default_factory=list)
    how: set[str] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)

    def sha256(self) -> str:
        """Hash of all scored tokens."""
        digest = hashlib.sha256()
        for context in sorted(self.chunks):
            for chunk in self.chunks[context]:
                digest.update(np.ascontiguousarray(chunk.tokens, dtype="<i4").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Source:
    """A category to cut into up to `wanted` chunks: built in (documents None) or the user's.

    `skip` chunks go before them and belong to other draws.
    """

    category: str
    documents: list[Document] | None
    wanted: int
    skip: int = 0


def gather(
    model: PreparedModel,
    named: Sequence[Source],
    request: MeasureRequest,
    progress: Progress,
    backend: Backend,
) -> Text:
    """Tokenize and cut what `sources` read, with the model's own tokenizer.

    Raises:
        NybbleError: text shorter than one context.
    """
    text = Text()
    progress.stage("tokenizing")
    child, extra = backend.tokenizer(model)
    try:
        for context in request.contexts:
            found: list[Chunk] = []
            for source in named:
                found += cut_source(child, extra, source, context, model.template, text)
            if not found:
                raise NybbleError(
                    f"no text fills one context of {context:,} tokens",
                    seen="; ".join(text.warnings[-len(named):]),
                    hint="another --context, more --text, or the built-in categories",
                )  # fmt: skip
            text.chunks[context] = found
    finally:
        child.close()
    for source in named:
        text.sources.append(_describe(source, text))
    return text


def sources(request: MeasureRequest) -> list[Source]:
    """The categories and files that the request names, read but not tokenized.

    Raises:
        NybbleError: unknown category, or text that cannot be read.
    """
    own: list[Document] = []
    if request.text:
        own += from_text_files(list(request.text))
    if request.jsonl:
        own += from_jsonl(request.jsonl)
    names = request.categories
    if names is None:
        names = () if own else tuple(CATEGORIES)
    for name in names:
        if name not in CATEGORIES:
            raise unknown("unknown category", name, CATEGORIES)
    if not own and not names:
        raise NybbleError("no text to score", hint=f"--categories {','.join(CATEGORIES)}")
    groups: dict[str, list[Document]] = {}
    for document in own:
        groups.setdefault(document.category, []).append(document)
    clash = sorted(set(groups) & set(names))
    if clash:
        raise NybbleError(
            "a category of your text has the name of a built-in one that is also asked for",
            seen=", ".join(clash),
            hint="rename it in the JSONL file, or leave it out of --categories",
        )
    built_in, files = request.documents or 1, request.documents or FILE_CHUNKS
    return [
        *(Source(n, None, built_in, request.draw * built_in) for n in names),
        *(Source(n, d, files, request.draw * files) for n, d in groups.items()),
    ]


def cut_source(
    child: EngineProcess,
    extra: dict[str, Any],
    source: Source,
    context: int,
    template: str | None,
    text: Text,
) -> list[Chunk]:
    """Chunks of one source; what was found out goes into `text`."""
    given = None
    if source.documents is not None:
        given = [dataclasses.asdict(d) for d in source.documents]
    reply = child.request(
        {
            **extra,
            "op": "chunks",
            "category": source.category,
            "documents": given,
            "context": context,
            "wanted": source.skip + source.wanted,
            "template": template,
        }
    )
    cut: Sequence[dict[str, Any]] = reply.header["chunks"]
    meta = cut[source.skip :]
    tokens = np.frombuffer(reply.payload, dtype=np.int32).reshape(len(cut), context)[source.skip :]
    text.how.update(reply.header["how"])
    if not meta:
        count = reply.header["tokens"]
        why = f"has {count:,} tokens, too few for a context of {context:,}"
        if cut:
            why = f"has no further document of {context:,} tokens after the first {len(cut)}"
        elif count >= context:
            why = f"has no room in a context of {context:,}: the chat template alone fills it"
        text.warnings.append(f"{source.category} {why}; it is left out there")
    # One long file of the user is the only document there is: its chunks must then stand in.
    alone = source.documents is not None and len(source.documents) == 1
    return [
        Chunk(source.category, f"{m['document']}#{m['index']}" if alone else m["document"],
              m["index"], ids)
        for m, ids in zip(meta, tokens, strict=True)
    ]  # fmt: skip


def describe(source: Source) -> dict[str, Any]:
    """What a record says of a source: category, title, licence and where it is from."""
    known = CATEGORIES.get(source.category) if source.documents is None else None
    files = sorted({d.source for d in source.documents or ()})
    return {
        "category": source.category,
        "title": known.title if known else "your text",
        "licence": known.licence if known else "yours",
        "source": known.source if known else ", ".join(files)[:500],
    }


def _describe(source: Source, text: Text) -> dict[str, Any]:
    return {
        **describe(source),
        "chunks": {
            str(c): sum(x.category == source.category for x in chunks)
            for c, chunks in text.chunks.items()
        },
    }
