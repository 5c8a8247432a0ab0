"""Asking any OpenAI-compatible server, one that behaves and one that does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rag_ask_doubles import FakeChat, SmallIndex, chatting, small_index

from nybble.errors import NybbleError
from nybble.rag.answers import CutOffError, Event, Options, Server
from nybble.rag.ask import ask
from nybble.rag.client import TooLongError

QUESTION = "How many tonnes does crane 3 lift?"
FULL = (400, {"error": {"message": "This model's maximum context length is 2048 tokens."}})


@pytest.fixture
def index(tmp_path: Path) -> SmallIndex:
    return small_index(tmp_path)


def test_an_answer_with_its_sources(index: SmallIndex) -> None:
    events: list[Event] = []
    with chatting(fake := FakeChat()) as url:
        answer = ask(index, QUESTION, Server(url), Options(k=3), events.append)
    assert answer.text == fake.says and answer.finish == "stop"
    assert [c.number for c in answer.citations] == [1] and answer.citations[0].exists
    assert answer.sources[0].document == "docs/cranes.md"
    assert (answer.usage.prompt, answer.usage.cached, answer.usage.answer) == (90, 64, 5)
    kinds = [e.kind for e in events if e.kind != "note"]
    assert kinds == ["sources", *["text"] * 5, "done"]
    assert "".join(e.text for e in events if e.kind == "text") == answer.text
    assert events[-1].answer == answer and answer.prefix is None
    first = answer.timings.first
    assert first is not None and 0 < first <= answer.timings.total
    (body,) = fake.requests
    (message,) = body["messages"]
    assert message["content"].rstrip().endswith(QUESTION) and body["temperature"] == 0
    assert body["model"] == "fake" and body["stream"]


def test_control_tokens_of_a_document_do_not_reach_a_template(index: SmallIndex) -> None:
    with chatting(fake := FakeChat()) as url:
        answer = ask(index, "what about pilots rules", Server(url))
    text = fake.requests[0]["messages"][0]["content"]
    assert "<|im_start|>" not in text and "</s>" not in text and "< |im_start|>" in text
    assert any("control tokens" in note for note in answer.notes)


def test_a_base_model_is_asked_for_a_completion(index: SmallIndex) -> None:
    with chatting(fake := FakeChat()) as url:
        answer = ask(index, QUESTION, Server(url, frame="plain"))
    assert answer.text == fake.says
    assert fake.requests[0]["prompt"].endswith("Answer:") and fake.requests[0]["stop"]


def test_citations_that_do_not_exist_are_told(index: SmallIndex) -> None:
    with chatting(FakeChat('It "lifts 900 tonnes" [1], see [42].')) as url:
        answer = ask(index, QUESTION, Server(url))
    assert [c.exists for c in answer.citations] == [True, False]
    assert any("[42]" in n for n in answer.notes) and any("900" in n for n in answer.notes)


def test_a_server_that_dies_in_mid_answer_keeps_what_came(index: SmallIndex) -> None:
    with chatting(FakeChat(dies_after=3)) as url, pytest.raises(CutOffError) as caught:
        ask(index, QUESTION, Server(url))
    assert caught.value.partial == "It lifts 103" and caught.value.hint


def test_too_much_is_packed_again_with_less_once(index: SmallIndex) -> None:
    options = Options(over=("docs/cranes.md",), answer_tokens=64)
    with chatting(fake := FakeChat(refuses=[FULL])) as url:
        answer = ask(index, QUESTION, Server(url), options)
        before, after = (len(r["messages"][0]["content"]) for r in fake.requests)
        assert after < before and answer.packed.used < answer.packed.found
        assert any("exceeds its context" in note for note in answer.notes)
        fake.refuses = [FULL, FULL]
        with pytest.raises(TooLongError, match="exceeds"):
            ask(index, QUESTION, Server(url), options)


def test_what_does_not_fit_is_left_out_and_told(index: SmallIndex) -> None:
    with chatting(FakeChat(context=700)) as url:
        answer = ask(index, QUESTION, Server(url), Options(over=("cranes.md",)))
    assert 0 < answer.packed.used < answer.packed.found
    assert any(f"packed {answer.packed.used} of" in note for note in answer.notes)
    assert any("quarter of the context" in note for note in answer.notes)


def test_a_context_that_nothing_fits_into(index: SmallIndex) -> None:
    with chatting(FakeChat(context=200)) as url, pytest.raises(NybbleError, match="no passage"):
        ask(index, QUESTION, Server(url))


def test_a_server_that_counts_is_believed(index: SmallIndex) -> None:
    with chatting(FakeChat(counts=True, context=None)) as url:
        answer = ask(index, QUESTION, Server(url), Options(context=1000))
        told = ask(index, QUESTION, Server(url))
    assert not any("estimated" in note for note in answer.notes)
    assert any("4,096" in note for note in told.notes)


@pytest.mark.parametrize(
    ("fake", "server", "match"),
    [
        (FakeChat(key="k"), {"key": "wrong"}, "wants a key"),
        (FakeChat(garbage="{"), {}, "not built as OpenAI"),
        (FakeChat(garbage='{"choices": 5}'), {}, "not built as OpenAI"),
        (FakeChat(refuses=[(500, {"error": {"message": "out of memory"}})]), {}, "failed"),
        (FakeChat(refuses=[(404, {"error": {"message": "no model x"}})]), {"model": "x"}, "model"),
    ],
)
def test_what_a_server_does_wrong_is_said(
    index: SmallIndex, fake: FakeChat, server: dict[str, str], match: str
) -> None:
    with chatting(fake) as url, pytest.raises(NybbleError, match=match) as caught:
        ask(index, QUESTION, Server(url, **server))
    assert caught.value.hint or caught.value.seen


def test_nobody_is_there(index: SmallIndex) -> None:
    with pytest.raises(NybbleError, match="does not answer"):
        ask(index, QUESTION, Server("http://127.0.0.1:9"))


def test_the_same_context_again(index: SmallIndex) -> None:
    with chatting(fake := FakeChat()) as url:
        with pytest.raises(NybbleError, match="no question was asked"):
            ask(index, QUESTION, Server(url), Options(same=True))
        first = ask(index, QUESTION, Server(url), Options(k=3))
        again = ask(index, "Which is the heaviest?", Server(url), Options(same=True))
        assert again.sources == first.sources
        texts = [r["messages"][0]["content"] for r in fake.requests]
        assert texts[0].split("Question:")[0] == texts[1].split("Question:")[0]
        assert any("own prefix cache" in note for note in again.notes)
        index.put("docs/cranes.md", "All cranes were scrapped.")
        with pytest.raises(NybbleError, match="documents have changed"):
            ask(index, QUESTION, Server(url), Options(same=True))


def test_nothing_is_kept_where_that_was_not_wanted(index: SmallIndex) -> None:
    with chatting(FakeChat()) as url:
        ask(index, QUESTION, Server(url), Options(prefix=False))
    assert not list(index.path.iterdir())


def test_a_last_question_that_was_damaged(index: SmallIndex) -> None:
    (index.path / "last-question.json").write_text(json.dumps({"question": 1}))
    with chatting(FakeChat()) as url, pytest.raises(NybbleError, match="cannot be read"):
        ask(index, QUESTION, Server(url), Options(same=True))


@pytest.mark.parametrize("question", ["", " \n", "x" * 20_001])
def test_no_question(index: SmallIndex, question: str) -> None:
    with pytest.raises(NybbleError, match="not a question"):
        ask(index, question, Server("http://127.0.0.1:9"))


def test_documents_that_are_not_there(index: SmallIndex) -> None:
    index.put("more/tides.md", "Low water is at six.")
    with chatting(FakeChat()) as url:
        with pytest.raises(NybbleError, match="no such document"):
            ask(index, QUESTION, Server(url), Options(over=("docs/crane.md",)))
        with pytest.raises(NybbleError, match="several documents"):
            ask(index, QUESTION, Server(url), Options(over=("tides.md",)))


def test_a_reader_who_stops_ends_the_request(index: SmallIndex) -> None:
    class Stopped(Exception):
        pass

    def stop(event: Event) -> None:
        if event.kind == "text":
            raise Stopped

    with chatting(FakeChat()) as url, pytest.raises(Stopped):
        ask(index, QUESTION, Server(url), Options(), stop)


@pytest.mark.parametrize(
    "given", [{"mode": "fuzzy"}, {"k": 0}, {"answer_tokens": 0}, {"temperature": -1},
              {"keep_prefixes": float("nan")}, {"same": True, "over": ("a",)}, {"context": 1}]
)  # fmt: skip
def test_options_out_of_range(given: dict[str, object]) -> None:
    with pytest.raises(NybbleError):
        Options(**given)  # type: ignore[arg-type]
