"""The command line against loopback servers, and what reports say of such rows."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from nybble.planning.evidence import Identity, qualities
from nybble.report import table
from nybble.report.html import html_report
from nybble.results.records import Measurement, from_json
from server_fakes import FakeVLLM, Running

FP8 = "fp8_e4m3/fp8_e4m3"


def _nybble(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "nybble", *map(str, args)], text=True,
                          capture_output=True, timeout=120)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tiny_model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("served") / "run"
    # The tokenizer is not asked: a server without /tokenize is told in a note.
    with Running(FakeVLLM()) as ref, Running(FakeVLLM(kv="fp8", noise=0.3)) as fp8:
        done = _nybble(
            "measure", tiny_model, "--engine", "vllm", "--url", f"f16/f16={ref}",
            "--url", f"{FP8}={fp8}/v1", "--top-k", 40, "--text", text, "--context", 128,
            "--documents", 6, "--out", out, "--json", "--quiet",
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["protocol"]["comparison"] == "top-40, lower bound of the KLD"
    return out


@pytest.fixture
def found(folder: Path) -> Measurement:
    return from_json((folder / "summary.json").read_text())


def test_the_table_says_what_the_numbers_are(found: Measurement) -> None:
    for width in (80, 140):
        console = Console(width=width, file=io.StringIO())
        console.print(table.rich_table(found, width))
        assert isinstance(console.file, io.StringIO)
        shown = " ".join(console.file.getvalue().split())
        assert "†" in shown and "top-k, lower bound: the top 40 tokens as vllm 0.32.0" in shown
        assert "was compared as a lump" in shown and "through a server, top-k" in shown
    text = table.markdown(found)
    assert f"{FP8} †" in text.replace("\\", "") and "lower bound" in text
    assert "lower bound" in html_report(found)


def test_the_spreadsheet_has_all_of_it(found: Measurement) -> None:
    rows = list(csv.DictReader(io.StringIO(table.csv_text(found))))
    candidate = next(r for r in rows if r["role"] == "candidate")
    assert candidate["served_top_k"] == "40" and candidate["served_engine"] == "vllm"
    assert float(candidate["mean_kld"]) < float(candidate["mean_kld_high"])
    assert 0 < float(candidate["tail_mass"]) < 1


def test_the_verdict_names_itself(found: Measurement) -> None:
    row = next(r for r in found.rows if r.role == "candidate")
    assert row.verdict is not None and row.verdict.reason.startswith("top-k")
    assert any("does not tokenize" in w for w in found.warnings)


def test_a_plan_takes_no_lower_bound_for_evidence(folder: Path, found: Measurement) -> None:
    assert qualities([folder], Identity(found.models[0].architecture)) == {}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--engine", "vllm"], "running servers"),
        (["--engine", "vllm", "--url", "http://127.0.0.1:8000"], "takes a KV setting and an"),
        (["--engine", "vllm", "--url", "f16/f16"], "--url takes a KV setting and an address"),
        (["--engine", "vllm", "--url", "f16/f16=host:80"], "not the address"),
        (["--url", "f16/f16=http://h", "--kv", "q4_0"], "settings of --url are measured"),
        (["--url", "f16/f16=http://h"], "--engine with --url"),
        (["--engine", "vllm", *["--url", "f16/f16=http://h"] * 2], "each once"),
        (["--engine", "vllm", "--url", "f16=http://127.0.0.1:9", "--dry-run"], "--dry-run"),
        (["--engine", "vllm", "--url", "f16=http://127.0.0.1:9"], "cannot be reached"),
    ],
)
def test_mistakes(
    args: list[str], words: str, tiny_model: Path, text: Path, tmp_path: Path
) -> None:
    rest = ["--text", text, "--context", 128, "--out", tmp_path, "--quiet"]
    done = _nybble("measure", tiny_model, *args, *rest)
    assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr
