"""`nybble plan` as a user runs it: tables, records, answers, exit codes, errors."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nybble.cli.main import main

Run = Callable[..., Any]
MODEL = ("plan", "gemma-4-31b-qat", "--gpu", "rtx-4090")
HELD = re.compile(r"q4_0/q4_0 +4\.5 +23,040 +205,056 ")


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in this process: (code, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "120")

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(w) for w in words])
        out, err = capsys.readouterr()
        assert "unexpected" not in err, err
        return code, out, err

    return run


@pytest.fixture
def refused(said: Run) -> Run:
    """Runs a command that must fail with one clear error and print nothing else."""

    def run(*words: object) -> str:
        code, out, err = said(*words)
        assert (code, out) == (1, ""), (out, err)
        assert err.count("error: ") == 1 and re.search("^  (allowed|try): ", err, re.M), err
        return str(err)

    return run


class TestTable:
    def test_the_answer_to_the_news(self, nybble: Run) -> None:
        """No network, no torch, no engine: which context fits on 24 GB, in a child of its own."""
        ran = nybble(*MODEL, "--engine", "llama.cpp", env={"COLUMNS": "120"})
        assert (ran.code, ran.err) == (0, "")
        assert HELD.search(ran.out), ran.out
        assert re.search(r"f16/f16 +16 +81,920 +67,328 ", ran.out)
        assert ">" in ran.out and "more than there is to use" in ran.out

    def test_imports_nothing_heavy(self, nybble: Run, tmp_path: Path) -> None:
        script = tmp_path / "watch.py"
        script.write_text(
            "import sys\nfrom nybble.cli.main import main\n"
            f"code = main({list(MODEL)!r})\n"
            "bad = {'torch', 'transformers', 'xllamacpp', 'matplotlib', 'duckdb', 'gguf'}\n"
            "print('loaded', sorted(bad & set(sys.modules)), code, file=sys.stderr)\n"
        )
        import subprocess

        ran = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
        assert "loaded [] 0" in ran.stderr, ran.stderr

    def test_one_engine_in_full_and_the_others_in_a_line(self, said: Run) -> None:
        code, out, _ = said(*MODEL)
        assert code == 0 and HELD.search(out)
        assert re.search(r"^  vllm: f16/f16 [\d,]+", out, re.M)
        assert "note: vllm:" not in out and "note: not planned" not in out

    def test_explain_shows_where_each_byte_is(self, said: Run) -> None:
        code, out, _ = said(*MODEL, "--engine", "llama.cpp", "--kv", "q8_0/q4_0", "--explain")
        assert code == 0
        for word in ("weights", "K of 10 global layers", "total", "speeds rest on", "bandwidth"):
            assert word in out, word

    def test_csv_json_markdown(self, nybble: Run) -> None:
        rows = list(csv.DictReader(io.StringIO(nybble(*MODEL, "--csv").out)))
        by = {(r["engine"], r["setting"], r["context"]): r for r in rows}
        row = by["llama.cpp", "q4_0/q4_0", "131072"]
        assert row["fits"] == "1" and row["largest_context"] == "205056"
        assert by["llama.cpp", "f16/f16", "131072"]["fits"] == "0"
        record = nybble(*MODEL, "--json").record
        fit = next(f for f in record["fits"] if f["setting"] == "q4_0/q4_0")
        assert fit["memory"]["131072"] == int(row["bytes"])
        text = nybble(*MODEL, "--markdown").out
        assert "| q4_0/q4_0 | 4.5 | 23,040 | 205,056 |" in text

    def test_a_gguf(self, said: Run, tiny_model: Path) -> None:
        code, out, _ = said("plan", tiny_model, "--gpu", "rtx-3060", "--engine", "llama.cpp")
        assert code == 0 and "4,096+" in out and "own longest context" in out

    def test_without_a_card(self, said: Run, tiny_model: Path) -> None:
        code, out, _ = said("plan", tiny_model, "--engine", "llama.cpp")
        assert code == 0 and "largest" not in out and "GiB at" in out

    def test_this_machine(self, said: Run, tiny_model: Path) -> None:
        code, out, _ = said("plan", tiny_model, "--this-machine", "--engine", "llama.cpp")
        assert code == 0 and "GiB to use" in out

    @pytest.mark.parametrize("ending", [".svg", ".png"])
    def test_picture(self, said: Run, tmp_path: Path, ending: str) -> None:
        path = tmp_path / f"memory{ending}"
        code, _, err = said(*MODEL, "--picture", path)
        assert code == 0 and str(path) in err and path.stat().st_size > 5000

    def test_what_if_cards(self, said: Run) -> None:
        code, out, _ = said("plan", "gemma-4-31b-qat", "--gpu", "2x24GiB@936GBps@71TFLOPS",
                            "--reserve", "0", "--engine", "llama.cpp")  # fmt: skip
        assert code == 0 and "2 x 24gib" in out.lower() and "48.0 GiB to use" in out


class TestAnswers:
    def test_fits(self, said: Run) -> None:
        code, out, _ = said(*MODEL, "--engine", "llama.cpp", "--context", 131072)
        assert code == 0 and "q8_0/q4_0 in llama.cpp holds 131,072 tokens" in out

    def test_the_chosen_engine_has_its_say(self, said: Run) -> None:
        """What nobody timed is picked only by name."""
        code, out, _ = said(*MODEL, "--context", 262144)
        assert code == 1 and "do not fit" in out
        code, out, _ = said(*MODEL, "--context", 262144, "--engine", "nybble")
        flat = " ".join(out.split())
        assert code == 0 and "q8_0/q8_0+latent in nybble holds 262,144 tokens" in flat
        assert "note: nybble: weights of few bits" in flat and "no speed is told" in flat

    def test_does_not_fit(self, said: Run) -> None:
        code, out, _ = said(*MODEL, "--engine", "llama.cpp", "--context", 131072, "--users", 2)
        assert code == 1 and "2 x 131,072 tokens do not fit on rtx-4090" in out
        assert "or: --users 1" in out and "or: --gpu 2xrtx-4090" in out

    def test_no_room_at_all(self, said: Run) -> None:
        code, _, err = said("plan", "gemma-4-31b", "--gpu", "rtx-3060", "--engine", "llama.cpp")
        assert code == 1 and "does not fit" in err


class TestRefused:
    @pytest.mark.parametrize(
        ("words", "said_words"),
        [
            (("--gpu", "rtx-4091"), ("unknown card", "rtx-4090")),
            (("--gpu", "24GiB@fast"), ("memory@bandwidth",)),
            (("--gpu", "rtx-4090", "--this-machine"), ("--gpu and --this-machine",)),
            (("--cards", "2"), ("no card to change",)),
            (("--gpu", "rtx-4090", "--cards", "0"), ("above 0",)),
            (("--gpu", "rtx-4090", "--memory", "-1"), ("memory", "-1")),
            (("--gpu", "rtx-4090", "--reserve", "99"), ("--reserve 0",)),
            (("--gpu", "rtx-4090", "--context", "0"), ("context", "above 0")),
            (("--gpu", "rtx-4090", "--context", "-5"), ("context", "-5")),
            (("--gpu", "rtx-4090", "--context", "999999"), ("262,144",)),
            (("--gpu", "rtx-4090", "--users", "0"), ("users",)),
            (("--gpu", "rtx-4090", "--kv", "q4_1k"), ("unknown KV type", "q4_1")),
            (("--gpu", "rtx-4090", "--kv", "exl3_4", "--engine", "llama.cpp"), ("no engine",)),
            (("--gpu", "rtx-4090", "--engine", "vlm"), ("unknown engine", "vllm")),
            (("--gpu", "rtx-4090", "--max-kld", "0.02"), ("no stored measurement",)),
            (("--gpu", "rtx-4090", "--results", "nowhere"), ("no measurements",)),
            (("--gpu", "rtx-4090", "--split", "rows"), ("layer, tensor",)),
            (("--gpu", "rtx-4090", "--picture", "x.gif"), (".svg, .png",)),
            (("--gpu", "rtx-4090", "--file", "q9"), ("q9",)),
            (("--context", "8192"), ("depends on a card",)),
        ],
    )  # fmt: skip
    def test_values(
        self, refused: Run, words: tuple[str, ...], said_words: tuple[str, ...], tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.chdir(tmp_path)
        err = refused("plan", "gemma-4-31b-qat", *words)
        for word in said_words:
            assert word in err, err

    @pytest.mark.parametrize(
        ("model", "words"),
        [("gemma-4-31b-qatt", ("catalogue", "gemma-4-31b-qat")), ("", ("catalogue",)),
         ("none.gguf", ("none.gguf",)), ("x" * 5000, ("xxx",)), ("a\x00b", ("catalogue", "\\x00")),
         ("google/nothing", ("hf:google/nothing",))],
    )  # fmt: skip
    def test_models(self, refused: Run, model: str, words: tuple[str, ...]) -> None:
        err = refused("plan", model, "--gpu", "rtx-4090")
        for word in words:
            assert word in err, err

    def test_a_config_that_is_none(self, refused: Run, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"model_type": "gemma4_txt"}')
        assert "gemma4_txt" in refused("plan", tmp_path, "--gpu", "rtx-4090")


@settings(max_examples=60, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(at=st.integers(0, 1500), value=st.binary(min_size=1, max_size=12))
def test_damaged_headers_end_in_an_error_or_a_plan(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], at: int, value: bytes
) -> None:
    data = bytearray(tiny_model.read_bytes())
    data[at : at + len(value)] = value
    path = tmp_path / "damaged.gguf"
    path.write_bytes(data)
    code = main(["plan", str(path), "--gpu", "rtx-4090", "--engine", "llama.cpp,vllm"])
    out, err = capsys.readouterr()
    assert code in (0, 1) and "unexpected" not in err, err
    assert (code == 0) == bool(out) or "does not fit" in err
