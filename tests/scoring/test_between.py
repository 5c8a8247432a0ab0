"""Two runs compared token by token: against plain NumPy, and refusals that say why."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import DOCUMENTS, SCORED, row

from nybble.errors import NybbleError
from nybble.results.compared import (
    A_BETTER,
    B_BETTER,
    NOT_JUDGED,
    UNRESOLVED,
    Changed,
    Contrast,
    Pair,
    Side,
)
from nybble.results.records import Estimate
from nybble.scoring.between.compare import compare
from nybble.scoring.between.contrast import Documents, judged, student_p
from nybble.scoring.between.increase import increases
from nybble.scoring.between.sides import choose, own_cells
from nybble.scoring.compare import ROW
from nybble.scoring.measure import Result
from nybble.scoring.statistics import Sample, ScoredChunk, paired_difference
from nybble.scoring.tasks.paired import mcnemar
from run_folders import CATEGORIES, write_run

WORSE = {"q8_0/q8_0": 8e-4, "q8_0/q4_0": 3e-2, "q4_0/q4_0": 0.03}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("between")
    write_run(root / "a")
    write_run(root / "b", settings=WORSE)
    write_run(root / "text", seed=3)
    return root


def copied(runs: Path, folder: Path, **model: str) -> Path:
    """Run a once more, perhaps of another model."""
    shutil.copytree(runs / "a", folder)
    record = json.loads((folder / "summary.json").read_text())
    record["models"][0].update(model)
    (folder / "summary.json").write_text(json.dumps(record))
    return folder


def rewritten(file: Path, change: str) -> None:
    """Replace columns of a row file, in SQL."""
    duckdb.execute(
        f"COPY (SELECT * REPLACE ({change}) FROM read_parquet('{file}')) TO '{file}.new' "
        "(FORMAT parquet)"
    )
    Path(f"{file}.new").replace(file)


def rows(folder: Path, setting: str):  # type: ignore[no-untyped-def]
    """Rows of a candidate by document, in the order of compare's documents."""
    names = ", ".join(ROW.names or ())
    found = []
    for category in sorted(CATEGORIES):
        columns = duckdb.execute(
            f"SELECT {names} FROM read_parquet(?) WHERE setting = ? AND category = ? AND "
            "role = 'candidate' ORDER BY position",
            [str(folder / "rows" / "*.parquet"), setting, category],
        ).fetchnumpy()
        array = np.zeros(len(columns["kld"]), dtype=ROW)
        for name in ROW.names or ():
            array[name] = columns[name]
        found.append(ScoredChunk(category, f"{category}-0", array))
    return found


def test_numbers_are_those_of_numpy(runs: Path) -> None:
    found = compare(str(runs / "a"), str(runs / "b"))
    assert [p.a.setting for p in found.pairs] == list(WORSE)
    pair = found.pairs[1]
    one, two = Sample(rows(runs / "a", "q8_0/q4_0")), Sample(rows(runs / "b", "q8_0/q4_0"))
    expected = paired_difference(two, one)
    got = pair.metrics["mean_kld"].difference
    assert got is not None and expected is not None
    assert got.value == pytest.approx(expected.value, rel=1e-9)
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high), rel=1e-6)
    a, b = one.rows, two.rows
    right_a, right_b = a["top"] == a["token"], b["top"] == b["token"]
    assert pair.changed is not None
    assert pair.changed.n_differs == (a["top"] != b["top"]).sum() > 0
    assert pair.changed.lost == (right_a & ~right_b).sum()
    assert pair.changed.gained == (right_b & ~right_a).sum()
    assert pair.changed.p == mcnemar(pair.changed.gained, pair.changed.lost)
    nll = pair.metrics["nll"].difference
    assert nll is not None and nll.value == pytest.approx(float((b["nll"] - a["nll"]).mean()))
    assert pair.ratio is not None
    assert pair.ratio.value == pytest.approx(b["kld"].mean() / a["kld"].mean(), rel=1e-5)
    assert (pair.n_documents, pair.n_tokens) == (6, len(a))
    assert (pair.only_a, pair.only_b, pair.n_nonfinite) == (0, 0, 0)


def test_verdicts_say_which_side_is_better(runs: Path) -> None:
    found = compare(str(runs / "a"), str(runs / "b")).pairs
    assert found[0].verdict.startswith("same within")  # the very same rows
    assert (found[1].verdict, found[2].verdict) == (A_BETTER, B_BETTER)
    turned = compare(str(runs / "b"), str(runs / "a"), settings=["q8_0/q4_0"]).pairs
    assert [p.verdict for p in turned] == [B_BETTER]
    wide = compare(str(runs / "a"), str(runs / "b"), settings=["q8_0/q4_0"], margin=1.0).pairs
    assert wide[0].verdict == "same within 1"


def test_what_only_one_side_has_is_told(runs: Path, tmp_path: Path) -> None:
    other = copied(runs, tmp_path / "b")
    record = json.loads((other / "summary.json").read_text())
    failed = next(r for r in record["rows"] if r["setting"] == "q4_0/q4_0")
    failed.update(status="failed", error="out of memory", metrics={})
    (other / "summary.json").write_text(json.dumps(record))
    found = compare(str(runs / "a"), str(other))
    assert [p.a.setting for p in found.pairs] == ["q8_0/q8_0", "q8_0/q4_0"]
    assert f"only {runs / 'a'} has finished rows of q4_0/q4_0" in found.notes
    with pytest.raises(NybbleError, match="no such KV setting"):
        compare(str(runs / "a"), str(other), settings=["q4_0"])


def test_two_settings_of_one_run(runs: Path) -> None:
    (pair,) = compare(f"{runs / 'a'}:q8_0", f"{runs / 'a'}:q4_0/q4_0").pairs
    assert (pair.a.setting, pair.b.setting, pair.verdict) == ("q8_0/q8_0", "q4_0/q4_0", A_BETTER)
    assert pair.p_corrected == pair.p


def test_a_floor_can_be_compared_and_covers_fewer_tokens(runs: Path) -> None:
    (pair,) = compare(f"{runs / 'a'}:bf16/bf16", f"{runs / 'a'}:q8_0/q8_0").pairs
    assert (pair.n_documents, pair.only_a, pair.only_b) == (3, 0, 3 * 128)
    assert (pair.verdict, pair.p) == (UNRESOLVED, None)
    assert "too few" in pair.reason


def test_tokens_of_one_side_and_non_finite_ones_are_counted(runs: Path, tmp_path: Path) -> None:
    other = copied(runs, tmp_path / "b")
    first, second, *_ = sorted((other / "rows").glob("*q8_0-q8_0*"))
    first.unlink()
    rewritten(second, "CASE WHEN position % 2 = 0 THEN 'nan'::FLOAT ELSE kld END AS kld")
    found = compare(str(runs / "a"), str(other), settings=["q8_0/q8_0"])
    (pair,) = found.pairs
    assert (pair.only_a, pair.only_b) == (128, 0)
    assert (pair.n_nonfinite, pair.n_tokens) == (64, 5 * 128 - 64)
    assert any("its summary tells of 768" in note for note in found.notes)


def test_same_model_without_shared_tokens_is_unpaired(runs: Path) -> None:
    found = compare(str(runs / "a"), str(runs / "text"), settings=["q8_0/q4_0"])
    (pair,) = found.pairs
    assert (pair.paired, pair.verdict, pair.p, pair.changed) == (False, NOT_JUDGED, None, None)
    own = json.loads((runs / "text" / "summary.json").read_text())["rows"][1]["metrics"]
    assert pair.metrics["mean_kld"].b == Estimate(**own["mean_kld"])
    assert pair.metrics["mean_kld"].difference is None
    assert any("other tokens" in note for note in found.notes)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("token + 1 AS token", "another tokenizer"),
        ("'law' AS document", "other documents"),
        ("chunk + 1 AS chunk", "other chunks"),
        ("position - 500 AS position", "another --score-from"),
        ("'q5_0/q5_0' AS setting", "B has no token rows"),
    ],
)
def test_other_models_without_shared_tokens_are_refused_with_the_reason(
    runs: Path, tmp_path: Path, change: str, reason: str
) -> None:
    other = copied(runs, tmp_path / "b", name="Other", sha256="1" * 64)
    for file in (other / "rows").glob("*q8_0-q8_0*"):
        rewritten(file, change)
    with pytest.raises(NybbleError, match="share no token") as caught:
        compare(str(runs / "a"), str(other), settings=["q8_0"])
    assert reason in str(caught.value)


def test_a_chunk_with_one_other_token_is_left_out_whole(runs: Path, tmp_path: Path) -> None:
    other = copied(runs, tmp_path / "b")
    for file in (other / "rows").glob("*q8_0-q4_0*"):
        rewritten(
            file, "CASE WHEN document = 'code-0' AND position = 1000 THEN token + 1 ELSE token "
            "END AS token",
        )  # fmt: skip
    found = compare(str(runs / "a"), str(other), settings=["q8_0/q4_0"])
    (pair,) = found.pairs
    assert (pair.n_documents, pair.n_tokens, pair.only_a, pair.only_b) == (5, 640, 128, 128)
    assert any("1 chunk" in note for note in found.notes)


def test_rows_of_two_measurements_in_one_folder_are_refused(runs: Path, tmp_path: Path) -> None:
    other = copied(runs, tmp_path / "b")
    one = next((other / "rows").glob("*q8_0-q8_0*"))
    (one.parent / "c1024-again.parquet").write_bytes(one.read_bytes())
    with pytest.raises(NybbleError, match="more than once"):
        compare(str(runs / "a"), str(other))


@pytest.mark.parametrize("damage", [b"", b"PAR1 no parquet PAR1"])
def test_damaged_rows_name_the_folder(runs: Path, tmp_path: Path, damage: bytes) -> None:
    other = copied(runs, tmp_path / "b")
    next((other / "rows").iterdir()).write_bytes(damage)
    with pytest.raises(NybbleError, match="cannot read the token rows") as caught:
        compare(str(runs / "a"), str(other))
    assert str(other) in str(caught.value)


@pytest.mark.parametrize(
    "change",
    ["NULL::INT AS token", "[1, 2] AS kld", "'x' AS position", "1e308::DOUBLE AS nll"],
)
def test_hostile_columns_are_refused_or_left_out(runs: Path, tmp_path: Path, change: str) -> None:
    other = copied(runs, tmp_path / "b")
    rewritten(next((other / "rows").glob("*q8_0-q8_0*")), change)
    try:
        (pair,) = compare(str(runs / "a"), str(other), settings=["q8_0"]).pairs
    except NybbleError as error:
        assert str(other) in str(error)
    else:
        assert pair.n_nonfinite == 128
        assert math.isfinite(pair.metrics["nll"].b.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("rows", 0, "context"), "4096"),
        (("rows", 0, "metrics", "mean_kld", "value"), None),
        (("rows", 0, "metrics", "mean_kld", "high"), math.nan),
        (("rows", 0, "metrics"), {}),
        (("rows", 0, "model"), "z"),
        (("models",), []),
        (("rows", 0, "setting"), 7),
    ],
)
def test_a_damaged_summary_is_an_error_that_names_it(
    runs: Path, tmp_path: Path, path: tuple[str | int, ...], value: object
) -> None:
    place = data = json.loads((runs / "a" / "summary.json").read_text())
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (tmp_path / "summary.json").write_text(json.dumps(data))
    with pytest.raises(NybbleError, match="cannot use the run") as caught:
        compare(str(runs / "a"), str(tmp_path))
    assert "summary.json" in str(caught.value)


def test_two_models_of_a_run_are_told_apart_by_label(runs: Path, tmp_path: Path) -> None:
    """Rows of both labels lie in one folder; each side reads its own."""
    copied(runs, tmp_path / "run")
    write_run(tmp_path / "hard", model="Hard", file="hard.gguf", settings={"q4_0/q4_0": 0.02})
    record = json.loads((tmp_path / "run" / "summary.json").read_text())
    other = json.loads((tmp_path / "hard" / "summary.json").read_text())
    record["models"].append({**other["models"][0], "label": "b"})
    record["rows"] += [{**r, "model": "b", "reference": "b"} for r in other["rows"]]
    (tmp_path / "run" / "summary.json").write_text(json.dumps(record))
    for file in (tmp_path / "hard" / "rows").iterdir():
        duckdb.execute(
            f"COPY (SELECT * REPLACE ('b' AS model, 'b' AS reference) FROM read_parquet('{file}'))"
            f" TO '{tmp_path / 'run' / 'rows' / file.name}' (FORMAT parquet)"
        )
    found = compare(f"{tmp_path / 'run'}:a", f"{tmp_path / 'run'}:b")
    (pair,) = found.pairs
    assert (pair.a.model, pair.b.model, pair.verdict) == ("Tiny", "Hard", B_BETTER)
    assert pair.n_tokens == 6 * 128
    assert any("model: Tiny, Hard" in note for note in found.notes)


@pytest.mark.parametrize(
    ("a", "b", "options", "says"),
    [
        ("a", "a", {}, "same rows"),
        ("a:q8_0", "a:q8_0", {}, "same rows"),
        ("", "b", {}, "holds 3 runs"),
        ("nothing", "b", {}, "no such run folder"),
        ("a:z:q8_0", "b", {}, "unknown model"),
        ("a:q5_0", "b", {}, "did you mean"),
        ("a", "b", {"contexts": [77]}, "no such context"),
        ("a", "b", {"settings": ["q9_0"]}, "unknown KV type"),
        ("a:q8_0", "b", {"settings": ["q8_0"]}, "named twice"),
    ],
)
def test_refusals(runs: Path, a: str, b: str, options: dict[str, list[int]], says: str) -> None:
    with pytest.raises(NybbleError) as caught:
        compare(str(runs / a), str(runs / b), **options)  # type: ignore[arg-type]
    assert says in str(caught.value)


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=40) | st.sampled_from(["a", "a:", ":", "a:q8_0", "q8_0/q8_0:a", "\0"]))
def test_any_text_behind_the_colon_is_read_or_refused(runs: Path, text: str) -> None:
    try:
        run = choose(f"{runs / 'a'}:{text}")
    except NybbleError as error:
        assert error.seen is not None
    else:
        assert run.folder == runs / "a" and run.setting in (None, *run.settings, "bf16/bf16")


def test_a_folder_with_a_colon_in_its_name(tmp_path: Path) -> None:
    record = write_run(tmp_path / "a:b", settings={"q8_0/q8_0": 1e-3}, guards=False)
    run = choose(f"{tmp_path / 'a:b'}:q8_0")
    assert (run.folder, run.setting) == (tmp_path / "a:b", "q8_0/q8_0")
    assert run.cells == own_cells(run.folder, record, "a")


def _pair(low: float, high: float, p: float, margin: float | None = None) -> Pair:
    side = Side("r", "m", "0", "", "e", "1", "prefill", "", "q4_0/q4_0", False, 0)
    nothing = Estimate(0.0)
    difference = Estimate((low + high) / 2, low, high)
    return Pair(
        side, side, 1024, True, 10, 100,
        metrics={"mean_kld": Contrast(nothing, nothing, difference)},
        changed=Changed(nothing, 0, 0, 0, 1.0, 1.0), p=p, margin=margin,
    )  # fmt: skip


def test_holm_takes_back_what_only_one_test_would_find() -> None:
    alone = judged([_pair(0.1, 0.3, 0.03)])
    assert alone[0].verdict == A_BETTER
    among = judged([_pair(0.1, 0.3, 0.03), _pair(-0.4, -0.1, 0.001), _pair(-0.1, 0.3, 0.4)])
    assert [p.verdict for p in among] == [UNRESOLVED, B_BETTER, UNRESOLVED]
    assert among[0].p_corrected == pytest.approx(0.06)
    assert "Holm" in among[0].reason


def test_same_takes_the_whole_interval_and_comes_before_better() -> None:
    inside, across = judged([_pair(0.01, 0.02, 1e-6, 0.02), _pair(0.01, 0.021, 1e-6, 0.02)])
    assert (inside.verdict, across.verdict) == ("same within 0.02", A_BETTER)


def test_lower_bounds_beside_full_vocabulary_are_not_judged() -> None:
    pair = _pair(0.1, 0.3, 1e-6)
    (found,) = judged([replace(pair, b=replace(pair.b, top_k=64))])
    assert found.verdict == NOT_JUDGED and "lower bounds" in found.reason


@pytest.mark.parametrize(
    ("t", "df", "p"),  # R: 2 * pt(-t, df)
    [(2.570582, 5, 0.05), (12.7062, 1, 0.05), (2.0106348, 48, 0.05), (4.604095, 4, 0.01)],
)
def test_student_p(t: float, df: int, p: float) -> None:
    assert student_p(t, df) == pytest.approx(p, rel=1e-5)
    assert student_p(-t, df) == student_p(t, df)


def test_p_is_uniform_where_there_is_no_difference() -> None:
    """Type I errors at 5 % with 24 documents: about 5 %, and the interval agrees."""
    rng = np.random.default_rng(0)
    n, hits, spans = 300, 0, 0
    for _ in range(n):
        tokens = rng.integers(50, 150, 24).astype(np.float64)
        documents = Documents(tokens)
        sums = rng.normal(0, 1, 24) * tokens
        value, drawn = documents.mean(sums)
        estimate = documents.estimate(value, drawn)
        assert estimate.low is not None and estimate.high is not None
        hits += (documents.p(value, drawn) or 0.0) < 0.05
        spans += estimate.low <= 0 <= estimate.high
    assert 0.02 * n < hits < 0.09 * n
    assert abs((n - spans) - hits) < 0.03 * n


def test_increase_is_the_paired_difference_or_says_why_not(runs: Path) -> None:
    cells = [replace(c, run="b") for c in choose(str(runs / "b")).cells if c.role == "candidate"]
    increase = increases(runs, runs / "a")
    expected = [
        p.metrics["mean_kld"].difference for p in compare(str(runs / "a"), str(runs / "b")).pairs
    ]
    assert [increase(c, "mean_kld") for c in cells] == expected
    why = increase(replace(cells[0], setting="q5_0/q5_0"), "mean_kld")
    assert isinstance(why, str) and "no such KV setting" in why
    unpaired = increases(runs, runs / "text")(cells[0], "mean_kld")
    assert isinstance(unpaired, str) and "other tokens" in unpaired


def test_a_real_run_is_read_as_it_was_scored(base: Result) -> None:
    """Rows of a measurement by llama.cpp: the pair's means are the record's own."""
    (pair,) = compare(f"{base.folder}:q8_0", f"{base.folder}:q4_0").pairs
    assert pair.n_tokens == DOCUMENTS * SCORED and pair.only_a == pair.only_b == 0
    for name in ("mean_kld", "same_top", "flips"):
        for setting, got in (("q8_0", pair.metrics[name].a), ("q4_0", pair.metrics[name].b)):
            assert got.value == pytest.approx(row(base, setting).metrics[name].value, rel=1e-6)
    assert pair.n_documents == row(base, "q8_0").n_documents
