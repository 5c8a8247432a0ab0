"""What OpenAI's API lets a client ask, and what of it this server does.

A field that would change the answer and is not done here is an error unless it has the value that
changes nothing; an unknown field is an error too. Fields that are for bookkeeping are let pass.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nybble.runtime.sampling import MOST_TEMPERATURE, Sampling
from nybble.runtime.server.errors import ApiError

_STOPS = 4  # as OpenAI's API
_COMPLETION_TOKENS = 16  # what OpenAI's API takes where a completion names no limit

_Word = Annotated[str, Field(min_length=1, max_length=1000)]
_Zero = Literal[0] | Annotated[float, Field(ge=0, le=0)] | None


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class _StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class _Request(_Strict):
    """What both kinds have in common."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=MOST_TEMPERATURE)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: _Word | Annotated[list[_Word], Field(max_length=_STOPS)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    # At the value that changes nothing.
    n: Literal[1] | None = None
    frequency_penalty: _Zero = None
    presence_penalty: _Zero = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    # Bookkeeping of OpenAI's own service.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    def sampling(self, usual: Sampling) -> Sampling:
        """How to draw: the server's own way but for what is asked for."""
        given = {n: getattr(self, n) for n in ("temperature", "top_p", "top_k")}
        found = replace(usual, **{n: v for n, v in given.items() if v is not None})
        seed = usual.seed if self.seed is None else self.seed & ((1 << 63) - 1)
        return replace(found, seed=seed)

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def usage_wanted(self) -> bool:
        """Whether a stream ends with the count of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def new_tokens(self) -> int | None:
        """Most tokens of the answer; None for what the context leaves."""
        return self.max_tokens


class _Part(_Strict):
    type: Literal["text"]
    text: str


class _Message(BaseModel):
    """A turn; fields of an answer that is sent back are let pass while they are empty."""

    model_config = ConfigDict(extra="allow", strict=True, hide_input_in_errors=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]
    name: str | None = None


class ChatRequest(_Request):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[_Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None

    @property
    def new_tokens(self) -> int | None:
        """Most tokens of the answer; None for what the context leaves."""
        limits = (self.max_completion_tokens, self.max_tokens)
        return min((n for n in limits if n is not None), default=None)

    def conversation(self) -> list[dict[str, Any]]:
        """The messages as templates take them: developer is another word for system.

        Raises:
            ApiError: a message has more than text.
        """
        found = []
        for i, message in enumerate(self.messages):
            odd = [name for name, value in (message.model_extra or {}).items() if value]
            if odd:
                raise ApiError(400, f"this server reads text only; message {i} has "
                               f"{odd[0][:40]!r}", param=f"messages.{i}")  # fmt: skip
            content = message.content
            text = content if isinstance(content, str) else "".join(p.text for p in content)
            role = "system" if message.role == "developer" else message.role
            found.append({"role": role, "content": text})
        return found


_Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class CompletionRequest(_Request):
    """The body of /v1/completions: one prompt, as text or as token ids."""

    prompt: (
        str
        | _Ids
        | Annotated[list[str], Field(min_length=1, max_length=1)]
        | Annotated[list[_Ids], Field(min_length=1, max_length=1)]
    )
    logprobs: Literal[0] | None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None

    @property
    def new_tokens(self) -> int | None:
        """Most tokens of the answer."""
        return self.max_tokens or _COMPLETION_TOKENS

    def given(self) -> str | list[int]:
        """The prompt: text, or ids."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return prompt
        first = prompt[0]
        return [i for i in prompt if isinstance(i, int)] if isinstance(first, int) else first


R = TypeVar("R", bound=_Request)


def read(kind: type[R], body: bytes) -> R:
    """Read a request.

    Raises:
        ApiError: no JSON, or a field is missing, wrong or not done here; names the first.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        # Of a choice of types, the name of each is part of the place; the field comes first.
        place = ".".join(str(part)[:40] for part in first["loc"][:2] if part != "")
        message = {
            "extra_forbidden": "this server does not know this field",
            "json_invalid": f"the body is no JSON: {first['msg']}",
        }.get(first["type"], first["msg"])
        where = f"{place}: " if place else ""
        raise ApiError(400, where + message, param=place or None) from error
