"""An index asked: by words, by vectors, by both, while it changes, from several threads."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rag_index_doubles import Silent, WordModel, indexed, pdf

from nybble.errors import NybbleError
from nybble.rag.build import IndexOptions, build
from nybble.rag.embed import registry
from nybble.rag.fuse import Ranking, fuse
from nybble.rag.index import Index, open_index
from nybble.rag.lexical import Lexical
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
    for n in range(30):
        text = f"# Note {n}\n\n## Number {n}\n\nThe value of option_{n} is {n * 37} in all.\n"
        (place / f"note{n:02}.md").write_text(text)
    (place / "leaf.pdf").write_bytes(pdf(["a page of nothing", "the heron stands in water"]))
    indexed(place)
    return place


@pytest.fixture
def index(folder: Path) -> Index:
    return open_index(folder / ".nybble-rag")


def test_hits_carry_what_a_source_needs(index: Index) -> None:
    hit = index.search("heron water")[0]
    assert (hit.passage.document, hit.passage.title, hit.passage.page) == (
        "leaf.pdf", "leaf.pdf", 1,
    )  # fmt: skip
    hit = index.search("what is option_7?")[0]
    assert hit.passage.heading == "Number 7" and hit.passage.title == "Note 7"
    assert hit.lexical_rank == 1 and hit.dense_rank is not None
    assert hit.passage.tokens > 5 and hit.passage.start == 0
    assert index.passages([hit.passage.id, 10**9]) == [hit.passage]


def test_modes(index: Index) -> None:
    lexical = index.search("option_7 259", mode="lexical")
    assert all(h.dense_rank is None for h in lexical) and lexical[0].passage.title == "Note 7"
    dense = index.search("option_7 259", mode="dense", k=3)
    assert [h.dense_rank for h in dense] == [1, 2, 3] and dense[0].lexical_rank is None
    hybrid = index.search("option_7 259", k=40)
    assert len(hybrid) == 31 and len({h.passage.id for h in hybrid}) == 31
    assert [h.score for h in hybrid] == sorted((h.score for h in hybrid), reverse=True)
    assert index.search("zzzz qqqq", mode="lexical") == []
    assert len(index.search("zzzz qqqq", k=2)) == 2


def test_words_need_no_embedding(index: Index, model: WordModel) -> None:
    model.query = None  # type: ignore[assignment,method-assign]
    assert index.search("option_7", mode="lexical")


def test_what_cannot_be_asked(index: Index) -> None:
    for query, k, mode, text in (
        ("", 5, "hybrid", "no question"),
        (" \n", 5, "lexical", "no question"),
        ("a", 0, "hybrid", "so many passages"),
        ("a", 10**6, "hybrid", "so many passages"),
        ("a", 5, "fuzzy", "unknown way"),
    ):
        with pytest.raises(NybbleError, match=text):
            index.search(query, k, mode)
    with pytest.raises(NybbleError, match="no such document"):
        index.passages_of("none.md")
    index.search("'; DROP TABLE passages; -- \x00 \ud800".replace("\ud800", "?"))
    index.close()
    with pytest.raises(NybbleError, match="closed"):
        index.search("a")


def test_documents_and_revision(index: Index, folder: Path) -> None:
    rows = index.documents()
    assert len(rows) == 31 and rows[0].path == "leaf.pdf" and rows[0].kind == "pdf"
    assert rows[1].n_passages == 1 and len(rows[1].sha256) == 64
    assert rows[1].bytes == (folder / "note00.md").stat().st_size
    before = index.revision
    (folder / "note00.md").unlink()
    indexed(folder)
    assert index.revision > before and len(index.documents()) == 30


def test_searched_by_threads_while_it_changes(folder: Path) -> None:
    with open_index(folder / ".nybble-rag") as index, ThreadPoolExecutor(4) as pool:

        def ask(n: int) -> str:
            return index.search(f"option_{n % 20 + 10} value", k=5)[0].passage.title

        asked = [pool.submit(ask, n) for n in range(60)]
        for n in range(8):
            (folder / f"note{n:02}.md").write_text(f"# New {n}\n\nNothing of the kind.\n")
            build(folder, folder / ".nybble-rag", IndexOptions(), Silent())
        assert [a.result() for a in asked] == [f"Note {n % 20 + 10}" for n in range(60)]
        assert index.search("New 3 kind", mode="lexical")[0].passage.title == "New 3"
        assert len(list((folder / ".nybble-rag").glob("lexical-*"))) == 1


def test_a_word_index_that_is_replaced_while_it_is_opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def late(place: Path, name: str) -> Lexical:
        if not opened:  # its name is read; an update ends before it is opened
            (folder / "late.md").write_text("# Late\n\nAn option_99 of the last moment.\n")
            indexed(folder)
        opened.append(name)
        return Lexical(place, name)

    monkeypatch.setattr("nybble.rag.index.Lexical", late)
    with open_index(folder / ".nybble-rag") as index:
        assert index.search("option_99", mode="lexical")[0].passage.title == "Late"
    assert len(set(opened)) == 2


def test_a_word_index_behind_the_documents(folder: Path, index: Index) -> None:
    store = Store(folder / ".nybble-rag", write=True)
    with store.transaction():
        store.remove(store.all("SELECT id FROM documents WHERE path = 'note07.md'")[0][0])
        store.changed()
    store.close()
    assert not index.about().lexical_current
    hits = index.search("option_7 259", mode="lexical")
    assert hits and all(h.passage.title != "Note 7" for h in hits)
    indexed(folder)  # the file is there; its row is not, so it is read again
    assert index.about().lexical_current
    assert index.search("option_7 259", mode="lexical")[0].passage.title == "Note 7"


def test_a_damaged_word_index(folder: Path) -> None:
    (words,) = (folder / ".nybble-rag").glob("lexical-*")
    (words / "words.json").write_text("[1, 2")
    with open_index(folder / ".nybble-rag") as index:
        with pytest.raises(NybbleError, match="word index is damaged"):
            index.search("option_7")
        assert index.search("option_7", mode="dense")
    shutil.rmtree(words)
    indexed(folder)
    with open_index(folder / ".nybble-rag") as index:
        assert index.search("option_7", mode="lexical")


def test_read_only_index(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "frozen"
    shutil.copytree(folder / ".nybble-rag", place)
    for path in (*place.rglob("*"), place):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        with open_index(place) as index:
            assert index.search("option_7")[0].passage.title == "Note 7"
    finally:
        for path in (place, *place.rglob("*")):
            path.chmod(0o755)


def test_no_index(tmp_path: Path) -> None:
    with pytest.raises(NybbleError, match="there is no index here"):
        open_index(tmp_path)
    Store(tmp_path, write=True).close()
    with pytest.raises(NybbleError, match="holds nothing yet"):
        open_index(tmp_path)


def test_questions_go_to_no_server_that_the_index_alone_names(folder: Path) -> None:
    store = Store(folder / ".nybble-rag", write=True)
    with store.transaction():
        store.set_meta(embedding="http://elsewhere.example/v1", embedding_model="m")
    store.close()
    with pytest.raises(NybbleError, match="must be named"):
        open_index(folder / ".nybble-rag")
    with pytest.raises(NybbleError, match="another embedding model"):
        open_index(folder / ".nybble-rag", embedding="http://elsewhere.example/v1")


def ranking(scores: dict[int, float], only: int | None = None) -> Ranking:
    order = sorted(scores, key=lambda i: (-scores[i], i))[:only]
    return Ranking(order, scores)


def test_fusing_by_hand() -> None:
    dense = ranking({1: 0.8, 2: 0.5, 3: -0.1}, 2)
    lexical = ranking({3: 10.0, 1: 5.0, 2: 0.0}, 2)
    found = fuse(dense, lexical, 0.5)
    scores = {f.id: f.score for f in found}
    assert scores[1] == pytest.approx(0.5 * 1 + 0.5 * 0.5)
    assert scores[2] == pytest.approx(0.5 * 1.5 / 1.8)
    assert scores[3] == pytest.approx(0.5 * 0.9 / 1.8 + 0.5 * 1)  # its cosine counts too
    assert [f.id for f in found] == [1, 3, 2]
    assert [(f.dense_rank, f.lexical_rank) for f in found] == [(1, 2), (None, 1), (2, None)]
    assert [f.id for f in fuse(dense, Ranking())] == [1, 2]
    assert [f.id for f in fuse(Ranking(), lexical)] == [3, 1]
    assert fuse(Ranking(), Ranking()) == []
    worst = fuse(ranking({1: -1.0, 2: -1.0}), Ranking())
    assert [(f.id, f.score) for f in worst] == [(1, 0.0), (2, 0.0)]


@given(
    st.dictionaries(st.integers(0, 30), st.floats(-1, 1), max_size=20),
    st.dictionaries(st.integers(0, 30), st.floats(0.125, 1e6), max_size=20),
    st.floats(0.01, 0.99),
)
def test_fusing_keeps_all_and_never_prefers_the_lower_of_both(
    a: dict[int, float], b: dict[int, float], weight: float
) -> None:
    found = fuse(ranking(a), ranking(b), weight)
    assert {f.id for f in found} == set(a) | set(b)
    assert all(0 <= f.score <= 1 + 1e-9 for f in found)
    score = {f.id: f.score for f in found}
    for x in a.keys() & b.keys():
        for y in a.keys() & b.keys():
            if a[x] > a[y] and b[x] > b[y]:
                assert score[x] >= score[y]


def test_either_retriever_s_scores_are_known_of_what_the_other_found(index: Index) -> None:
    hits = index.search("option_7 value", k=30)
    store, vector = index._store(), index._embedder.query("option_7 value")
    cosines = store.cosines(vector, [h.passage.id for h in hits])
    assert store.nearest(vector, 5) == pytest.approx(
        {i: cosines[i] for i in list(store.nearest(vector, 5))}, abs=1e-6
    )
    words = index._words(store.meta())
    assert words is not None
    few = words.nearest("option_7 value", 1, [h.passage.id for h in hits] + [10**9])
    assert len(few.order) == 1 and set(few.scores) == {h.passage.id for h in hits}
    every = words.nearest("option_7 value", 1000)
    assert few.scores == {i: every.scores.get(i, 0.0) for i in few.scores}
    assert words.nearest("qqqq", 3, [1]) == Ranking()
    best = fuse(Ranking(list(store.nearest(vector, 100)), cosines), every)
    assert [h.passage.id for h in hits] == [f.id for f in best][: len(hits)]
