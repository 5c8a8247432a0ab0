"""Asking a base in SQL: what it answers, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nybble.errors import NybbleError
from nybble.results.base import views
from nybble.results.base.base import Base, open_base
from run_folders import write_run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("base")
    write_run(root / "a", settings={"q8_0/q8_0": 8e-4, "q4_0/q4_0": 0.12}, tokens=16,
              contexts=(512, 1024), categories=("code", "chat"))  # fmt: skip
    return root


@pytest.fixture
def base(root: Path) -> Iterator[Base]:
    with open_base(root) as opened:
        yield opened


def test_means_of_token_rows_are_those_of_the_summary(base: Base) -> None:
    sql = """select abs(avg(t.kld) - min(c.mean_kld)) / max(c.mean_kld) from tokens t
             join cells c using (cell) where role = 'candidate' group by t.cell"""
    with pytest.raises(NybbleError, match="Ambiguous"):
        base.query(sql)
    found = base.query(sql.replace("where role", "where c.role")).rows
    assert len(found) == 4 and all(off < 1e-6 for (off,) in found)


def test_slices_and_runs(base: Base) -> None:
    found = base.query("from slices where setting = 'q4_0/q4_0' and context = 512 order by name")
    assert [r[found.columns.index("name")] for r in found.rows] == ["chat", "code"]
    assert base.query("select run, models, cells, failed from runs").rows == [("a", "Tiny", 8, 0)]


@pytest.mark.parametrize("sql", [
    "with x as (from cells) select count(*) from x", "from cells limit 1", "describe cells",
    "summarize cells", "show tables", "explain select 1", "values (1)", "select 1;",
    "pivot cells on setting using min(mean_kld) group by context",
])  # fmt: skip
def test_answers(base: Base, sql: str) -> None:
    assert base.query(sql).rows


@pytest.mark.parametrize("sql, what", [
    ("", "one SELECT"), ("-- nothing", "one SELECT"), ("select 1; select 2", "one SELECT"),
    ("drop view cells", "one SELECT"), ("create table x as select 1", "one SELECT"),
    ("copy cells to 'x.csv'", "one SELECT"), ("set threads = 1", "one SELECT"),
    ("install httpfs", "one SELECT"), ("attach 'x.db'", "one SELECT"),
    ("pragma version", "one SELECT"), ("delete from cells", "one SELECT"),
    ("selec 1", "syntax error"), ("select nosuch(1)", "nosuch"),
    ("select 'a'::int", "Could not convert"), ("select \udc80", "query failed"),
    ("select mean_kd from cells", "did you mean mean_kld?"),
    ("from cels", "did you mean cells?"),
])  # fmt: skip
def test_refuses(base: Base, sql: str, what: str) -> None:
    with pytest.raises(NybbleError) as caught:
        base.query(sql)
    assert what in str(caught.value)
    assert caught.value.hint == views.SCHEMA_HINT


@pytest.mark.parametrize("sql", [
    "from '{file}'", "from read_csv('{file}')", "from read_text('{file}')",
    "from glob('{folder}/*')", "from read_parquet('{folder}/a/rows/*.parquet')",
    "from read_csv('https://example.com/a.csv')",
])  # fmt: skip
def test_reads_no_other_file(base: Base, root: Path, tmp_path: Path, sql: str) -> None:
    file = tmp_path / "secret.csv"
    file.write_text("a,b\n1,2\n")
    with pytest.raises(NybbleError, match="query failed"):
        base.query(sql.format(file=file, folder=root))


def test_sees_no_variable_of_python(base: Base) -> None:
    secret = {"a": [1]}
    with pytest.raises(NybbleError, match="secret does not exist"):
        base.query("from secret")
    assert secret


def test_too_many_rows(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "MOST_ROWS", 10)
    assert len(base.query("from range(10)").rows) == 10
    with pytest.raises(NybbleError, match="too long"):
        base.query("from range(11)")


def test_schema_names_what_there_is(base: Base) -> None:
    found = {v.name: dict(v.columns) for v in base.schema()}
    assert list(found) == list(views.VIEWS)
    assert found["cells"]["mean_kld_high"] == "DOUBLE" and found["tokens"]["kld"] == "FLOAT"


def test_a_base_of_nothing(tmp_path: Path) -> None:
    with open_base(tmp_path) as base:
        assert base.cells == [] and base.candidates() == []
        assert all(
            base.query(f"select count(*) from {name}").rows == [(0,)] for name in views.VIEWS
        )
