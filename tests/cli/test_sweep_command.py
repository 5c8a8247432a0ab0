"""`nybble sweep` as a user calls it: dry runs, flags, a small sweep from end to end."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Nybble = Callable[..., Any]

SWEEP = """
place = "out"
[run]
threads = 1
price_per_hour = 3.6
[[grid]]
model = "a.gguf"
kv = ["q8_0/q4_0", "q4_0/q4_0"]
context = [64, 96]
categories = "prose"
documents = 2
"""


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path) -> Path:
    (tmp_path / "a.gguf").write_bytes(tiny_model.read_bytes())
    (tmp_path / "sweep.toml").write_text(SWEEP, encoding="utf-8")
    return tmp_path


def test_a_dry_run_in_every_form_says_the_same(nybble: Nybble, folder: Path) -> None:
    table = nybble("sweep", "sweep.toml", "--dry-run", cwd=folder)
    assert table.code == 0 and table.err == ""
    assert "4 cells in 2 groups; 0 are finished" in table.out
    assert "at the price of [run]" in table.out and "a.gguf" in table.out
    record = nybble("sweep", "sweep.toml", "--dry-run", "--json", cwd=folder).record
    lines = list(csv.DictReader(io.StringIO(
        nybble("sweep", "sweep.toml", "--dry-run", "--csv", cwd=folder).out
    )))  # fmt: skip
    assert [(g["context"], g["corpus"], g["cells"], g["done"]) for g in record] == [
        (64, "prose", 2, False), (96, "prose", 2, False),
    ]  # fmt: skip
    assert all(g["memory_bytes"] > 1 << 28 and g["cost"] > 0 for g in record)
    assert [line["context"] for line in lines] == ["64", "96"]
    assert [line["memory_bytes"] for line in lines] == [str(g["memory_bytes"]) for g in record]
    markdown = nybble("sweep", "sweep.toml", "--dry-run", "--markdown", cwd=folder).out
    assert "| a.gguf | prose |" in markdown and "cost" in markdown
    assert not (folder / "out").exists()


def test_options_and_a_file_ask_for_the_same(nybble: Nybble, folder: Path) -> None:
    words = ["--model", "a.gguf", "--kv", "q8_0/q4_0,q4_0/q4_0", "--context", "64,96",
             "--categories", "prose", "--documents", "2", "--place", "out"]  # fmt: skip
    asked = nybble("sweep", *words, "--dry-run", "--json", cwd=folder).record
    read = nybble("sweep", "sweep.toml", "--dry-run", "--json", cwd=folder).record
    assert [g["run"] for g in asked] == [g["run"] for g in read]
    assert all(g["cost"] == 0 for g in asked)


@pytest.mark.parametrize(
    ("words", "what", "hint"),
    [
        ([], "a sweep needs a file or models", "nybble sweep sweep.toml"),
        (["none.toml"], "cannot read the sweep", "nybble sweep --help shows one"),
        (["sweep.toml", "--kv", "q8_0/q8_0", "--context", "64"], "a file or from options", "leave"),
        (["sweep.toml", "--csv"], "a sweep's own record is JSON", "--json"),
        (["sweep.toml", "--workers", "-1"], "workers of [run] is out of range", "0 to 4096"),
        (["sweep.toml", "--threads", "9999"], "threads of [run] is out of range", "0 to 512"),
        (["sweep.toml", "--place", "nosuch://x"], "no such kind of place", "s3://"),
        (["sweep.toml", "--place", "sweep.toml"], "cannot write to the sweep's place", "--place"),
        (["--model", "a.gguf", "--context", "1k"], "--context takes whole numbers", "1024,8192"),
        (["--model", "a.gguf", "--kv", "q8/q8"], "did you mean q8_0?", "nybble formats"),
        (["--model", "a.gguf", "--categories", "prosa"], "did you mean prose?", "allowed"),
        (["--model", "a.gguf", "--engine", "vllm"], "engines that it can start", "measure --url"),
        (["--model", "a.gguf", "--rai"], "No such option", "nybble sweep --help"),
    ],
)
def test_wrong_calls(nybble: Nybble, folder: Path, words: list[str], what: str, hint: str) -> None:
    ran = nybble("sweep", *words, cwd=folder)
    assert ran.code == 1 and ran.out == ""
    assert ran.err.startswith("error: ") and what in ran.err and hint in ran.err


def test_an_unknown_key_names_the_nearest(nybble: Nybble, folder: Path) -> None:
    (folder / "sweep.toml").write_text(SWEEP.replace("categories", "category"), encoding="utf-8")
    ran = nybble("sweep", "sweep.toml", cwd=folder)
    assert ran.code == 1 and "did you mean categories?" in ran.err


def test_what_fits_never_is_skipped_and_said(nybble: Nybble, folder: Path) -> None:
    text = SWEEP.replace("[run]", "[run]\nmemory_gib = 0.1")
    (folder / "sweep.toml").write_text(text, encoding="utf-8")
    dry = nybble("sweep", "sweep.toml", "--dry-run", cwd=folder)
    assert dry.code == 0 and "skipped: 2 groups: it needs" in dry.err
    assert "0.1 GiB are there for workers" in dry.err


@pytest.mark.slow
def test_a_sweep_from_end_to_end(nybble: Nybble, folder: Path) -> None:
    first = nybble("sweep", "sweep.toml", "--workers", "2", "--json", cwd=folder)
    assert first.code == 0, first.err
    assert (first.record["cells"], first.record["scored"], first.record["groups"]) == (4, 4, 2)
    assert first.record["executor"] == "this machine" and first.record["workers"] == 2
    (run,) = (folder / "out" / "runs").iterdir()
    assert {"summary.json", "report.html", "report.md", "manifest.json"} <= {
        p.name for p in run.iterdir()
    }  # fmt: skip
    again = nybble("sweep", "sweep.toml", cwd=folder)
    assert again.code == 0 and "4 cells: 0 scored now, 4 there already" in again.out
    dry = nybble("sweep", "sweep.toml", "--dry-run", cwd=folder)
    assert dry.out == "every group is finished; nothing was run\n"
    groups = json.loads(nybble("sweep", "sweep.toml", "--dry-run", "--json", cwd=folder).out)
    assert all(g["done"] for g in groups)


@pytest.mark.slow
def test_a_corrupted_cell_ends_with_1_and_is_mended(nybble: Nybble, folder: Path) -> None:
    assert nybble("sweep", "sweep.toml", "-q", cwd=folder).code == 0
    (run,) = (folder / "out" / "runs").iterdir()
    victim = sorted((run / "rows").glob("*q4_0-q4_0*.parquet"))[0]
    whole = victim.read_bytes()
    summary = (run / "summary.json").read_bytes()
    victim.write_bytes(whole[:40] + bytes(len(whole) - 80) + whole[-40:])
    (run / "summary.json").unlink()  # as if it was cut before the merge
    ran = nybble("sweep", "sweep.toml", "-q", cwd=folder)
    assert ran.code == 1
    assert f"damaged: runs/{run.name}/rows/{victim.name} could not be read" in ran.err
    assert victim.with_suffix(".damaged").exists()
    ran = nybble("sweep", "sweep.toml", "-q", cwd=folder)
    assert ran.code == 0, ran.err
    assert victim.read_bytes() == whole and (run / "summary.json").read_bytes() == summary


@pytest.mark.slow
def test_a_missing_model_fails_alone(nybble: Nybble, folder: Path) -> None:
    text = SWEEP.replace('"a.gguf"', '["none.gguf", "a.gguf"]')
    (folder / "sweep.toml").write_text(text, encoding="utf-8")
    ran = nybble("sweep", "sweep.toml", "--json", "-q", cwd=folder)
    assert ran.code == 1 and ran.record["scored"] == 4
    assert "failed: none-" in ran.err and "no such model file" in ran.err
    assert "--retry-failed" in ran.err
