"""What a submission must hold: every check passes on a sound run and fails on its own damage."""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner

from nybble.cli.results_validate import validate as command
from nybble.errors import NybbleError
from nybble.formats import parse
from nybble.report.validation_table import markdown
from nybble.results.manifest import write_manifest
from nybble.results.validate.check import Check, Validation
from nybble.results.validate.run import validate, validate_run
from nybble.scoring.verdict import smaller
from run_folders import CATEGORIES, write_run

NAMES = [
    "schema", "manifest", "cell names", "rows give the summary's numbers", "identity row is zero",
    "noise floor present and small", "quantized caches were read", "fewer bits are not better",
    "numbers are finite", "values lie in their intervals", "plausible ranges", "made before now",
    "hashes of model and text", "command to make it again", "no home folders told",
]  # fmt: skip
ROOT = Path(__file__).parents[2]


def order(a: str, b: str) -> bool:
    return smaller(parse(a), parse(b))


def checks(folder: Path) -> dict[str, Check]:
    return {check.name: check for check in validate_run(folder, order).checks}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    two = {"q8_0/q8_0": 8e-4, "q4_0/q4_0": 0.12}
    write_run(folder, settings=two, contexts=(512, 1024), tokens=32, categories=CATEGORIES[:5])
    write_manifest(folder)
    return folder


@pytest.fixture
def run(sound: Path, tmp_path: Path) -> Path:
    """A copy to damage, without rows."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_bytes((sound / "summary.json").read_bytes())
    return tmp_path / "run"


def damage(folder: Path, change: Callable[[Any], object]) -> dict[str, Check]:
    path = folder / "summary.json"
    data = json.loads(path.read_text("utf-8"))
    change(data)
    path.write_text(json.dumps(data), "utf-8")
    return checks(folder)


def test_a_sound_run(sound: Path) -> None:
    found = checks(sound)
    assert list(found) == NAMES
    assert {c.state for c in found.values()} == {"pass"}
    assert found["rows give the summary's numbers"].reason == "8 rows, 896 tokens"


def test_a_run_without_rows(run: Path) -> None:
    found = checks(run)
    skipped = {name: c.reason for name, c in found.items() if c.state == "skipped"}
    assert skipped == {"manifest": "no manifest.json", "cell names": "rows not included",
                       "rows give the summary's numbers": "rows not included"}  # fmt: skip
    assert not any(c.state in ("fail", "warn") for c in found.values())


def test_the_demo_of_this_repository() -> None:
    assert not validate_run(ROOT / "bench" / "results" / "demo", order).failed


def row(data: Any, role: str = "candidate", at: int = 0) -> Any:
    return [r for r in data["rows"] if r["role"] == role][at]


def drop(role: str) -> Callable[[Any], object]:
    return lambda d: d.update(rows=[r for r in d["rows"] if r["role"] != role])


def put(
    metric: str, role: str = "candidate", at: int = 0, **values: Any
) -> Callable[[Any], object]:
    return lambda d: row(d, role, at)["metrics"][metric].update(values)


def above_the_median(data: Any) -> None:
    put("mean_kld", "floor", value=0.005)(data)
    put("mean_kld", at=0, value=8e-4, low=7e-4, high=9e-4)(data)
    put("mean_kld", at=1, value=1e-3, low=9e-4, high=2e-3)(data)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("identity row is zero", put("mean_kld", "identity", value=1e-12), "mean_kld 1e-12"),
        ("identity row is zero", drop("identity"), "no identity row"),
        ("noise floor present and small", drop("floor"), "no floor row"),
        ("noise floor present and small", put("mean_kld", "floor", value=0.02), "at most 0.01"),
        ("noise floor present and small", above_the_median, "0.005, at most 0.0009"),
        ("noise floor present and small",
         lambda d: row(d, "floor").update(context=700), "no floor row for model a at 512"),
        ("quantized caches were read", put("mean_kld", value=0.0, low=0.0), "q8_0/q8_0 at 512"),
        ("fewer bits are not better", put("mean_kld", value=9.0, low=8.0, high=10.0),
         "q8_0/q8_0 begins at 8"),
        ("numbers are finite", put("ppl", value=float("nan")), "ppl"),
        ("numbers are finite", lambda d: row(d).update(bits=float("inf")), "bits"),
        ("values lie in their intervals", put("flips", value=0.9), "outside"),
        ("values lie in their intervals", put("flips", low=None), "one end only"),
        ("plausible ranges", put("same_top", value=1.5), "from 0 to 1"),
        ("plausible ranges", put("median_kld", value=-1.0), "from 0"),
        ("plausible ranges", lambda d: row(d).update(bits=33.0), "33 bits"),
        ("plausible ranges", lambda d: row(d).update(context=99_999), "has 32,768 tokens"),
        ("plausible ranges", lambda d: row(d).update(n_documents=0), "of 0 documents"),
        ("plausible ranges", lambda d: row(d).update(model="z"), "does not have"),
        ("plausible ranges",
         lambda d: row(d)["by_category"][0]["metrics"]["same_top"].update(value=-1), ", code"),
        ("made before now", lambda d: d.update(created="yesterday"), "not a time"),
        ("hashes of model and text", lambda d: d["models"][0].update(sha256="ABC"), "model a"),
        ("hashes of model and text", lambda d: d["protocol"].pop("text_sha256"), "scored text"),
        ("command to make it again", lambda d: d.update(command=" "), "no command"),
        ("schema", lambda d: d.update(schema_version=2), "newer nybble"),
        ("schema", lambda d: row(d).update(extra=1), "does not know: extra in a Row"),
        ("schema", lambda d: row(d).update(context="512"), "rows[0].context is no int"),
        ("schema", lambda d: put("ppl", value=10**400)(d), "rows[0].metrics[ppl].value"),
        ("schema", lambda d: d.update(warnings={}), "warnings is no list"),
        ("schema", lambda d: d["models"][0].update(name=None), "models[0].name is no str"),
    ],
)  # fmt: skip
def test_each_damage_fails_its_check(
    run: Path, name: str, change: Callable[[Any], object], words: str
) -> None:
    found = damage(run, change)[name]
    assert found.state == "fail" and words in found.reason


def test_what_only_warns(run: Path) -> None:
    ahead = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=3)
    found = damage(run, lambda d: d.update(created=ahead.isoformat(), command="a /home/ann/m.gguf"))
    assert found["made before now"].state == "warn"
    told = found["no home folders told"]
    assert told.state == "warn" and told.reason == "/home/ann is in the record"
    assert not validate_run(run, order).failed
    hour = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=20)
    assert (
        damage(run, lambda d: d.update(created=hour.isoformat()))["made before now"].state == "pass"
    )
    assert damage(run, lambda d: d.update(created=""))["made before now"].state == "skipped"


def test_a_run_through_a_server(run: Path) -> None:
    served = {"engine": "vllm", "version": "1", "top_k": 20, "read": "prefill"}

    def change(data: Any) -> None:
        drop("floor")(data)
        for one in data["rows"]:
            one["served"] = served
        put("mean_kld", "identity", value=0.001)(data)

    found = damage(run, change)
    assert found["identity row is zero"].state == "skipped"
    assert found["noise floor present and small"].state == "skipped"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    write_run(folder, settings={"q4_0/q4_0": 0.5}, tokens=16, categories=("code", "chat"))
    write_manifest(folder)
    return folder


@pytest.fixture
def whole(small: Path, tmp_path: Path) -> Path:
    """A copy to damage, with its rows."""
    return Path(shutil.copytree(small, tmp_path / "run"))


def change_rows(folder: Path, sql: str, name: str | None) -> None:
    """Write one cell anew, in its own file or beside it."""
    path = next((folder / "rows").glob(CELL))
    made = path.with_suffix(".new")
    with duckdb.connect() as db:
        db.execute(f"COPY (SELECT {sql} FROM '{path}') TO '{made}' (FORMAT parquet)")
    made.rename(path.with_name(name) if name else path)


CELL = "c1024-q4_0-q4_0-*"
SUMS, CELLS = "rows give the summary's numbers", "cell names"


@pytest.mark.parametrize(
    ("sql", "name", "check", "words"),
    [
        ("* REPLACE (kld * 1.0001 AS kld)", None, SUMS, "mean_kld"),
        ("* REPLACE (top + 1 AS top)", None, SUMS, "same_top"),
        ("* REPLACE ('nan'::FLOAT AS nll)", None, SUMS, "n_nonfinite 16 in rows, 0"),
        ("* REPLACE (0::FLOAT AS margin_ref)", None, SUMS, "flips"),
        ("*", "c1024-q4_0-q4_0-0123456789abcdef.parquet", CELLS, "are the same cell"),
        ("* REPLACE ('extra' AS document)", "c1024-q4_0-q4_0-0123456789abcdef.parquet", SUMS,
         "cells of another command"),
        ("*", "c512-q4_0-q4_0-0123456789abcdef.parquet", CELLS, "holds q4_0/q4_0 at 1024"),
        ("*", "c1024-q4_0-q4_0.parquet", CELLS, "holds q4_0/q4_0 at 1024"),
        ("* REPLACE (chunk + position % 2 AS chunk)", None, CELLS, "holds 2 cells"),
        ("* EXCLUDE (nll)", None, SUMS, "mean_kld|n_nonfinite|cannot be read"),
    ],
)  # fmt: skip
def test_rows_that_are_not_the_summarys(
    whole: Path, sql: str, name: str | None, check: str, words: str
) -> None:
    change_rows(whole, sql, name)
    found = checks(whole)
    assert found["manifest"].state == "fail"
    assert found[check].state == "fail"
    assert any(word in found[check].reason for word in words.split("|"))


def test_rows_that_are_missing_or_damaged(whole: Path) -> None:
    for path in (whole / "rows").glob("c1024-f16*"):
        path.unlink()
    found = checks(whole)[SUMS]
    assert found.state == "fail" and "identity f16/f16 at 1,024: no rows" in found.reason
    path = next((whole / "rows").glob(CELL))
    path.write_bytes(path.read_bytes()[:100])
    found = checks(whole)[SUMS]
    assert found.state == "fail" and path.name in found.reason and str(whole) not in found.reason


def test_a_base_with_runs_and_imports(run: Path, tmp_path: Path) -> None:
    (tmp_path / "imported").mkdir()
    (tmp_path / "imported" / "x-1.json").write_text('{"schema_version": 1}')
    kept = (ROOT / "tests/data/schema/import-v1.json").read_text("utf-8")
    (tmp_path / "imported" / "y-1.json").write_text(kept)
    (tmp_path / "rag").mkdir()
    answers = (ROOT / "tests/data/schema/rag-v1.json").read_text("utf-8")
    (tmp_path / "rag" / "summary.json").write_text(answers)
    found = {Path(v.place).name: v for v in validate(tmp_path, order)}
    assert set(found) == {"run", "x-1.json", "y-1.json", "rag"}
    assert {name for name, v in found.items() if v.failed} == {"x-1.json"}
    assert found["rag"].checks[0].reason == "run of nybble rag eval, version 1"
    for empty in (tmp_path / "none", run / "rows"):
        with pytest.raises(NybbleError, match="no such result base"):
            validate(empty, order)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NybbleError, match="no run to validate"):
        validate(tmp_path / "empty", order)


def test_command(run: Path) -> None:
    def ask(*args: str) -> Any:
        done = CliRunner().invoke(command, [str(run), *args], standalone_mode=False)
        assert done.exception is None, done.exception
        return done

    done = ask()
    assert done.return_value == 0 and "12 pass, 3 skipped" in done.stdout
    damage(run, put("same_top", value=1.5))
    assert ask().return_value == 1
    (told,) = json.loads(ask("--json").stdout)
    assert told["failed"] and [c["name"] for c in told["checks"]] == NAMES
    assert "| plausible ranges | fail |" in ask("--markdown").stdout


def test_hostile_words_stay_words() -> None:
    text = markdown([Validation("<b>", [Check("schema", "fail", "a|b\n<script>`[x](y)")])])
    assert "<script>" not in text and "### &lt;b>" in text
    assert text.splitlines()[-1] == r"| schema | fail | a\|b &lt;script>\`\[x](y) |"
