"""The command line: what goes to stdout and stderr, exit codes, every form of output."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from nybble.cli.main import COMMANDS, command, spread
from nybble.cli.rag import COMMANDS as RAG
from nybble.environment import VERSION
from nybble.formats import ALIASES, KV_TYPES, parse
from nybble.results.records import from_json

SMALL = ("--context", "64", "--documents", "6", "--categories", "prose", "--kv", "q8_0/q4_0")
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def here(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, invoke: Run, cache: dict[str, str]
) -> Run:
    """Runs commands in one folder, so that cells are scored once."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "tiny.gguf").symlink_to(tiny_model)

    def run(*args: object, env: dict[str, str] | None = None, **options: Any) -> Any:
        return invoke(*args, cwd=folder, env={**cache, **(env or {})}, **options)

    run.folder = folder  # type: ignore[attr-defined]
    return run


@pytest.fixture(scope="module")
def first(here: Run) -> Any:
    """The first run in that folder: the one that scores."""
    return here("measure", "tiny.gguf", *SMALL)


@pytest.fixture(scope="module")
def forms(first: Any, here: Run) -> dict[str, Any]:
    """The same in each form of output, without progress."""
    return {
        form: here("measure", "tiny.gguf", *SMALL, f"--{form}", "--quiet")
        for form in ("json", "csv", "markdown")
    }


class TestStreams:
    def test_stdout_is_data_and_stderr_is_progress(self, first: Any) -> None:
        assert first.code == 0
        assert first.out.startswith("tiny")
        for text in ("q8_0/q4_0", "noise floor", "identity", "report: ", "rows:   "):
            assert text in first.out
        for text in ("hashing", "tokenizing", "loading the weights"):
            assert text in first.err and text not in first.out

    def test_no_escape_codes_without_a_terminal(self, first: Any) -> None:
        assert "\x1b" not in first.out + first.err and "\r" not in first.out + first.err

    def test_report_files_are_where_stdout_says(self, first: Any, here: Any) -> None:
        report = re.search(r"^report: (.+)$", first.out, re.MULTILINE)
        rows = re.search(r"^rows: +(.+)$", first.out, re.MULTILINE)
        assert report and rows
        assert (here.folder / report[1]).read_text("utf-8").startswith("<!")
        assert len(list((here.folder / rows[1]).glob("*.parquet"))) >= 3

    def test_again_scores_nothing_and_says_so(self, first: Any, here: Any) -> None:
        rows = next(here.folder.glob("nybble-results/*/rows"))
        before = {p.name: p.stat().st_mtime_ns for p in rows.iterdir()}
        again = here("measure", "tiny.gguf", *SMALL)
        assert again.code == 0 and again.out == first.out
        assert "every cell is there already; --fresh scores them again" in again.err
        assert "loading the weights" not in again.err
        assert {p.name: p.stat().st_mtime_ns for p in rows.iterdir()} == before

    def test_again_records_the_same(self, here: Any, tmp_path: Path) -> None:
        command = ("measure", "tiny.gguf", *SMALL, "--json", "--out", tmp_path)
        one, two = (here(*command).record for _ in range(2))
        for part in ("rows", "recommendation", "warnings", "protocol", "versions", "hardware"):
            assert one[part] == two[part], part
        assert one["rows"][0]["rotation_k"] == one["rows"][0]["rotation_v"] == 64

    def test_quiet_leaves_stderr_empty(self, forms: dict[str, Any]) -> None:
        for ran in forms.values():
            assert (ran.code, ran.err) == (0, "") and ran.out

    def test_a_reader_that_stops_early(self, first: Any, here: Any, cache: dict[str, str]) -> None:
        command = f"{sys.executable} -m nybble measure tiny.gguf {' '.join(SMALL)} -q --json"
        done = subprocess.run(
            ["bash", "-c", f"{command} | true"],
            cwd=here.folder, env={**os.environ, **cache}, capture_output=True, timeout=60,
        )  # fmt: skip
        assert done.stderr == b""

    def test_full_disk_behind_stdout(self) -> None:
        if not Path("/dev/full").exists():
            pytest.skip("no /dev/full")
        with open("/dev/full", "w") as full:
            command = [sys.executable, "-m", "nybble", "formats", "--json"]
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 1
        assert done.stderr.startswith("error: the disk is full") and "bug" not in done.stderr

    def test_a_terminal_without_unicode(self, first: Any, here: Run) -> None:
        ran = here("measure", "tiny.gguf", *SMALL, env={"PYTHONIOENCODING": "ascii"})
        assert ran.code == 0 and "q8_0/q4_0" in ran.out and ran.out.isascii()


class TestForms:
    def test_json_is_the_record(self, forms: dict[str, Any]) -> None:
        found = from_json(forms["json"].out)
        assert [r.role for r in found.rows] == ["candidate", "floor", "identity"]
        assert found.rows[0].setting == "q8_0/q4_0"
        assert found.rows[2].metrics["max_kld"].value == 0
        assert found.command == f"nybble measure tiny.gguf {' '.join(SMALL)} --json --quiet"

    def test_csv_has_one_line_per_row(self, forms: dict[str, Any]) -> None:
        lines = list(csv.DictReader(io.StringIO(forms["csv"].out), strict=True))
        assert [line["setting"] for line in lines] == ["q8_0/q4_0", "bf16/bf16", "f16/f16"]
        assert all(None not in line and None not in line.values() for line in lines)
        assert float(lines[0]["mean_kld"]) > float(lines[1]["mean_kld"]) > 0

    def test_markdown_has_a_table(self, forms: dict[str, Any]) -> None:
        lines = forms["markdown"].out.splitlines()
        table = [line for line in lines if line.startswith("|")]
        assert len(table) == 2 + 3
        assert set(table[1]) <= set("|:-")
        assert len({line.count("|") - line.count("\\|") for line in table}) == 1
        assert any(line.startswith("nybble measure tiny.gguf") for line in lines)

    @pytest.mark.parametrize("form", [None, "--json", "--csv", "--markdown"])
    def test_dry_run(self, nybble: Run, tmp_path: Path, tiny_model: Path, form: str | None) -> None:
        options = [form] if form else []
        ran = nybble("measure", tiny_model, "--kv", "q4_0", "--context", "64,128", "--dry-run",
                     *options)  # fmt: skip
        assert (ran.code, ran.err) == (0, "")
        if form == "--json":
            cells = ran.record
        elif form == "--csv":
            cells = list(csv.DictReader(io.StringIO(ran.out), strict=True))
        else:
            cells = []
            assert "B/token" in ran.out and ran.out.count("q4_0/q4_0") == 2
            assert re.search(r"about [\d.]+ minutes here.* nothing was run", ran.out)
        if cells:
            found = [(c["setting"], c["role"], int(c["context"])) for c in cells]
            assert found[0] == ("q4_0/q4_0", "candidate", 64) and len(found) == 6
            # 2 layers, 1 head of 64, 4.5 bits; the cache holds 256 tokens at least.
            assert float(cells[0]["bytes_per_token"]) == 2 * 2 * 64 * 4.5 / 8
            assert int(cells[0]["cache_bytes"]) == 256 * 144
            assert all(float(c["seconds"]) > 0 for c in cells)
        assert list(tmp_path.iterdir()) == []


class TestOptions:
    def test_rotation_on_and_off(self, here: Run) -> None:
        rows = here("measure", "tiny.gguf", *SMALL, "--rotation", "on,off", "--json").record["rows"]
        on, off = rows[:2]
        assert (on["setting"], off["setting"]) == ("q8_0/q4_0", "q8_0/q4_0-norot")
        assert (on["rotation_k"], off["rotation_k"]) == (64, 0)
        assert on["metrics"]["mean_kld"] != off["metrics"]["mean_kld"]
        only = here("measure", "tiny.gguf", *SMALL, "--rotation", "off", "--json").record["rows"]
        assert only[0] == off

    def test_split_kv(self, here: Run) -> None:
        rows = here("measure", "tiny.gguf", *SMALL, "--split-kv", "--json").record["rows"]
        candidates = [r for r in rows if r["role"] == "candidate"]
        names = [r["setting"] for r in candidates]
        assert names == ["q8_0/q4_0", "q8_0/f16", "f16/q4_0"]
        kld = [r["metrics"]["mean_kld"]["value"] for r in candidates]
        assert kld[1] < kld[2]  # 8.5 bits on one side cost less than 4.5 on the other

    def test_k_and_v_lists_are_crossed(self, nybble: Run, tiny_model: Path) -> None:
        ran = nybble("measure", tiny_model, "--k", "q8_0,q5_1", "--v", "q4_0,f16", "--dry-run",
                     "--json")  # fmt: skip
        names = [c["setting"] for c in ran.record if c["role"] == "candidate"]
        assert names == ["q8_0/q4_0", "q8_0/f16", "q5_1/q4_0", "q5_1/f16"]

    def test_memory_at(self, first: Any, here: Run) -> None:
        record = here("measure", "tiny.gguf", *SMALL, "--memory-at", "2048,131072", "--json").record
        at = record["rows"][0]["cache_bytes_at"]
        assert at["2048"] == 2048 * 208 and at["131072"] == 131072 * 208

    def test_thresholds(self, forms: dict[str, Any], here: Run, tmp_path: Path) -> None:
        file = tmp_path / "mine.toml"
        file.write_text("mean_kld = { safe = 50, broken = 60 }\n", encoding="utf-8")
        record = here("measure", "tiny.gguf", *SMALL, "--thresholds", file, "--json").record
        assert record["rows"][0]["verdict"]["label"] == "safe"
        assert record["protocol"]["thresholds"] == {"mean_kld": {"safe": 50.0, "broken": 60.0}}
        assert forms["json"].record["rows"][0]["verdict"]["label"] != "safe"

    def test_gate_closed(self, first: Any, here: Run) -> None:
        ran = here("measure", "tiny.gguf", *SMALL, "--fail-over", "1e-6", "-q", "--csv")
        assert ran.code == 1
        assert ran.err.startswith("gate: q8_0/q4_0 at context 64 has mean KLD ")
        assert ran.err.endswith("over the limit of 1e-06\n") and ran.err.count("\n") == 1
        assert len(ran.out.splitlines()) == 4  # the data is there all the same

    def test_gate_open(self, first: Any, here: Run) -> None:
        ran = here("measure", "tiny.gguf", *SMALL, "--fail-over", "100", "-q")
        assert (ran.code, ran.err) == (0, "")

    def test_text_takes_several_words(self, here: Any) -> None:
        for name in "abc":
            text = "".join(f"{name}{i} is a line of the file {name}.\n" for i in range(40))
            (here.folder / f"{name}.txt").write_text(text, encoding="utf-8")
        ran = here("measure", "--text", "a.txt", "b.txt", "c.txt", "tiny.gguf", "--context", "64",
                   "--kv", "q4_0", "--json")  # fmt: skip
        assert ran.code == 0, ran.err
        assert ran.record["protocol"]["text"][0]["source"] == "a.txt, b.txt, c.txt"
        assert ran.record["models"][0]["file"] == "tiny.gguf"
        assert ran.record["rows"][0]["n_documents"] == 3

    @pytest.mark.parametrize(
        ("words", "spreads"),
        [
            ("--text a b", "--text a --text b"),
            ("--text a b c.gguf", "--text a --text b c.gguf"),
            ("--text a C.GGUF d", "--text a C.GGUF --text d"),
            ("m.gguf --text a b --kv x y", "m.gguf --text a --text b --kv x y"),
            ("--text a --text b c", "--text a --text b --text c"),
            ("--text --quiet a", "--text --quiet a"),
            ("--text", "--text"),
            ("", ""),
        ],
    )
    def test_spread(self, words: str, spreads: str) -> None:
        assert spread(words.split()) == spreads.split()

    def test_two_models(self, here: Any, make_tiny: Callable[..., Path]) -> None:
        twin = make_tiny(here.folder / "twin.gguf", seed=1, name="twin")
        ran = here("measure", "tiny.gguf", "--against", twin, *SMALL)
        assert ran.code == 0
        for text in ("tiny against twin", "to the other's 16-bit reference"):
            assert text in ran.out


class TestSmallCommands:
    def test_version(self, nybble: Run) -> None:
        for flag in ("--version", "-V"):
            ran = nybble(flag)
            assert (ran.code, ran.err) == (0, "") and VERSION in ran.out

    @pytest.mark.parametrize(
        "words",
        [[], *([n] for n in sorted(COMMANDS)), *(["rag", n] for n in sorted(RAG))],
    )
    def test_help(self, nybble: Run, words: list[str]) -> None:
        ran = nybble(*words, "--help", env={"COLUMNS": "80"})
        assert (ran.code, ran.err) == (0, "")
        assert ran.out.startswith(" ".join(["Usage: nybble", *words]))
        plain = ran.out.split("Examples:")[0].split("bash:")[0]
        assert max(map(len, plain.splitlines())) <= 80
        assert nybble(*words, "-h").out.startswith("Usage: ")

    def test_every_option_is_explained(self) -> None:
        group = command("rag")
        assert isinstance(group, click.Group)
        parts = [group.get_command(click.Context(group), name) for name in RAG]
        for found in [*map(command, COMMANDS), *parts]:
            assert found is not None and found.help
            for option in found.params:
                assert not isinstance(option, click.Option) or option.help, option.name

    def test_no_command_shows_the_help(self, nybble: Run) -> None:
        ran = nybble()
        assert (ran.code, ran.out) == (1, "")
        assert ran.err.startswith("Usage: nybble") and "measure" in ran.err

    def test_formats(self, nybble: Run) -> None:
        ran = nybble("formats")
        assert (ran.code, ran.err) == (0, "")
        assert all(f" {name} " in ran.out for name in KV_TYPES)

    def test_formats_json(self, nybble: Run) -> None:
        ran = nybble("formats", "--json")
        assert (ran.code, ran.err) == (0, "")
        found = {t["name"]: t for t in ran.record["types"]}
        assert list(found) == list(KV_TYPES)
        for name, t in found.items():
            assert t["bits"] == KV_TYPES[name].bits and t["layout"] and t["source"]
            assert t["llama.cpp"] == ("llama.cpp" in t["engines"])
        assert ran.record["aliases"] == ALIASES
        assert all(parse(text).quantized for text in ALIASES.values())

    def test_doctor(self, nybble: Run) -> None:
        ran = nybble("doctor", env={"COLUMNS": "80"})
        assert (ran.code, ran.err) == (0, "")
        assert re.search(r"^ok +llama.cpp engine", ran.out, re.MULTILINE)
        assert max(map(len, ran.out.splitlines())) <= 80

    def test_doctor_json(self, nybble: Run) -> None:
        findings = nybble("doctor", "--json").record
        states = {f["name"]: f["state"] for f in findings}
        assert states["llama.cpp engine"] == "ok"
        assert all(f["fix"] for f in findings if f["state"] == "missing")

    def test_doctor_fails_on_what_is_broken(self, nybble: Run, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        ran = nybble("doctor", env={"NYBBLE_CACHE": str(tmp_path / "file" / "x")})
        assert ran.code == 1
        assert re.search(r"^BROKEN +cache folder.*\n +get it: export NYBBLE_CACHE", ran.out, re.M)

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_completion(self, nybble: Run, tmp_path: Path, shell: str) -> None:
        ran = nybble("completion", shell)
        assert (ran.code, ran.err) == (0, "")
        assert "_NYBBLE_COMPLETE" in ran.out
        if shutil.which(shell) is None:
            pytest.skip(f"{shell} is not installed; the script was printed")
        script = tmp_path / "script"
        script.write_text(ran.out, encoding="utf-8")
        subprocess.run([shell, "-n", script], check=True, timeout=20)

    def test_completion_completes(self, nybble: Run) -> None:
        def complete(words: str) -> list[str]:
            env = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
            ran = nybble(env={**env, "_NYBBLE_COMPLETE": "bash_complete"})
            assert (ran.code, ran.err) == (0, "")
            return [line.removeprefix("plain,") for line in ran.out.splitlines()]

        assert complete("nybble me") == ["measure"]
        assert complete("nybble measure --fail") == ["--fail-over"]
        assert complete("nybble completion z") == ["zsh"]


class TestMistypes:
    @pytest.mark.parametrize(
        ("words", "parts"),
        [
            (
                "mesure x.gguf",
                ["unknown command of nybble; did you mean measure?", "mesure", "formats"],
            ),
            ("xyzzy", ["unknown command of nybble\n", "xyzzy", "try:     nybble --help"]),
            ("--nope", ["--nope", "try:     nybble --help"]),
            ("measure --contxt 64", ["--contxt", "--context", "try:     nybble measure --help"]),
            ("measure --context", ["--context", "try:     nybble measure --help"]),
            ("measure --documents x", ["--documents", "'x'", "try:     nybble measure --help"]),
            ("measure a.gguf b.gguf", ["b.gguf", "try:     nybble measure --help"]),
            ("formats x", ["(x)", "try:     nybble formats --help"]),
            ("doctor --jsn", ["--jsn", "--json", "try:     nybble doctor --help"]),
            ("completion", ["bash", "zsh", "fish", "try:     nybble completion --help"]),
            ("completion tcsh", ["tcsh", "bash", "try:     nybble completion --help"]),
        ],
    )
    def test_says_what_and_what_next(self, nybble: Run, words: str, parts: list[str]) -> None:
        ran = nybble(*words.split())
        assert (ran.code, ran.out) == (1, "")
        assert ran.err.startswith("error: ")
        for part in parts:
            assert part in ran.err


def _on_terminal(folder: Path, words: list[str], env: dict[str, str], columns: int) -> str:
    """Output of a command whose stdout and stderr are a terminal of that width."""
    outside, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    child = subprocess.Popen(
        [sys.executable, "-m", "nybble", *words],
        cwd=folder, stdin=inside, stdout=inside, stderr=inside, close_fds=True,
        env={k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")}
        | {"TERM": "xterm-256color"} | env,
    )  # fmt: skip
    os.close(inside)
    parts = []
    try:
        while part := os.read(outside, 65536):
            parts.append(part)
    except OSError:  # Linux's way to say that the other end is closed
        pass
    os.close(outside)
    assert child.wait(60) == 0
    return b"".join(parts).decode().replace("\r\n", "\n")


class TestTerminal:
    COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|9[0-7]|38;[\d;]+)m")

    @pytest.mark.parametrize("width", [80, 120])
    def test_nothing_is_wider(
        self, first: Any, here: Any, cache: dict[str, str], width: int
    ) -> None:
        words = ["measure", "tiny.gguf", *SMALL]
        text = _on_terminal(here.folder, words, cache, width)
        assert self.COLOUR.search(text)
        plain = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", text).replace("\r", "\n")
        lines = [ln for ln in plain.splitlines() if not ln.startswith(("report:", "rows:"))]
        assert max(map(len, lines)) <= width, plain
        assert ("p99.9" in plain) == (width >= 100)
        assert re.search(r"q8_0/q4_0 .* (broken|degraded|unresolved)", plain)

    def test_no_color(self, first: Any, here: Any, cache: dict[str, str]) -> None:
        env = {**cache, "NO_COLOR": "1"}
        text = _on_terminal(here.folder, ["measure", "tiny.gguf", *SMALL, "-q"], env, 80)
        assert "q8_0/q4_0" in text and not self.COLOUR.search(text)

    def test_columns_without_a_terminal(self, first: Any, here: Run) -> None:
        out = here("measure", "tiny.gguf", *SMALL, env={"COLUMNS": "80"}).out
        table = out.split("\nreport:")[0]
        assert max(map(len, table.splitlines())) <= 80 and "\x1b" not in out

    def test_dry_run_and_formats_fit(self, here: Any, cache: dict[str, str]) -> None:
        for words in (["measure", "tiny.gguf", "--dry-run"], ["formats"]):
            text = _on_terminal(here.folder, words, cache, 80)
            plain = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", text)
            assert max(map(len, plain.splitlines())) <= 80, plain


def test_run_records_its_command(here: Run) -> None:
    ran = here("measure", "tiny.gguf", *SMALL, "--json", "--out", "a folder")
    assert ran.record["command"].endswith("--json --out 'a folder'")
    assert json.loads((here.folder / "a folder" / "summary.json").read_text()) == ran.record  # type: ignore[attr-defined]
