"""What `nybble measure --generate` prints and writes."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from generation_runs import PROMPTS

from nybble.cli.measure_generate import run_generate
from nybble.formats import parse
from nybble.results.tasks import GenerationRun, from_json
from nybble.scoring.generation.generate import Generated


def run(model: Path, out: Path, form: str | None, **changes: Any) -> int:
    settings = tuple(parse(s) for s in ("q8_0", "q4_0"))
    options: dict[str, Any] = {
        "model": model, "out": out, "settings": settings, "limit": 64, "prompts": PROMPTS,
        "prompt_tokens": 64, "threads": 2, "categories": ("prose",), "command": "nybble measure",
        "dry_run": False, "form": form, "quiet": False,
    }  # fmt: skip
    return run_generate(**{**options, **changes})


def test_tables_on_stdout_and_progress_on_stderr(
    once_more: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_model, once_more, None) == 0
    shown = capsys.readouterr()
    for words in ("Where answers part", "Error along the 16-bit", "How answers end", "identity",
                  "noise floor", "generation.html", "Nothing here tells"):  # fmt: skip
        assert words in " ".join(shown.out.split())  # lines break where the terminal ends
    assert "there already" in shown.err and "there already" not in shown.out
    for name in ("generation.json", "generation.md", "generation.html"):
        assert (once_more / name).stat().st_size > 500


@pytest.mark.parametrize("form", ["json", "csv", "markdown"])
def test_stdout_is_data_alone(
    form: str, once_more: Path, tiny_model: Path, generated: Generated,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert run(tiny_model, once_more, form, quiet=True) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    if form == "json":
        assert from_json(GenerationRun, shown.out).rows == generated.run.rows
    elif form == "csv":
        lines = list(csv.DictReader(io.StringIO(shown.out)))
        q4 = {(x["what"], x["at"]): x for x in lines if x["setting"] == "q4_0/q4_0"}
        row = next(r for r in generated.run.rows if r.setting == "q4_0/q4_0")
        assert float(q4["kld_at", "1-64"]["value"]) == row.kld_at["1-64"].value
        assert int(q4["trend", ""]["n_prompts"]) == PROMPTS
    else:
        tables = [line for line in shown.out.splitlines() if line.startswith("|")]
        assert len(tables) == 3 * (2 + len(generated.run.rows))


@pytest.mark.parametrize("form", [None, "json", "csv", "markdown"])
def test_a_dry_run_runs_nothing(
    form: str | None, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_model, tmp_path / "run", form, dry_run=True) == 0
    shown = capsys.readouterr().out
    assert "q4_0/q4_0" in shown and not (tmp_path / "run").exists()
    if form == "json":
        assert [x["tokens"] for x in json.loads(shown)] == [384, 64, 384, 384, 384]
