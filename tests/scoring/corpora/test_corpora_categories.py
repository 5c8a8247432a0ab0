from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import resources
from typing import Any

import pytest

from nybble.errors import NybbleError
from nybble.scoring.corpora import (
    CATEGORIES,
    DEFAULT_REQUEST,
    code,
    long,
    prose,
    request_for,
    stdlib,
)
from nybble.scoring.corpora.document import Document

NAMES = sorted(CATEGORIES)


@pytest.mark.parametrize("name", NAMES)
def test_category_is_complete(name: str) -> None:
    category = CATEGORIES[name]
    documents = list(category.load())
    assert len(documents) >= (4 if name == "long" else 12)
    assert category.name == name and category.title and category.source and category.licence
    assert category.request.endswith(".") and "\n" not in category.request
    assert len({document.id for document in documents}) == len(documents)
    for document in documents:
        assert document.category == name
        assert document.id.startswith(f"{name}/")
        assert document.licence == category.licence
        assert document.source
        assert bool(document.text) != bool(document.messages)


@pytest.mark.parametrize("name", NAMES)
def test_order_is_the_same_on_every_call(name: str) -> None:
    assert list(CATEGORIES[name].load()) == list(CATEGORIES[name].load())


def test_request_of_an_own_category() -> None:
    assert request_for("jsonl") == DEFAULT_REQUEST
    assert request_for("code") == CATEGORIES["code"].request


def test_shipped_data_is_small_and_described() -> None:
    folder = resources.files("nybble.scoring.corpora") / "data"
    files = {item.name: item.read_bytes() for item in folder.iterdir()}
    assert set(files) == {"README.md", "chat.jsonl", "tools.jsonl", "scripts.jsonl"}
    assert sum(map(len, files.values())) < 600_000
    for name in ("chat.jsonl", "tools.jsonl", "scripts.jsonl"):
        assert f"`{name}`" in files["README.md"].decode()


def test_sizes() -> None:
    for document in CATEGORIES["scripts"].load():
        assert 8_000 <= len(document.text.encode()) <= 12_000
        latin = len(re.findall("[A-Za-z]", document.text))
        assert latin < 0.02 * len(document.text)
    for document in CATEGORIES["code"].load():
        assert len(document.text) >= 12_000
        compile(document.text, document.id, "exec")
    for document in CATEGORIES["long"].load():
        assert len(document.text.encode()) >= 100_000
    for document in CATEGORIES["prose"].load():
        assert len(document.text) >= prose.MIN_CHARACTERS


def test_chat_turns() -> None:
    documents = list(CATEGORIES["chat"].load())
    assert sum(_characters(document) for document in documents) >= 80_000
    for document in documents:
        turns = [message["role"] for message in document.messages if message["role"] != "system"]
        assert 6 <= len(document.messages) <= 14
        assert turns == ["user", "assistant"] * (len(turns) // 2)
        assert 3_000 <= _characters(document) <= 6_000


def test_chat_is_not_repetitive() -> None:
    openings = [
        message["content"][:40]
        for document in CATEGORIES["chat"].load()
        for message in document.messages
    ]
    assert len(set(openings)) >= 0.98 * len(openings)


def test_tool_calls_fit_their_schemas() -> None:
    seen_error = seen_parallel = False
    for document in CATEGORIES["tools"].load():
        schemas = {t["function"]["name"]: t["function"]["parameters"] for t in document.tools}
        assert 2 <= len(schemas) <= 5
        open_calls: list[str] = []
        for message in document.messages:
            if message["role"] == "tool":
                assert message["tool_call_id"] == open_calls.pop(0)
                seen_error |= "error" in message["content"].lower()
                continue
            assert not open_calls, "a call without a result"
            calls = message.get("tool_calls", [])
            seen_parallel |= len(calls) > 1
            for call in calls:
                assert re.fullmatch("[A-Za-z0-9]{9}", call["id"])
                open_calls.append(call["id"])
                _check(json.loads(call["function"]["arguments"]), schemas[call["function"]["name"]])
        assert document.messages[-1]["role"] == "assistant" and not open_calls
    assert seen_error and seen_parallel


def test_topics_that_repeat_others_are_left_out() -> None:
    topics = {"part": "alpha alpha alpha", "other": "beta", "chapter": "alpha alpha alpha\n\nbeta"}
    assert prose.repeated_topics(topics, longest_first=False) == {"chapter"}
    assert prose.repeated_topics(topics, longest_first=True) == {"part", "other"}


@pytest.mark.parametrize("load", [code.documents, long.documents])
def test_python_without_sources(load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(stdlib, "_roots", lambda: [tmp_path])
    with pytest.raises(NybbleError, match="no source files"):
        _drain(load())


def test_module_in_the_users_folder_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "calendar.py").write_text("mine = True\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    text = stdlib.read_module("calendar")
    assert text is not None and "mine = True" not in text
    assert stdlib.read_module("no_such_module") is None


def _drain(documents: Iterator[Document]) -> None:
    for _ in documents:
        pass


def _characters(document: Document) -> int:
    return sum(len(message["content"]) for message in document.messages)


TYPES: dict[str, Any] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
}


def _check(value: Any, schema: dict[str, Any]) -> None:
    assert isinstance(value, TYPES[schema["type"]])
    assert value in schema.get("enum", [value])
    if schema["type"] == "object" and "properties" in schema:
        assert set(schema.get("required", [])) <= set(value) <= set(schema["properties"])
        for key, item in value.items():
            _check(item, schema["properties"][key])
    if schema["type"] == "array" and "items" in schema:
        for item in value:
            _check(item, schema["items"])
