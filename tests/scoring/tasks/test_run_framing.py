"""Questions in token ids: what is shared, what options add, and how a template is taken apart."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nybble.engines.vocabulary import Vocabulary
from nybble.errors import EngineError, NybbleError
from nybble.scoring.tasks.base import Item, Query
from nybble.scoring.tasks.frames import Asked, AskedQuery, Framer, unpack

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


class Letters:
    """A tokenizer of code points, which merges the pair ": 7" as BPE may."""

    def __init__(self, *, add_bos: bool = True) -> None:
        self.vocabulary = Vocabulary(200_000, 1, 2, add_bos, "<s>", "</s>")

    def tokenize(self, text: str, *, special: bool) -> npt.NDArray[np.int32]:
        if special:
            text = text.replace("<s>", "\x01")
        return np.array([ord(c) for c in text.replace(": 7", "\U00010007")], dtype=np.int32)


def _item(query: Query, context: str = "Some text.") -> Item:
    return Item("needle", 1024, 0, context, (query,))


def _query(lead: str, *options: str) -> Query:
    return Query("What?", lead, (options[0].strip(),), options, 0.5, 9)


def _text(ids: npt.NDArray[np.int32] | tuple[int, ...]) -> str:
    return "".join(map(chr, ids)).replace("\U00010007", ": 7")


def test_plain_text_is_context_question_and_lead() -> None:
    asked = Framer(Letters(), None).asked(_item(_query("It is", " red", " blue")))
    (query,) = asked.queries
    assert _text(asked.context) == "\x01Some text."
    assert _text(query.stem) == "\n\nWhat?\n\nIt is"
    assert [_text(o) for o in query.options] == [" red", " blue"]
    assert query.rest == ()
    assert query.most == 9


def test_a_merge_over_the_boundary_belongs_to_the_options() -> None:
    asked = Framer(Letters(), None).asked(_item(_query("The number:", " 71", " 45")))
    (query,) = asked.queries
    assert _text(query.stem).endswith("The number")
    assert _text(query.rest) == ":"  # what the model's own answer goes on from
    assert [_text(o) for o in query.options] == [": 71", ": 45"]


def test_template_is_taken_apart_around_the_texts() -> None:
    framer = Framer(Letters(), TEMPLATE)
    asked = framer.asked(_item(_query("It is", " red", " blue"), "<s> is no token here"))
    assert _text(asked.context) == "\x01<|user|>\n<s> is no token here"
    assert _text(asked.queries[0].stem) == "\n\nWhat?\n<|assistant|>\nIt is"
    assert framer.tokens == len("\x01<|user|>\n") + len("\n\n") + len("\n<|assistant|>\n")


@pytest.mark.parametrize("template", ["fixed text", "{{ messages[0]['content'] * 2 }}"])
def test_template_that_does_not_print_the_question_once(template: str) -> None:
    with pytest.raises(NybbleError) as caught:
        Framer(Letters(), template)
    assert caught.value.hint == "--framing raw"


def test_option_without_tokens_of_its_own() -> None:
    with pytest.raises(EngineError, match="nothing of an answer"):
        Framer(Letters(), None).asked(_item(_query("It is", " red", "")))


ids = st.lists(st.integers(0, 300_000), min_size=1, max_size=6).map(tuple)
queries = st.builds(
    AskedQuery, ids, st.one_of(st.just(()), ids), st.lists(ids, min_size=2, max_size=4).map(tuple),
    st.integers(1, 99),
)  # fmt: skip


@given(ids, st.lists(queries, min_size=1, max_size=4).map(tuple))
def test_packing_round_trip(context: tuple[int, ...], asked: tuple[AskedQuery, ...]) -> None:
    item = Asked(np.array(context, dtype=np.int32), asked)
    lengths, payload = item.pack()
    found = unpack(json.loads(json.dumps(lengths)), payload)
    assert found.queries == asked
    assert found.context.tolist() == list(context)
    assert found.sha256() == item.sha256()


def test_room_holds_all_answers_or_one_questions_options() -> None:
    query = AskedQuery((1, 2), (), ((3, 4), (5,)), 10)
    item = Asked(np.arange(7, dtype=np.int32), (query, query))
    assert item.cells == 7 + 2 * 2 + 2 * 10
    assert item.sequences == 1 + 2 + 2
