"""A measurement in portions equals one in one go; further draws are other documents."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from tiny_runs import SETTINGS, cells, comparable, request

from nybble.errors import NybbleError
from nybble.formats import parse
from nybble.results.store import RunStore
from nybble.scoring.job import Job, Portion
from nybble.scoring.measure import measure
from nybble.scoring.request import MeasureRequest

CORPORA = ("prose", "code")


def built_in(model: Path, out: Path, **changes: object) -> MeasureRequest:
    """Two built-in categories at two lengths."""
    base = {
        "model": model, "out": out, "contexts": (64, 128), "threads": 2, "documents": 2,
        "categories": CORPORA, "settings": tuple(parse(s) for s in SETTINGS[:2]),
    }  # fmt: skip
    return MeasureRequest(**{**base, **changes})  # type: ignore[arg-type]


def test_portions_in_any_order_are_the_whole(tiny_model: Path, tmp_path: Path) -> None:
    whole = measure(built_in(tiny_model, tmp_path / "whole"))
    store = RunStore(tmp_path / "parts")
    with Job(built_in(tiny_model, tmp_path / "parts")) as job:
        assert sorted(job.portions) == sorted(Portion(c, x) for c in (64, 128) for x in CORPORA)
        scored = [job.score(store, p) for p in reversed(job.portions)]
    assert all(scored)
    with Job(built_in(tiny_model, tmp_path / "parts")) as later:  # another process, as it were
        assert [later.score(store, p) for p in later.portions] == [0, 0, 0, 0]
        found = later.collect(store)
    assert comparable(found) == comparable(whole.measurement)
    names = sorted(cells(tmp_path / "whole"))
    assert sorted(cells(tmp_path / "parts")) == names
    for name in names:
        one, other = (tmp_path / f / "rows" / name for f in ("whole", "parts"))
        assert one.read_bytes() == other.read_bytes()


def test_what_another_process_failed_at_is_a_failed_row(tiny_model: Path, tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    with Job(built_in(tiny_model, tmp_path)) as job:
        job.score(store, Portion(64, "prose"))
        failed = {("q8_0/q8_0", 128): "the node burned"}
        rows = job.collect(store, failed).rows
    at = {(r.setting, r.context): r for r in rows}
    assert at["q8_0/q8_0", 128].error == "the node burned"
    assert at["q5_0/q5_0", 128].error == "not one chunk was scored"
    assert at["q8_0/q8_0", 64].status == "done" and at["q8_0/q8_0", 64].n_documents == 2


def test_a_cell_that_cannot_be_read_is_named(tiny_model: Path, tmp_path: Path) -> None:
    asked = built_in(tiny_model, tmp_path, contexts=(64,), categories=("prose",))
    measure(asked)
    victim = next(p for p in (tmp_path / "rows").iterdir() if "q8_0" in p.name)
    data = bytearray(victim.read_bytes())
    data[4:-4] = bytes(len(data) - 8)  # head and tail stay, as after a bad sector
    victim.write_bytes(data)
    store = RunStore(tmp_path)
    with Job(asked) as job:
        job.collect(store)
    assert store.damaged == [victim.stem]
    assert store.set_aside(victim.stem).exists() and not victim.exists()


class TestDraws:
    def test_draws_share_no_document(self, tiny_model: Path, tmp_path: Path) -> None:
        found = []
        for draw in (0, 1):
            out = tmp_path / str(draw)
            measure(built_in(tiny_model, out, contexts=(64,), draw=draw))
            found.append(_documents(out))
        assert len(found[0]) == len(found[1]) == 4
        assert not found[0] & found[1]

    def test_a_draw_has_a_folder_of_its_own(self, tiny_model: Path, tmp_path: Path) -> None:
        names = set()
        for draw in (0, 1):
            asked = dataclasses.replace(built_in(tiny_model, tmp_path, draw=draw), out=None)
            with Job(asked) as job:
                names.add(job.folder.name)
        assert len(names) == 2

    def test_a_draw_past_the_end_says_so(
        self, tiny_model: Path, text: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(NybbleError, match="no text fills one context") as caught:
            measure(request(tiny_model, text, tmp_path, draw=900))
        assert "no further document" in str(caught.value)


def _documents(folder: Path) -> set[tuple[str, str, int]]:
    import duckdb

    rows = duckdb.sql(
        f"select distinct category, document, chunk from '{folder}/rows/*.parquet'"
    ).fetchall()
    return {(str(a), str(b), int(c)) for a, b, c in rows}
