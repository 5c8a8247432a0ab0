"""`nybble rag eval` from its command line: what it prints, keeps and refuses."""

from __future__ import annotations

import csv
import io
import json
import sys
import types
from pathlib import Path

import httpx
import pytest
from rag_eval_doubles import Asker, WordIndex, corpus

from nybble.cli.main import main
from nybble.cli.rag_eval_lanes import local_lanes
from nybble.rag.questions import generate
from nybble.results.rag import from_json

URLS = ("--url", "f16/f16=http://127.0.0.1:1", "--url", "q4_0/q4_0=http://127.0.0.1:2")


@pytest.fixture
def index() -> WordIndex:
    return WordIndex(corpus())


@pytest.fixture
def asker(index: WordIndex) -> Asker:
    answers = {q.text: q.answer for q in generate(index, 12, seed=0)}
    return Asker(lambda setting, question: f"It is {answers.get(question, 'so')} [1].")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: WordIndex, asker: Asker) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nybble.rag.index.open_index", lambda path, **named: index)
    fake = types.ModuleType("nybble.rag.ask")
    fake.ask = asker  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nybble.rag.ask", fake)


def test_retrieval_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["rag", "eval", "--generate", "12"]) == 0
    out, err = capsys.readouterr()
    for words in ("hybrid", "recall@10", "12 questions about 8 documents", "--model model.gguf"):
        assert words in out
    (folder,) = (tmp_path / "nybble-results").iterdir()
    assert folder.name.startswith("rag-towns-")
    assert {p.name for p in folder.iterdir()} == {"summary.json", "report.html", "report.md"}
    run = from_json((folder / "summary.json").read_text(encoding="utf-8"))
    assert run.protocol["folder"] == "towns" and "somebody" not in json.dumps(run.protocol)


@pytest.mark.parametrize("form", ["json", "csv", "markdown"])
def test_forms(capsys: pytest.CaptureFixture[str], form: str) -> None:
    assert main(["rag", "eval", "--generate", "12", *URLS, f"--{form}", "-q"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    if form == "json":
        run = from_json(out)
        assert [r.setting for r in run.rows] == ["f16/f16", "q4_0/q4_0"]
        assert run.protocol["questions"] == "12 generated, seed 0"
    elif form == "csv":
        rows = list(csv.DictReader(io.StringIO(out)))
        assert {r["part"] for r in rows} == {"retrieval", "answers"}
    else:
        assert out.startswith("**towns**") and "| q4_0/q4_0 | 100%" in out


def test_the_same_command_goes_on(capsys: pytest.CaptureFixture[str], asker: Asker) -> None:
    assert main(["rag", "eval", "--generate", "12", *URLS, "--out", "run"]) == 0
    first = len(asker.asked)
    assert first == 18  # nine of twelve have an answer
    assert main(["rag", "eval", "--generate", "12", *URLS, "--out", "run"]) == 0
    assert len(asker.asked) == first
    assert main(["rag", "eval", "--generate", "12", *URLS, "--out", "run", "--fresh"]) == 0
    assert len(asker.asked) == 2 * first
    assert "No change of right answers" in capsys.readouterr().out


def test_a_failed_row_is_exit_1(capsys: pytest.CaptureFixture[str], asker: Asker) -> None:
    asker.dies["q4_0/q4_0"] = 2
    assert main(["rag", "eval", "--generate", "12", *URLS]) == 1
    out, err = capsys.readouterr()
    assert "failed: q4_0/q4_0 after 2 answers: the server is gone" in err
    assert "note: q4_0/q4_0 failed after 2 answers" in " ".join(out.split())


def test_interrupted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, asker: Asker
) -> None:
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["nybble.rag.ask"], "ask", stop)
    assert main(["rag", "eval", "--generate", "12", *URLS]) == 130
    assert "the same command continues" in capsys.readouterr().err


def test_own_questions(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines = [
        {"question": "What do keepers call the lighthouse?", "answer": "green lantern",
         "source": "towns/ardel.md#Harbour"},
        {"question": "How wide is the objective?", "answer": 62, "source": "towns/dunmar.md"},
    ]  # fmt: skip
    text = "\n".join(json.dumps(x) for x in lines)
    (tmp_path / "own.jsonl").write_text(text, encoding="utf-8")
    assert main(["rag", "eval", "--questions", "own.jsonl", "--json", "-q"]) == 0
    run = from_json(capsys.readouterr().out)
    assert [(q.kind, q.answers) for q in run.questions] == [
        ("file", ["green lantern"]), ("file", ["62"]),
    ]  # fmt: skip
    assert str(run.protocol["questions"]).startswith("2 of own.jsonl (sha256 ")
    both = ["rag", "eval", "--questions", "own.jsonl", "--generate", "4", "--json", "-q"]
    assert main(both) == 0
    run = from_json(capsys.readouterr().out)
    assert len(run.questions) == 6 and run.protocol["kinds"]["file"] == 2
    (tmp_path / "own.jsonl").write_text(text + "\n{", encoding="utf-8")
    assert main(both) == 1
    assert "own.jsonl, line 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--kv", "q4_0/q4_0"], "without --model"),
        (["--hardened", "h.gguf"], "without --model"),
        ([*URLS, "--kv", "f16/f16"], "--kv with --url"),
        ([*URLS, "--model", "m.gguf"], "--model with --url"),
        (["--url", "http://127.0.0.1:1"], "takes a KV setting and an address"),
        (["--url", "f16/f16=ftp://x"], "seen:    ftp://x"),
        (["--url", "nope/f16=http://127.0.0.1:1"], "nope"),
        (["--url", "q4_0/q4_0=http://127.0.0.1:1"], "no 16-bit cache to compare with"),
        ([*URLS, *URLS], "asked for twice"),
        ([*URLS, "--api-key-env", "NOT_THERE"], "export NOT_THERE=..."),
        (["--model", "absent.gguf"], "there is no such model"),
        (["--generate", "0"], "number of questions"),
        (["--generate", "-1"], "number of questions"),
        (["--questions", "absent.jsonl"], "cannot read the questions"),
        (["--k", "0"], "--k is out of range"),
        (["--mode", "telepathic"], "hybrid, dense, lexical"),
        (["--answer-tokens", "0"], "--answer-tokens is out of range"),
        (["--seed", "-1"], "--seed is out of range"),
    ],
)
def test_bad_input(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert main(["rag", "eval", *words]) == 1
    out, err = capsys.readouterr()
    assert said in err and out == "" and "Traceback" not in err


def test_a_folder_that_is_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert main(["rag", "eval", "--out", "file"]) == 1
    assert "cannot write to the run folder" in capsys.readouterr().err


def test_lanes_of_files(tiny_model: Path, tiny_instruct: Path) -> None:
    lanes = local_lanes(tiny_model, "f16/f16,q4_0/q4_0", tiny_instruct, 512)
    assert [x.name for x in lanes] == ["f16/f16", "q4_0/q4_0", "q4_0/q4_0 hardened"]
    assert [x.sixteen for x in lanes] == [True, False, False]
    assert lanes[0].model == lanes[1].model != lanes[2].model and len(lanes[0].model) == 64


def test_a_lane_serves_its_setting_and_ends(tiny_instruct: Path) -> None:
    (_, lane) = local_lanes(tiny_instruct, "f16/f16,q4_0/q4_0", None, 512)
    with lane.serve() as server:
        assert server.setting == "q4_0/q4_0"
        root = server.url.removesuffix("/v1")
        key = {"Authorization": f"Bearer {server.key}"}
        told = httpx.get(f"{root}/props", headers=key).json()
        assert told["default_generation_settings"]["n_ctx"] == 512
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{root}/props")
