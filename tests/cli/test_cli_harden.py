"""`nybble harden` on the command line: what it refuses, and one whole run."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from nybble.cli.main import main
from nybble.hardening import harden as module
from nybble.hardening.gguf_edit import scale_gguf
from nybble.hardening.place import hardened

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def original(make_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama with outsized keys, alike within RoPE's pairs, and queries that are small there."""
    path = make_tiny(tmp_path_factory.mktemp("original") / "tiny.gguf", n_head=2, n_kv=2)
    reader: Any = gguf.GGUFReader(path, "r+")
    g = np.repeat(np.exp(1.5 * np.random.default_rng(0).standard_normal((64, 1))), 2, axis=0)
    for t in reader.tensors:
        if "attn_k." in t.name or "attn_q." in t.name:
            t.data[:] *= g if "attn_k." in t.name else 1 / g
    reader.data.flush()
    return path


@pytest.fixture
def tiny(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That model, alone in the working folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copy(original, tmp_path / "tiny.gguf"))


@pytest.fixture
def bad(tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command that must fail before an engine starts, and leave the folder as it is."""
    monkeypatch.setattr(module, "_texts", None)

    def run(*words: object) -> str:
        before = {p: p.stat().st_mtime_ns for p in tiny.parent.rglob("*")}
        capsys.readouterr()
        code = main(["harden", *map(str, words)])
        out, err = capsys.readouterr()
        assert (code, out) == (1, ""), err
        assert err.count("error: ") == 1
        message = err[err.index("error: ") :]
        assert "unexpected" not in message and "Traceback" not in err
        assert re.search("^  allowed: .|^  try:     .", message, re.M)
        assert {p: p.stat().st_mtime_ns for p in tiny.parent.rglob("*")} == before
        return message

    return run


class TestRefused:
    def test_no_output(self, bad: Run) -> None:
        message = bad("tiny.gguf")
        assert "Missing option '--out'" in message and "nybble harden --help" in message

    def test_an_option_that_is_none(self, bad: Run) -> None:
        assert "No such option" in bad("tiny.gguf", "-o", "o.gguf", "--four-bit")

    @pytest.mark.parametrize(
        ("option", "value", "words"),
        [
            ("--statistics", "vllm", ("vllm", "auto, llama.cpp, transformers")),
            ("--weights", "q4_0", ("q4_0", "f16, f32, as-shipped")),
            ("--device", "tpu", ("tpu", "auto, cpu, cuda")),
            ("--tokens", "12", ("12", "256 to 65,536")),
            ("--tokens", "many", ("'many' is not a valid integer",)),
            ("--kv", "f16/f16", ("nothing to harden for", "f16/f16", "--kv q4_0/q4_0")),
            ("--kv", "f16,bf16", ("nothing to harden for", "bf16/bf16")),
            ("--kv", "q4_9", ("q4_9", "q4_0")),
            ("--kv", "", ("--kv",)),
        ],
    )
    def test_values(self, bad: Run, option: str, value: str, words: tuple[str, ...]) -> None:
        message = bad("tiny.gguf", "-o", "o.gguf", option, value)
        for word in words:
            assert word in message

    def test_training_without_train(self, bad: Run) -> None:
        assert "--train" in bad("tiny.gguf", "-o", "o.gguf", "--steps", "5")

    @pytest.mark.parametrize("fresh", [(), ("--fresh",)])
    def test_the_output_is_the_input(self, bad: Run, tiny: Path, fresh: tuple[str, ...]) -> None:
        for out in ("tiny.gguf", "./tiny.gguf", tiny):
            assert "the output is the input" in bad("tiny.gguf", "-o", out, *fresh)

    def test_the_output_is_there(self, bad: Run, tiny: Path) -> None:
        (tiny.parent / "o.gguf").write_bytes(b"mine")
        assert "--fresh" in bad("tiny.gguf", "-o", "o.gguf")

    def test_no_folder_for_the_output(self, bad: Run, tiny: Path) -> None:
        message = bad("tiny.gguf", "-o", "none/o.gguf")
        assert f"mkdir -p {tiny.parent / 'none'}" in message

    @pytest.mark.parametrize("name", ["nowhere.gguf", "no/such/folder", ".", "x" * 300])
    def test_no_model(self, bad: Run, name: str) -> None:
        assert "seen:" in bad(name, "-o", "o.gguf")

    @pytest.mark.parametrize("out", [".", "x" * 300, "tiny.gguf/o.gguf"])
    def test_an_output_that_cannot_be(self, bad: Run, out: str) -> None:
        assert "seen:" in bad("tiny.gguf", "-o", out, "--fresh")

    def test_damaged(self, bad: Run, tiny: Path) -> None:
        (tiny.parent / "half.gguf").write_bytes(tiny.read_bytes()[:100_000])
        assert "seen:" in bad("half.gguf", "-o", "o.gguf")

    def test_an_unknown_family(self, bad: Run, tiny: Path) -> None:
        """The same file under another architecture's name, of as many letters."""
        data = tiny.read_bytes()
        assert b"llama.block_count" in data
        (tiny.parent / "o1.gguf").write_bytes(data.replace(b"llama", b"gemma"))
        message = bad("o1.gguf", "-o", "o.gguf")
        assert "no rule to harden this architecture" in message and "'gemma'" in message
        assert "gemma3, gemma4, qwen3" in message and "nyb4" in message

    def test_hardened_already(self, bad: Run, tiny: Path) -> None:
        scale_gguf(tiny, tiny.parent / "h.gguf", [], {"nybble.hardened": "fold"}, lambda _: None)
        message = bad("h.gguf", "-o", "o.gguf")
        assert "hardened already" in message and "--again" in message


def test_help_names_every_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["harden", "--help"]) == 0
    out = capsys.readouterr().out
    for word in ("--kv", "q4_0/q4_0,q8_0/q8_0", "--statistics", "auto, llama.cpp", "--again"):
        assert word in out


@pytest.mark.timeout(180)
def test_a_whole_run(original: Path, tmp_path: Path, invoke: Run) -> None:
    """Stdout says what was gained and where it is; stderr how far it is."""
    shutil.copy(original, tmp_path / "tiny.gguf")
    env = {"NYBBLE_CACHE": str(tmp_path / "cache")}
    ran = invoke(
        "harden", "tiny.gguf", "-o", "hard.gguf", "--kv", "q4_0", "--tokens", 512, "--threads", 1,
        cwd=tmp_path, env=env,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.out.splitlines()[-1] == "hardened: hard.gguf"
    for word in ("q4_0/q4_0", "16-bit cache: KLD", "noise floor"):
        assert word in ran.out
    for word in ("the fold lowers", "loading the weights"):
        assert word in ran.err and word not in ran.out
    assert "\x1b" not in ran.out + ran.err
    assert hardened(tmp_path / "hard.gguf")["nybble.hardened"] == "fold"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "hard.gguf", "tiny.gguf"]
