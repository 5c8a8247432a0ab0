"""`nybble harden --train` on the command line: what it refuses, and one whole run."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nybble.cli import harden as command
from nybble.cli.main import main
from nybble.hardening.place import hardened
from trainable import write_qwen3

Run = Callable[..., Any]
OPTIONS = {
    "--scope": "all", "--lora": 4, "--steps": 5, "--batch": 2, "--accumulate": 2, "--context": 64,
    "--shares": "1,2", "--lr": "scales=0.1", "--stored": "q4_0", "--eval-every": 3,
    "--patience": 0, "--precision": "f32", "--log": "csv", "--seed": 1, "--run": "there",
    "--restart": "",  # a flag: it takes no value
}  # fmt: skip


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen3(tmp_path_factory.mktemp("original") / "m.gguf")


@pytest.fixture
def bad(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command that must fail before any work, and leave nothing."""

    def run(*words: object) -> str:
        capsys.readouterr()
        code = main(["harden", str(original), "-o", str(tmp_path / "o.gguf"), *map(str, words)])
        out, err = capsys.readouterr()
        assert (code, out) == (1, ""), err
        assert err.count("error: ") == 1
        message = err[err.index("error: ") :]
        assert message == err, "work was begun"
        assert "unexpected" not in err and "Traceback" not in err
        assert re.search("^  allowed: .|^  try:     .", err, re.M)
        assert not list(tmp_path.iterdir())
        return err

    return run


class TestWithoutTrain:
    def test_all_options_are_here(self) -> None:
        assert {f"--{name.replace('_', '-')}" for name in command._NAMES} == set(OPTIONS)

    @pytest.mark.parametrize("option", OPTIONS)
    def test_refused(self, bad: Run, option: str) -> None:
        value = OPTIONS[option]
        err = bad(option, *([] if value == "" else [value]))
        assert f"{option} is about training" in err and f"--train {option} ..." in err

    def test_even_with_its_default(self, bad: Run) -> None:
        assert "--scope is about training" in bad("--scope", "kv")


class TestRefused:
    @pytest.mark.parametrize(
        ("option", "value", "words"),
        [
            ("--scope", "head", ("--scope", "head", "scales, kv, all")),
            ("--stored", "q4_k", ("--stored", "q4_k", "q4_0, q8_0")),
            ("--stored", "q4_0", ("--stored q4_0 --scope kv", "--scope all")),
            ("--precision", "f16", ("--precision", "auto, bf16, f32")),
            ("--log", "wandb", ("--log", "csv, tensorboard")),
            ("--lr", "matrices", ("--lr", "matrices", "--lr matrices=1e-5")),
            ("--lr", "matrices=fast", ("matrices=fast", "--lr matrices=1e-5")),
            ("--lr", "matrix=1e-5", ("matrix=1e-5", "matrices, experts, low rank")),
            ("--lr", "1e-5", ("1e-5", "GROUP=RATE")),
            ("--lr", "matrices=0", ("learning rate", "matrices=0")),
            ("--lr", "matrices=nan", ("learning rate", "matrices=nan")),
            ("--lr", "matrices=-1", ("learning rate", "matrices=-1")),
            ("--shares", "1,two", ("--shares", "1,two", "--shares 3,1")),
            ("--shares", "1,", ("--shares", "--shares 3,1")),
            ("--shares", "1", ("1 weights", "2 weights")),
            ("--shares", "1,0", ("1.0, 0.0", "more than 0")),
            ("--shares", "1,inf", ("inf", "finite")),
            ("--steps", "0", ("--steps", "1 or more")),
            ("--steps", "many", ("many",)),
            ("--batch", "-1", ("--batch", "1 or more")),
            ("--context", "31", ("--context", "32 or more")),
            ("--lora", "-1", ("--lora", "0 to 4,096")),
            ("--seed", "-1", ("--seed", "0 or more")),
            ("--threads", "0", ("--threads",)),
        ],
    )  # fmt: skip
    def test_values(self, bad: Run, option: str, value: str, words: tuple[str, ...]) -> None:
        err = bad("--train", option, value)
        for word in words:
            assert word in err

    @pytest.mark.parametrize("name", ["accelerate", "torch", "gguf"])
    def test_without_a_package(self, bad: Run, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        monkeypatch.setitem(sys.modules, name, None)
        err = bad("--train")
        assert f"missing: {name}" in err and "pip install" in err and "train" in err

    def test_torchao_only_where_it_is_used(self, bad: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torchao", None)
        assert "missing: torchao" in bad("--train", "--scope", "all", "--stored", "q8_0")


def test_groups_are_those_with_a_rate() -> None:
    pytest.importorskip("torch")
    from nybble.hardening.train.parameters import RATES

    assert tuple(RATES) == command._GROUPS


@pytest.mark.timeout(300)
@pytest.mark.parametrize("own", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_whole_run(original: Path, tmp_path: Path, invoke: Run, own: bool) -> None:
    """Stdout says what was gained and how it was trained; stderr how far it is."""
    for package in ("torch", "transformers", "accelerate"):
        pytest.importorskip(package)
    text: list[Any] = []
    if own:  # the built-in text takes seconds to tokenize
        from pydoc_data.topics import topics

        for i, name in enumerate(sorted(topics, key=lambda k: -len(topics[k]))[:8]):
            text += ["--text", tmp_path / f"{i}.txt"]
            text[-1].write_text(topics[name][:3000], "utf-8")
    before = {p.name for p in tmp_path.iterdir()}
    words = (
        "harden", original, "-o", "o.gguf", "--train", "--kv", "q4_0,f16", "--shares", "3,1",
        "--context", 64, "--steps", 4, "--eval-every", 2, "--batch", 2, "--run", "run",
        "--lr", "norms=1e-3", "--lr", "matrices = 3e-4", "--tokens", 256, "--threads", 1,
        "--categories", "prose", *text,
    )  # fmt: skip
    env = {"NYBBLE_CACHE": str(tmp_path / "cache")}
    ran = invoke(*words, cwd=tmp_path, env=env)
    assert ran.code == 0, ran.err
    assert ran.out.splitlines()[-1] == "hardened: o.gguf"
    shown = " ".join(ran.out.split())  # lines are as wide as a terminal
    row = re.search(r"q4_0/q4_0 │ (\S+) │ (\S+) │", shown)
    assert row and float(row[1]) > 2 * float(row[2]) > 0, ran.out
    assert re.search(
        r"training of kv on 512 tokens in \d+ seconds: (step [24] of 4 is|the fold)", shown
    )
    for word in ("16-bit cache: KLD", "the formula: variance", "held out from it: q4_0/q4_0"):
        assert word in shown and word not in ran.err
    for word in ("tokenizing", "step 4 of 4: loss"):
        assert word in ran.err and word not in ran.out
    assert "\x1b" not in ran.out + ran.err
    record = hardened(tmp_path / "o.gguf")
    assert record["nybble.hardened"] == "train"
    assert record["nybble.hardened.settings"] == "q4_0/q4_0, f16/f16"
    assert {p.name for p in tmp_path.iterdir()} - before == {"cache", "o.gguf", "run"}
