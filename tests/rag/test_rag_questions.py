"""Generated questions: the same for the same corpus, answerable, and not copied."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rag_eval_doubles import WordIndex, corpus, document

from nybble.errors import NybbleError
from nybble.rag import judge
from nybble.rag.question_corpus import CorpusWords
from nybble.rag.question_words import STOP, pieces, sentences, variants
from nybble.rag.questions import KINDS, Question, generate


@pytest.fixture(scope="module")
def index() -> WordIndex:
    return WordIndex(corpus())


@pytest.fixture(scope="module")
def questions(index: WordIndex) -> list[Question]:
    return generate(index, 12, seed=3)


def test_same_seed_same_questions(index: WordIndex, questions: list[Question]) -> None:
    assert generate(index, 12, seed=3) == questions
    assert [q.text for q in generate(index, 12, seed=4)] != [q.text for q in questions]


def test_ids_and_order_of_the_index_do_not_matter(questions: list[Question]) -> None:
    backwards = dict(reversed(list(corpus().items())))
    again = generate(WordIndex(backwards, first=1000), 12, seed=3)
    assert [(q.text, q.answer, q.document) for q in again] == [
        (q.text, q.answer, q.document) for q in questions
    ]
    assert {q.passage_id - 1000 for q in again} == {q.passage_id for q in questions}


def test_every_kind_is_there(questions: list[Question]) -> None:
    kinds = [q.kind for q in questions]
    assert set(kinds) == set(KINDS)
    assert (kinds.count("cloze"), kinds.count("section"), kinds.count("keywords")) == (6, 3, 3)


def test_the_answer_is_in_the_passage_and_not_in_the_question(
    index: WordIndex, questions: list[Question]
) -> None:
    texts = {p.id: p.text for p in index.everything()}
    for q in questions:
        if q.kind == "keywords":
            assert q.answer == "" and not judge.accepted(q)
            continue
        assert q.answer.lower() in texts[q.passage_id].lower()
        assert not judge.right(q.text, [q.answer]), q.text


def test_other_accepted_passages_hold_the_answer_too(index: WordIndex) -> None:
    texts = {p.id: p for p in index.everything()}
    for q in generate(index, 16, seed=0, kinds=("cloze",)):
        for other in q.also:
            assert set(pieces(q.answer)) <= set(pieces(texts[other].text))


def test_no_question_copies_a_long_run_of_its_passage(
    index: WordIndex, questions: list[Question]
) -> None:
    texts = {p.id: " ".join(pieces(p.text)) for p in index.everything()}
    for q in questions:
        words = pieces(q.text)
        runs = (" ".join(words[i : i + 8]) for i in range(len(words) - 7))
        assert not any(run in texts[q.passage_id] for run in runs), q.text


def test_documents_take_turns(index: WordIndex) -> None:
    assert len({q.document for q in generate(index, 8, seed=1)}) >= 7


def test_copies_are_accepted() -> None:
    texts = corpus() | {"copy/ardel.md": document("ardel")}
    index = WordIndex(texts)
    passages = {p.id: p for p in index.everything()}
    made = [q for q in generate(index, 18, seed=0) if q.document.endswith("ardel.md")]
    assert made
    for q in made:
        twin = next(p for p in index.everything() if p.id != q.passage_id
                    and p.text == passages[q.passage_id].text)  # fmt: skip
        assert twin.id in q.also and twin.id in q.accepted


def test_what_too_many_passages_say_is_not_asked() -> None:
    """Seven copies of everything: nothing tells one from the others."""
    index = WordIndex({f"{i}.md": document("ardel") for i in range(7)})
    with pytest.raises(NybbleError, match="no question can be made") as error:
        generate(index, 5)
    assert "--questions FILE.jsonl" in str(error.value)


def test_more_than_there_is(index: WordIndex) -> None:
    made = generate(index, 1000, seed=0)
    assert 8 <= len(made) <= len(index.everything())
    assert len({q.text.lower() for q in made}) == len(made)


@pytest.mark.parametrize("texts", [{}, {"a.txt": ""}, {"a.txt": "{}" * 400}, {"a.txt": "数" * 500}])
def test_nothing_to_ask(texts: dict[str, str]) -> None:
    with pytest.raises(NybbleError, match="no question can be made"):
        generate(WordIndex(texts), 3)


def test_arguments(index: WordIndex) -> None:
    with pytest.raises(NybbleError, match="number of questions"):
        generate(index, 0)
    with pytest.raises(NybbleError, match="unknown kind"):
        generate(index, 1, kinds=("riddle",))
    with pytest.raises(NybbleError, match="unknown kind"):
        generate(index, 1, kinds=())


def test_near_duplicates_are_found(index: WordIndex) -> None:
    changed = document("ardel").replace("every winter morning", "on winter days")
    words = CorpusWords(WordIndex(corpus() | {"other.md": changed}))
    at = next(i for i, p in enumerate(words.places) if p.document == "towns/ardel.md")
    assert [words.places[o].document for o in words.alike(at)] == ["other.md"]


def test_sentences_are_whole_prose() -> None:
    text = """cut off in the middle of a sentence that began elsewhere before it.

The first whole sentence of this text has ten words here. And this second one, too, is long enough.

```
The code in a fence is no sentence although it ends so.
```

    The indented code is no sentence although it ends just so here.

| The table | is none | either although | it ends | with one more stop. |

- See [the **manual**](http://x.invalid/) for all that the options of this program do."""
    assert sentences(text) == [
        "The first whole sentence of this text has ten words here.",
        "And this second one, too, is long enough.",
        "See the manual for all that the options of this program do.",
    ]


@pytest.mark.parametrize(
    ("word", "among"),
    [("directory", "folder"), ("Folder", "directory"), ("colours", "colour"), ("entries", "entry"),
     ("colour", "color"), ("returned", "returning"), ("classes", "class"), ("planning", "plan"),
     ("allocation", "allocating")],
)  # fmt: skip
def test_variants(word: str, among: str) -> None:
    assert among in variants(word)


@pytest.mark.parametrize("word", ["the", "q4_0", "1024", "naïve", "x", "swiftly", "status"])
def test_words_without_a_variant(word: str) -> None:
    assert variants(word) == []


@given(st.text(max_size=400))
def test_any_text_is_read(text: str) -> None:
    for sentence in sentences(text):
        assert sentence[-1] in ".!?"
    for word in pieces(text):
        assert word not in variants(word) and word not in STOP - {word}


@given(st.lists(st.text(min_size=1, max_size=300), min_size=1, max_size=5), st.integers(0, 9))
def test_any_corpus_gives_questions_or_a_clear_error(texts: list[str], seed: int) -> None:
    index = WordIndex({f"{i}.md": text for i, text in enumerate(texts)})
    try:
        made = generate(index, 3, seed)
    except NybbleError:
        return
    assert all(q.text.strip() for q in made)


def test_mutilated_prose_is_survived() -> None:
    """Hostile documents: marks of every kind in the middle of words."""
    rng = random.Random(0)
    texts: dict[str, str] = corpus()
    for i in range(4):
        words = document(rng.choice(["gostel", "farow"])).split(" ")
        for _ in range(30):
            words.insert(
                rng.randrange(len(words)), rng.choice(["(", "`", '"', "[x](", "\x00", "**"])
            )
        texts[f"{i}.md"] = " ".join(words)
    made = generate(WordIndex(texts), 10, 0)
    assert all(a != b for a, b in pairwise(q.text for q in made))
