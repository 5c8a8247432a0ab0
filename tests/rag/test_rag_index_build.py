"""An index made, and kept up to date with a folder."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from rag_index_doubles import Silent, WordModel, indexed, pdf

from nybble.errors import NybbleError
from nybble.rag import build as build_module
from nybble.rag.build import IndexOptions, build
from nybble.rag.embed import registry
from nybble.rag.index import open_index
from nybble.rag.store import Store


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> WordModel:
    made = WordModel()
    monkeypatch.setitem(registry.CARRIED, "minilm", lambda: made)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "docs"
    place.mkdir()
    for name in ("apple", "birch", "cedar"):
        write(place / f"{name}.md", f"# The {name}\n\nAn {name} grows slowly in the yard.\n")
    return place


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    # Another time of change than a moment ago, whatever the clock's steps are.
    stamp = write.__dict__["now"] = write.__dict__.get("now", 10**18) + 10**9
    os.utime(path, ns=(stamp, stamp))


def paths(folder: Path) -> list[str]:
    with open_index(folder / ".nybble-rag") as index:
        return [d.path for d in index.documents()]


def test_a_new_index(folder: Path, model: WordModel) -> None:
    progress = Silent()
    report = build(folder, folder / ".nybble-rag", IndexOptions(), progress)
    assert (report.added, report.documents, report.passages) == (3, 3, 3)
    assert not report.skipped and report.new_passages == 3
    assert progress.done == progress.begun[0] == sum(f.stat().st_size for f in folder.glob("*.md"))
    assert model.embedded[0].startswith("The apple\n# The apple")
    assert report.as_dict()["per_second_without_embedding"] > 0
    with open_index(folder / ".nybble-rag") as index:
        about = index.about()
        assert (about.documents, about.passages, about.embedding) == (3, 3, "minilm")
        assert about.folder == str(folder) and about.lexical_current
        assert (about.chunk_tokens, about.overlap, about.dims) == (200, 40, 64)


def test_nothing_changed_nothing_done(folder: Path, model: WordModel) -> None:
    first = indexed(folder)
    model.embedded.clear()
    again = indexed(folder)
    assert again.kept == 3 and again.new_passages == 0 and not model.embedded
    assert again.revision == first.revision and again.per_second is None


def test_what_was_left_out_stays_out(folder: Path) -> None:
    place = folder / ".nybble-rag"

    def run(**options: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
        report = build(folder, place, IndexOptions(**options), Silent())
        return report.include, report.exclude

    assert run(exclude=("b*",), include=("*.md",)) == (("*.md",), ("b*",))
    write(folder / "bamboo.md", "# Bamboo\n\nA grass.\n")
    assert run() == (("*.md",), ("b*",)) and paths(folder) == ["apple.md", "cedar.md"]
    assert run(exclude=("a*",)) == (("*.md",), ("a*",))
    assert paths(folder) == ["bamboo.md", "birch.md", "cedar.md"]
    assert run(exclude=("",)) == (("*.md",), ()) and len(paths(folder)) == 4
    assert run(fresh=True) == ((), ())


def test_a_refused_run_changes_no_globs(folder: Path) -> None:
    build(folder, folder / ".nybble-rag", IndexOptions(exclude=("b*",)), Silent())
    with pytest.raises(NybbleError, match="another chunk tokens"):
        build(
            folder, folder / ".nybble-rag", IndexOptions(exclude=("",), chunk_tokens=64), Silent()
        )
    assert indexed(folder).exclude == ("b*",)


def test_added_changed_deleted_touched(folder: Path, model: WordModel) -> None:
    before = indexed(folder).revision
    model.embedded.clear()
    write(folder / "sub/dogwood.txt", "the dogwood flowers")
    write(folder / "birch.md", "# The birch\n\nIts bark is white.\n")
    (folder / "cedar.md").unlink()
    os.utime(folder / "apple.md")
    report = indexed(folder)
    assert (report.added, report.changed, report.deleted, report.kept) == (1, 1, 1, 1)
    assert report.revision > before
    assert len(model.embedded) == 2 and paths(folder) == ["apple.md", "birch.md", "sub/dogwood.txt"]
    with open_index(folder / ".nybble-rag") as index:
        assert "white" in index.search("birch")[0].passage.text
        assert "cedar" not in {h.passage.document for h in index.search("cedar", mode="lexical")}
        assert len({h.passage.id for h in index.search("the yard bark")}) == 3


def test_moved_files_are_not_embedded_again(folder: Path, model: WordModel) -> None:
    indexed(folder)
    model.embedded.clear()
    (folder / "old").mkdir()
    (folder / "apple.md").rename(folder / "old/apple.md")
    # Two that change places.
    (folder / "birch.md").rename(folder / "x")
    (folder / "cedar.md").rename(folder / "birch.md")
    (folder / "x").rename(folder / "cedar.md")
    os.utime(folder / "birch.md", ns=(5, 5))
    os.utime(folder / "cedar.md", ns=(6, 6))
    report = indexed(folder)
    assert (report.moved, report.deleted, report.added) == (3, 0, 0) and not model.embedded
    with open_index(folder / ".nybble-rag") as index:
        assert "birch" in index.passages_of("cedar.md")[0].text
        assert "apple" in index.passages_of("old/apple.md")[0].text
    assert indexed(folder).kept == 3


def test_copies_are_indexed_once(folder: Path, model: WordModel) -> None:
    write(folder / "copy.md", (folder / "apple.md").read_text())
    report = indexed(folder)
    assert (report.documents, report.copies) == (3, 1) and len(model.embedded) == 3
    with open_index(folder / ".nybble-rag") as index:
        assert index.documents()[0].copies == ("copy.md",)
        assert len(index.search("apple", mode="lexical")) == 1
        assert index.passages_of("copy.md") == index.passages_of("apple.md")
    # The copy takes over when the first goes, or changes.
    (folder / "apple.md").unlink()
    assert indexed(folder).moved == 1 and paths(folder)[-1] == "copy.md"
    write(folder / "again.md", (folder / "copy.md").read_text())
    assert indexed(folder).copies == 1
    write(folder / "copy.md", "something else entirely")
    report = indexed(folder)
    assert (report.copies, report.documents) == (0, 4)
    assert len(model.embedded) == 4 and "again.md" in paths(folder)


def test_what_cannot_be_read_is_told_each_time_and_tried_when_it_changes(folder: Path) -> None:
    (folder / "locked.pdf").write_bytes(pdf(["secret"], encrypted=True))
    (folder / "twin.pdf").write_bytes(pdf(["secret"], encrypted=True))
    (folder / "blob").write_bytes(b"\x00\x01")
    for _ in range(2):
        report = indexed(folder)
        assert {s.path: s.reason for s in report.skipped} == {
            "blob": "not text", "locked.pdf": "encrypted", "twin.pdf": "encrypted",
        }  # fmt: skip
        assert report.documents == 3
    (folder / "locked.pdf").write_bytes(pdf(["open now"]))
    report = indexed(folder)
    assert report.added == 1 and "locked.pdf" in paths(folder)
    write(folder / "apple.md", "\x00")
    assert indexed(folder).documents == 3 and "apple.md" not in paths(folder)


def test_a_killed_run_goes_on_where_it_stopped(
    folder: Path, model: WordModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nybble.rag.writer.BATCH", 2)
    write(folder / "long.txt", "\n\n".join(f"Part {k}. " + "word " * 150 for k in range(9)))
    model.fail_after = 6
    with pytest.raises(KeyboardInterrupt):
        indexed(folder)
    with open_index(folder / ".nybble-rag") as index:
        assert index.about().passages == 7 and not index.about().lexical_current
        assert index.search("apple")[0].passage.document == "apple.md"  # by the embedding alone
    model.fail_after = None
    model.embedded.clear()
    report = indexed(folder)
    assert report.documents == 4 and report.passages == 12
    assert all("grows" not in text for text in model.embedded) and len(model.embedded) == 9
    with open_index(folder / ".nybble-rag") as index:
        assert [p.start for p in index.passages_of("long.txt")] == sorted(
            {p.start for p in index.passages_of("long.txt")}
        )


def test_a_document_that_changes_while_it_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexed(folder)
    write(folder / "apple.md", "# New\n\nThe first version.\n")

    def late(file: object) -> None:
        write(folder / "apple.md", "# New\n\nThe second one.\n")
        monkeypatch.undo()
        unchanged(file)

    unchanged = build_module.unchanged
    monkeypatch.setattr(build_module, "unchanged", late)
    monkeypatch.setitem(registry.CARRIED, "minilm", WordModel)
    report = indexed(folder)
    assert "changed while it was read" in report.skipped[0].reason
    monkeypatch.setitem(registry.CARRIED, "minilm", WordModel)
    with open_index(folder / ".nybble-rag") as index:
        assert "grows" in index.passages_of("apple.md")[0].text  # what there was stays
    assert not indexed(folder).skipped
    with open_index(folder / ".nybble-rag") as index:
        assert "second" in index.passages_of("apple.md")[0].text


def test_nothing_to_index(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "void").mkdir()
    with pytest.raises(NybbleError, match="there are no documents"):
        indexed(tmp_path / "void")
    assert not (tmp_path / "void/.nybble-rag").exists()
    (tmp_path / "void/empty").touch()
    with pytest.raises(NybbleError, match="no document in the folder can be indexed"):
        indexed(tmp_path / "void")
    # An index whose documents all went is emptied.
    indexed(folder)
    for path in folder.glob("*.md"):
        path.unlink()
    report = indexed(folder)
    assert report.deleted == 3 and report.documents == 0
    with open_index(folder / ".nybble-rag") as index:
        assert index.search("apple") == []


def test_another_embedding_is_refused_by_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexed(folder)
    other = WordModel("other", "else")
    monkeypatch.setitem(registry.CARRIED, "other", lambda: other)
    with pytest.raises(NybbleError) as error:
        indexed(folder, embedding="other")
    assert "index: minilm; asked: other" in str(error.value)
    assert "--fresh --embedding other" in str(error.value)
    opened = open_index(folder / ".nybble-rag")
    report = indexed(folder, embedding="other", fresh=True)
    assert report.added == 3 and len(other.embedded) == 3
    with pytest.raises(NybbleError, match="made anew with another embedding"):
        opened.search("apple")
    opened.close()
    assert indexed(folder).kept == 3  # the index's own is the default now
    monkeypatch.setitem(registry.CARRIED, "other", lambda: WordModel("other", "new weights"))
    with pytest.raises(NybbleError, match="of other weights"):
        open_index(folder / ".nybble-rag")


def test_other_options_are_refused(folder: Path, tmp_path: Path) -> None:
    indexed(folder, chunk_tokens=64)
    assert indexed(folder).kept == 3
    with pytest.raises(NybbleError, match="another chunk tokens"):
        indexed(folder, chunk_tokens=65)
    assert indexed(folder, chunk_tokens=65, fresh=True).added == 3
    (tmp_path / "else").mkdir()
    (tmp_path / "else/a.txt").write_text("x")
    with pytest.raises(NybbleError, match="of another folder"):
        build(tmp_path / "else", folder / ".nybble-rag", IndexOptions(), Silent())
    with pytest.raises(NybbleError, match="too small"):
        indexed(tmp_path / "else", chunk_tokens=3)


def test_one_run_at_a_time(folder: Path) -> None:
    indexed(folder)
    with FileLock(folder / ".nybble-rag/lock"):
        with pytest.raises(NybbleError, match="another run is at this index"):
            indexed(folder)


def test_a_folder_moved_with_its_index(folder: Path, model: WordModel) -> None:
    indexed(folder)
    model.embedded.clear()
    there = folder.rename(folder.with_name("moved"))
    assert indexed(there).kept == 3 and not model.embedded
    with open_index(there / ".nybble-rag") as index:
        assert index.about().folder == str(there)


def test_damaged_and_foreign_files(folder: Path, tmp_path: Path) -> None:
    indexed(folder)
    place = folder / ".nybble-rag/index.db"
    good = place.read_bytes()
    place.write_bytes(b"not a database at all" * 100)
    for use in (lambda: open_index(folder / ".nybble-rag"), lambda: indexed(folder)):
        with pytest.raises(NybbleError, match="cannot be read"):
            use()
    import sqlite3

    place.unlink()
    with sqlite3.connect(place) as other:
        other.execute("CREATE TABLE mine(x)")
    with pytest.raises(NybbleError, match="not an index of nybble rag"):
        indexed(folder)
    place.write_bytes(good)
    store = Store(folder / ".nybble-rag", write=True)
    store.run("PRAGMA user_version=7")
    store.close()
    with pytest.raises(NybbleError, match="another version"):
        indexed(folder)


class _Forgetful(list[str]):
    def __iadd__(self, texts: object) -> _Forgetful:  # type: ignore[misc,override]
        return self


def test_large_texts_take_bounded_memory(
    folder: Path, model: WordModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.embedded = _Forgetful()
    monkeypatch.setattr("nybble.rag.loaders._PIECE", 20_000)
    monkeypatch.setattr("nybble.rag.writer.BATCH", 32)
    line = "the quick brown fox jumps over the lazy dog again and again and again\n"
    write_words = build_module.lexical.write
    peaks: list[int] = []

    def noted(*args: Any) -> str:
        peaks.append(tracemalloc.get_traced_memory()[1])
        return write_words(*args)

    monkeypatch.setattr(build_module.lexical, "write", noted)
    write(folder / "big.txt", line * 20)
    indexed(folder)  # what is imported and remembered on the way
    for lines in (800, 3_200):
        write(folder / "big.txt", line * lines)
        tracemalloc.start()
        try:
            report = indexed(folder, max_mb=10.0)
        finally:
            tracemalloc.stop()
        assert report.changed == 1 and report.passages > lines // 15
    assert peaks[2] < 1.3 * peaks[1]
