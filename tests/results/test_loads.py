"""A load test read back is the one written; anything else is refused with its reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from load_builders import answer, in_blocks, report_of, run_of
from nybble.errors import NybbleError
from nybble.results.loads import check_writable, from_json, read, to_json, write
from nybble.serving.load.summary import Limits

REPORT = report_of(
    run_of([*in_blocks(5, 4), answer(99, block=4, error="cut off", detail="é\u2028x")], blocks=5,
           limits=Limits(tpot=0.5)),
    run_of(in_blocks(5, 4, tokens_in=None, cached=None), "two", blocks=5),
)  # fmt: skip
TEXT = to_json(REPORT)


def test_round_trip(tmp_path: Path) -> None:
    path = write(REPORT, tmp_path / "load.json")
    assert read(path) == REPORT and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "damaged"), ("[]", "damaged"), ("{}", "damaged"), ("[" * 9999, "damaged"),
        ('{"kind": "nybble calibration"}', "damaged"),
        ('{"kind": "nybble load test", "schema_version": 1}', "damaged"),
        ('{"kind": "nybble load test", "schema_version": 99}', "another version"),
    ],
)  # fmt: skip
def test_what_is_none(text: str, words: str) -> None:
    with pytest.raises(NybbleError, match=words):
        from_json(text)


@pytest.mark.parametrize(
    ("old", "new"),
    [('"concurrency": 1', '"concurrency": "1"'), ('"rate": null', '"rate": "fast"'),
     ('"seed": 0', '"seed": true'), ('"url": "http', '"address": "http'),
     ('"gaps": [0.01', '"gaps": [NaN'), ('"tokens_out": 11', '"tokens_out": 1.5')],
)  # fmt: skip
def test_damaged_fields(old: str, new: str) -> None:
    assert old in TEXT
    with pytest.raises(NybbleError, match="damaged"):
        from_json(TEXT.replace(old, new))


@given(at=st.integers(0, len(TEXT)), value=st.text(max_size=4))
@settings(max_examples=60, deadline=None)
def test_any_damage_is_an_error_or_a_report(at: int, value: str) -> None:
    try:
        found = from_json(TEXT[:at] + value + TEXT[at + len(value) :])
    except NybbleError:
        return
    assert json.loads(to_json(found))["kind"] == "nybble load test"


def test_files_that_cannot_be(tmp_path: Path) -> None:
    check_writable(None)
    check_writable(tmp_path / "new.json")
    for bad in (tmp_path, tmp_path / "no" / "folder.json"):
        with pytest.raises(NybbleError, match="cannot be written"):
            check_writable(bad)
    with pytest.raises(NybbleError, match="cannot write"):
        write(REPORT, tmp_path / "no" / "folder.json")
    with pytest.raises(NybbleError, match="cannot read"):
        read(tmp_path / "nothing.json")
