"""Turns a document into the text that is scored: plain, or in the model's chat template."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from jinja2 import Template, TemplateError

from nybble.errors import NybbleError
from nybble.scoring.corpora.document import Document
from nybble.scoring.corpora.sandbox import MAX_TEMPLATE_CHARS, MeteredEnvironment, meter
from nybble.scoring.corpora.variants import Message, candidates, dump, missing_part, written

_TITLES = {
    "system": "System",
    "developer": "System",
    "user": "User",
    "assistant": "Assistant",
    "tool": "Tool",
}
_MARKER = "nybble5c0a7e9d1text"
# A template may print a text many times over (trimmed, joined); real ones stay far below.
_ALLOWANCE = 40


@dataclass(frozen=True)
class Rendered:
    """A rendered document.

    Attributes:
        text: what is tokenized, special tokens of the template included.
        how: "template", or what had to be changed to make the template accept the document.
    """

    text: str
    how: str


def plain(document: Document) -> str:
    """Return the document as plain text, for base models without a chat template."""
    if not document.messages:
        return document.text
    parts = [f"Tools:\n{dump(list(document.tools), indent=2)}"] if document.tools else []
    for message in document.messages:
        parts.append(f"{_TITLES[message['role']]}: {written(message)}")
    return "\n\n".join(parts) + "\n"


def framed(document: Document, template: str, *, bos: str, eos: str, request: str) -> Rendered:
    """Return the document in the model's own chat template.

    Plain text becomes the assistant turn after `request`. When the template refuses system or
    tool messages, or leaves their content out, these are written into the turns it does
    accept, and `Rendered.how` says so.

    Args:
        document: the document to render.
        template: Jinja source of the template, as found in the model file; not trusted.
        bos: text of the token the template prints as `bos_token`.
        eos: text of the token the template prints as `eos_token`.
        request: the user turn in front of plain text.

    Raises:
        NybbleError: the template is broken, hostile or cannot hold the document.
    """
    compiled = _compile(template)
    variables = {"bos_token": bos, "eos_token": eos, "add_generation_prompt": False}
    if not document.messages:
        return _frame_text(document, compiled, variables, request)
    first_error = ""
    for how, messages, tools in candidates(document):
        try:
            text = _run(compiled, messages, tools, variables)
        except _TemplateFailure as error:
            first_error = first_error or error.message
            continue
        missing = missing_part(text, messages, tools)
        if not missing:
            return Rendered(text, how)
        first_error = first_error or f"the template leaves out {missing}"
    raise NybbleError(
        f"The chat template of the model cannot hold document '{document.id}'",
        seen=first_error,
        hint="leave out this category, or score as plain text",
    )


def conversation(
    messages: list[Message],
    template: str,
    *,
    bos: str,
    eos: str,
    tools: list[dict[str, Any]] | None = None,
) -> str:
    """Return a conversation in the model's own chat template, up to where the answer begins.

    Args:
        messages: as OpenAI's API has them, with text as content.
        template: Jinja source of the template, as found in the model file; not trusted.
        bos: text of the token the template prints as `bos_token`.
        eos: text of the token the template prints as `eos_token`.
        tools: functions the model may call, as OpenAI's API has them.

    Raises:
        NybbleError: the template is broken or hostile, or refuses the conversation.
    """
    variables = {"bos_token": bos, "eos_token": eos, "add_generation_prompt": True}
    try:
        return _run(_compile(template), messages, tools or [], variables)
    except _TemplateFailure as error:
        raise NybbleError(
            "the chat template of the model refuses this conversation", seen=error.message
        ) from error


class _TemplateFailure(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


@functools.lru_cache(maxsize=4)
def _compile(source: str) -> Template:
    if not source.strip() or len(source) > MAX_TEMPLATE_CHARS:
        raise NybbleError(
            "The chat template of the model is empty or too long",
            seen=f"{len(source)} characters",
            allowed=f"1 to {MAX_TEMPLATE_CHARS} characters",
        )
    environment = MeteredEnvironment()
    environment.begin(0)
    try:
        return environment.from_string(meter(environment.parse(source)))
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        where = f" at line {line}" if line else ""
        raise NybbleError(
            f"The chat template of the model is not valid Jinja{where}", seen=_message_of(error)
        ) from error
    except Exception as error:
        # Hostile sources make the parser or the compiler fail in ways of their own.
        raise NybbleError(
            "The chat template of the model cannot be compiled", seen=_message_of(error)
        ) from error


def _run(
    compiled: Template,
    messages: list[Message],
    tools: list[dict[str, Any]],
    variables: dict[str, Any],
) -> str:
    environment = compiled.environment
    assert isinstance(environment, MeteredEnvironment)
    failure: Exception | None = None
    # Most templates expect none for "no tools"; a few loop over the list in any case.
    choices: list[list[dict[str, Any]] | None] = [tools] if tools else [None, []]
    for given in choices:
        environment.begin(_ALLOWANCE * _characters(messages, tools))
        try:
            text = compiled.render(messages=messages, tools=given, **variables)
            text.encode()
        except Exception as error:
            # A template is a program from a stranger: whatever it raises is its own failure.
            failure = failure or error
        else:
            return text
    assert failure is not None
    raise _TemplateFailure(_message_of(failure)) from failure


def _frame_text(
    document: Document, compiled: Template, variables: dict[str, Any], request: str
) -> Rendered:
    def turns(text: str) -> list[Message]:
        return [{"role": "user", "content": request}, {"role": "assistant", "content": text}]

    try:
        text = _run(compiled, turns(document.text), [], variables)
        if document.text.strip() in text:
            return Rendered(text, "template")
        # Some templates cut reasoning out of a turn and would cut up a text that mentions it.
        frame = _run(compiled, turns(_MARKER), [], variables)
    except _TemplateFailure as error:
        raise NybbleError(
            "The chat template of the model refuses a user turn and an answer",
            seen=error.message,
            hint="score as plain text",
        ) from error
    if frame.count(_MARKER) != 1:
        raise NybbleError(
            "The chat template of the model leaves out the assistant turn",
            seen=frame[:200],
            hint="score as plain text",
        )
    return Rendered(frame.replace(_MARKER, document.text), "template, text put in after rendering")


def _characters(messages: list[Message], tools: list[dict[str, Any]]) -> int:
    return len(dump(messages)) + len(dump(tools))


def _message_of(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "endless recursion"
    return f"{str(error)[:500] or type(error).__name__}"
