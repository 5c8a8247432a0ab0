"""`nybble measure` measures one kind of thing, and refuses what that kind does not look at."""

from __future__ import annotations

import pytest

from nybble.cli.main import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--generate 64 --context 1024", "--generate has no use for this"),
        ("--generate 64 --against other.gguf", "--against"),
        ("--tasks all --generate 64", "one kind of measurement at a time"),
        ("--tasks all --via decode", "--tasks has no use for this"),
        ("--tasks all --prompts 3", "--prompts"),
        ("--tasks needles", "did you mean needle?"),
        ("--tasks ,", "no task named"),
        ("--tasks needle --context 64", "too short for tasks"),
        ("--tasks needle --queries 0", "--queries is out of range"),
        ("--tasks needle --against other.gguf", "cannot be combined with --tasks"),
        ("--prompts 3", "a measurement has no use for this"),
        ("--queries 3", "--queries"),
        ("--generate 3", "--generate is out of range"),
    ],
)
def test_refused(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", *words.split()]) == 1
    told = capsys.readouterr()
    assert told.out == "" and said in told.err and "Traceback" not in told.err
