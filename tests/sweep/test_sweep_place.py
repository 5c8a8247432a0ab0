"""Places: a folder, memory, and S3's protocol against a server on loopback."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from nybble.errors import MissingExtraError, NybbleError
from nybble.results.store import RunStore
from nybble.scoring.compare import ROW
from nybble.sweep import place as places
from nybble.sweep.place import FolderPlace, Place, RemotePlace, open_place, read_json, write_json
from run_folders import draw

ROOT = os.geteuid() == 0 if hasattr(os, "geteuid") else False
CONSTANTS: dict[str, str | int] = {"model": "a", "setting": "q8_0/q4_0", "rotation_k": 64}


@pytest.fixture(params=["folder", "file", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    kind = request.param
    if kind == "s3":
        address = f"{request.getfixturevalue('s3')}/{tmp_path.name}/"
    else:
        address = {"folder": "", "file": "file://", "memory": "memory:/"}[kind] + str(tmp_path)
    return open_place(address)


def test_a_place_keeps_small_files(place: Place) -> None:
    place.check()
    assert place.names("") == []  # the probe is gone
    assert place.names("none") == [] and place.read("none/x.json") is None
    place.write("a/b/x.json", b"1")
    place.write("a/b/x.json", b"22")
    write_json(place, "a/b/y.json", {"k": ["\u00e9", 1.5]})
    place.write("a/b/z.json", b"{")
    assert place.read("a/b/x.json") == b"22"
    assert read_json(place, "a/b/y.json") == {"k": ["\u00e9", 1.5]}
    assert [read_json(place, f"a/b/{n}.json") for n in "xzn"] == [None, None, None]
    assert place.names("a/b") == ["x.json", "y.json", "z.json"]
    place.remove("a/b/x.json")
    place.remove("a/b/x.json")
    assert place.names("a/b") == ["y.json", "z.json"]
    assert open_place(place.address).read("a/b/z.json") == b"{"


def test_cells_are_those_of_a_run_folder_byte_for_byte(place: Place, tmp_path: Path) -> None:
    rows = draw(0.01, 50, 10, seed=1)
    plain, store = RunStore(tmp_path / "plain"), place.store("r")
    plain.write_cell("c64-x", rows, CONSTANTS)
    assert not store.has("c64-x") and store.read_cell("c64-x", ROW) is None
    assert store.read_constants("c64-x", ["setting"]) == {}
    store.write_cell("c64-x", rows, CONSTANTS)
    assert place.read("runs/r/rows/c64-x.parquet") == plain.path("c64-x").read_bytes()
    again = place.store("r")
    assert again.has("c64-x") and not again.has("c64-y")
    found = again.read_cell("c64-x", ROW)
    assert found is not None and found.tobytes() == rows.tobytes()
    assert again.read_constants("c64-x", ["setting", "rotation_k"]) == {
        "setting": "q8_0/q4_0", "rotation_k": 64,
    }  # fmt: skip


def test_a_store_sees_what_others_write_after_it_was_opened(place: Place) -> None:
    early = place.store("r")
    rows = draw(0.01, 20, 10, seed=2)
    place.store("r").write_cell("c64-late", rows, CONSTANTS)
    found = early.read_cell("c64-late", ROW)
    assert found is not None and found.tobytes() == rows.tobytes()
    assert early.damaged == []


def test_a_damaged_cell_is_named_and_set_aside(place: Place) -> None:
    place.store("r").write_cell("c64-x", draw(0.01, 50, 10, seed=1), CONSTANTS)
    whole = place.read("runs/r/rows/c64-x.parquet")
    assert whole is not None
    broken = whole[:20] + b"\xff" * (len(whole) - 40) + whole[-20:]
    place.write("runs/r/rows/c64-x.parquet", broken)
    store = place.store("r")
    assert store.has("c64-x")  # by its ends alone
    assert store.read_cell("c64-x", ROW) is None and store.damaged == ["c64-x"]
    store.set_aside("c64-x")
    assert not store.has("c64-x") and not place.store("r").has("c64-x")
    assert place.names("runs/r/rows") == ["c64-x.damaged"]
    assert place.read("runs/r/rows/c64-x.damaged") == broken


def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = FolderPlace(tmp_path)
    place.write("x.json", b"old")

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(NybbleError, match="the disk is full; finished cells are kept"):
        place.write("x.json", b"newer")
    assert os.listdir(tmp_path) == ["x.json"]
    assert place.read("x.json") == b"old"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if not ROOT or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a small file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills_up(small_disk: Path) -> None:
    place = FolderPlace(small_disk / "sweep")
    store = place.store("r")
    with pytest.raises(NybbleError, match="the disk is full; finished cells are kept"):
        for i in range(100):
            store.write_cell(f"c64-{i}", draw(0.01, 400, 10, seed=i), CONSTANTS)
    names = place.names("runs/r/rows")
    assert 1 <= len(names) < 100 and all(n.endswith(".parquet") for n in names)
    assert all(store.read_cell(n.removesuffix(".parquet"), ROW) is not None for n in names)
    with pytest.raises(NybbleError, match="the disk is full"):
        place.write("big", b"x" * 65_536)
    assert "big" not in place.names("")


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NybbleError, match="cannot write to the sweep's place") as caught:
        FolderPlace(tmp_path / "file" / "sweep").check()
    assert "is a file" in str(caught.value)
    assert FolderPlace(tmp_path / "file").read("sweep.json") is None
    (tmp_path / "sweep.json").mkdir()
    with pytest.raises(NybbleError, match="cannot read the sweep's place"):
        FolderPlace(tmp_path).read("sweep.json")
    if ROOT:  # root may write to any folder, but not to /proc
        with pytest.raises(NybbleError, match="cannot write"):
            FolderPlace(Path("/proc/sweep")).check()
    else:
        tmp_path.chmod(0o500)
        with pytest.raises(NybbleError, match="may not be written"):
            FolderPlace(tmp_path / "sweep").check()


def test_a_bucket_that_is_not_there_is_not_made(s3: str) -> None:
    place = RemotePlace("s3://mistyped/x")
    with pytest.raises(NybbleError, match="not there, or may not be listed") as caught:
        place.check()
    assert caught.value.seen == "s3://mistyped/x"
    assert not place.fs.exists("mistyped")


@pytest.mark.parametrize(
    ("address", "kind", "what"),
    [
        ("nosuch://x", NybbleError, "no such kind of place"),
        ("gs://bucket/x", MissingExtraError, "nothing here speaks gs"),
        ("s3://", NybbleError, "needs a bucket or a folder"),
        ("memory:///", NybbleError, "needs a bucket or a folder"),
    ],
)
def test_addresses_that_are_none(address: str, kind: type[NybbleError], what: str) -> None:
    with pytest.raises(kind, match=what) as caught:
        open_place(address)
    assert caught.value.seen == address


@pytest.mark.parametrize(
    "broken", [PermissionError("Access Denied"), OSError(errno.ENOSPC, "quota"), RuntimeError("")]
)
def test_what_a_client_raises_names_the_place(
    broken: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, *args: object, **kwargs: object) -> None:
        raise broken

    place = RemotePlace("memory://broken")
    for name in ("pipe_file", "cat_file", "ls", "rm_file"):
        monkeypatch.setattr(MemoryFileSystem, name, fail)
    calls: list[Callable[[], object]] = [
        place.check, lambda: place.read("x"), lambda: place.names("x"), lambda: place.remove("x"),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(NybbleError, match="finished cells are kept") as caught:
            call()
        assert "memory://broken" in str(caught.value.seen)
        assert type(broken).__name__ in str(caught.value.seen)


def test_a_place_that_forgets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda *a, **k: b"")
    with pytest.raises(NybbleError, match="does not keep what is written"):
        RemotePlace("memory://forgets").check()


def test_copies_of_a_remote_store_are_removed(s3: str, tmp_path: Path) -> None:
    store = open_place(f"{s3}/{tmp_path.name}").store("r")
    assert isinstance(store, places.RemoteStore)
    store.write_cell("c64-x", np.zeros(3, dtype=ROW), CONSTANTS)
    assert store.folder.exists()
    store.discard()
    assert not store.folder.exists()
