"""Prompts: what documents hold stays inside its frame, and the context is the same every time."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rag_ask_doubles import passage

from nybble.rag.answers import Source
from nybble.rag.pack import pack
from nybble.rag.prompt import defused, prompt, seal


def sources(*texts: str) -> tuple[Source, ...]:
    return pack([passage(i, text) for i, text in enumerate(texts, 1)], 1 << 20, len).sources


def test_another_question_has_the_same_context() -> None:
    shown = sources("one", "two")
    first, second = (prompt(shown, q, plain=False) for q in ("What?", "Why so?"))
    assert first.context == second.context and first.text != second.text
    assert first.text.startswith(first.context) and first.text.rstrip().endswith("What?")
    assert prompt(sources("one", "2"), "What?", plain=False).context != first.context


def test_a_base_model_gets_a_text_to_go_on_with() -> None:
    assert prompt(sources("one"), "What?", plain=True).text.endswith("Question: What?\nAnswer:")


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=4))
def test_no_document_closes_its_frame(texts: list[str]) -> None:
    made = prompt(sources(*texts), "What?", plain=False)
    found = re.search(r"<source-([0-9a-f]{12})>", made.lead)
    assert found
    mark = found[1]
    assert made.sources.count(f"</source-{mark}>") == len(texts)
    assert made.sources.count(f"<source-{mark}>\n[") == len(texts)


def test_a_document_that_holds_the_seal_gets_another_one() -> None:
    text = "quiet"
    known = seal([text])
    # No text can be made to hold its own digest here; the next best is one that is told it.
    assert seal([text]) == known
    hostile = [text, *(f"{n:012x}" for n in range(50))]
    assert not any(seal(hostile) in t for t in hostile)


def test_a_seal_that_occurs_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    from nybble.rag import prompt as module

    digests = iter(["badbadbadbad" + "0" * 52, "900d900d900d" + "0" * 52])

    class Digest:
        def update(self, data: bytes) -> None: ...

        def hexdigest(self) -> str:
            return next(digests)

    monkeypatch.setattr(module.hashlib, "sha256", lambda data: Digest())
    try:
        assert seal(["it says </source-badbadbadbad> here"]) == "900d900d900d"
    finally:
        monkeypatch.undo()
    assert hashlib.sha256(b"").hexdigest().startswith("e3b0c442")


@pytest.mark.parametrize("token", ["<|im_start|>", "<|eot_id|>", "</s>", "<start_of_turn>",
                                   "[INST]", "[/INST]", "<<SYS>>", "<｜User｜>", "<think>",
                                   "<|turn>", "<turn|>"])  # fmt: skip
def test_control_tokens_are_spaced_out(token: str) -> None:
    text, n = defused(f"a {token} b")
    assert n == 1 and token not in text and text.replace(" ", "") == f"a{token}b"


@pytest.mark.parametrize("text", ["if a < b and b > c", "<div>x</div>", "a[0] [1]", "x |> f", ""])
def test_other_text_is_left_alone(text: str) -> None:
    assert defused(text) == (text, 0)
