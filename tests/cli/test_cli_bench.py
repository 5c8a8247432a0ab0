"""`nybble bench` as a user runs it, and `nybble cost` with what it kept."""

from __future__ import annotations

import csv
import io
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_cli_plan import refused as refused
from test_cli_plan import said as said

from load_servers import Misbehaving, engine

Run = Callable[..., Any]
FEW = ("--requests", 12, "--prompt", "100..200", "--output", 8, "--concurrency", 2)


@pytest.fixture(scope="module")
def url(tiny_instruct: Path) -> Iterator[str]:
    with engine(tiny_instruct) as found:
        yield found


class TestRuns:
    def test_table_on_stdout_progress_on_stderr(self, nybble: Run, url: str) -> None:
        ran = nybble("bench", url, *FEW, "--max-ttft", 30)
        assert ran.code == 0
        assert "answer tokens/s" in ran.out and "time to first text, p99" in ran.out
        assert "12 of 12" in ran.out and "first text within 30.0 s" in ran.out
        assert "warm-up" in ran.err and "warm-up" not in ran.out

    def test_two_in_turns_kept_and_compared(self, nybble: Run, url: str, tmp_path: Path) -> None:
        kept = tmp_path / "load.json"
        ran = nybble("bench", url, url, *FEW, "--names", "a,b", "--save", kept, "--quiet", "--csv")
        assert ran.code == 0 and ran.err == f"run: {kept} (--against compares with it)\n"
        rows = list(csv.DictReader(io.StringIO(ran.out)))
        assert {(r["run"], r["against"]) for r in rows} == {("a", ""), ("b", ""), ("b", "a")}
        record = json.loads(kept.read_text())
        assert len(record["runs"]) == 2 and len(record["runs"][0]["requests"]) == 12
        ran = nybble("bench", url, *FEW, "--against", kept, "--markdown")
        assert ran.code == 0 and "not driven in turns" in ran.out and "| b : first |" in ran.out

    def test_json(self, nybble: Run, url: str) -> None:
        record = nybble("bench", url, *FEW, "--api", "completions", "--json").record
        assert record["schema_version"] == 1 and record["runs"][0]["numbers"]["answered"] == 12

    def test_rates_for_a_plan(
        self, nybble: Run, url: str, tiny_instruct: Path, tmp_path: Path
    ) -> None:
        rates, one = tmp_path / "rates.json", (*FEW[:-1], 1)
        ran = nybble("bench", url, *one, "--calibration", rates, "--weights", tiny_instruct,
                     "--kv", "f16/f16")  # fmt: skip
        assert ran.code == 0 and str(rates) in ran.err
        assert json.loads(rates.read_text())["kind"] == "nybble calibration"

    def test_errors_are_in_the_table(self, nybble: Run) -> None:
        with Misbehaving() as bad:
            ran = nybble("bench", bad.url("flaky"), *FEW)
        assert ran.code == 0 and "x HTTP 429: slow down" in ran.out

    def test_ctrl_c(self, start: Run, tmp_path: Path) -> None:
        with Misbehaving() as bad:
            child = start("bench", bad.url("slow"), "--requests", 100000, "--output", 4,
                          cwd=tmp_path)  # fmt: skip
            end = time.monotonic() + 60
            while len(bad.seen.get("slow", ())) < 20 and time.monotonic() < end:
                time.sleep(0.05)
            child.send_signal(signal.SIGINT)
            _, err = child.communicate(timeout=30)
        assert child.returncode == 130 and "Traceback" not in err
        assert "interrupted" in err and "cells" not in err

    def test_imports_nothing_heavy(self, nybble: Run, tmp_path: Path) -> None:
        import subprocess

        script = tmp_path / "watch.py"
        script.write_text(
            "import sys\nimport nybble.serving.load.run, nybble.planning.costs\n"
            "bad = {'torch', 'xllamacpp', 'matplotlib', 'duckdb', 'gguf', 'openai'}\n"
            "print(sorted(bad & set(sys.modules)))\n"
        )
        ran = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
        assert ran.stdout == "[]\n", ran


class TestCost:
    def test_measured_throughput_replaces_the_estimate(
        self, nybble: Run, url: str, tmp_path: Path
    ) -> None:
        kept = tmp_path / "load.json"
        nybble("bench", url, *FEW, "--save", kept)
        n = json.loads(kept.read_text())["runs"][0]["numbers"]
        words = ("cost", "gemma-4-31b-qat", "--users", 2, "--out", 8, "--in", round(n["tokens_in"]))
        record = nybble(*words, "--measured-load", kept, "--json").record
        for found in record["costs"]:
            assert found["sequences"] == 2
            assert "measured: load.json" in found["assumptions"][0]["source"]
        ran = nybble(*words, "--on", "rtx-4090:q4_0", "--on", "l40s:f16", "--measured-load",
                     f"l40s:f16={kept}", "--explain")  # fmt: skip
        assert ran.code == 0 and "answer tokens a second with this load" in ran.out
        ran = nybble(*words, "--on", "rtx-4090:q4_0", "--on", "l40s:f16", "--measured-load", kept)
        assert ran.code == 1 and "names the way" in ran.err
        ran = nybble(*words[:-1], 9999, "--measured-load", kept)
        assert ran.code == 1 and "another load" in ran.err and "--in" in ran.err


class TestRefused:
    @pytest.mark.parametrize(
        ("words", "said_words"),
        [
            (("ftp://x",), ("over HTTP",)),
            (("http://me:pw@x",), ("password", "--api-key-env")),
            (("--prompt", "many"), ("--prompt", "lognormal")),
            (("--output", "0"), ("length",)),
            (("--concurrency", "0"), ("at once",)),
            (("--requests", "0"), ("requests",)),
            (("--rate", "-1"), ("a second",)),
            (("--duration", "0"), ("duration",)),
            (("--shared", "2"), ("common",)),
            (("--timeout", "0"), ("--timeout",)),
            (("--max-ttft", "0"), ("--max-ttft",)),
            (("--names", "a,b"), ("name of its own",)),
            (("--api-key-env", "NO_SUCH_KEY"), ("NO_SUCH_KEY",)),
            (("--against", "none.json"), ("cannot read",)),
            (("--save", "no/folder.json"), ("cannot be written",)),
            (("--weights", "x.gguf"), ("--calibration",)),
            (("--calibration", "r.json"), ("--weights",)),
            (("--calibration", "r.json", "--weights", "gemma-3-1b", "--kv", "f16"),
             ("--concurrency 1",)),
        ],
    )  # fmt: skip
    def test_values(
        self, refused: Run, words: tuple[str, ...], said_words: tuple[str, ...], tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.chdir(tmp_path)
        first = () if words[0].startswith(("ftp", "http")) else ("127.0.0.1:9",)
        err = refused("bench", *first, *words)
        for word in said_words:
            assert word in err, err
        assert list(tmp_path.iterdir()) == []
