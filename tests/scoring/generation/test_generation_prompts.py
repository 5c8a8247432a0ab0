"""Documents to prompts, with a tokenizer of bytes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from nybble.engines.vocabulary import Vocabulary
from nybble.errors import NybbleError
from nybble.scoring.corpora import Document
from nybble.scoring.generation.prompts import TASK, prompts

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TALK = tuple(
    {"role": role, "content": content}
    for role, content in (
        ("user", "first question"), ("assistant", "first answer"),
        ("user", "second question"), ("assistant", "second answer"),
    )
)  # fmt: skip


class Bytes:
    """A token is a byte; BOS is 300."""

    def __init__(self, add_bos: bool = True) -> None:
        self.vocabulary = Vocabulary(301, 300, 301, add_bos, "<s>", "</s>")

    def tokenize(self, text: str, *, special: bool) -> npt.NDArray[np.int32]:
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)


def made(
    *documents: Document, template: str | None = None, tokens: int = 512, wanted: int = 9,
    model: Bytes | None = None,
) -> dict[str, str]:  # fmt: skip
    """Text of the prompts by document; BOS is written as ^."""
    header: dict[str, Any] = {
        "category": "text", "documents": [dataclasses.asdict(d) for d in documents],
        "template": template, "tokens": tokens, "wanted": wanted,
    }  # fmt: skip
    frame = prompts(model or Bytes(), header, lambda **fields: None)
    every = np.frombuffer(frame.payload, dtype="<i4")
    parts = np.split(every, np.cumsum(frame.header["lengths"]))[:-1]
    texts = ["".join("^" if t == 300 else chr(t) for t in part) for part in parts]
    return dict(zip(frame.header["documents"], texts, strict=True))


def a_text(name: str = "a", text: str = "The quick brown fox jumps. ") -> Document:
    return Document(name, "text", text=text)


def test_the_head_of_a_text() -> None:
    found = made(a_text(text="0123456789"), a_text("b", "xyz"), tokens=6)
    assert found == {"a": "^01234", "b": "^xyz"}
    assert made(a_text(text="0123456789"), tokens=6, model=Bytes(False)) == {"a": "012345"}


def test_a_text_in_the_template_is_cut_and_the_task_is_not() -> None:
    found = made(a_text(text="0123456789" * 20), template=TEMPLATE, tokens=100)["a"]
    assert len(found) == 100
    assert found.startswith("^<|user|>0123456789")
    assert found.endswith(f"\n\n{TASK}\n<|assistant|>")


def test_a_conversation_is_asked_before_its_last_answer() -> None:
    talk = Document("talk", "text", messages=TALK)
    found = made(talk, template=TEMPLATE)["talk"]
    assert found.endswith("<|user|>second question\n<|assistant|>")
    assert "first answer" in found and "second answer" not in found
    shorter = made(talk, template=TEMPLATE, tokens=50)["talk"]
    assert shorter == "^<|user|>first question\n<|assistant|>"
    assert made(talk, template=TEMPLATE, tokens=20) == {}
    waiting = Document("waiting", "text", messages=TALK[:3])
    assert made(waiting, template=TEMPLATE)["waiting"] == found


def test_a_conversation_without_a_template() -> None:
    found = made(Document("talk", "text", messages=TALK))["talk"]
    assert found.endswith("User: second question\n\nAssistant:")


def test_no_more_than_wanted_and_none_of_nothing() -> None:
    assert list(made(a_text("a"), a_text("b"), a_text("c"), wanted=2)) == ["a", "b"]
    assert made(a_text("a", ""), a_text("b")) == {"b": "^" + a_text().text}
    assert made(a_text("a"), template=TEMPLATE, tokens=32) == {}  # the frame alone is longer


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "nothing of it",
        "{{ messages[0].content }}{{ messages[0].content }}",
        "{% for",
    ],
)
def test_a_template_that_holds_no_turn(template: str) -> None:
    with pytest.raises(NybbleError):
        made(a_text(), template=template)


def test_bos_in_the_template_is_not_doubled() -> None:
    class Known(Bytes):
        def tokenize(self, text: str, *, special: bool) -> npt.NDArray[np.int32]:
            if special and text.startswith("<s>"):
                return np.concatenate([[300], super().tokenize(text[3:], special=True)]).astype(
                    np.int32
                )
            return super().tokenize(text, special=special)

    found = made(a_text(), template="{{ bos_token }}" + TEMPLATE, model=Known())["a"]
    assert found.count("^") == 1 and "<s>" not in found
