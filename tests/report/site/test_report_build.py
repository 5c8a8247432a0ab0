"""`nybble report build` on a base on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from nybble.cli.report import report
from nybble.errors import NybbleError
from run_folders import write_run


def call(*args: object) -> tuple[int, str, str]:
    found = CliRunner().invoke(report, [*map(str, args)], standalone_mode=False)
    if found.exception:
        raise found.exception
    return found.return_value, found.stdout, found.stderr


def test_build_prints_the_page_and_names_damage(tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "site"
    write_run(base / "good", model="Tiny one")
    code, printed, _ = call("build", base, "--out", out, "--title", "Ours", "-q")
    assert (code, printed) == (0, f"{out / 'index.html'}\n")
    assert "<title>Ours</title>" in (out / "index.html").read_text()
    (page,) = (out / "models").iterdir()
    text = page.read_text()
    assert "By kind of text" in text and "raw text" in text  # from the record, not the cells
    assert "32 x 4 bits" in (out / "types" / "q4_0.html").read_text()  # from the registry
    (base / "bad").mkdir()
    (base / "bad" / "summary.json").write_text("{")
    code, printed, said = call("build", base, "--out", out)
    assert code == 1 and printed.endswith("index.html\n") and "bad/summary.json" in said


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(NybbleError, match="no such result base"):
        call("build", tmp_path / "missing")
    with pytest.raises(NybbleError, match="did you mean build"):
        call("biuld")
