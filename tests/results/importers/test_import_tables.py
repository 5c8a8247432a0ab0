"""Published tables in CSV: both forms, and every mistake with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from import_sources import given, source

from nybble.errors import NybbleError
from nybble.results.base.external import External
from nybble.results.importers.published import read

WIDE = """model,k,v,context,mean_kld,mean_kld_stderr,same_top,note
Gemma,q8_0,q4_0,4096,0.012,0.001,0.96,table 2

Gemma,q4_0,q4_0,4096,0.05,,,"<script>, =cmd()"
"""
LONG = "\ufeffModel,KV,Metric,Value,Stderr,higher_is_better\nQwen,,MMLU,61.2,0.4,yes\n"


def rows(folder: Path, text: str, **told: Any) -> list[External]:
    named = {"harness": "paper", "address": "https://example.org/t", **told}
    return read(source(folder, text, "t.csv"), given(**named)).rows


def test_wide(tmp_path: Path) -> None:
    first, top, second = rows(tmp_path, WIDE)
    assert (first.model, first.setting, first.context) == ("Gemma", "q8_0/q4_0", 4096)
    assert (first.metric, first.value, first.stderr) == ("mean_kld", 0.012, 0.001)
    assert (top.metric, top.value, top.higher_is_better) == ("same_top", 0.96, True)
    assert second.value == 0.05 and second.stderr is None  # what is empty was not published
    assert second.note == "<script>, =cmd()"  # text stays text


def test_long(tmp_path: Path) -> None:
    (row,) = rows(tmp_path, LONG)
    assert row == External("Qwen", "", "MMLU", 61.2, 0.4, higher_is_better=True)
    (row,) = rows(tmp_path, LONG.replace(",yes", ","), setting="q8_0/q8_0", model="m", context=9)
    assert (row.setting, row.model, row.context) == ("q8_0/q8_0", "m", 9)


@pytest.mark.parametrize("missing", ["harness", "address"])
def test_who_measured_and_where_it_stands(tmp_path: Path, missing: str) -> None:
    with pytest.raises(NybbleError, match="--harness NAME --source URL"):
        rows(tmp_path, WIDE, **{missing: None})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model,kv,mean_kdl\nA,q8_0,1\n", "did you mean mean_kld"),
        ("model,kv,metric,valu\nA,q8_0,x,1\n", "did you mean value"),
        ("model,kv,kv,ppl\nA,a,b,1\n", "column is there twice"),
        ("kv,ppl\nq8_0,1\n", "with model"),
        ("model,k,ppl\nA,q8_0,1\n", "with v"),
        ("model,kv,metric\nA,q8_0,ppl\n", "with value"),
        ("model,kv\nA,q8_0\n", "no metric"),
        ("", "no metric|with model"),
        ("model,kv,ppl\n", "no numbers"),
        ("model,kv,ppl\nA,q9_9,7\n", "q9_9 in .*line 2"),
        ("model,kv,ppl\nA,q8_0,7\nA,q8_0,1 %\n", "'1 %' in .*line 3"),
        ("model,kv,ppl\nA,q8_0,nan\n", "'nan' in .*line 2"),
        ("model,kv,ppl\nA,q8_0,1e999\n", "not a finite number"),
        ("model,kv,ppl,ppl_stderr\nA,q8_0,,0.1\n", "ppl is not a finite"),
        ("model,kv,ppl\nA,q8_0,7,8\n", "more or fewer cells"),
        ("model,kv,ppl\n,q8_0,7\n", "line without a model"),
        ("model,kv,metric,value\nA,q8_0,,7\n", "without the name of its metric"),
        ("model,kv,context,ppl\nA,q8_0,-4,7\n", "context is not a whole number"),
        ("model,kv,context,ppl\nA,q8_0,٤,7\n", "context is not a whole number"),
        ("model,metric,value,higher_is_better\nA,m,7,perhaps\n", "yes or no"),
        ('model,kv,ppl\nA,q8_0,"7\n', "not a CSV file"),
        ("model,kv,ppl\nA,q8_0," + "7" * 200_000 + "\n", "not a CSV file"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(NybbleError, match=words):
        rows(tmp_path, text)


def test_a_forks_kv_type_is_kept_with_a_word_about_it(tmp_path: Path) -> None:
    """Forks publish types that nybble does not have; a setting told in part stays an error."""
    found = rows(tmp_path, "model,kv,mean_kld,note\nm,q6_0/q6_0,0.02,page 3\nm,q8_0/q8_0,0.01,\n")
    assert [(r.setting, r.note) for r in found] == [
        ("q6_0/q6_0", "page 3; a KV type that nybble does not know"), ("q8_0/q8_0", ""),
    ]  # fmt: skip
    with pytest.raises(NybbleError, match="unknown KV type"):
        rows(tmp_path, "model,kv,mean_kld\nm,q6_0,0.02\n")
