"""Cells on disk: whole or not at all, readable by anyone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pytest

from nybble.errors import NybbleError
from nybble.results import store as module
from nybble.results.store import RunStore, check_folder, content_key, write_text

DTYPE = np.dtype([("position", "<i4"), ("kld", "<f4"), ("nll", "<f4"), ("rank", "<i4")])
CONSTANTS: dict[str, str | int] = {
    "setting": "q8_0/q4_0", "document": "it's \"quoted\"; -- drop", "context": 64, "chunk": 0,
}  # fmt: skip


def rows(n: int = 7) -> np.ndarray:  # type: ignore[type-arg]
    out = np.zeros(n, dtype=DTYPE)
    out["position"] = np.arange(n) + 5
    out["kld"] = np.linspace(0, 1e-7, n, dtype=np.float32)
    out["nll"] = np.float32(1) / 3
    out["rank"] = np.arange(n)[::-1]
    return out


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "run")


def files(store: RunStore) -> list[str]:
    return sorted(p.name for p in (store.folder / "rows").iterdir())


class TestCells:
    def test_round_trip(self, store: RunStore) -> None:
        store.write_cell("cell", rows(), CONSTANTS)
        back = store.read_cell("cell", DTYPE)
        assert back is not None
        assert back.tobytes() == rows().tobytes()
        assert files(store) == ["cell.parquet"]
        assert store.has("cell")

    def test_numbers_that_are_none(self, store: RunStore) -> None:
        given = rows(4)
        given["kld"] = [np.nan, np.inf, -np.inf, 5e-45]
        store.write_cell("cell", given, CONSTANTS)
        back = store.read_cell("cell", DTYPE)
        assert back is not None
        np.testing.assert_array_equal(back["kld"], given["kld"])
        assert (
            back[["position", "nll", "rank"]].tolist()
            == given[["position", "nll", "rank"]].tolist()
        )

    def test_many_rows_keep_their_order(self, store: RunStore) -> None:
        """Above a row group (122,880 rows) and with DuckDB's threads at work."""
        given = rows(300_000)
        store.write_cell("cell", given, CONSTANTS)
        back = store.read_cell("cell", DTYPE)
        assert back is not None and back.tobytes() == given.tobytes()

    def test_empty(self, store: RunStore) -> None:
        store.write_cell("cell", rows(0), CONSTANTS)
        back = store.read_cell("cell", DTYPE)
        assert back is not None and len(back) == 0

    def test_parts_of_arrays(self, store: RunStore) -> None:
        """Rows of a payload are views, one after the other, and read-only."""
        whole = np.frombuffer(rows(20).tobytes(), dtype=DTYPE)
        store.write_cell("cell", whole[3:9], CONSTANTS)
        back = store.read_cell("cell", DTYPE)
        assert back is not None and back.tobytes() == whole[3:9].tobytes()

    def test_written_again(self, store: RunStore) -> None:
        store.write_cell("cell", rows(3), CONSTANTS)
        store.write_cell("cell", rows(5), CONSTANTS)
        back = store.read_cell("cell", DTYPE)
        assert back is not None and len(back) == 5

    def test_plain_sql_needs_nothing_of_nybble(self, store: RunStore) -> None:
        store.write_cell("one", rows(3), CONSTANTS)
        store.write_cell("two", rows(5), {**CONSTANTS, "setting": "f16/f16", "chunk": 1})
        where = f"'{store.folder}/rows/*.parquet'"
        assert duckdb.sql(
            f"select setting, document, context, count(*), max(position) from {where} "
            "group by all order by setting"
        ).fetchall() == [
            ("f16/f16", CONSTANTS["document"], 64, 5, 9),
            ("q8_0/q4_0", CONSTANTS["document"], 64, 3, 7),
        ]
        names = [r[0] for r in duckdb.sql(f"describe select * from {where}").fetchall()]
        assert names == [*CONSTANTS, *(DTYPE.names or ())]

    @pytest.mark.parametrize("name", ["it's", "run[1]", "a?b", "a*b", "ünï", "a{b,c}", "x;y--"])
    def test_folders_of_any_name(self, tmp_path: Path, name: str) -> None:
        store = RunStore(tmp_path / name)
        store.write_cell("cell", rows(), CONSTANTS)
        back = store.read_cell("cell", DTYPE)
        assert back is not None and back.tobytes() == rows().tobytes()
        assert store.read_constants("cell", ["chunk"]) == {"chunk": 0}

    def test_constants(self, store: RunStore) -> None:
        store.write_cell("cell", rows(), CONSTANTS)
        wanted = ["document", "context"]
        assert store.read_constants("cell", wanted) == {k: CONSTANTS[k] for k in wanted}
        assert store.read_constants("cell", ["no_such"]) == {}
        assert store.read_constants("no_such", ["context"]) == {}


class TestDamage:
    def test_missing(self, store: RunStore) -> None:
        assert store.read_cell("cell", DTYPE) is None
        assert not store.has("cell")

    @pytest.mark.parametrize("keep", [0, 1, 3, 7, 200, -9, -4, -1])
    def test_cut_off(self, store: RunStore, keep: int) -> None:
        store.write_cell("cell", rows(500), CONSTANTS)
        data = store.path("cell").read_bytes()
        store.path("cell").write_bytes(data[:keep])
        assert store.read_cell("cell", DTYPE) is None
        assert store.read_constants("cell", ["context"]) == {}
        assert not store.has("cell")

    def test_zeroed_by_a_power_cut(self, store: RunStore) -> None:
        store.path("cell").write_bytes(b"\0" * 4096)
        assert store.read_cell("cell", DTYPE) is None
        assert not store.has("cell")

    def test_other_columns(self, store: RunStore) -> None:
        """A cell of another version is no cell."""
        store.write_cell("cell", rows()[["position", "kld"]], CONSTANTS)
        assert store.read_cell("cell", DTYPE) is None


class TestAtomic:
    def test_a_failing_copy_leaves_nothing(self, store: RunStore) -> None:
        with pytest.raises(duckdb.Error):
            store.write_cell("cell", rows(), {"two words": 1})
        assert files(store) == []

    def test_a_failing_rename_leaves_the_old_cell(
        self, store: RunStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.write_cell("cell", rows(3), CONSTANTS)

        def full(*args: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(module.os, "replace", full)
        with pytest.raises(
            NybbleError, match="the disk is full; finished cells are kept"
        ) as caught:
            store.write_cell("cell", rows(5), CONSTANTS)
        assert "bytes free" in str(caught.value.seen)
        monkeypatch.undo()
        assert files(store) == ["cell.parquet"]
        back = store.read_cell("cell", DTYPE)
        assert back is not None and len(back) == 3

    def test_a_folder_that_went_away(self, store: RunStore) -> None:
        (store.folder / "rows").rmdir()
        with pytest.raises(NybbleError, match="cannot write results"):
            store.write_cell("cell", rows(), CONSTANTS)

    def test_stale_partial_files_go(self, store: RunStore) -> None:
        store.write_cell("cell", rows(), CONSTANTS)
        store.path("old").with_suffix(".tmp").write_bytes(b"half")
        with store:
            assert files(store) == ["cell.parquet"]

    def test_text(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        target = tmp_path / "summary.json"
        assert write_text(target, "öne") == target
        monkeypatch.setattr(module.os, "replace", lambda *a: (_ for _ in ()).throw(OSError("no")))
        with pytest.raises(NybbleError, match="cannot write results"):
            write_text(target, "two")
        assert target.read_text(encoding="utf-8") == "öne"
        assert list(tmp_path.iterdir()) == [target]


class TestLock:
    HOLD = (
        "import sys; from pathlib import Path; from nybble.results.store import RunStore\n"
        "with RunStore(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()\n"
    )

    def test_held_by_another_process(self, store: RunStore) -> None:
        with subprocess.Popen(
            [sys.executable, "-c", self.HOLD, str(store.folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as other:  # fmt: skip
            assert other.stdout is not None and other.stdin is not None
            assert other.stdout.readline() == "held\n"
            store.path("live").with_suffix(".tmp").write_bytes(b"half")
            with pytest.raises(NybbleError, match="another nybble run is writing") as caught, store:
                pass
            assert caught.value.seen == str(store.folder)
            assert "--out" in str(caught.value.hint)
            # What the other run is writing now must not be taken for left-overs.
            assert files(store) == ["live.tmp"]
            other.stdin.close()
            assert other.wait(timeout=20) == 0
        with store:
            assert files(store) == []

    def test_a_killed_run_does_not_hold_it(self, store: RunStore) -> None:
        with subprocess.Popen(
            [sys.executable, "-c", self.HOLD, str(store.folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as other:  # fmt: skip
            assert other.stdout is not None
            other.stdout.readline()
            other.kill()
            other.wait()
        with store:
            pass

    def test_given_back_after_an_error(self, store: RunStore) -> None:
        with pytest.raises(RuntimeError), store:
            raise RuntimeError
        with RunStore(store.folder):
            pass


class TestFolder:
    def test_a_file_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        for folder in (tmp_path / "file", tmp_path / "file" / "run"):
            with pytest.raises(NybbleError, match="cannot write to the run folder") as caught:
                check_folder(folder)
            assert "is a file" in str(caught.value.seen)
            with pytest.raises(NybbleError, match="cannot write results"):
                RunStore(folder)

    def test_fine(self, tmp_path: Path) -> None:
        check_folder(tmp_path / "a" / "b" / "c")
        assert not (tmp_path / "a").exists()


def test_content_key() -> None:
    assert content_key({"a": 1, "b": [1, "ü"]}) == content_key({"b": [1, "ü"], "a": 1})
    assert content_key({"a": 1}) != content_key({"a": "1"})
    assert content_key([]) == "4f53cda18c2baa0c"  # sha256 of "[]"
