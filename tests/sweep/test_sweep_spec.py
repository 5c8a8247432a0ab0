"""A sweep's TOML: what is read from it, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nybble.errors import NybbleError
from nybble.sweep.spec import Grid, Spec, check, read

GRID = '[[grid]]\nmodel = "a.gguf"\n'


def made(folder: Path, text: str | bytes) -> Path:
    path = folder / "sweep.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_one_value_stands_for_a_list_and_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    spec = read(
        made(
            tmp_path,
            'place = "out"\n[run]\nmemory_gib = 2\n[grid]\n'
            'model = ["a.gguf", "org/name"]\ntext = "t.txt"\njsonl = "j.jsonl"\n'
            'thresholds = "limits.toml"\ncontext = 512\nseeds = 3\nkv= "q8_0/q4_0"',
        )
    )
    assert spec == Spec(
        (Grid(model=(str(tmp_path / "a.gguf"), "org/name"), kv=("q8_0/q4_0",), context=(512,),
              text=(str(tmp_path / "t.txt"),), jsonl=str(tmp_path / "j.jsonl"), seeds=(3,),
              thresholds=str(tmp_path / "limits.toml")),),
        str(tmp_path / "out"), spec.running, str(tmp_path / "sweep.toml"),
    )  # fmt: skip
    assert spec.running.memory_gib == 2.0
    assert read(made(tmp_path, f'place = "s3://bucket/x"\n{GRID}')).place == "s3://bucket/x"


@pytest.mark.parametrize(
    ("text", "what", "seen"),
    [
        ("plcae = 'x'\n" + GRID, "the sweep; did you mean place", "plcae"),
        ("[run]\nworker = 2\n" + GRID, r"\[run\]; did you mean workers", "worker"),
        (GRID + "categorys = ['prose']", r"\[\[grid\]\]; did you mean categories", "categorys"),
        (GRID + "q = 1", r"unknown key in \[\[grid\]\]\n", "q"),
        ("grid = 1", "needs a grid", "sweep.toml"),
        ("grid = [1]", "must be a table", "1"),
        ("run = 2\n" + GRID, r"\[run\] must be a table", "2"),
        ("place = 1\n" + GRID, "place is a text", "1"),
        ("[run]\nworkers = 2.5\n" + GRID, "workers of .* is a whole number", "2.5"),
        ("[run]\nworkers = true\n" + GRID, "is a whole number", "True"),
        ("[run]\nmemory_gib = '4'\n" + GRID, "memory_gib of .* is a number", "'4'"),
        (GRID + "context = ['1024']", "context of .* is a whole number", "'1024'"),
        (GRID + "kv = [1]", "kv of .* is a text", "1"),
        (GRID + "split_kv = 1", "is true or false", "1"),
        ("[[grid]]\nkv = 'q8_0/q8_0'", "names no model", None),
        ("", "needs a grid", "sweep.toml"),
        ("[[grid", "cannot read the sweep", "sweep.toml"),
        (b"\xff\xfe", "cannot read the sweep", "sweep.toml"),
        ("#" * (1 << 20) + "\n", "cannot read the sweep", "larger than 1,048,576 bytes"),
        ("x = " + "[" * 100_000, "cannot read the sweep", "sweep.toml"),
    ],
)
def test_a_file_that_is_none(
    tmp_path: Path, text: str | bytes, what: str, seen: str | None
) -> None:
    with pytest.raises(NybbleError) as caught:
        read(made(tmp_path, text))
    assert caught.match(what)  # the whole message; `what` is its first line
    assert seen is None or seen in (caught.value.seen or "")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NybbleError, match="No such file"):
        read(tmp_path / "none.toml")
    with pytest.raises(NybbleError, match="directory"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[run]\nworkers = -1\n" + GRID, "workers of .* out of range"),
        ("[run]\nthreads = 513\n" + GRID, "threads of .* out of range"),
        ("[run]\nmemory_gib = nan\n" + GRID, "memory_gib of .* out of range"),
        ("[run]\nattempts = 0\n" + GRID, "attempts of .* out of range"),
        ("[run]\nprice_per_hour = inf\n" + GRID, "price_per_hour of .* out of range"),
        ("[run]\ngpus = -2\n" + GRID, "gpus of .* out of range"),
        (GRID + "seeds = [1, 1]", "seeds are whole numbers, each once"),
        (GRID + "seeds = []", "seeds are whole numbers, each once"),
        ("[[grid]]\nmodel = []", "names no model"),
        (GRID + "engine = 'vllm'", "engines that it can start itself"),
    ],
)
def test_numbers_out_of_range(tmp_path: Path, text: str, what: str) -> None:
    with pytest.raises(NybbleError, match=what):
        check(read(made(tmp_path, text)))


def test_settings_are_crossed() -> None:
    grid = Grid(("m",), k=("q8_0", "q4_0"), v=("q4_0",), rotation="on,off")
    assert list(map(str, grid.settings)) == [
        "q8_0/q4_0", "q8_0/q4_0-norot", "q4_0/q4_0", "q4_0/q4_0-norot",
    ]  # fmt: skip
    with pytest.raises(NybbleError, match="rotation"):
        _ = Grid(("m",), kv=("q8_0/q8_0",), rotation="yes").settings


_WORDS = st.sampled_from(["place", "run", "grid", "model", "kv", "context", "workers", "seeds",
                          "documents", "memory_gib", "split_kv", "gpus", "text"]) | st.text(
                              "abc_", min_size=1, max_size=6)  # fmt: skip
_LEAVES = st.one_of(st.integers(-(2**40), 2**40), st.booleans(), st.floats(),
                    st.text("ab./:\u00e9", max_size=8))  # fmt: skip
_VALUES = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS, inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


def toml(value: Any) -> str:
    """One value as inline TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else repr(value)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=st.dictionaries(_WORDS, _VALUES, max_size=4), grid=st.dictionaries(_WORDS, _VALUES))
def test_any_table_is_a_sweep_or_an_error_for_the_user(
    tmp_path: Path, table: dict[str, Any], grid: dict[str, Any]
) -> None:
    whole = {**table, "grid": [{**grid, "model": grid.get("model", "a.gguf")}]}
    path = made(tmp_path, "\n".join(f"{k} = {toml(v)}" for k, v in whole.items()))
    try:
        spec = read(path)
        check(spec)
    except NybbleError:
        return
    assert len(spec.grids) == 1 and spec.grids[0].model
    assert all(isinstance(c, int) for c in spec.grids[0].context)
    assert spec.running.attempts >= 1
