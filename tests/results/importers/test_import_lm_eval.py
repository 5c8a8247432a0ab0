"""Summaries of lm-eval, in the form that 0.4.13 writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from import_sources import LM_EVAL, given, lm_eval_text, source

from nybble.errors import NybbleError
from nybble.results.importers.lm_eval import read


def test_every_metric_of_every_task(tmp_path: Path) -> None:
    found = read(source(tmp_path, lm_eval_text()), given())
    assert found.version == "0.4.13" and found.notes == []
    rows = {(r.task, r.metric): r for r in found.rows}
    assert set(rows) == {
        ("hellaswag", "acc"), ("hellaswag", "acc_norm"), ("gsm8k", "exact_match,strict-match"),
        ("wikitext", "word_perplexity"), ("mmlu", "acc"),
    }  # fmt: skip
    acc = rows["hellaswag", "acc"]
    assert (acc.value, acc.stderr, acc.n, acc.higher_is_better) == (0.2891, 0.0045, 100, True)
    assert (acc.model, acc.setting, acc.note) == ("openai/gpt2", "", "0-shot, task version 1.0")
    assert rows["hellaswag", "acc_norm"].stderr is None
    assert rows["wikitext", "word_perplexity"].higher_is_better is False
    assert rows["gsm8k", "exact_match,strict-match"].stderr == 0.004


def test_setting_is_told_by_nybbles_own_model_alone(tmp_path: Path) -> None:
    own = {"model": "nybble", "model_args": {"pretrained": "/data/models/tiny", "kv": "q4_0"}}
    log = source(tmp_path, lm_eval_text(config=own))
    row = read(log, given()).rows[0]
    assert (row.setting, row.model) == ("q4_0/q4_0", "tiny")  # no folder of somebody's disk
    with pytest.raises(NybbleError, match="another KV setting"):
        read(log, given(setting="q8_0/q8_0"))
    other = source(tmp_path, lm_eval_text())
    assert read(other, given(setting="q8_0/q8_0")).rows[0].setting == "q8_0/q8_0"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"results": []}, 'no "results"'),
        ({"results": {}, "groups": {}}, "0 numbers"),
        ({"results": {"t": {"acc,none": float("nan")}}, "groups": {}}, "acc,none is nan, left out"),
        ({"results": {"t": {"acc,none": 10**400}}, "groups": {}}, "left out"),
        ({"results": {"t": {"acc,none": True}}, "groups": {}}, "left out"),
        ({"results": {"t": 3}, "groups": {}}, "t: no metrics"),
        ({"config": None, "model_name": None}, "does not name the model"),
    ],
)
def test_what_is_no_summary(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(NybbleError, match=words):
        read(source(tmp_path, lm_eval_text(**changes)), given())


@pytest.mark.parametrize("text", ["{", "[]", "null", "[" * 100_000, '{"results"' + ":[" * 99_999])
def test_what_is_no_json(tmp_path: Path, text: str) -> None:
    with pytest.raises(NybbleError, match="not a results file of lm-eval"):
        read(source(tmp_path, text), given())


def test_odd_values_beside_the_metrics_do_no_harm(tmp_path: Path) -> None:
    odd = {key: 7 for key in LM_EVAL if key not in ("results", "model_name")}
    rows = read(source(tmp_path, lm_eval_text(**odd)), given()).rows
    assert len(rows) == 4 and rows[0].n is None and rows[0].higher_is_better is None
