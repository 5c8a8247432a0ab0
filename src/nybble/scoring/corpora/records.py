"""Checks one JSONL line, the user's or a shipped one, before anything else sees it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn

from nybble.errors import NybbleError
from nybble.scoring.corpora.document import Document

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_DEPTH = 64
_KEPT = ("name", "tool_call_id")
_LINE = 'an object with "text" or "messages", for example {"text": "..."}'


@dataclass(frozen=True)
class Record:
    """The checked content of one line; `id` and `category` are empty when not given."""

    id: str
    category: str
    text: str
    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...]
    source: str
    licence: str

    def to_document(self, *, category: str, name: str) -> Document:
        """Return the document under its final category and id."""
        return Document(
            id=name,
            category=category,
            text=self.text,
            messages=self.messages,
            tools=self.tools,
            source=self.source,
            licence=self.licence,
        )


class _Line:
    """Where a value was read, for the error messages."""

    def __init__(self, where: str, number: int) -> None:
        self.where = where
        self.number = number

    def fail(self, what: str, *, seen: object, allowed: str) -> NoReturn:
        raise NybbleError(
            f"{self.where}, line {self.number}: {what}", seen=_short(seen), allowed=allowed
        )

    def string(self, value: object, what: str, *, limit: int | None = None) -> str:
        """Return `value` when it is text that a tokenizer can take."""
        if not isinstance(value, str):
            self.fail(f"{what} is not a string", seen=value, allowed="a string")
        if "\0" in value:
            self.fail(f"{what} holds a NUL character", seen=value, allowed="text without NUL")
        try:
            value.encode()
        except UnicodeEncodeError:
            self.fail(f"{what} holds half a surrogate pair", seen=value, allowed="valid Unicode")
        if limit is not None and not 0 < len(value) <= limit:
            self.fail(
                f"{what} is empty or too long", seen=value, allowed=f"1 to {limit} characters"
            )
        return value

    def items(self, value: object, what: str) -> list[dict[str, Any]]:
        """Return `value` when it is a list of objects, at least one."""
        if not isinstance(value, list) or not value:
            self.fail(f"{what} is not a filled list", seen=value, allowed="a list of objects")
        for item in value:
            if not isinstance(item, dict):
                self.fail(f"{what} holds something else than objects", seen=item, allowed="objects")
        return value


def parse_record(line: bytes, *, where: str, number: int, source: str, licence: str) -> Record:
    """Return the checked record of one line, or raise an error that names file and line."""
    at = _Line(where, number)
    data = _load(line, at)
    if ("text" in data) == ("messages" in data):
        both = '"text" and "messages"' if "text" in data else ", ".join(map(repr, data)) or "{}"
        at.fail('not exactly one of "text" and "messages" is there', seen=both, allowed=_LINE)
    text = ""
    messages: tuple[dict[str, Any], ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    if "text" in data:
        text = at.string(data["text"], '"text"')
        if not text.strip():
            at.fail('"text" is empty', seen=text, allowed="some text")
    else:
        messages = tuple(_message(item, at) for item in at.items(data["messages"], '"messages"'))
        if not any(message["content"] or "tool_calls" in message for message in messages):
            at.fail("all messages are empty", seen='""', allowed="at least one with content")
    if data.get("tools"):
        if text:
            at.fail('"tools" needs "messages"', seen='"text"', allowed='"tools" with "messages"')
        tools = tuple(_tool(item, at) for item in at.items(data["tools"], '"tools"'))
    return Record(
        id=_optional(data, "id", at, limit=200),
        category=_optional(data, "category", at, limit=64),
        text=text,
        messages=messages,
        tools=tools,
        source=_optional(data, "source", at, limit=1000) or source,
        licence=_optional(data, "licence", at, limit=100) or licence,
    )


def _load(line: bytes, at: _Line) -> dict[str, Any]:
    try:
        data = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        at.fail(
            f"not UTF-8 at byte {error.start} of the line",
            seen=f"0x{line[error.start]:02x}",
            allowed="UTF-8",
        )
    except RecursionError:
        at.fail("JSON nested too deeply", seen=line[:60], allowed=f"at most {MAX_DEPTH} levels")
    except ValueError as error:
        # JSONDecodeError, or a number with thousands of digits.
        at.fail(f"not valid JSON ({error})", seen=line[:60], allowed=_LINE)
    if not isinstance(data, dict):
        at.fail("not a JSON object", seen=data, allowed=_LINE)
    if _deeper_than(data, MAX_DEPTH):
        at.fail("JSON nested too deeply", seen=line[:60], allowed=f"at most {MAX_DEPTH} levels")
    return data


def _message(item: dict[str, Any], at: _Line) -> dict[str, Any]:
    role = item.get("role")
    if role not in ROLES:
        at.fail("unknown role of a message", seen=role, allowed=", ".join(ROLES))
    content = item.get("content")
    if content is None:
        if not item.get("tool_calls"):
            at.fail(
                f"a message of role '{role}' has no content",
                seen="null",
                allowed='a string, or null next to "tool_calls"',
            )
    else:
        content = at.string(content, '"content"')
    message: dict[str, Any] = {"role": role, "content": content}
    for key in _KEPT:
        if item.get(key) is not None:
            message[key] = at.string(item[key], f'"{key}"', limit=200)
    if item.get("tool_calls"):
        if role != "assistant":
            at.fail('"tool_calls" in a message of another role', seen=role, allowed="assistant")
        calls = at.items(item["tool_calls"], '"tool_calls"')
        message["tool_calls"] = [_call(call, at) for call in calls]
    return message


def _call(item: dict[str, Any], at: _Line) -> dict[str, Any]:
    function = item.get("function")
    if not isinstance(function, dict):
        at.fail("a tool call has no function", seen=item, allowed='{"function": {"name": ...}}')
    name = at.string(function.get("name"), "the name of a called function", limit=200)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        at.string(arguments, '"arguments"')
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            at.fail('"arguments" is not JSON', seen=arguments, allowed="an object as JSON text")
    if not isinstance(arguments, dict) or _deeper_than(arguments, MAX_DEPTH):
        at.fail('"arguments" is not an object', seen=arguments, allowed="an object as JSON text")
    text = at.string(json.dumps(arguments, ensure_ascii=False), '"arguments"')
    call: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": text}}
    if item.get("id") is not None:
        call = {"id": at.string(item["id"], "the id of a tool call", limit=200)} | call
    return call


def _tool(item: dict[str, Any], at: _Line) -> dict[str, Any]:
    function = item.get("function")
    if item.get("type") != "function" or not isinstance(function, dict):
        at.fail(
            "a tool is not a function schema",
            seen=item,
            allowed='{"type": "function", "function": {"name": ..., "parameters": {...}}}',
        )
    at.string(function.get("name"), "the name of a tool", limit=200)
    at.string(json.dumps(item, ensure_ascii=False), "a tool")
    return item


def _optional(data: dict[str, Any], key: str, at: _Line, *, limit: int) -> str:
    value = data.get(key)
    return "" if value is None else at.string(value, f'"{key}"', limit=limit)


def _deeper_than(value: object, limit: int) -> bool:
    """Tell whether `value` is nested deeper than `limit`, without recursion of its own."""
    level: list[object] = [value]
    for _ in range(limit + 1):
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        if not inner:
            return False
        level = inner
    return True


def _short(value: object) -> str:
    text = value if isinstance(value, str) and value.strip() else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
