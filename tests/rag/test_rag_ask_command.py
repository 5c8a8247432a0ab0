"""`nybble rag ask` from its command line: what it prints, keeps and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rag_ask_doubles import FakeChat, SmallIndex, chatting, small_index

from nybble.cli.main import main
from nybble.cli.rag_ask import printable

QUESTION = "How many tonnes does crane 3 lift?"


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallIndex:
    made = small_index(tmp_path)
    monkeypatch.setattr("nybble.rag.index.open_index", lambda path, **options: made)
    return made


def test_the_answer_and_its_sources_are_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with chatting(FakeChat()) as url:
        assert main(["rag", "ask", QUESTION, "--url", url, "--k", "2"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("It lifts 103 tonnes [1].\n\n*[1] docs/cranes.md")
    assert " [2] " in out or "packed 2 of 2" in err
    assert "first token after" in err and "retrieved in" in err


def test_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    with chatting(FakeChat()) as url:
        assert main(["rag", "ask", QUESTION, "--url", url, "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["text"] == "It lifts 103 tonnes [1]." and found["sources"][0]["number"] == 1
    assert found["citations"][0]["exists"] and err == ""


def test_a_citation_that_does_not_exist_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    with chatting(FakeChat("So it is [77].")) as url:
        assert main(["rag", "ask", QUESTION, "--url", url]) == 1
    assert "[77]" in capsys.readouterr().err


def test_what_a_terminal_would_obey_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with chatting(FakeChat("a\x1b]0;title\x07 b\u202ec [1]")) as url:
        main(["rag", "ask", QUESTION, "--url", url])
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\u202e" not in out and "title" in out
    assert printable("a\nb\tc") == "a\nb\tc"


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_server_that_dies_leaves_what_came(
    capsys: pytest.CaptureFixture[str], form: list[str]
) -> None:
    with chatting(FakeChat(dies_after=3)) as url:
        assert main(["rag", "ask", QUESTION, "--url", url, *form]) == 1
    out, err = capsys.readouterr()
    assert "without an end" in err and "Traceback" not in err
    assert (json.loads(out)["partial"] if form else out.strip()) == "It lifts 103"


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ([], "one server answers"),
        (["--url", "http://127.0.0.1:9", "--model", "x.gguf"], "one server answers"),
        (["--url", "ftp://x"], "not the address of a server"),
        (["--url", "http://127.0.0.1:9"], "does not answer"),
        (["--model", "no-such.gguf"], "no-such.gguf"),
        (["--url", "http://127.0.0.1:9", "--same", "--over", "a"], "--over with --same"),
        (["--url", "http://127.0.0.1:9", "--mode", "fuzzy"], "unknown --mode"),
        (["--url", "http://127.0.0.1:9", "--frame", "square"], "unknown frame"),
        (["--url", "http://127.0.0.1:9", "--k", "0"], "--k is out of range"),
    ],
)
def test_mistakes_are_said(
    capsys: pytest.CaptureFixture[str], given: list[str], match: str
) -> None:  # fmt: skip
    assert main(["rag", "ask", QUESTION, *given]) == 1
    err = capsys.readouterr().err
    assert match in err and "Traceback" not in err


def test_over_documents_and_the_same_again(
    capsys: pytest.CaptureFixture[str], index: SmallIndex
) -> None:
    with chatting(fake := FakeChat(context=4096)) as url:
        assert main(["rag", "ask", QUESTION, "--url", url, "--over", "tides.md, bad.md"]) == 0
        assert main(["rag", "ask", "And now?", "--url", url, "--same"]) == 0
    contexts = [r["messages"][0]["content"].split("Question:")[0] for r in fake.requests]
    assert contexts[0] == contexts[1] and "docs/tides.md" in contexts[0]
    assert (index.path / "last-question.json").is_file()


def test_a_model_is_served_here_for_the_question(
    capsys: pytest.CaptureFixture[str], tiny_instruct: Path, index: SmallIndex
) -> None:
    given = ["--model", str(tiny_instruct), "--kv", "q4_0/q4_0", "--context", "2048",
             "--answer-tokens", "6", "--over", "docs/tides.md", "--json"]  # fmt: skip
    told = []
    for _ in range(2):
        assert main(["rag", "ask", "When?", *given]) in (0, 1)
        told.append(json.loads(capsys.readouterr().out))
    assert [t["prefix"]["state"] for t in told] == ["made", "read"]
    assert told[0]["text"] == told[1]["text"]
    assert told[1]["prefix"]["reused"] == told[1]["prefix"]["tokens"] > 64
    assert list((index.path / "prefixes").glob("*.slot"))
