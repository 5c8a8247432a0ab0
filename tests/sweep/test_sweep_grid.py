"""From grids to runs, groups and cells."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nybble.errors import NybbleError
from nybble.scoring.job import Job
from nybble.sweep.grid import Run, groups_of, runs_of
from nybble.sweep.spec import Grid, Spec


@pytest.fixture
def grid(tiny_model: Path) -> Grid:
    return Grid((str(tiny_model),), kv=("q8_0/q4_0", "q4_0/q4_0"), context=(512, 64),
                categories=("prose", "code"))  # fmt: skip


def runs(*grids: Grid, threads: int = 1) -> list[Run]:
    return runs_of(Spec(grids), threads)


def keys(run: Run) -> list[str]:
    return [key for group in groups_of(run) for _, key in group.cells()]


def test_groups_cover_all_corpora_and_contexts_short_ones_first(grid: Grid) -> None:
    (run,) = runs(grid)
    found = [(g.context, g.corpus) for g in groups_of(run)]
    assert found == [(64, "prose"), (64, "code"), (512, "prose"), (512, "code")]
    assert len(set(keys(run))) == 8 and len({g.key for g in groups_of(run)}) == 4
    (usual,) = runs(replace(grid, categories=()))
    assert set(usual.corpora) == {"code", "chat", "tools", "prose", "scripts", "long"}


def test_keys_do_not_depend_on_where_a_model_lies(grid: Grid, tmp_path: Path) -> None:
    copy = shutil.copy(grid.model[0], tmp_path / Path(grid.model[0]).name)
    (here,), (there,) = runs(grid), runs(replace(grid, model=(str(copy),)))
    assert here.model != there.model
    assert (here.name, keys(here)) == (there.name, keys(there))
    assert keys(runs(grid, threads=4)[0]) == keys(here)  # nor on how it is run


def test_keys_depend_on_the_protocol(grid: Grid) -> None:
    seen = {runs(grid)[0].name}
    for change in (
        {"via": "decode"}, {"weights": "f32"}, {"framing": "raw"}, {"score_from": 0.25},
        {"seeds": (1,)}, {"engine": "transformers"}, {"name": "again"},
    ):  # fmt: skip
        name = runs(replace(grid, **change))[0].name  # type: ignore[arg-type]
        assert name not in seen
        seen.add(name)
    wider = runs(replace(grid, context=(64, 128), kv=("q8_0/q8_0",)))[0]
    assert wider.name == runs(grid)[0].name  # a wider sweep adds to a run


def test_one_run_in_two_grids_is_refused_unless_named(grid: Grid) -> None:
    with pytest.raises(NybbleError, match="share a folder") as caught:
        runs(grid, replace(grid, context=(128,)))
    assert Path(grid.model[0]).stem in str(caught.value.seen)
    first, second = runs(grid, replace(grid, context=(128,), name="long"))
    assert first.name != second.name and "-long-" in second.name


def test_what_measure_would_refuse_is_refused(grid: Grid) -> None:
    for change, what in (
        ({"categories": ("prosa",)}, "did you mean prose"), ({"context": (16,)}, "too short"),
        ({"via": "x"}, "--via"), ({"documents": -1}, "--documents"), ({"seeds": (-1,)}, "draw"),
    ):  # fmt: skip
        with pytest.raises(NybbleError, match=what):
            runs(replace(grid, **change))  # type: ignore[arg-type]


def test_names_are_folders_whatever_a_model_is_called(grid: Grid) -> None:
    (run,) = runs(replace(grid, model=("../../org/a b\u00e9:*",)))
    assert "/" not in run.name and " " not in run.name and not run.name.startswith(".")


def test_seeds_draw_other_documents(grid: Grid) -> None:
    texts = []
    for run in runs(replace(grid, seeds=(0, 1), context=(64,), categories=("prose",))):
        with Job(run.request()) as job:
            (chunk,) = job._text.chunks[64]
            texts.append(chunk.tokens.tobytes())
    assert len(set(texts)) == 2
