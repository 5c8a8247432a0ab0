"""`nybble measure --tasks` as a command: streams, formats, files, exit codes."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

from nybble.results.tasks import TaskRun, from_json


def _nybble(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "NYBBLE_CACHE": str(folder / "cache"), "COLUMNS": "120"}
    command = [sys.executable, "-m", "nybble", "measure", *args]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=250)


def test_run_then_formats_from_what_is_there(tiny_model: Path, tmp_path: Path) -> None:
    asked = (str(tiny_model), "--tasks", "needle", "--context", "700", "--documents", "1",
             "--queries", "2", "--kv", "q4_0", "--threads", "2")  # fmt: skip
    first = _nybble(tmp_path, *asked)
    assert first.returncode == 0, first.stderr
    assert "Traceback" not in first.stderr and "needle" in first.stdout
    assert "making tasks" not in first.stdout
    (folder,) = (tmp_path / "nybble-results").iterdir()
    names = {p.name for p in folder.iterdir()} - {".lock"}
    assert names == {"tasks", "tasks.json", "tasks.html", "tasks.md"}
    assert str(folder.relative_to(tmp_path) / "tasks.html") in first.stdout
    again = _nybble(tmp_path, *asked, "--json")
    run = from_json(TaskRun, again.stdout)
    assert json.loads(again.stdout)["protocol"]["engine"] == "llama.cpp"
    assert "--tasks needle" in run.command
    assert "every cell is there already" in again.stderr
    quiet = _nybble(tmp_path, *asked, "--csv", "--quiet")
    assert quiet.stderr == ""
    assert {r["task"] for r in csv.DictReader(io.StringIO(quiet.stdout))} == {"needle"}


def test_users_mistakes_end_without_a_traceback(tiny_model: Path, tmp_path: Path) -> None:
    wrong = _nybble(tmp_path, str(tiny_model), "--tasks", "neddle")
    assert wrong.returncode == 1 and "did you mean needle" in wrong.stderr
    assert "Traceback" not in wrong.stderr and wrong.stdout == ""
    two = _nybble(tmp_path, str(tiny_model), "--tasks", "a.jsonl,b.jsonl")
    assert two.returncode == 1 and "one file of questions at a time" in two.stderr
    gone = _nybble(tmp_path, str(tiny_model), "--tasks", "needle,a.jsonl")
    assert gone.returncode == 1 and "cannot read the questions" in gone.stderr
    line = {"context": "Ada came.", "question": "Who came?", "answer": "Ada", "wrong": ["Ben"]}
    (tmp_path / "a.jsonl").write_text(json.dumps(line), encoding="utf-8")
    for tasks, n in (("a.jsonl", 1), ("needle,a.jsonl", 2), ("all,a.jsonl", 9)):
        planned = _nybble(tmp_path, str(tiny_model), "--tasks", tasks, "--dry-run", "--json")
        assert len(json.loads(planned.stdout)) == n, planned.stderr
    planned = _nybble(tmp_path, str(tiny_model), "--tasks", "all", "--dry-run", "--json")
    assert len(json.loads(planned.stdout)) == 8
    assert not (tmp_path / "nybble-results").exists()
