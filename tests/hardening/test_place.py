"""Outputs refused before work, temporary names, and what killed runs leave."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal, NamedTuple

import pytest
import torch
from safetensors.torch import save_file

from nybble.errors import ModelFileError, NybbleError
from nybble.hardening import place
from nybble.hardening.gguf_edit import scale_gguf
from nybble.hardening.place import check_target, hardened, partial

Kind = Literal["gguf", "folder"]
RECORD = {"nybble.hardened": "fold"}


def folder(path: Path, **metadata: str) -> Path:
    path.mkdir()
    save_file({"a": torch.ones(2)}, path / "model.safetensors", metadata or None)
    (path / "config.json").write_text("{}")
    return path


@pytest.fixture
def gguf(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(tiny_model, tmp_path / "model.gguf"))


def refused(source: Path, target: Path, kind: Kind, *words: str, fresh: bool = False) -> None:
    with pytest.raises(NybbleError) as caught:
        check_target(source, target, fresh, kind)
    assert caught.value.hint
    for word in words:
        assert word in str(caught.value)


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    return child.pid


class TestTarget:
    def test_a_free_name(self, gguf: Path, tmp_path: Path) -> None:
        check_target(gguf, tmp_path / "out.gguf", False, "gguf")
        check_target(folder(tmp_path / "f"), tmp_path / "out", False, "folder")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["f", "model.gguf"]

    @pytest.mark.parametrize("fresh", [False, True])
    def test_the_input(self, gguf: Path, tmp_path: Path, fresh: bool) -> None:
        (tmp_path / "link.gguf").symlink_to("model.gguf")
        os.link(gguf, tmp_path / "hard.gguf")
        (tmp_path / "sub").mkdir()
        for name in ("model.gguf", "link.gguf", "hard.gguf", "sub/../model.gguf"):
            refused(gguf, tmp_path / name, "gguf", "is the input", fresh=fresh)
        refused(tmp_path / "link.gguf", gguf, "gguf", "is the input", fresh=fresh)
        source = folder(tmp_path / "f")
        (tmp_path / "g").symlink_to("f")
        for name, word in (("f", "is the input"), ("g", "is the input"), ("f/out", "inside"),
                           ("g/out", "inside"), ("g/../f/x", "inside")):  # fmt: skip
            refused(source, tmp_path / name, "folder", word, fresh=fresh)
        refused(gguf, tmp_path, "gguf", "inside the output", fresh=fresh)

    def test_a_name_that_is_taken(self, gguf: Path, tmp_path: Path) -> None:
        (tmp_path / "out.gguf").write_text("mine")
        (tmp_path / "dangling.gguf").symlink_to("nowhere")
        for name in ("out.gguf", "dangling.gguf"):
            refused(gguf, tmp_path / name, "gguf", "exists", "--fresh")
            check_target(gguf, tmp_path / name, True, "gguf")
        (tmp_path / "sub.gguf").mkdir()
        refused(gguf, tmp_path / "sub.gguf", "gguf", "is a folder", fresh=True)

    def test_only_hardened_folders_are_replaced(self, tmp_path: Path) -> None:
        source, other = folder(tmp_path / "s"), folder(tmp_path / "other")
        ours, empty = folder(tmp_path / "ours", **RECORD), tmp_path / "empty"
        empty.mkdir()
        (tmp_path / "file").write_text("mine")
        (tmp_path / "link").symlink_to("ours")
        damaged = folder(tmp_path / "damaged", **RECORD)
        (damaged / "model.safetensors").write_bytes(b"")
        for path in (source, other, ours, empty, damaged, tmp_path / "file", tmp_path / "link"):
            if path != source:
                refused(source, path, "folder", "exists", "--fresh")
        for path in (other, damaged, tmp_path / "file", tmp_path / "link"):
            refused(source, path, "folder", "cannot be replaced", fresh=True)
        for path in (ours, empty):
            check_target(source, path, True, "folder")
        (ours / "notes").mkdir()
        refused(source, ours, "folder", "cannot be replaced", fresh=True)

    def test_the_folder_above(self, gguf: Path, tmp_path: Path) -> None:
        refused(gguf, tmp_path / "a" / "out.gguf", "gguf", "missing", f"mkdir -p {tmp_path / 'a'}")
        refused(gguf, gguf / "out.gguf", "gguf", "inside the input")
        (tmp_path / "file").write_text("")
        refused(gguf, tmp_path / "file" / "out.gguf", "gguf", "is a file")
        (tmp_path / "loop").symlink_to("loop")
        refused(gguf, tmp_path / "loop" / "out.gguf", "gguf")
        refused(gguf, Path(f"{tmp_path}/zero\0byte.gguf"), "gguf", "cannot use")

    def test_a_folder_that_may_not_be_written(
        self, gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "locked").mkdir(mode=0o500)
        if os.geteuid() == 0:  # root may write anywhere
            monkeypatch.setattr(place.os, "access", lambda path, mode: path.name != "locked")
        refused(gguf, tmp_path / "locked" / "out.gguf", "gguf", "may not be written")

    def test_free_space(self, gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = folder(tmp_path / "f")
        size = sum(p.stat().st_size for p in source.iterdir())
        for path, kind, needed in ((gguf, "gguf", gguf.stat().st_size), (source, "folder", size)):
            needed += 64 << 20
            for free in (needed - 1, needed):
                monkeypatch.setattr(
                    shutil, "disk_usage", lambda _, free=free: Usage(2 * free, free, free)
                )
                if free == needed:
                    check_target(path, tmp_path / "out", False, kind)  # type: ignore[arg-type]
                else:
                    refused(path, tmp_path / "out", kind, "not enough disk", f"{free:,} bytes free",
                            f"{needed:,} bytes or more")  # type: ignore[arg-type]  # fmt: skip

    def test_what_killed_runs_left_goes_first(self, gguf: Path, tmp_path: Path) -> None:
        pid = dead_pid()
        gone = [f".out.gguf.{pid}.part.gguf", f".out.gguf.{2**70}.part.gguf"]
        live = [f".out.gguf.{os.getppid()}.part.gguf", f".other.gguf.{pid}.part.gguf",
                f".out.gguf.{pid}.old.gguf", ".out.gguf.x.part.gguf", "out.gguf.part"]  # fmt: skip
        for name in (*gone, *live):
            (tmp_path / name).write_text("")
        check_target(gguf, tmp_path / "out.gguf", False, "gguf")
        assert {p.name for p in tmp_path.iterdir()} == {*live, "model.gguf"}
        (tmp_path / f".out.{pid}.part").mkdir()
        (tmp_path / f".out.{pid}.part" / "config.json").write_text("")
        check_target(folder(tmp_path / "f"), tmp_path / "out", False, "folder")
        assert not (tmp_path / f".out.{pid}.part").exists()


class Usage(NamedTuple):
    total: int
    used: int
    free: int


class TestPartial:
    def test_a_file(self, tmp_path: Path) -> None:
        with partial(tmp_path / "out.gguf") as path:
            assert path == tmp_path / f".out.gguf.{os.getpid()}.part.gguf"
            path.write_text("new")
            assert not (tmp_path / "out.gguf").exists()
        assert (tmp_path / "out.gguf").read_text() == "new"
        assert [p.name for p in tmp_path.iterdir()] == ["out.gguf"]

    def test_a_folder(self, tmp_path: Path) -> None:
        with partial(tmp_path / "out") as path:
            assert path == tmp_path / f".out.{os.getpid()}.part"
            path.mkdir()
            (path / "a").write_text("new")
        assert (tmp_path / "out" / "a").read_text() == "new"
        assert [p.name for p in tmp_path.iterdir()] == ["out"]

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_nothing_stays_of_a_failure(self, tmp_path: Path, error: type[BaseException]) -> None:
        with pytest.raises(error), partial(tmp_path / "out.gguf") as path:
            path.write_text("half")
            raise error
        with pytest.raises(error), partial(tmp_path / "out") as path:
            path.mkdir()
            (path / "a").write_text("half")
            raise error
        assert list(tmp_path.iterdir()) == []

    def test_what_this_process_left_is_overwritten(self, tmp_path: Path) -> None:
        (tmp_path / f".out.gguf.{os.getpid()}.part.gguf").write_text("old")
        with partial(tmp_path / "out.gguf") as path, path.open("x") as file:
            file.write("new")
        assert (tmp_path / "out.gguf").read_text() == "new"

    def test_fresh_replaces(self, tmp_path: Path) -> None:
        (tmp_path / "out.gguf").write_text("old")
        ours = folder(tmp_path / "ours", **RECORD)
        with partial(tmp_path / "out.gguf", fresh=True) as path:
            path.write_text("new")
        with partial(ours, fresh=True) as path:
            path.mkdir()
            assert (ours / "config.json").exists()  # until the last moment
        assert (tmp_path / "out.gguf").read_text() == "new"
        assert list(ours.iterdir()) == []
        assert {p.name for p in tmp_path.iterdir()} == {"out.gguf", "ours"}

    def test_what_exists_is_kept(self, tmp_path: Path) -> None:
        (tmp_path / "out.gguf").write_text("mine")
        with pytest.raises(NybbleError, match="exists"), partial(tmp_path / "out.gguf"):
            raise AssertionError("not reached")
        with pytest.raises(NybbleError, match="exists"), partial(tmp_path / "late.gguf") as path:
            path.write_text("new")
            (tmp_path / "late.gguf").write_text("mine")
        other = folder(tmp_path / "other")
        with pytest.raises(NybbleError, match="cannot be replaced"), partial(other, True) as path:
            path.mkdir()
        assert (tmp_path / "out.gguf").read_text() == (tmp_path / "late.gguf").read_text() == "mine"
        assert {p.name for p in tmp_path.iterdir()} == {"out.gguf", "late.gguf", "other"}
        assert (other / "config.json").exists()

    def test_a_rename_that_fails_leaves_the_old_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ours = folder(tmp_path / "ours", **RECORD)
        real = os.rename

        def rename(a: Path, b: Path) -> None:
            if a.name.endswith(".part"):
                raise OSError(5, "Input/output error")
            real(a, b)

        monkeypatch.setattr(place.os, "rename", rename)
        with pytest.raises(NybbleError, match="Input/output"), partial(ours, fresh=True) as path:
            path.mkdir()
        assert hardened(ours) == RECORD
        assert [p.name for p in tmp_path.iterdir()] == ["ours"]

    def test_written_to_disk_before_it_is_renamed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[tuple[str, bool]] = []
        real = os.fsync

        def fsync(handle: int) -> None:
            name = Path(os.readlink(f"/proc/self/fd/{handle}")).name
            seen.append((name, (tmp_path / "out").exists()))
            real(handle)

        if not Path("/proc/self/fd").exists():
            pytest.skip("needs /proc")
        monkeypatch.setattr(place.os, "fsync", fsync)
        with partial(tmp_path / "out") as path:
            path.mkdir()
            (path / "a").write_text("new")
        part = f".out.{os.getpid()}.part"
        assert seen == [("a", False), (part, False), (tmp_path.name, True)]

    def test_a_killed_run(self, tmp_path: Path) -> None:
        code = (
            "import sys, time, pathlib; from nybble.hardening.place import partial\n"
            "with partial(pathlib.Path(sys.argv[1])) as path:\n"
            "    path.write_text('half'); print('ready', flush=True); time.sleep(60)"
        )
        words = [sys.executable, "-c", code, str(tmp_path / "out.gguf")]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as run:
            assert run.stdout is not None and run.stdout.readline() == b"ready\n"
            (left,) = tmp_path.iterdir()
            with partial(tmp_path / "out.gguf") as path:  # the first run lives: its file stays
                path.write_text("second")
            assert left.exists()
            run.send_signal(signal.SIGKILL)
        (tmp_path / "out.gguf").unlink()
        with partial(tmp_path / "out.gguf") as path:
            assert not left.exists()
            path.write_text("third")
        assert [p.name for p in tmp_path.iterdir()] == ["out.gguf"]

    def test_a_full_disk(self, tmp_path: Path) -> None:
        if not Path("/dev/full").exists():
            pytest.skip("needs /dev/full")
        with (
            pytest.raises(NybbleError, match="(?s)the disk is full.*bytes free"),
            place.disk_errors(tmp_path / "out.gguf"),
            open("/dev/full", "wb", buffering=0) as file,
        ):
            file.write(b"x")

    def test_a_folder_that_is_gone(self, tmp_path: Path) -> None:
        with pytest.raises(NybbleError, match="No such file"), partial(tmp_path / "a" / "b"):
            raise AssertionError("not reached")


class TestHardened:
    def test_gguf(self, gguf: Path, tmp_path: Path) -> None:
        record = {"nybble.hardened": "fold", "nybble.hardened.tokens": "1024", "other": "x"}
        with partial(tmp_path / "out.gguf") as path:
            scale_gguf(gguf, path, [], record, lambda _: None)
        assert hardened(gguf) == {}
        assert hardened(tmp_path / "out.gguf") == dict(list(record.items())[:2])

    def test_folder(self, tmp_path: Path) -> None:
        assert hardened(folder(tmp_path / "a")) == {}
        found = hardened(folder(tmp_path / "b", format="pt", **RECORD))
        assert found == RECORD

    def test_no_model(self, tmp_path: Path) -> None:
        for path in (tmp_path, tmp_path / "gone.gguf"):
            with pytest.raises(ModelFileError):
                hardened(path)
