"""`nybble results query` and `export` as a user calls them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from nybble.cli.results import COMMANDS, results
from nybble.cli.results_export import export
from nybble.cli.results_query import query
from nybble.errors import NybbleError
from run_folders import write_run

EVIL = "<b>|=1 \x1b[31m"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("base")
    settings = {"q8_0/q8_0": 8e-4, "q4_0/q4_0": 0.12}
    write_run(root / "a", settings=settings, tokens=16)
    write_run(root / "b", model=EVIL, settings={"q4_0/q4_0": 0.1}, categories=("code",),
              guards=False, simulated=True, tokens=16)  # fmt: skip
    return root


def call(command: click.Command, *args: object) -> Result:
    """Run a command; an error that the user would read is raised."""
    words: Sequence[str] = [*map(str, args), *(() if command is results else ("-q",))]
    done = CliRunner().invoke(command, words, standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return done


class TestQuery:
    def test_table(self, root: Path) -> None:
        done = call(query, "--base", root)
        assert done.return_value == 0 and done.stderr == ""
        lines = [line.split() for line in done.stdout.splitlines()]
        assert sum("q4_0/q4_0" in line for line in lines) == 2
        assert not any("bf16/bf16" in line for line in lines)  # no candidate
        assert "only simulated" in done.stdout and "\x1b" not in done.stdout

    def test_forms_of_the_table_agree(self, root: Path) -> None:
        record = json.loads(call(query, "--base", root, "--json").stdout)
        lines = list(csv.DictReader(io.StringIO(call(query, "--base", root, "--csv").stdout)))
        assert [c["setting"] for c in record] == [x["setting"] for x in lines]
        for cell, line in zip(record, lines, strict=True):
            assert float(line["mean_kld"]) == cell["metrics"]["mean_kld"]["value"]
        text = call(query, "--base", root, "--markdown").stdout
        assert text.count("\n## ") == 1 and "<b>" not in text

    def test_sql(self, root: Path) -> None:
        sql = "select setting, count(*) as n from tokens where run = 'a' group by 1 order by 1"
        expected = [("bf16/bf16", 48), ("f16/f16", 16), ("q4_0/q4_0", 96), ("q8_0/q8_0", 96)]
        found = json.loads(call(query, sql, "--base", root, "--json").stdout)
        assert [(x["setting"], x["n"]) for x in found] == expected
        lines = csv.reader(io.StringIO(call(query, sql, "--base", root, "--csv").stdout))
        assert list(lines) == [["setting", "n"], *([s, str(n)] for s, n in expected)]
        assert "| q4_0/q4_0 | 96 |" in call(query, sql, "--base", root, "--markdown").stdout
        assert "q4_0/q4_0" in call(query, sql, "--base", root).stdout

    def test_values_of_any_kind(self, root: Path) -> None:
        sql = ("select 'nan'::float a, 1.5::decimal(3,1) b, date '2026-01-01' c, [1, null] d, "
               "{'x': 'inf'::double} e, null f, '=1+1' g, 'a\x1bb' h")  # fmt: skip
        (row,) = json.loads(call(query, sql, "--base", root, "--json").stdout)
        assert row == {"a": None, "b": 1.5, "c": "2026-01-01", "d": [1, None], "e": {"x": None},
                       "f": None, "g": "=1+1", "h": "a\x1bb"}  # fmt: skip
        for form in ("--csv", "--markdown", "-q"):
            assert "\x1b" not in call(query, sql, "--base", root, form).stdout
        assert "'=1+1" in call(query, sql, "--base", root, "--csv").stdout

    def test_two_columns_of_one_name(self, root: Path) -> None:
        with pytest.raises(NybbleError, match="one name"):
            call(query, "select 1 as a, 2 as a", "--base", root, "--json")

    def test_schema(self, root: Path) -> None:
        out = call(query, "--schema", "--base", root).stdout
        assert "\ntokens: " in out and "\n  mean_kld_low double\n" in out
        record = json.loads(call(query, "--schema", "--base", root, "--json").stdout)
        assert {"view": "tokens", "column": "kld", "type": "FLOAT"} in record

    def test_damage_is_named_after_the_answer(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "summary.json").write_text("{")
        done = call(query, "select 7 as x", "--base", tmp_path)
        assert done.return_value == 1 and "7" in done.stdout
        assert done.stderr.startswith("left out: a/summary.json: not a nybble measurement")

    def test_no_measurements(self, tmp_path: Path) -> None:
        done = call(query, "--base", tmp_path)
        assert done.stdout == "" and "no measurements" in done.stderr

    def test_no_base(self, tmp_path: Path) -> None:
        with pytest.raises(NybbleError, match="no such result base"):
            call(query, "--base", tmp_path / "x")


class TestExport:
    def test_csv_has_every_cell(self, root: Path, tmp_path: Path) -> None:
        out = tmp_path / "cells.csv"
        done = call(export, "--to", "csv", "--base", root, "--out", out)
        assert done.stdout == "" and str(out) in done.stderr
        lines = list(csv.DictReader(out.open()))
        assert sorted(line["role"] for line in lines) == [
            "candidate", "candidate", "candidate", "floor", "identity"]  # fmt: skip
        assert call(export, "--to", "csv", "--base", root).stdout == out.read_text()

    def test_markdown_has_a_table_a_model(self, root: Path) -> None:
        text = call(export, "--to", "markdown", "--base", root).stdout
        assert [x for x in text.splitlines() if x.startswith("## ")][1] == "## Tiny"

    @pytest.mark.parametrize("args", [
        ("csv", "--project", "x"), ("wandb", "--tracking-uri", "x"), ("mlflow", "--out", "x"),
        ("markdown", "--experiment", "x"),
    ])  # fmt: skip
    def test_options_of_another_target(self, root: Path, args: tuple[str, ...]) -> None:
        with pytest.raises(NybbleError) as caught:
            call(export, "--base", root, "--to", *args)
        assert caught.value.hint and args[1] in str(caught.value)

    def test_to_mlflow(self, root: Path, tmp_path: Path) -> None:
        pytest.importorskip("mlflow")
        args = ("--to", "mlflow", "--base", root, "--tracking-uri", tmp_path / "runs")
        assert call(export, *args).stdout.startswith("5 new, 0 there already: experiment nybble")
        assert call(export, *args).stdout.startswith("0 new, 5 there already")


class TestGroup:
    def test_names_the_nearest(self) -> None:
        with pytest.raises(NybbleError, match="did you mean query?"):
            call(results, "qury")

    def test_help_lists_all(self) -> None:
        out = CliRunner().invoke(results, ["--help"]).stdout
        assert all(f"\n  {name} " in out for name in COMMANDS)
