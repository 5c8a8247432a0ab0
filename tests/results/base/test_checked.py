"""Summaries of anybody: whatever they hold, they are read whole or refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nybble.errors import NybbleError
from nybble.results.base.cell import cells_of
from nybble.results.base.checked import PLAIN, SLICE, cell_line, plain, slice_lines
from nybble.results.base.refresh import _WRONG
from nybble.results.records import from_json
from run_folders import write_run

KINDS = {"VARCHAR": str, "BIGINT": int, "DOUBLE": float, "BOOLEAN": bool}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda part: (
        st.lists(part, max_size=2) | st.dictionaries(st.text(max_size=5), part, max_size=2)
    ),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("run")
    write_run(folder, settings={"q4_0/q4_0": 0.1}, categories=("code",), tokens=16, guards=False)
    return json.loads((folder / "summary.json").read_text())


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_one_value_replaced(summary: Any, data: st.DataObject) -> None:
    record = json.loads(json.dumps(summary))
    place = record
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(keys))
        if not (isinstance(place[key], (dict, list)) and place[key] and data.draw(st.booleans())):
            break
        place = place[key]
    place[key] = data.draw(JSON)
    try:
        read = from_json(json.dumps(record))
        cells = [cell_line(cell) for cell in cells_of(read, "run")]
        slices = [line for row in read.rows for line in slice_lines(row)]
    except _WRONG:
        return
    for lines, types in ((cells, PLAIN), (slices, SLICE)):
        for line in lines:
            assert all(type(line[name]) is KINDS[kind] for name, kind in types.items())
            rest = [v for name, v in line.items() if name not in types]
            assert all(v is None or type(v) is float for v in rest)
    json.dumps([cells, slices], allow_nan=False).encode()


@pytest.mark.parametrize("kind, value", [
    ("VARCHAR", 1), ("VARCHAR", "\0"), ("VARCHAR", "\ud800"), ("VARCHAR", "x" * 100_001),
    ("BIGINT", True), ("BIGINT", 1.0), ("BIGINT", 2**63), ("DOUBLE", "1"), ("DOUBLE", True),
    ("DOUBLE", float("inf")), ("DOUBLE", 10**400), ("BOOLEAN", 1), ("BOOLEAN", None),
])  # fmt: skip
def test_refused(kind: str, value: object) -> None:
    with pytest.raises(ValueError, match="field"):
        plain("field", kind, value)


def test_a_record_with_too_many_metrics(summary: Any) -> None:
    record = json.loads(json.dumps(summary))
    record["rows"][0]["metrics"] = {f"m{i}": {"value": 1.0} for i in range(101)}
    (cell,) = cells_of(from_json(json.dumps(record)), "run")
    with pytest.raises(ValueError, match="101 metrics"):
        cell_line(cell)


def test_the_next_schema_is_refused(summary: Any) -> None:
    with pytest.raises(NybbleError, match="newer nybble"):
        from_json(json.dumps({**summary, "schema_version": 99}))
