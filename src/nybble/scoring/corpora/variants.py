"""Ways to hand a conversation to a chat template that does not accept all of it as it is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from nybble.scoring.corpora.document import Document

Message = dict[str, Any]


def candidates(document: Document) -> Iterator[tuple[str, list[Message], list[dict[str, Any]]]]:
    """Yield ways to hand the conversation to the template, the most faithful first."""
    given = [_filled(message) for message in document.messages]
    roles = {message["role"] for message in given}
    tools = [dict(tool) for tool in document.tools]
    # Templates disagree on whether call arguments are objects or JSON text.
    yield "template", [_object_arguments(message) for message in given], tools
    yield "template", given, tools
    changes: list[str] = []
    if "developer" in roles:
        given = [_as_system(message) for message in given]
        changes.append("developer messages given as system")
        yield _how(changes), [_object_arguments(message) for message in given], tools
    if "system" in roles or "developer" in roles:
        merged = _system_into_user(given)
        change = [*changes, "system message written into the text"]
        yield _how(change), [_object_arguments(message) for message in merged], tools
        yield _how(change), merged, tools
    if tools or "tool" in roles or any("tool_calls" in message for message in given):
        changes.append("tools written into the text")
        given = _tools_into_text(given, tools)
        yield _how(changes), given, []
    given = _system_into_user(given)
    if roles & {"system", "developer"} or tools:
        changes.append("system message written into the text")
    yield _how(changes), given, []
    changes.append("messages of one role joined")
    yield _how(changes), _joined(given), []


def _how(changes: list[str]) -> str:
    return ", ".join(["template", *changes])


def _filled(message: Message) -> Message:
    # Templates add strings to the content, so null would fail or print "None".
    return message | {"content": message.get("content") or ""}


def _as_system(message: Message) -> Message:
    return message | {"role": "system"} if message["role"] == "developer" else message


def _object_arguments(message: Message) -> Message:
    if "tool_calls" not in message:
        return message
    calls = [
        call | {"function": call["function"] | {"arguments": _arguments(call)}}
        for call in message["tool_calls"]
    ]
    return message | {"tool_calls": calls}


def _arguments(call: dict[str, Any]) -> Any:
    arguments = call["function"]["arguments"]
    return json.loads(arguments) if isinstance(arguments, str) else arguments


def _system_into_user(messages: list[Message]) -> list[Message]:
    """Write each system message in front of the next user turn."""
    result: list[Message] = []
    waiting: list[str] = []
    for message in messages:
        if message["role"] in ("system", "developer"):
            waiting.append(message["content"])
        elif message["role"] == "user" and waiting:
            result.append(message | {"content": "\n\n".join([*waiting, message["content"]])})
            waiting = []
        else:
            result.append(message)
    if waiting:
        result.append({"role": "user", "content": "\n\n".join(waiting)})
    return result


def _tools_into_text(messages: list[Message], tools: list[dict[str, Any]]) -> list[Message]:
    """Write schemas into the system message, calls into answers, results into user turns."""
    result: list[Message] = []
    if tools:
        note = "You can call these functions by answering with JSON:\n" + dump(tools, indent=2)
        if messages[0]["role"] == "system":
            note = f"{messages[0]['content']}\n\n{note}"
            messages = messages[1:]
        result.append({"role": "system", "content": note})
    for message in messages:
        if message["role"] == "tool":
            # Joined, because parallel results would break the alternation of turns.
            content = f"Tool result: {message['content']}"
            if result and result[-1].get("results"):
                last = result[-1]
                result[-1] = last | {"content": f"{last['content']}\n\n{content}"}
            else:
                result.append({"role": "user", "content": content, "results": True})
        else:
            result.append({"role": message["role"], "content": written(message)})
    return [{"role": item["role"], "content": item["content"]} for item in result]


def _joined(messages: list[Message]) -> list[Message]:
    result: list[Message] = []
    for message in messages:
        if result and result[-1]["role"] == message["role"]:
            both = f"{result[-1]['content']}\n\n{message['content']}"
            result[-1] = result[-1] | {"content": both}
        else:
            result.append(message)
    return result


def written(message: Message) -> str:
    """Return the content of a message with its tool calls as JSON lines."""
    parts = [message.get("content") or ""]
    for call in message.get("tool_calls", ()):
        parts.append(dump({"name": call["function"]["name"], "arguments": _arguments(call)}))
    return "\n".join(part for part in parts if part)


def missing_part(text: str, messages: list[Message], tools: list[dict[str, Any]]) -> str:
    """Name the first part of the conversation that the rendered text does not hold."""
    for tool in tools:
        if tool["function"]["name"] not in text:
            return f"the tool '{tool['function']['name']}'"
    for message in messages:
        # Templates drop earlier reasoning on purpose.
        content = str(message["content"]).rpartition("</think>")[2]
        if not _holds(text, content):
            return f"the content of a message of role '{message['role']}'"
        for call in message.get("tool_calls", ()):
            leaves = _leaves(_arguments(call))
            if call["function"]["name"] not in text or not all(_holds(text, x) for x in leaves):
                return f"the call of '{call['function']['name']}'"
    return ""


def _leaves(value: Any) -> Iterator[str]:
    """Yield the keys and the texts and numbers in `value`, which any format must print."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, (str, int, float)) and not isinstance(value, bool):
        yield str(value)


def _holds(text: str, content: str) -> bool:
    """Tell whether `content` is in `text`, as it is, escaped as JSON or laid out anew."""
    if content.strip() in text:
        return True
    return all(word in text for word in re.findall(r"[^\W_]{4,}", content))


def dump(value: object, *, indent: int | None = None) -> str:
    """Return `value` as JSON with its Unicode kept."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
