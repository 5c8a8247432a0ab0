"""What counts as right, in any text a model may write."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nybble.scoring.tasks.answers import copies, place, said, sentence
from nybble.scoring.tasks.base import Query
from nybble.scoring.tasks.functions import SPECS, Function, draw_function, problems
from nybble.scoring.tasks.make import make_items
from nybble.scoring.tasks.registry import TASKS


def count(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))


QUERIES = {name: make_items(task, 1024, 1, 6, 3, count)[0].queries for name, task in TASKS.items()}
PLAIN = ["needle", "multi-key", "common-words", "facts"]
EVERY = pytest.mark.parametrize("name", TASKS)


class TestAny:
    @EVERY
    @given(text=st.text(max_size=200))
    @settings(max_examples=40, deadline=None)
    @example(text="")
    @example(text="\x00\ud7ff \u2028 \\ [ ( * ")
    def test_text_of_any_kind_is_judged(self, name: str, text: str) -> None:
        for query in QUERIES[name]:
            right = TASKS[name].right(query, text)
            assert right is False or query.answers[0].split()[0] in text

    @EVERY
    @given(after=st.text(max_size=60))
    @settings(max_examples=25, deadline=None)
    def test_later_lines_are_not_read(self, name: str, after: str) -> None:
        for query in QUERIES[name]:
            assert TASKS[name].right(query, f"\n {query.options[0]}\n{after}")

    @EVERY
    def test_an_answer_on_a_later_line_is_late(self, name: str) -> None:
        for query in QUERIES[name]:
            assert not TASKS[name].right(query, f" I do not know.\n{query.options[0]}")

    @EVERY
    def test_nothing_is_no_answer(self, name: str) -> None:
        for query in QUERIES[name]:
            assert not any(TASKS[name].right(query, text) for text in ("", " ", "\n\n", "..."))


class TestPlain:
    @pytest.mark.parametrize("name", PLAIN)
    def test_in_a_sentence_in_any_case_or_emphasised(self, name: str) -> None:
        for query in QUERIES[name]:
            answer = query.answers[0]
            for text in (
                f" {answer}.",
                f" **{answer}**",
                f' "{answer.upper()}", as I recall',
                f":{answer}!",
            ):
                assert TASKS[name].right(query, text), text

    @pytest.mark.parametrize("name", PLAIN)
    def test_part_of_a_word_or_number_is_not_it(self, name: str) -> None:
        for query in QUERIES[name]:
            answer = query.answers[0]
            for text in (f"x{answer}", f"{answer}7", f"{answer}-ish", f"non-{answer}", answer[:-1]):
                assert not TASKS[name].right(query, text), text

    @pytest.mark.parametrize("name", PLAIN)
    def test_a_list_of_all_is_no_answer(self, name: str) -> None:
        for query in QUERIES[name]:
            truth, *wrong = (option.strip() for option in query.options)
            assert not TASKS[name].right(query, f" {wrong[0]} or {truth}")
            assert TASKS[name].right(query, f" {truth}, not {wrong[0]}")

    def test_grouped_digits_are_one_number(self) -> None:
        query = Query("?", "It is", ("7421963",), (" 7421963", " 7421964"), 0.5)
        right = TASKS["needle"].right
        assert right(query, " 7,421,963.") and right(query, " 7\u202f421\u202f963")
        for text in (" 7421963.5", " 0.7421963", " 17,421,963", " 7,421,9631", " 7421,963,1"):
            assert not right(query, text), text


class TestSeveral:
    def test_all_values_in_any_order_and_no_other(self) -> None:
        right = TASKS["multi-value"].right
        for query in QUERIES["multi-value"]:
            a, b, c = query.answers
            assert right(query, f" {c}, {a} and {b}. Mara Olden has ticket 11111.")
            assert right(query, f": {a},{b},{c}")
            for text in (f"{a}, {b}", f"{a}, {b}, {b}", f"{a}, {b}, {c}, 11111", f"{a}{b}{c}"):
                assert not right(query, text), text

    def test_all_variables_and_no_other(self) -> None:
        right = TASKS["tracking"].right
        for query in QUERIES["tracking"]:
            every = " and ".join(reversed(query.answers))
            others: Any = query.about["others"]
            assert right(query, f" {every}. Then {others[0]}.")
            assert not right(query, f" {every} and {others[0]}.")
            assert not right(query, f" {' and '.join(query.answers[1:])}.")


class TestCopies:
    @given(
        st.lists(st.sampled_from(["a", "b/", "I", "(x", "it's"]), min_size=1, max_size=8), st.data()
    )
    @settings(deadline=None)
    def test_white_space_does_not_count(self, parts: list[str], data: st.DataObject) -> None:
        gaps = st.text(" \t\n", min_size=1, max_size=3)
        text = "".join(part + data.draw(gaps) for part in parts)
        assert copies(" ".join(parts), text)
        assert copies(" ".join(parts), f"\n {text}\nmore")

    @pytest.mark.parametrize(
        "text", ["a b", "a b c d", "a b C", "b a c", "a b c.d", "a b c /", "ab c", "x a b c"]
    )
    def test_anything_else_does(self, text: str) -> None:
        assert not copies("a b c", text)
        assert copies("a b c", "a b  c") and copies("a b c", "a b c. No more.")
        assert copies("a b c", "a b c / d", then="/")

    def test_a_line_may_go_on_and_a_poem_may_not(self) -> None:
        for query in QUERIES["copy"]:
            whole = "/" in query.answers[0]
            assert TASKS["copy"].right(query, f"{query.options[0]} / I saw the sea.") is not whole


def _functions() -> list[Function]:
    import random

    return [draw_function(random.Random(i), spec) for i, spec in enumerate(SPECS)]


class TestCalls:
    query = QUERIES["tools"][0]

    def call(self) -> dict[str, Any]:
        return json.loads(json.dumps(self.query.about["call"]))  # type: ignore[no-any-return]

    def right(self, text: str) -> bool:
        return TASKS["tools"].right(self.query, text)

    def test_layout_and_order_do_not_count(self) -> None:
        call = self.call()
        turned = {"arguments": dict(reversed(call["arguments"].items())), "name": call["name"]}
        assert self.right(json.dumps(call, indent=2))
        assert self.right(f"\n```json\n{json.dumps(turned)}\n```\nDone.")

    @pytest.mark.parametrize("text", [
        "{", "{}", "[]", "null", "{\"name\": ", "[" * 100_000, "{\"a\":" * 100_000, "{'name': 1}",
        '{"name": NaN, "arguments": {}}', '{"name": ["x"], "arguments": {}}',
        '{"name": {}, "arguments": []}', '{"n": ' + "9" * 5000 + "}",
    ])  # fmt: skip
    def test_hostile_json_is_wrong(self, text: str) -> None:
        assert self.right(text) is False

    def test_every_change_of_the_call_is_wrong(self) -> None:
        for i in range(6):
            call = self.call()
            key, choice = call["arguments"]
            if i == 0:
                call["name"] += "s"
            elif i == 1:
                call["extra"] = 1
            elif i == 2:
                call["arguments"]["extra"] = 1
            elif i == 3:
                del call["arguments"][key]
            elif i == 4:
                call["arguments"][choice] = "unheard of"
            else:
                value = call["arguments"][key]
                call["arguments"][key] = str(value) if isinstance(value, int) else 5
            assert not self.right(json.dumps(call)), i
        twice = json.dumps(self.call())[:-1] + ', "name": "x"}'
        assert not self.right(twice)
        assert self.right(json.dumps(self.call()))

    def test_problems_are_named(self) -> None:
        function = next(f for f in _functions() if f.spec.integer)
        schemas, good = (
            [function.schema()],
            {function.object_key: 7, function.scale_key: function.levels[0]},
        )
        call = {"name": function.name, "arguments": good}
        assert problems(call, schemas) == []
        assert problems({**call, "arguments": {**good, function.object_key: 7.0}}, schemas) == []
        for bad, says in (
            ({**good, function.object_key: True}, "cannot be True"),
            ({**good, function.object_key: "7"}, "cannot be '7'"),
            ({**good, function.object_key: 7.5}, "cannot be 7.5"),
            ({**good, function.scale_key: "x"}, "cannot be 'x'"),
            ({**good, "other": 1}, "unknown argument 'other'"),
            ({function.object_key: 7}, f"{function.scale_key} is missing"),
            ([], "not an object"),
        ):
            found = problems({"name": function.name, "arguments": bad}, schemas)
            assert len(found) == 1 and says.removeprefix("not an") in found[0], found
        assert problems({"name": "x", "arguments": good}, schemas) == ["no function 'x'"]
        assert problems([], schemas) and problems({"name": function.name}, schemas)

    def test_parts_of_a_function_have_names_of_their_own(self) -> None:
        """Else a wrong option could be valid, or two options the same."""
        for spec in SPECS:
            every = [*spec.object_keys, *spec.scale_keys]
            assert len(set(every)) == 8 and len(set(spec.names)) == 4
            words = [word for level in spec.levels for word in level]
            assert len(set(words)) == len(words) == 12, spec.purpose
        names = [name for spec in SPECS for name in spec.names]
        assert len(set(names)) == len(names)

    @pytest.mark.parametrize("query", QUERIES["tools"], ids=lambda q: str(q.about["part"]))
    def test_wrong_options_break_the_schema(self, query: Query) -> None:
        schemas: Any = query.about["functions"]
        found = [problems(json.loads(option), schemas) for option in query.options]
        assert found[0] == [] and all(found[1:])


def test_words_and_lines() -> None:
    assert said("\n \n a  b \nc") == "a b" and said("") == ""
    assert sentence(" 1,234 yes. No") == "1234 yes" and sentence("3.5 is") == "3.5 is"
    assert place("the red-hot red", "red") == 12 and place("tired", "red") == -1
    assert place("Ada  Olden", "ada olden") == 0
