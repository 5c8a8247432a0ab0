"""Opening a base: what is found, what is kept between openings, and what is left out."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nybble.errors import NybbleError
from nybble.results.base import refresh
from nybble.results.base.base import Base, open_base
from nybble.results.base.cell import cells_of
from nybble.results.base.external import External, Imported
from nybble.results.base.index import index_folder
from nybble.results.base.tokens import PLACE, ROW
from nybble.results.records import Measurement, Served, to_json
from nybble.results.store import RunStore
from nybble.scoring import compare
from run_folders import CATEGORIES, write_run

TINY = {"q8_0/q8_0": 8e-4, "q4_0/q4_0": 0.12}
TOKENS = 16 * (2 * 6 + 3 + 1)  # of a run: two settings of six documents, floor of three, identity


def small(folder: Path, **changes: Any) -> Measurement:
    """A run of one setting and two documents."""
    return write_run(folder, **{"settings": {"q4_0/q4_0": 0.12}, "categories": ("code", "chat"),
                                "tokens": 16, "guards": False, **changes})  # fmt: skip


def count(base: Base, view: str) -> int:
    return int(base.query(f"select count(*) from {view}").rows[0][0])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    write_run(root / "one", settings=TINY, tokens=16)
    write_run(root / "deep" / "er" / "two", settings=TINY, tokens=16, model="Other",
              file="other.gguf", seed=1)  # fmt: skip
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A base of two runs, "one" and "deep/er/two"."""
    shutil.copytree(made, tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def bare(made: Path, tmp_path: Path) -> Path:
    """`root` without token rows."""
    shutil.copytree(made, tmp_path / "base", ignore=shutil.ignore_patterns("rows"))
    return tmp_path / "base"


class TestCells:
    def test_every_row_of_every_run(self, tmp_path: Path) -> None:
        root = tmp_path / "base"
        expected = list(cells_of(small(root / "a"), "a"))
        expected += cells_of(small(root / "b" / "c", contexts=(512, 1024)), "b/c")
        with open_base(root) as base:
            assert base.cells == expected
            assert not base.damaged
        with open_base(root) as base:  # out of the index
            assert base.cells == expected

    def test_the_base_itself_may_be_a_run(self, tmp_path: Path) -> None:
        small(tmp_path / "run")
        with open_base(tmp_path / "run") as base:
            assert {c.run for c in base.cells} == {"."}

    def test_a_bound_from_above_is_no_end_of_an_interval(self, tmp_path: Path) -> None:
        record = small(tmp_path / "base" / "a")
        row = record.rows[0]
        metrics = {**row.metrics, "mean_kld_high": row.metrics["max_kld"]}
        row = dataclasses.replace(row, metrics=metrics, served=Served("vllm", "1", 20, ""))
        record = dataclasses.replace(record, rows=[row])
        (tmp_path / "base" / "a" / "summary.json").write_text(to_json(record))
        with open_base(tmp_path / "base") as base:
            assert base.cells[0].metrics == metrics
            found = base.query("select mean_kld_high, mean_kld_upper from cells").rows
            assert found == [(metrics["mean_kld"].high, metrics["max_kld"].value)]

    def test_candidates_are_in_order(self, bare: Path) -> None:
        with open_base(bare) as base:
            found = [(c.model, c.setting) for c in base.candidates()]
            assert found == [(m, s) for m in ("Other", "Tiny") for s in TINY]
            assert base.n_candidates == 4 and len(base.candidates(3)) == 3

    def test_no_such_folder(self, tmp_path: Path) -> None:
        with pytest.raises(NybbleError, match="no such result base"):
            open_base(tmp_path / "none")


class TestTokens:
    def test_fields_are_those_of_scoring(self) -> None:
        kinds = {"INTEGER": np.int32, "FLOAT": np.float32}
        assert np.dtype([(n, kinds[t]) for n, t in ROW.items()]) == compare.ROW

    def test_rows_of_a_cell(self, root: Path) -> None:
        with open_base(root) as base:
            cell = next(c for c in base.cells if c.run == "one" and c.setting == "q4_0/q4_0")
            found = base.tokens(cell)
        assert list(found) == [*PLACE, *ROW]
        kept = []
        for category in sorted(CATEGORIES):
            name = next((root / "one" / "rows").glob(f"*q4_0-q4_0*{_key(root, category)}*"))
            kept.append(RunStore(root / "one").read_cell(name.stem, compare.ROW))
        rows = np.concatenate(kept)  # type: ignore[arg-type]
        for field in ROW:
            np.testing.assert_array_equal(found[field], rows[field])
        assert found["kld"].mean() == pytest.approx(cell.metrics["mean_kld"].value)

    def test_a_run_without_rows_has_none(self, root: Path) -> None:
        shutil.rmtree(root / "one" / "rows")
        with open_base(root) as base:
            cell = next(c for c in base.cells if c.run == "one")
            assert len(base.tokens(cell)["kld"]) == 0
            assert not base.damaged

    def test_rows_that_the_summary_does_not_count(self, root: Path) -> None:
        path = next((root / "one" / "rows").glob("*q4_0-q4_0*"))
        shutil.copy(path, path.with_name("of-another-command.parquet"))
        with open_base(root) as base:
            assert count(base, "tokens where run = 'one' and setting = 'q4_0/q4_0'") == 0
            assert count(base, "tokens where run = 'one' and setting = 'q8_0/q8_0'") == 96
            assert "112 token rows" in base.damaged[0].reason

    def test_settings_that_are_not_in_the_summary(self, root: Path) -> None:
        store = RunStore(root / "one")
        path = next((root / "one" / "rows").glob("*q4_0-q4_0*"))
        rows = store.read_cell(path.stem, compare.ROW)
        constants = {"model": "a", "reference": "a", "role": "part", "setting": "probe",
                     "context": 1024, "category": "code", "document": "x", "chunk": 0}  # fmt: skip
        store.write_cell("probe", rows, constants)  # type: ignore[arg-type]
        with open_base(root) as base:
            assert not base.damaged
            assert count(base, "tokens where run = 'one'") == TOKENS


class TestDamage:
    @pytest.mark.parametrize("text, reason", [
        ("{", "not a nybble measurement"),
        ('{"schema_version": 99}', "newer nybble"),
        ('{"schema_version": 1, "rows": 3}', "damaged nybble measurement"),
        ('{"schema_version": Infinity}', "nybble measurement"),
        ("\x00\xff", "UTF-8"),
    ])  # fmt: skip
    def test_a_summary(self, bare: Path, text: str, reason: str) -> None:
        (bare / "one" / "summary.json").write_bytes(text.encode("latin-1"))
        for _ in range(2):
            with open_base(bare) as base:
                assert [d.path for d in base.damaged] == ["one/summary.json"]
                assert reason in base.damaged[0].reason
                assert {c.run for c in base.cells} == {"deep/er/two"}

    @pytest.mark.parametrize("field, value", [
        ("context", "1024"), ("n_tokens", 1.5), ("bits", float("nan")), ("setting", None),
        ("k_type", "\ud800"), ("simulated", 1), ("metrics", {"mean kld": {"value": 1}}),
        ("metrics", {"mean_kld": {"value": "1"}}), ("metrics", {"mean_kld": None}),
        ("metrics", {"x_low": {"value": 1}}), ("metrics", None), ("model", "c"), ("model", []),
        ("by_category", {"a": 1}), ("bits", 10**400),
    ])  # fmt: skip
    def test_a_field(self, bare: Path, field: str, value: object) -> None:
        path = bare / "one" / "summary.json"
        record = json.loads(path.read_text())
        record["rows"][1][field] = value
        path.write_text(json.dumps(record))
        with open_base(bare) as base:
            assert [d.path for d in base.damaged] == ["one/summary.json"]
            assert {c.run for c in base.cells} == {"deep/er/two"}

    def test_a_row_file_cut_short(self, root: Path) -> None:
        path = next((root / "one" / "rows").glob("*q4_0-q4_0*"))
        path.write_bytes(path.read_bytes()[:-40])
        with open_base(root) as base:
            assert [d.path for d in base.damaged] == [f"one/rows/{path.name}"]
            assert count(base, "tokens where run = 'one' and setting = 'q4_0/q4_0'") == 80
            assert count(base, "tokens where run = 'one' and setting = 'q8_0/q8_0'") == 96

    def test_a_row_file_of_other_columns(self, root: Path) -> None:
        path = root / "one" / "rows" / "0.parquet"
        rows = np.zeros(3, dtype=[("kld", np.float32)])
        RunStore(root / "one").write_cell(path.stem, rows, {"setting": "q4_0/q4_0"})
        with open_base(root) as base:
            assert [d.path for d in base.damaged] == ["one/rows/0.parquet"]
            assert count(base, "tokens where run = 'one'") == TOKENS

    def test_a_row_file_that_is_gone(self, root: Path) -> None:
        next((root / "one" / "rows").glob("*q8_0-q8_0*")).unlink()
        with open_base(root) as base:
            assert base.damaged[0].path == "one/rows"
            assert "80 token rows, summary.json counts 96" in base.damaged[0].reason

    def test_a_summary_that_is_too_large(self, bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("nybble.results.base.find.MAX_BYTES", 1000)
        with open_base(bare) as base:
            assert len(base.damaged) == 2 and not base.cells

    def test_a_run_of_rag_eval_is_no_damage(self, bare: Path) -> None:
        text = json.dumps({"schema_version": 1, "retrieval": [], "questions": []})
        (bare / "one" / "summary.json").write_text(text)
        with open_base(bare) as base:
            assert not base.damaged and {c.run for c in base.cells} == {"deep/er/two"}

    def test_links_that_lead_out(self, bare: Path, tmp_path: Path) -> None:
        shutil.copytree(bare / "one", tmp_path / "outside")
        (bare / "link").symlink_to(tmp_path / "outside")
        (bare / "round").symlink_to(bare)
        (bare / "three").mkdir()
        (bare / "three" / "summary.json").symlink_to(tmp_path / "outside" / "summary.json")
        with open_base(bare) as base:
            assert {c.run for c in base.cells} == {"deep/er/two", "one"}


class TestImported:
    ROW = External("m", "q8_0/q8_0", "acc", 0.5, stderr=0.01, task="arc", n=100)

    def put(self, root: Path, name: str, **changes: object) -> Imported:
        record = Imported("lm-eval", "0.4", "x.json", "0" * 64, [self.ROW], "2026")
        record = dataclasses.replace(record, **changes)  # type: ignore[arg-type]
        (root / "imported").mkdir(exist_ok=True)
        (root / "imported" / name).write_text(json.dumps(dataclasses.asdict(record)))
        return record

    def test_numbers_of_others(self, bare: Path) -> None:
        record = self.put(bare, "a.json")
        with open_base(bare) as base:
            assert base.externals == [record] and base.n_imported == 1
            found = base.query("select harness, metric, value, context from imported").rows
            assert found == [("lm-eval", "acc", 0.5, None)]
        (bare / "imported" / "a.json").unlink()
        with open_base(bare) as base:
            assert base.externals == [] and base.n_imported == 0

    @pytest.mark.parametrize("changes", [
        {"harness": "nybble"}, {"harness": 1}, {"rows": None}, {"schema_version": 9},
        {"rows": [dataclasses.replace(ROW, value=float("inf"))]},
    ])  # fmt: skip
    def test_damaged(self, bare: Path, changes: dict[str, object]) -> None:
        self.put(bare, "a.json")
        self.put(bare, "b.json", **changes)
        with open_base(bare) as base:
            assert [d.path for d in base.damaged] == ["imported/b.json"]
            assert len(base.externals) == base.n_imported == 1 and base.cells


class TestIndex:
    @pytest.fixture
    def read(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Names of the runs that are read from now on."""
        names: list[str] = []
        own = refresh.Refresh._read

        def watched(self: refresh.Refresh, db: object, name: str) -> object:
            names.append(name)
            return own(self, db, name)  # type: ignore[arg-type]

        monkeypatch.setattr(refresh.Refresh, "_read", watched)
        return names

    def test_only_what_changed_is_read(self, root: Path, read: list[str]) -> None:
        open_base(root)
        assert read == ["deep/er/two", "one"]
        open_base(root)
        assert len(read) == 2
        shutil.rmtree(root / "one")
        small(root / "one", settings={"q8_0/q8_0": 1e-3})
        shutil.rmtree(root / "deep")
        small(root / "three")
        with open_base(root) as base:
            assert read[2:] == ["one", "three"]
            assert {c.run: c.setting for c in base.cells} == {
                "one": "q8_0/q8_0", "three": "q4_0/q4_0"}  # fmt: skip
            assert count(base, "slices where run = 'one'") == 2
            assert count(base, "tokens") == 2 * 32

    def test_rows_that_came_later(self, root: Path, read: list[str]) -> None:
        shutil.move(root / "one" / "rows", root / ".rows")
        open_base(root)
        shutil.move(root / ".rows", root / "one" / "rows")
        with open_base(root) as base:
            assert read[2:] == ["one"] and count(base, "tokens where run = 'one'") > 0

    @pytest.mark.parametrize("name", ["manifest.json", "cells-*", "tokens-*"])
    @pytest.mark.parametrize("cut", [True, False])
    def test_built_anew_when_damaged(
        self, root: Path, read: list[str], name: str, cut: bool
    ) -> None:
        with open_base(root) as base:
            before = base.cells, count(base, "tokens")
        path = next(index_folder(root).glob(name))
        data = path.read_bytes()
        path.write_bytes(data[:-1] if cut else b"x" * len(data))
        with open_base(root) as base:
            assert (base.cells, count(base, "tokens")) == before
        assert len(read) == 4

    def test_damage_inside_a_file_is_an_error(self, root: Path) -> None:
        with open_base(root) as base:
            cell = base.cells[0]
        path = next(index_folder(root).glob("tokens-*"))
        data = bytearray(path.read_bytes())
        data[100:-2000] = bytes(len(data) - 2100)
        path.write_bytes(data)
        with open_base(root) as base, pytest.raises(NybbleError, match="index of the base"):
            base.tokens(cell)
        with open_base(root) as base:
            assert len(base.tokens(cell)["kld"]) == cell.n_tokens

    def test_files_of_old_states_go(self, bare: Path) -> None:
        for second in range(5):
            os.utime(bare / "one" / "summary.json", (second, second))
            open_base(bare)
        assert len(list(index_folder(bare).glob("cells-*"))) == 2

    def test_token_rows_of_runs_now_gone_go(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(refresh, "_BATCH", 0)
        for second in range(5):
            os.utime(root / "one" / "summary.json", (second, second))
            with open_base(root) as base:
                assert count(base, "tokens") == 2 * TOKENS
        manifest = json.loads((index_folder(root) / "manifest.json").read_text())
        assert 2 * TOKENS <= sum(manifest["segments"].values()) <= 4 * TOKENS

    def test_many_files_of_token_rows_become_one(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(refresh, "_BATCH", 1)
        monkeypatch.setattr(refresh, "_SEGMENTS", 1)
        with open_base(root) as base:
            assert count(base, "tokens") == 2 * TOKENS
        assert len(list(index_folder(root).glob("tokens-*"))) == 1
        manifest = json.loads((index_folder(root) / "manifest.json").read_text())
        assert list(manifest["segments"].values()) == [2 * TOKENS]

    def test_indexes_of_bases_that_are_gone_go(self, bare: Path, tmp_path: Path) -> None:
        shutil.copytree(bare / "one", tmp_path / "old" / "a")
        open_base(tmp_path / "old")
        old = index_folder(tmp_path / "old")
        assert old.exists()
        shutil.rmtree(tmp_path / "old")
        open_base(bare)
        assert not old.exists() and index_folder(bare).exists()

    def test_several_processes_at_once(self, root: Path) -> None:
        code = (
            "import sys; from pathlib import Path; from nybble.results.base.base import "
            "open_base\nwith open_base(Path(sys.argv[1])) as b: "
            "print(len(b.cells), *b.query('select count(*) from tokens').rows)"
        )
        args = [sys.executable, "-c", code, str(root)]
        running = [subprocess.Popen(args, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        found = {p.communicate(timeout=60)[0] for p in running}
        assert found == {f"8 ({2 * TOKENS},)\n"}

    @pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
    def test_a_cache_that_may_not_be_written(
        self, bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "cache").mkdir(mode=0o500)
        monkeypatch.setenv("NYBBLE_CACHE", str(tmp_path / "cache"))
        with pytest.raises(NybbleError, match="NYBBLE_CACHE"):
            open_base(bare)

    def test_a_cache_that_is_a_file(
        self, bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "cache").write_text("")
        monkeypatch.setenv("NYBBLE_CACHE", str(tmp_path / "cache"))
        with pytest.raises(NybbleError, match="NYBBLE_CACHE"):
            open_base(bare)


def _key(bare: Path, category: str) -> str:
    """What the name of a category's row file ends in, for q4_0/q4_0 of the run "one"."""
    import duckdb

    files = str(bare / "one" / "rows" / "*q4_0-q4_0*")
    with duckdb.connect(":memory:") as db:
        found = db.execute("select filename from read_parquet(?, filename = true) "
                           "where category = ? limit 1", [files, category]).fetchone()  # fmt: skip
    assert found is not None
    return Path(found[0]).stem.rsplit("-", 1)[1]
