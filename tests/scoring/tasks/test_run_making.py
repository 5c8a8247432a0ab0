"""Items of every real task, in ids: they fill their length, and the texts are found in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from nybble.engines.child import Frame
from nybble.engines.llamacpp.model import Model
from nybble.scoring.corpora.render import conversation
from nybble.scoring.tasks.making import MadeItem, make, read
from nybble.scoring.tasks.registry import TASKS

LENGTH = 1500
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def _made(model: Model, task: str, template: str | None, items: int = 2) -> list[MadeItem]:
    header = {"task": task, "length": LENGTH, "items": items, "queries": 4, "seed": 3,
              "template": template}  # fmt: skip
    return read(make(model, header), task, LENGTH)


@pytest.mark.parametrize("template", [None, TEMPLATE])
@pytest.mark.parametrize("task", TASKS)
def test_context_and_longest_question_fill_the_length(
    tiny_model: Path, task: str, template: str | None
) -> None:
    model = Model(tiny_model, no_alloc=True)
    for item in _made(model, task, template):
        assert item.asked.context[0] == model.vocabulary.bos
        asked = max(len(q.stem) + len(q.rest) + q.most for q in item.asked.queries)
        assert 0.9 * LENGTH < len(item.asked.context) + asked <= LENGTH
        assert len(item.asked.queries) == len(item.queries)
        for query, asked_query in zip(item.queries, item.asked.queries, strict=True):
            assert len(asked_query.options) == len(query.options) >= 4
            assert len(set(asked_query.options)) == len(query.options)
            assert asked_query.most == query.most


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_ids_spell_the_prompt_that_a_server_would_be_sent(
    tiny_model: Path, template: str | None
) -> None:
    """Pieces of all ids joined are context, question and lead, framed by the template."""
    model = Model(tiny_model, no_alloc=True)
    pieces = model.pieces()
    (item,) = _made(model, "needle", template, 1)
    for query, asked in zip(item.queries, item.asked.queries, strict=True):
        ids = [*item.asked.context.tolist(), *asked.stem, *asked.rest]
        # This vocabulary begins every text it is given with a space.
        said = b"".join(pieces[i] for i in ids).decode().replace(" ", "")
        lead = query.lead.replace(" ", "")
        if template is None:
            end = f"\n\n{query.text}\n\n".replace(" ", "")
        else:
            whole = [{"role": "user", "content": f"...\n\n{query.text}"}]
            framed = conversation(whole, template, bos="", eos="")
            assert said.startswith("<|user|>")
            end = framed.partition("...")[2].replace(" ", "")
        assert said.endswith(end + lead)
        options = [b"".join(pieces[i] for i in o).decode() for o in asked.options]
        assert options[0].strip() == query.options[0].strip()


def test_more_items_leave_the_first_as_they_were(tiny_model: Path) -> None:
    model = Model(tiny_model, no_alloc=True)
    few, more = _made(model, "tracking", None, 1), _made(model, "tracking", None, 3)
    assert more[0].asked.sha256() == few[0].asked.sha256()
    assert len({i.asked.sha256() for i in more}) == 3


def test_frame_without_items() -> None:
    assert read(Frame({"items": []}), "needle", LENGTH) == []
