from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nybble.errors import NybbleError
from nybble.scoring.corpora import files
from nybble.scoring.corpora.files import from_jsonl, from_text_files
from nybble.scoring.corpora.records import parse_record


def write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_text_files(tmp_path: Path) -> None:
    other = tmp_path / "sub"
    other.mkdir()
    first = write(tmp_path / "a.txt", "\ufeffGrüße\n")
    second = write(other / "a.txt", "two")
    documents = from_text_files([first, second, first])
    assert [document.id for document in documents] == ["a.txt", "a.txt-2", "a.txt-3"]
    assert documents[0].text == "Grüße\n"
    assert {document.category for document in documents} == {"text"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b" \n\t", "empty"),
        (b"abc\0def", "NUL byte at offset 3"),
        (b"abc\xff", "byte offset 3"),
        (b"\xef\xbb\xbfabc\xff", "byte offset 6"),
    ],
)
def test_bad_text_files(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(NybbleError, match=message):
        from_text_files([write(tmp_path / "x.txt", data)])


def test_missing_folder_and_pipe(tmp_path: Path) -> None:
    with pytest.raises(NybbleError, match="cannot be read"):
        from_text_files([tmp_path / "missing.txt"])
    with pytest.raises(NybbleError, match="cannot be read"):
        from_text_files([Path("nul\0name")])
    with pytest.raises(NybbleError, match="is a folder"):
        from_text_files([tmp_path])
    with pytest.raises(NybbleError, match="is a folder"):
        from_jsonl(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(NybbleError, match="not a regular file"):
            from_jsonl(tmp_path / "pipe")


def test_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_TEXT_BYTES", 10)
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 10)
    with pytest.raises(NybbleError, match="too large"):
        from_text_files([write(tmp_path / "x.txt", "x" * 11)])
    with pytest.raises(NybbleError, match="line 2: the line is too long"):
        from_jsonl(write(tmp_path / "x.jsonl", "\n" + "x" * 11))


def test_jsonl(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    lines = [
        {"text": "plain \u2028 text", "id": "t", "category": "mine", "unknown": 1},
        {
            "messages": [
                {"role": "developer", "content": "be brief"},
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": "2", "tool_call_id": "c1", "name": "f"},
            ],
            "tools": [tool],
        },
    ]
    text = "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    first, second = from_jsonl(write(tmp_path / "x.jsonl", "\ufeff" + text))
    assert (first.id, first.category, first.text) == ("t", "mine", "plain \u2028 text")
    assert (second.id, second.category) == ("line-3", "jsonl")
    assert second.tools == (tool,)
    assert second.messages[2]["tool_calls"] == [call]
    assert second.messages[3]["tool_call_id"] == "c1"
    assert second.licence != "MIT"


def message(**fields: Any) -> str:
    return json.dumps({"messages": [{"role": "user", "content": "x"} | fields]})


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ("{}", "exactly one"),
        ('{"text": "a", "messages": []}', "exactly one"),
        ('{"text": 1}', "not a string"),
        ('{"text": "  "}', '"text" is empty'),
        ('{"text": "a\\u0000b"}', "NUL"),
        ('{"text": "\\ud800"}', "surrogate"),
        ('{"text": "a", "id": 1}', '"id" is not a string'),
        ('{"text": "a", "category": ""}', "empty or too long"),
        ('{"text": "a", "tools": [{}]}', '"tools" needs "messages"'),
        ('{"messages": []}', "filled list"),
        ('{"messages": "x"}', "filled list"),
        ('{"messages": ["x"]}', "something else than objects"),
        (message(role="robot"), "unknown role"),
        (message(role=["user"]), "unknown role"),
        (message(content=None), "no content"),
        (message(content=[{"type": "text"}]), '"content" is not a string'),
        (message(content=""), "all messages are empty"),
        (message(tool_calls=[{}]), "another role"),
        (message(role="assistant", tool_calls=[{}]), "has no function"),
        (message(role="assistant", tool_calls=[{"function": {"name": 1}}]), "not a string"),
        (
            message(role="assistant", tool_calls=[{"function": {"name": "f", "arguments": "{"}}]),
            "not JSON",
        ),
        (
            message(role="assistant", tool_calls=[{"function": {"name": "f", "arguments": "[]"}}]),
            "not an object",
        ),
        ('{"text": ' + "[" * 100_000, "nested too deeply|not valid JSON"),
        ('{"text": "a", "x": ' + "[" * 500 + "]" * 500 + "}", "nested too deeply"),
        ('{"text": "a", "x": ' + "9" * 10_000 + "}", "not valid JSON"),
    ],
)
def test_malformed_lines_name_the_place(tmp_path: Path, line: str, part: str) -> None:
    path = write(tmp_path / "x.jsonl", '{"text": "ok"}\n' + line + "\n")
    with pytest.raises(NybbleError, match=part) as caught:
        from_jsonl(path)
    assert "x.jsonl, line 2" in str(caught.value)
    assert caught.value.seen and caught.value.allowed
    assert len(str(caught.value)) < 1000


def test_not_utf8_and_repeated_ids(tmp_path: Path) -> None:
    with pytest.raises(NybbleError, match="not UTF-8 at byte 10"):
        from_jsonl(write(tmp_path / "x.jsonl", b'{"text": "\xff"}'))
    with pytest.raises(NybbleError, match="already used in line 1"):
        from_jsonl(write(tmp_path / "y.jsonl", '{"text": "a", "id": "1"}\n' * 2))
    with pytest.raises(NybbleError, match="empty"):
        from_jsonl(write(tmp_path / "z.jsonl", "\n\n"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["messages", "text", "role", "content", "tool_calls", "tools", "id"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(JSON)
def test_any_json_is_a_record_or_a_clear_error(value: Any) -> None:
    line = json.dumps(value).encode()
    try:
        record = parse_record(line, where="f", number=1, source="f", licence="MIT")
    except NybbleError as error:
        assert "f, line 1" in str(error)
    else:
        assert record.text or record.messages
