"""`nybble rag index` and `nybble rag search` as a user meets them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from rag_index_doubles import WordModel, pdf

from nybble.cli.main import run
from nybble.rag.embed import registry


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.CARRIED, "minilm", lambda: WordModel())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "docs"
    place.mkdir()
    for name in ("apple", "birch"):
        (place / f"{name}.md").write_text(f"# The {name}\n\nAn {name} grows slowly.\n")
    (place / "locked.pdf").write_bytes(pdf(["secret"], encrypted=True))
    (place / "odd [red]\x1b[31m.md").write_text("# Odd \x1b[31m [bold]\n\nA hostile elm.\n")
    return place


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["nybble", "rag", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        run()
    return int(ended.value.code or 0)


def test_index_tells_what_it_did(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "index", folder) == 0
    out, err = capsys.readouterr()
    assert "locked.pdf" in out and "encrypted" in out and "3 documents, 3 passages" in out
    assert "a second without embedding" in out and "comparing the folder" in err
    assert command(monkeypatch, "index", folder, "--json", "--quiet") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["kept"], found["added"], found["new_passages"]) == (3, 0, 0) and not err
    assert found["skipped"] == [{"path": "locked.pdf", "reason": "encrypted"}]
    assert command(monkeypatch, "index", folder, "--csv", "-q") == 0
    assert list(csv.reader(io.StringIO(capsys.readouterr().out))) == [
        ["path", "reason"], ["locked.pdf", "encrypted"],
    ]  # fmt: skip
    assert command(monkeypatch, "index", folder, "--markdown", "-q") == 0
    assert "| kept" in capsys.readouterr().out
    assert command(monkeypatch, "index", folder, "--exclude", "b*", "-q") == 0
    assert "without b*" in capsys.readouterr().out
    assert command(monkeypatch, "index", folder, "-q") == 0
    assert "without b*" in capsys.readouterr().out
    assert command(monkeypatch, "index", folder, "--exclude", "", "-q") == 0
    assert "without" not in capsys.readouterr().out.replace("without embedding", "")


def test_index_of_nothing_is_exit_1(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(monkeypatch, "index", tmp_path / "none") == 1
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "void").mkdir()
    assert command(monkeypatch, "index", tmp_path / "void") == 1
    assert "there are no documents" in capsys.readouterr().err
    (tmp_path / "void/a.pdf").write_bytes(b"%PDF rubbish")
    assert command(monkeypatch, "index", tmp_path / "void", "-q") == 1
    out, err = capsys.readouterr()
    assert "nothing in the folder could be read" in err and "the parser refused it" in out


def test_search(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = folder / ".nybble-rag"
    assert command(monkeypatch, "index", folder, "-q") == 0
    capsys.readouterr()
    assert command(monkeypatch, "search", "apple", "--index", place) == 0
    out, err = capsys.readouterr()
    assert "apple.md" in out and "The apple" in out and "loading the embedding" in err
    assert command(monkeypatch, "search", "elm", "--index", place, "--mode", "lexical", "-q") == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "[bold]" in out
    assert command(monkeypatch, "search", "apple", "--index", place, "--json", "-q") == 0
    hits = json.loads(capsys.readouterr().out)
    assert hits[0]["passage"]["document"] == "apple.md" and len(hits) == 3
    assert command(monkeypatch, "search", "apple", "--index", place, "--csv", "--k", 1, "-q") == 0
    assert len(list(csv.reader(io.StringIO(capsys.readouterr().out)))) == 2
    assert command(monkeypatch, "search", "zz", "--index", place, "--mode", "lexical", "-q") == 1
    assert "no passage fits" in capsys.readouterr().out


def test_search_without_an_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "search", "x", "--index", tmp_path) == 1
    err = capsys.readouterr().err
    assert "there is no index here" in err and "nybble rag index DIR" in err
    assert "Traceback" not in err
