"""Documents to prompts, in the child that has the tokenizer.

Without a chat template a prompt is the head of a text, to be continued. With one it is a request
that has an end: a conversation up to one of the assistant's turns, or the head of a text that is
to be summed up. Every prompt is one document, cut to the tokens asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nybble.engines.child import Frame
from nybble.errors import NybbleError
from nybble.scoring.corpora import Document
from nybble.scoring.corpora.render import conversation, plain
from nybble.scoring.corpora.variants import candidates, missing_part
from nybble.scoring.pieces import Tokenizing, documents_of

Tokens = npt.NDArray[np.int32]

TASK = "Summarise the text above in a few sentences."
_SPLIT = "nybble7f3c1e5a9b"  # stands for the text while the template's frame is taken apart


def prompts(model: Tokenizing, header: dict[str, Any], event: Callable[..., None]) -> Frame:
    """Render and tokenize up to `wanted` prompts of one category.

    Args:
        model: the tokenizer.
        header: category, documents (None for the built-in ones), template, tokens (most of a
            prompt), wanted.
        event: told of every document.

    Returns:
        Ids of documents, lengths of prompts and the id that ends a text in the header; int32
        tokens as the payload.
    """
    documents = documents_of(header)
    names: list[str] = []
    found: list[Tokens] = []
    how: set[str] = set()
    while len(found) < header["wanted"] and (document := next(documents, None)) is not None:
        event(step="tokenize", document=document.id)
        tokens = _prompt(model, document, header["template"], header["tokens"], how)
        if tokens is not None:
            names.append(document.id)
            found.append(tokens)
    payload = b"".join(np.ascontiguousarray(t, dtype="<i4").tobytes() for t in found)
    lengths = [len(t) for t in found]
    end = {model.vocabulary.eos} - {-1}
    header = {"documents": names, "lengths": lengths, "how": sorted(how), "ends": sorted(end)}
    return Frame(header, payload)


def _prompt(
    model: Tokenizing, document: Document, template: str | None, most: int, how: set[str]
) -> Tokens | None:
    """One document's prompt; None where nothing of it fits."""
    if document.messages:
        return _asked(model, document, template, most, how)
    body = model.tokenize(document.text, special=False)
    if template is None:
        how.add("head of a text, to be continued")
        return _started(model, body)[:most] if len(body) else None
    head, tail = _frame(model, template)
    room = most - len(head) - len(tail)
    if room < 1 or not len(body):
        return None
    how.add("head of a text, to be summed up, in the chat template")
    return np.concatenate([head, body[:room], tail])


def _frame(model: Tokenizing, template: str) -> tuple[Tokens, Tokens]:
    """What the template puts before and behind a text in a user's turn."""
    vocabulary = model.vocabulary
    turn = [{"role": "user", "content": f"{_SPLIT}\n\n{TASK}"}]
    text = conversation(turn, template, bos=vocabulary.bos_text, eos=vocabulary.eos_text)
    if text.count(_SPLIT) != 1:
        raise NybbleError(
            "the chat template of the model leaves out the user's turn, or repeats it",
            seen=text[:200],
            hint="--framing raw",
        )
    head, _, tail = text.partition(_SPLIT)
    return _started(model, model.tokenize(head, special=True)), model.tokenize(tail, special=True)


def _asked(
    model: Tokenizing, document: Document, template: str | None, most: int, how: set[str]
) -> Tokens | None:
    """The conversation before its last answer that leaves it short enough."""
    messages = document.messages
    ends = [i for i, m in enumerate(messages) if i and m["role"] == "assistant"]
    if messages[-1]["role"] != "assistant":
        ends.append(len(messages))  # a question that waits for its answer
    for end in reversed(ends):
        asked = replace(document, messages=messages[:end])
        if template is None:
            done, text = "conversation as plain text", f"{plain(asked)}\nAssistant:"
        else:
            done, text = _rendered(model, asked, template)
        tokens = _started(model, model.tokenize(text, special=template is not None))
        if len(tokens) <= most:
            how.add(done)
            return tokens
    return None


def _rendered(model: Tokenizing, document: Document, template: str) -> tuple[str, str]:
    """How a conversation was handed to the template, and the text up to where the answer begins.

    Raises:
        NybbleError: the template cannot hold it in any way.
    """
    vocabulary = model.vocabulary
    failure: NybbleError | None = None
    for how, messages, tools in candidates(document):
        try:
            text = conversation(
                messages, template, bos=vocabulary.bos_text, eos=vocabulary.eos_text, tools=tools
            )
        except NybbleError as error:
            failure = failure or error
            continue
        if not missing_part(text, messages, tools):
            return f"conversation, {how}", text
    raise NybbleError(
        f"the chat template of the model cannot hold document '{document.id}'",
        seen=failure.seen if failure else "it leaves out a part",
        hint="leave out this category, or --framing raw",
    )


def _started(model: Tokenizing, tokens: Tokens) -> Tokens:
    """Tokens with BOS in front, once, where the model wants it."""
    vocabulary = model.vocabulary
    if not vocabulary.add_bos or (len(tokens) and tokens[0] == vocabulary.bos):
        return tokens
    return np.concatenate([np.array([vocabulary.bos], dtype=np.int32), tokens])
