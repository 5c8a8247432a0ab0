"""Which files of a folder are documents."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nybble.errors import NybbleError
from nybble.rag.documents import Listing, listing


def walk(folder: Path, **options: object) -> Listing:
    return listing(folder, own=folder / ".nybble-rag", **options)  # type: ignore[arg-type]


def reasons(found: Listing) -> dict[str, str]:
    return {s.path: s.reason for s in found.skipped}


def test_files_by_path_hidden_ones_passed_over(tmp_path: Path) -> None:
    for path in ("b.txt", "a/z.md", "a/b/c.html", ".hidden", ".git/x", "a/.nybble-rag/index.db"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("x")
    found = walk(tmp_path)
    assert [f.path for f in found.found] == ["a/b/c.html", "a/z.md", "b.txt"]
    assert not found.skipped and found.found[0].size == 1


def test_the_index_is_no_document_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "ix").mkdir()
    (tmp_path / "ix/index.db").write_text("x")
    assert not listing(tmp_path, own=tmp_path / "ix").found


def test_globs(tmp_path: Path) -> None:
    for path in ("a.md", "b.txt", "drafts/c.md", "drafts/old/d.md"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("x")

    def paths(**options: object) -> list[str]:
        return [f.path for f in walk(tmp_path, **options).found]

    assert paths(include=("*.md",)) == ["a.md", "drafts/c.md", "drafts/old/d.md"]
    assert paths(include=("*.md",), exclude=("drafts/*",)) == ["a.md"]
    assert paths(exclude=("old",)) == ["a.md", "b.txt", "drafts/c.md"]
    assert paths(include=("drafts/c*",)) == ["drafts/c.md"]


def test_links(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_text("x")
    (folder / "a.txt").write_text("x")
    (folder / "inside.txt").symlink_to("a.txt")
    (folder / "outside.txt").symlink_to(tmp_path / "secret")
    (folder / "gone.txt").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    (folder / "sub/up").symlink_to(folder)
    found = walk(folder)
    assert [f.path for f in found.found] == ["a.txt", "inside.txt"]
    assert reasons(found)["outside.txt"] == "a link that leaves the folder"
    assert reasons(found)["sub/up"] == "a link to a folder"
    assert reasons(found)["gone.txt"].startswith("cannot be read")
    assert reasons(found)["loop"].startswith("cannot be read")


def test_what_is_left_out_has_a_reason(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty.txt").touch()
    with (tmp_path / "big.txt").open("wb") as file:
        file.truncate(1_200_000_000)
    (tmp_path / os.fsdecode(b"bad\xff.txt")).write_text("x")
    found = walk(tmp_path)
    assert not found.found
    assert reasons(found) == {
        "pipe": "not a file",
        "empty.txt": "empty",
        "big.txt": "1,200.0 MB, over the limit of 50 MB (--max-mb)",
        "bad\ufffd.txt": "its name is not UTF-8",
    }
    assert [f.path for f in walk(tmp_path, max_bytes=2_000_000_000).found] == ["big.txt"]


def test_names_with_odd_characters(tmp_path: Path) -> None:
    names = ["new\nline.txt", "[brackets].txt", "ü 数.txt", "'quote\".txt", "\x1b[31mred.txt"]
    for name in names:
        (tmp_path / name).write_text("x")
    assert {f.path for f in walk(tmp_path).found} == set(names)


def test_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(NybbleError, match="no such folder"):
            walk(place)
