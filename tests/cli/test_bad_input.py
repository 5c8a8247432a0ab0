"""Every input that cannot be used ends with exit 1 and a message to act on; nothing is left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nybble.cli.measure
from nybble.cli.main import main

Run = Callable[..., Any]
SMALL = ("--context", "64", "--documents", "1", "--categories", "prose", "--kv", "q8_0/q4_0")
FIRST = b"GGUF"


@pytest.fixture
def bad(nybble: Run, tmp_path: Path) -> Run:
    """Runs a command that must fail: exit 1, a message of the agreed form, no trace on disk."""

    def run(*args: object, **options: Any) -> str:
        before = set(tmp_path.rglob("*"))
        ran = nybble(*args, **options)
        assert (ran.code, ran.out) == (1, ""), ran
        message = ran.err[ran.err.index("error: ") :]
        assert "  seen:    " in message and ("  allowed: " in message or "  try:     " in message)
        assert "unexpected" not in message and "bug" not in message
        assert set(tmp_path.rglob("*")) == before
        return str(message)

    return run


@pytest.fixture
def tiny(tmp_path: Path, tiny_model: Path) -> Path:
    """The tiny model under a short name in the test's folder."""
    path = tmp_path / "tiny.gguf"
    path.symlink_to(tiny_model)
    return path


class TestModel:
    def test_missing(self, bad: Run) -> None:
        message = bad("measure", "nowhere.gguf", *SMALL)
        assert "There is no such model file" in message and "nowhere.gguf" in message

    def test_missing_names_the_nearest(self, bad: Run, tiny: Path) -> None:
        assert "did you mean tiny.gguf" in bad("measure", "tinny.gguf", *SMALL)

    def test_against_missing(self, bad: Run, tiny: Path) -> None:
        assert "nowhere.gguf" in bad("measure", "tiny.gguf", "--against", "nowhere.gguf", *SMALL)

    def test_folder(self, bad: Run, tiny: Path) -> None:
        message = bad("measure", ".", *SMALL)
        assert "folder holds GGUF files" in message and "name the file, such as tiny" in message

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system")
    def test_pipe(self, bad: Run, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.gguf")
        assert "a pipe or a device" in bad("measure", "pipe.gguf", *SMALL, timeout=20)

    @pytest.mark.parametrize(
        ("data", "parts"),
        [
            (b"", ["is empty", "download the file again"]),
            (b"GG", ["cut short (at byte 2)"]),
            (b"just a text\n" * 50, ["not a GGUF", "just a t"]),
            (b"PK\x03\x04" + bytes(200), ["not a GGUF", "zip or PyTorch pickle"]),
            (b"\x80\x02}q\x00." + bytes(99), ["not a GGUF", "zip or PyTorch pickle"]),
            (b"\x08" + bytes(7) + b'{"a":{}}' + bytes(99), ["a safetensors file", "convert"]),
            (b"version https://git-lfs.github.com/spec/v1\n", ["git lfs pull"]),
            (b"<!DOCTYPE html><html>sign in</html>", ["HTML", "download"]),
            (FIRST + b"\x01\0\0\0" + bytes(40), ["version 1", "versions 2 and 3"]),
            (FIRST + b"\0\0\0\x03" + bytes(40), ["big endian"]),
            (FIRST + b"\x03\0\0\0" + b"\xff" * 16 + bytes(64), ["too many tensors"]),
            (FIRST + b"\x03\0\0\0" + bytes(16), ["general.architecture"]),
        ],
        ids=lambda v: ascii(v)[:20] if isinstance(v, bytes) else None,
    )
    def test_not_a_model(self, bad: Run, tmp_path: Path, data: bytes, parts: list[str]) -> None:
        (tmp_path / "bad.gguf").write_bytes(data)
        message = bad("measure", "bad.gguf", *SMALL)
        for part in parts:
            assert part in message

    @pytest.mark.parametrize("share", [0.001, 0.005, 0.5, 0.999])
    def test_cut_short(self, bad: Run, tmp_path: Path, tiny_model: Path, share: float) -> None:
        data = tiny_model.read_bytes()
        (tmp_path / "cut.gguf").write_bytes(data[: int(len(data) * share)])
        message = bad("measure", "cut.gguf", *SMALL)
        assert message.startswith("error: cut.gguf: ") and "download the file again" in message
        if share > 0.1:
            short = len(data) - int(len(data) * share)
            assert f"{short:,} bytes short" in message

    def test_head_size(self, bad: Run, tmp_path: Path, make_tiny: Callable[..., Path]) -> None:
        make_tiny(tmp_path / "odd.gguf", head_dim=48)
        for options in (("--kv", "q8_0/f16"), ("--kv", "f16/q4_0"), ()):
            message = bad("measure", "odd.gguf", *options, "--context", 64)
            assert "blocks of 32 elements" in message and "head size 48" in message
            assert "f16, bf16, f32" in message and "--kv f16/q" not in message

    def test_other_vocabulary(self, bad: Run, tmp_path: Path, tiny: Path) -> None:
        # One token of the list is renamed, so nothing else in the file moves.
        other = tiny.read_bytes().replace("\u2581the".encode(), "\u2581THE".encode(), 1)
        (tmp_path / "other.gguf").write_bytes(other)
        message = bad("measure", "tiny.gguf", "--against", "other.gguf", *SMALL)
        assert "different vocabularies" in message and "tiny.gguf and other.gguf" in message

    def test_no_chat_template(self, bad: Run, tiny: Path) -> None:
        message = bad("measure", "tiny.gguf", *SMALL, "--framing", "template")
        assert "no chat template" in message and "--framing auto or raw" in message

    def test_header_claims_more_than_there_is(
        self, nybble: Run, tmp_path: Path, make_tiny: Callable[..., Path]
    ) -> None:
        """A context of 2 billion tokens in the header must not decide the memory that is used."""
        make_tiny(tmp_path / "huge.gguf", context_length=(1 << 31) - 1)
        limited = "ulimit -v 8000000; exec " + " ".join([sys.executable, "-m", "nybble"])
        done = subprocess.run(
            ["bash", "-c", f"{limited} measure huge.gguf {' '.join(SMALL)} --json -q"],
            cwd=tmp_path, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


class TestSetting:
    @pytest.mark.parametrize(
        ("options", "parts"),
        [
            ("--kv q8_1", ["did you mean q8_0?", "q8_1", "iq4_nl", "nybble formats"]),
            ("--kv q4_0/q40", ["did you mean q4_0?", "q40"]),
            ("--k fp8", ["unknown KV type", "fp8"]),
            ("--v Q5_1x", ["did you mean q5_1?"]),
            ("--kv q8_0/q4_0/q4_0", ["is written K/V", "q8_0/q4_0/q4_0"]),
            ("--kv q8_0/", ["is written K/V"]),
            ("--context 8192", ["8,192 tokens", "up to 4,096 for tiny", "--context 4096"]),
            ("--context 64,9999999999", ["9,999,999,999", "up to 4,096"]),
            ("--context abc", ["whole numbers", "abc", "--context 1024,8192"]),
            ("--context 64,,128", ["whole numbers"]),
            ("--context 1.5", ["whole numbers", "1.5"]),
            ("--context=", ["whole numbers"]),
            ("--context 0", ["too short", "32 or more"]),
            ("--context -64", ["too short", "-64"]),
            ("--memory-at 0", ["--memory-at is out of range", "1 to 16,777,216"]),
            ("--memory-at 99999999999", ["--memory-at is out of range"]),
            ("--documents 0", ["--documents", "1 or more"]),
            ("--documents -3", ["--documents", "-3"]),
            ("--threads 0", ["--threads", "1 to 512"]),
            ("--threads 100000", ["--threads", "100000"]),
            ("--seed -1", ["--seed", "0 or more"]),
            ("--score-from 1", ["--score-from", "0 to 0.95"]),
            ("--score-from nan", ["--score-from", "nan"]),
            ("--timeout 0", ["--timeout", "more than 0"]),
            ("--timeout inf", ["--timeout", "inf"]),
            ("--fail-over -1", ["--fail-over", "0 or more"]),
            ("--fail-over nan", ["--fail-over", "nan"]),
            ("--rotation maybe", ["rotation", "maybe", "on, off or on,off"]),
            ("--via sideways", ["--via", "sideways", "prefill, decode"]),
            ("--weights f8", ["--weights", "f8", "f16, f32, as-shipped"]),
            ("--framing none", ["--framing", "none", "auto, template, raw"]),
            ("--categories pros", ["did you mean prose?", "pros", "code, chat"]),
            ("--categories prose,zzz", ["unknown category", "zzz"]),
        ],
    )
    def test_refused(self, bad: Run, tiny: Path, options: str, parts: list[str]) -> None:
        message = bad("measure", "tiny.gguf", *options.split())
        for part in parts:
            assert part in message

    @pytest.mark.parametrize(
        ("option", "part"),
        [
            ("--kv", "no KV settings"),
            ("--kv=,", "no KV settings"),
            ("--categories", "no text to score"),
            ("--categories=,", "no text to score"),
        ],
    )
    def test_empty_is_not_the_default(
        self, nybble: Run, tiny: Path, option: str, part: str
    ) -> None:
        """`--kv "$KV"` with KV unset must not quietly measure something else."""
        words = [option] if "=" in option else [option, ""]
        ran = nybble("measure", "tiny.gguf", *words)
        assert (ran.code, ran.out) == (1, "") and part in ran.err and "  try:     " in ran.err

    @pytest.mark.parametrize(
        "options",
        [
            "--kv q8_1",
            "--context 8192",
            "--categories pros",
            "--text none.txt",
            "--jsonl none.jsonl",
            "--thresholds none.toml",
        ],
    )
    def test_dry_run_refuses_the_same(self, bad: Run, tiny: Path, options: str) -> None:
        assert bad("measure", "tiny.gguf", "--dry-run", *options.split())


class TestText:
    @pytest.mark.parametrize(
        ("data", "parts"),
        [
            (
                b"far too short",
                ["no text fills one context of 64 tokens", "has 14 tokens, too few", "--context"],
            ),
            (b"", ["is empty"]),
            (b" \n\t\n", ["is empty"]),
            (bytes(range(256)), ["binary", "NUL byte at offset 0"]),
            (b"caf\xe9 " * 100, ["not UTF-8 at byte offset 3", "0xe9", "iconv"]),
        ],
        ids=["short", "empty", "blank", "binary", "latin1"],
    )
    def test_unusable(
        self, bad: Run, tmp_path: Path, tiny: Path, data: bytes, parts: list[str]
    ) -> None:
        (tmp_path / "own.txt").write_bytes(data)
        message = bad("measure", "tiny.gguf", "--text", "own.txt", "--context", 64)
        for part in parts:
            assert part in message

    def test_missing_and_folder(self, bad: Run, tiny: Path) -> None:
        assert "none.txt" in bad("measure", "tiny.gguf", "--text", "none.txt")
        assert "is a folder" in bad("measure", "tiny.gguf", "--text", ".")

    @pytest.mark.parametrize(
        ("line", "parts"),
        [
            ('{"text": oops}', ["not valid JSON", "oops"]),
            ("[1, 2]", ["not a JSON object"]),
            ('{"txt": "a"}', ['"text" and "messages"', "'txt'"]),
            ('{"text": 3}', ["not a string"]),
            ('{"messages": [{"role": "robot", "content": "x"}]}', ["unknown role", "robot"]),
        ],
    )
    def test_bad_line(
        self, bad: Run, tmp_path: Path, tiny: Path, line: str, parts: list[str]
    ) -> None:
        (tmp_path / "own.jsonl").write_text(f'{{"text": "a good line"}}\n{line}\n')
        message = bad("measure", "tiny.gguf", "--jsonl", "own.jsonl", "--context", 64)
        assert "own.jsonl, line 2: " in message
        for part in parts:
            assert part in message


class TestThresholds:
    @pytest.mark.parametrize(
        ("text", "parts"),
        [
            ("mean_kl = {safe = 1, broken = 2}", ["did you mean mean_kld?", "mean_kl", "flips"]),
            ("mean_kld = {safe = 2, broken = 1}", ["safe and broken", "0 < safe < broken"]),
            ("mean_kld = {safe = 2}", ["safe and broken"]),
            ("mean_kld = 0.1", ["safe and broken", "0.1"]),
            ("mean_kld = {safe = nan, broken = 1}", ["0 < safe < broken"]),
            ("not = = toml", ["cannot read the thresholds", "line 1", "safe = 0.01"]),
            ("", ["no thresholds", "mean_kld"]),
        ],
    )
    def test_refused(
        self, bad: Run, tmp_path: Path, tiny: Path, text: str, parts: list[str]
    ) -> None:
        (tmp_path / "mine.toml").write_text(text)
        message = bad("measure", "tiny.gguf", *SMALL, "--thresholds", "mine.toml")
        assert "mine.toml" in message
        for part in parts:
            assert part in message

    def test_missing(self, bad: Run, tiny: Path) -> None:
        message = bad("measure", "tiny.gguf", *SMALL, "--thresholds", "none.toml")
        assert "none.toml: No such file or directory" in message


class TestFolders:
    def test_run_folder_below_a_file(self, bad: Run, tmp_path: Path, tiny: Path) -> None:
        (tmp_path / "file").touch()
        for out in ("file", "file/x", "file/x/y"):
            message = bad("measure", "tiny.gguf", *SMALL, "--out", out)
            assert "cannot write to the run folder" in message and f"{out}: " in message
            assert "is a file" in message and "--out FOLDER" in message

    def test_cache_folder_below_a_file(
        self, bad: Run, nybble: Run, tmp_path: Path, tiny: Path, tiny_q8: Path
    ) -> None:
        """It is only needed for the float copy of quantized weights."""
        (tmp_path / "file").touch()
        env = {"NYBBLE_CACHE": str(tmp_path / "file" / "x")}
        message = bad("measure", tiny_q8, *SMALL, env=env)
        assert "cannot write the f16 copy of the weights" in message
        assert "NYBBLE_CACHE=" in message and "--weights as-shipped" in message
        assert nybble("measure", "tiny.gguf", *SMALL, env=env).code == 0


def test_a_failure_leaves_nothing_to_trip_over(nybble: Run, tmp_path: Path, tiny: Path) -> None:
    """The same command works once its input is mended."""
    text = tmp_path / "own.txt"
    text.write_text("too short")
    command = (
        "measure",
        "tiny.gguf",
        "--text",
        "own.txt",
        "--kv",
        "q4_0",
        "--context",
        64,
        "--csv",
    )
    assert nybble(*command).code == 1
    text.write_text("Long enough for a chunk of sixty-four tokens, each a byte or so. " * 20)
    ran = nybble(*command)
    assert ran.code == 0 and ran.out.count("\n") == 4


class TestUnexpected:
    """A bug: exit 2, what to do, no traceback unless asked for."""

    @pytest.fixture(autouse=True)
    def _bug(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*args: object) -> None:
            raise ZeroDivisionError("a bug of ours")

        monkeypatch.setattr(nybble.cli.measure, "run_measure", broken)

    def test_exit_2(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["measure", "x.gguf"]) == 2
        out, err = capsys.readouterr()
        assert out == "" and "Traceback" not in err
        assert err.startswith("unexpected error: ZeroDivisionError: a bug of ours\n")
        assert "bug in nybble" in err and "--debug" in err

    @pytest.mark.parametrize("words", ["measure x.gguf --debug", "--debug measure x.gguf"])
    def test_debug_shows_where(self, capsys: pytest.CaptureFixture[str], words: str) -> None:
        assert main(words.split()) == 2
        assert "Traceback" in capsys.readouterr().err

    def test_debug_on_an_error_of_the_user(self, nybble: Run) -> None:
        ran = nybble("measure", "nowhere.gguf", "--debug", traceback=True)
        assert ran.code == 1 and "Traceback" in ran.err and "no such model file" in ran.err
