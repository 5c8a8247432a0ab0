"""Files of contexts: what may be used, what is told of the others, which go first."""

from __future__ import annotations

import json
import os
import struct
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rag_prefix_slots import IDS, cells, slot

from nybble.errors import EngineError
from nybble.rag.prefix import PrefixKey, PrefixStore, tokens_digest


def key(ids: tuple[int, ...] = IDS, **changes: str) -> PrefixKey:
    made = PrefixKey("w" * 64, "b1", "q8_0/q8_0", "t" * 64, tokens_digest(ids))
    return replace(made, **changes)


def kept(store: PrefixStore, of: PrefixKey, ids: tuple[int, ...] = IDS, scope: str = "a") -> Path:
    """Save as the server does, and take it."""
    (store.folder / "new.part").write_bytes(slot(cells(range(len(ids))), ids=ids))
    store.add("new.part", of, ids, scope, 1.5)
    return store.folder / store.file(of)


def test_a_folder_that_a_server_has_made_becomes_the_users_only(tmp_path: Path) -> None:
    folder = tmp_path / "prefixes"
    folder.mkdir(mode=0o755)
    kept(PrefixStore(folder, 1.0), key())
    assert oct(folder.stat().st_mode & 0o777) == "0o700"


@pytest.fixture
def store(tmp_path: Path) -> PrefixStore:
    return PrefixStore(tmp_path / "prefixes", 1.0)


def test_what_was_added_is_found(store: PrefixStore) -> None:
    file = kept(store, key())
    record, why = store.look(key(), IDS, "a")
    assert record is not None and why == ""
    assert record.file_bytes == file.stat().st_size and record.prefill == 1.5
    assert record.cache_bytes == 5 * 2 * 2 * 34 and record.types == ("q8_0/q8_0",)
    assert {p.suffix for p in store.folder.iterdir() if p.name != ".lock"} == {".slot", ".json"}
    assert oct(store.folder.stat().st_mode & 0o777) == "0o700"


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (slot(cells(range(5)), ids=(1, 5, 9, 9, 3)), "other tokens"),
        (slot(cells(range(4))), "4 of 5 tokens"),
        (slot(cells(range(5), kind=2, row=18)), "q4_0/q4_0, not q8_0/q8_0"),
        (slot(cells(range(5)), places=b"x"), "not read here|too early"),
        (slot(cells(range(5)))[:-1], "too early"),
        (struct.pack("<III4i", 0x67677371, 4, 4, -1, 1, 99, 0) + cells(range(5)), "damaged"),
        (b"", "empty|too early|mmap"),
    ],
)
def test_what_the_server_should_not_have_saved_is_not_taken(
    store: PrefixStore, data: bytes, match: str
) -> None:
    (store.folder / "new.part").write_bytes(data)
    with pytest.raises((EngineError, ValueError), match=match):
        store.add("new.part", key(), IDS, "", 1.0)
    assert [p.name for p in store.folder.iterdir() if p.name != ".lock"] == []


@pytest.mark.parametrize(
    ("changes", "words", "stays"),
    [
        ({"weights": "v" * 64}, "another model", True),
        ({"engine": "b2"}, "another build", True),
        ({"setting": "q4_0/q4_0"}, "another KV setting", True),
        ({"template": "u" * 64}, "another chat template", False),
        ({"tokens": "0" * 64}, "documents that have changed", False),
    ],
)
def test_why_a_file_does_not_do(
    store: PrefixStore, changes: dict[str, str], words: str, stays: bool
) -> None:
    file = kept(store, key())
    record, why = store.look(key(**changes), IDS, "a")
    assert record is None and words in why and file.exists() == stays
    assert store.look(key(**changes), IDS, "b") == (None, "")


def test_the_longest_unused_go_first_and_what_is_used_stays(tmp_path: Path) -> None:
    size = len(slot(cells(range(5))))
    store = PrefixStore(tmp_path, 2.5 * size / 2**30)
    first, second, third = (key(engine=f"b{i}") for i in range(3))
    for i, one in enumerate((first, second)):
        kept(store, one)
        os.utime(tmp_path / f"{one.name}.json", (i, i))
    store.touch(first)
    kept(store, third)
    assert {r.key for r in store.records()} == {first, third}


def test_what_was_never_finished_is_removed_after_an_hour(store: PrefixStore) -> None:
    old, new, lost = (store.folder / n for n in ("old.part", "fresh.part", "f" * 40 + ".slot"))
    for path in (old, new, lost):
        path.write_bytes(b"x")
    hour = time.time() - 4000
    os.utime(old, (hour, hour))
    os.utime(lost, (hour, hour))
    kept(store, key())
    assert not old.exists() and not lost.exists() and new.exists()


@pytest.mark.parametrize("text", ["", "[]", "null", '{"version": 2}', '{"version": 1, "key": 5}',
                                  '{"version": 1, "key": {}, "types": 1}'])  # fmt: skip
def test_a_record_that_is_none(store: PrefixStore, text: str) -> None:
    kept(store, key())
    (store.folder / f"{key().name}.json").write_text(text)
    record, why = store.look(key(), IDS, "a")
    assert record is None and "refused" in why
    assert not (store.folder / store.file(key())).exists()


def test_a_record_of_another_cache_type(store: PrefixStore) -> None:
    kept(store, key(setting=""))
    path = store.folder / f"{key(setting='').name}.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "types": ["q4_0/q4_0"]}))
    found, why = store.look(key(setting=""), IDS, "a")
    assert found is None and "its cache is in q8_0/q8_0" in why
