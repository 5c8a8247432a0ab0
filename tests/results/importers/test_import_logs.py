"""Logs of llama-perplexity: those of b11549 as it printed them, and lines of older builds."""

from __future__ import annotations

from pathlib import Path

import pytest
from import_sources import LOGS, given, source

from nybble.errors import NybbleError
from nybble.results.base.external import External
from nybble.results.importers.llama_perplexity import read
from nybble.results.importers.source import Found, read_source

# Lines of llama.cpp's own CI logs (build 3919), and of an aborted run with NaN.
OLD = """\
0.00.000.203 I build: 3919 (fde9b8d2) with cc (Ubuntu 11.4.0) 11.4.0 for aarch64-linux-gnu
0.00.012 I llama_model_loader: loaded meta data with 22 key-value pairs and 292 tensors from \
../models-mnt/pythia/1.4B/ggml-model-q8_0.gguf (version GGUF V3 (latest))
0.00.062 I llm_load_print_meta: model ftype      = Q8_0
0.00.062 I llm_load_print_meta: general.name     = 1.4B
llama_new_context_with_model: KV self size  = 20.00 MiB, K (q8_0): 7.00 MiB, V (f16): 13.00 MiB
0.02.316.584 I perplexity: calculating perplexity over 4 chunks, n_ctx=2048, batch_size=512, n_seq=1
[1]9.6667,[2]11.4286,[3]11.6311,[4]10.3475,
0.04.370.348 I Final estimate: PPL = 10.3475 +/- 0.42292
"""


def by_metric(found: Found) -> dict[str, External]:
    rows = {row.metric: row for row in found.rows}
    assert len(rows) == len(found.rows)
    return rows


def test_divergence() -> None:
    rows = by_metric(read(read_source(LOGS / "kld.log"), given()))
    assert len(rows) == 34  # 6 + 12 + 14 + RMS and same top
    mean = rows["mean_kld"]
    assert (mean.value, mean.stderr, mean.context, mean.n) == (0.009278, 0.000406, 256, 4)
    assert (mean.model, mean.setting) == ("Smollm2 135M 8k Lc100K Mix1 Ep2", "q8_0/q4_0")
    assert mean.note == "weights Q4_1" and mean.higher_is_better is False
    assert rows["p999_kld"].value == 0.071934 and rows["p999_kld"].stderr is None
    assert rows["p001_kld"].value == 0.000009 and rows["min_dp"].value == -14.143
    assert (rows["ln_ppl_ratio"].value, rows["ln_ppl_ratio"].stderr) == (-0.00437, 0.006674)
    top = rows["same_top_p"]
    assert (top.value, top.stderr, top.note) == (94.488, 1.014, "percent; weights Q4_1")


def test_perplexity_that_names_neither_model_nor_types() -> None:
    log = read_source(LOGS / "plain.log")
    with pytest.raises(NybbleError, match="does not name the model"):
        read(log, given())
    (row,) = read(log, given(model="SmolLM2", setting="q4_0/q4_0")).rows
    assert (row.metric, row.value, row.stderr) == ("ppl", 12.1033, 1.33724)
    assert (row.setting, row.context, row.n) == ("q4_0/q4_0", 256, 4)


def test_hellaswag(tmp_path: Path) -> None:
    log = read_source(LOGS / "hs.log")
    (row,) = read(log, given(model="m")).rows
    assert (row.task, row.metric, row.value, row.n) == ("hellaswag", "acc_norm", 33.33333333, 3)
    assert row.stderr is None and row.setting == ""
    stopped = source(tmp_path, log.text[: log.text.index("3\t33.3")])
    with pytest.raises(NybbleError, match="no finished result"):
        read(stopped, given(model="m"))


def test_winogrande_and_multiple_choice(tmp_path: Path) -> None:
    log = source(tmp_path, (
        "0.1 I winogrande_score : calculating winogrande score over selected tasks.\n"
        "0.2 I Final Winogrande score(1267 tasks): 60.3000 +/- 1.3752\n"
        "0.3 I multiple_choice_score : calculating TruthfulQA score over 817 tasks.\n"
        "817\t30.1\n0.4 I Final result: 30.1000 +/- 1.6058\n"
        "0.4 I Random chance: 19.8992 +/- 1.3977\n"
    ))  # fmt: skip
    first, second = read(log, given(model="m")).rows
    assert (first.task, first.value, first.stderr, first.n) == ("winogrande", 60.3, 1.3752, 1267)
    assert (second.task, second.value, second.n) == ("multiple choice", 30.1, 817)


def test_older_builds_and_several_runs_in_one_log(tmp_path: Path) -> None:
    other = OLD.replace("K (q8_0)", "K (f16)").replace("10.3475 +/- 0.42292", "10.1 +/- 0.4")
    found = read(source(tmp_path, OLD + other), given())
    first, second = found.rows
    assert (first.model, first.setting, first.value) == ("1.4B", "q8_0/f16", 10.3475)
    assert (second.setting, second.value, second.note) == ("f16/f16", 10.1, "weights Q8_0")
    assert found.version == "b3919 (fde9b8d2)"
    unnamed = "\n".join(line for line in OLD.splitlines() if "general.name" not in line)
    assert read(source(tmp_path, unnamed), given()).rows[0].model == "ggml-model-q8_0.gguf"


def test_colours_and_windows_encodings(tmp_path: Path) -> None:
    coloured = OLD.replace("Final", "\x1b[32mFinal").replace("\n", "\x1b[0m\r\n")
    for raw in (coloured.encode("utf-16"), b"\xef\xbb\xbf" + coloured.encode()):
        assert read(source(tmp_path, raw), given()).rows[0].value == 10.3475


@pytest.mark.parametrize("bad", ["nan +/- nan", "-nan(ind) +/- 0.1", "inf +/- nan"])
def test_what_is_not_finite_is_named(tmp_path: Path, bad: str) -> None:
    log = source(tmp_path, OLD.replace("10.3475 +/- 0.42292", bad))
    with pytest.raises(NybbleError, match=r"ppl is .*left out"):
        read(log, given())
    found = read(source(tmp_path, log.text + OLD), given())
    assert len(found.rows) == 1 and len(found.notes) == 1


def test_kv_types_that_contradict(tmp_path: Path) -> None:
    log = source(tmp_path, OLD)
    with pytest.raises(NybbleError, match="another KV setting") as caught:
        read(log, given(setting="q4_0/q4_0"))
    assert "q8_0/f16" in str(caught.value)
    rotated = given(setting="q8_0/f16-norot")
    assert read(log, rotated).rows[0].setting == "q8_0/f16-norot"
    two = source(tmp_path, OLD.replace("0.02.316", "K (q4_0): 1.00 MiB, V (q4_0): 1 MiB\n0.02.316"))
    with pytest.raises(NybbleError, match="several KV types"):
        read(two, given())
    assert read(two, given(setting="q4_0/q4_0")).rows[0].setting == "q4_0/q4_0"
