"""Copies of what feeds answered: found again, damaged, too large, not writable."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from nybble.watch.cache import Copy, FeedCache

URL = "https://index.example/pypi/made/json"


def _copy(body: bytes = b"body\nwith lines", at: float = 1000.0) -> Copy:
    return Copy(body, '"tag"', "Sat, 28 Nov 2026 10:00:00 GMT", at)


def _file(folder: Path) -> Path:
    (found,) = folder.glob("*.feed")
    return found


def test_a_copy_is_found_again(tmp_path: Path) -> None:
    cache = FeedCache(tmp_path / "new" / "watch")
    assert cache.load(URL) is None
    assert cache.save(URL, _copy()) == ""
    assert cache.load(URL) == _copy() and cache.load(URL + "x") is None
    assert not list((tmp_path / "new" / "watch").glob("*.part"))


def test_age() -> None:
    assert _copy(at=time.time() - 60).age() == pytest.approx(60, abs=5)
    assert _copy(at=time.time() + 1e6).age() == 0.0


@pytest.mark.parametrize("damage", [b"", b"{}", b"[" * 50_000, b"\xff\n", b'{"url": 3}\nbody'])
def test_a_damaged_copy_is_none(tmp_path: Path, damage: bytes) -> None:
    cache = FeedCache(tmp_path)
    cache.save(URL, _copy())
    _file(tmp_path).write_bytes(damage)
    assert cache.load(URL) is None


def test_a_changed_or_shortened_body_is_none(tmp_path: Path) -> None:
    cache = FeedCache(tmp_path)
    cache.save(URL, _copy())
    whole = _file(tmp_path).read_bytes()
    for other in (whole[:-1], whole[:-1] + b"X", whole + b"X"):
        _file(tmp_path).write_bytes(other)
        assert cache.load(URL) is None


def test_a_copy_of_another_address_is_none(tmp_path: Path) -> None:
    cache = FeedCache(tmp_path)
    cache.save(URL, _copy())
    path = _file(tmp_path)
    cache.save(URL + "x", _copy())
    (other,) = set(tmp_path.glob("*.feed")) - {path}
    os.replace(other, path)
    assert cache.load(URL) is None


def test_the_oldest_copies_make_room(tmp_path: Path) -> None:
    cache = FeedCache(tmp_path, max_bytes=3000)
    for n in range(4):
        assert cache.save(f"{URL}{n}", _copy(b"x" * 700)) == ""
        for age, path in enumerate(sorted(tmp_path.glob("*.feed"), key=os.path.getmtime)):
            os.utime(path, (1000 + age, 1000 + age))
    assert cache.load(f"{URL}3") is not None and cache.load(f"{URL}0") is None
    assert sum(p.stat().st_size for p in tmp_path.glob("*.feed")) <= 3000


def test_too_large_a_copy_is_not_kept(tmp_path: Path) -> None:
    cache = FeedCache(tmp_path, max_bytes=1 << 20)
    assert "over 1 MiB" in cache.save(URL, _copy(b"x" * (1 << 20 | 1)))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = FeedCache(tmp_path / "file" / "watch")
    assert cache.save(URL, _copy()).startswith("not cached: ")
    assert cache.load(URL) is None


def test_parts_that_a_crash_left_go(tmp_path: Path) -> None:
    old, new = tmp_path / "old.part", tmp_path / "new.part"
    old.touch()
    new.touch()
    os.utime(old, (1000, 1000))
    FeedCache(tmp_path).save(URL, _copy())
    assert not old.exists() and new.exists()
