"""Every task: solvable, as long as asked for, the same again, spread over depth, not guessable."""

from __future__ import annotations

import hashlib
import json
import re
import time

import numpy as np
import pytest

from nybble.errors import NybbleError
from nybble.scoring.tasks import words
from nybble.scoring.tasks.base import Item, Task
from nybble.scoring.tasks.make import make_items
from nybble.scoring.tasks.registry import TASKS

_WORD = re.compile(r"\w+|[^\w\s]")
TASK = pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))


def count(text: str) -> int:
    return len(_WORD.findall(text))


def n_bytes(text: str) -> int:
    return len(text.encode())


def items(task: Task, length: int, n: int = 1, queries: int = 8, seed: int = 0) -> list[Item]:
    return make_items(task, length, n, queries, seed, count)


@TASK
@pytest.mark.parametrize("length", [256, 512, 1024, 4096, 32768])
def test_a_script_that_reads_finds_every_answer(task: Task, length: int) -> None:
    for seed in range(5 if length <= 4096 else 2):
        for item in items(task, length, seed=seed):
            for query in item.queries:
                found = task.solve(item.context, query)
                assert task.right(query, found), (query, found)


@TASK
def test_a_wrong_option_is_wrong(task: Task) -> None:
    for item in items(task, 1024, 4):
        for query in item.queries:
            assert [task.right(query, option) for option in query.options] == [True, *[False] * 3]


@TASK
@pytest.mark.parametrize("tokens", [count, n_bytes], ids=["words", "bytes"])
@pytest.mark.parametrize("length", [600, 4096, 10000])
def test_items_are_as_long_as_asked_for(task: Task, tokens, length: int) -> None:  # type: ignore[no-untyped-def]
    if tokens is n_bytes:
        length *= 6
    for item in make_items(task, length, 3, 4, 1, tokens):
        around = max(tokens(f"\n\n{q.text}\n\n{q.lead}") + q.most for q in item.queries)
        assert 0.95 * (length - around) <= tokens(item.context) <= length - around
        assert all(max(map(tokens, q.options)) <= q.most for q in item.queries)


@TASK
def test_items_stay_when_more_are_asked_for(task: Task) -> None:
    three = items(task, 700, 3)
    assert three[:2] == items(task, 700, 2)
    assert len({item.context for item in (*three, *items(task, 700, 1, seed=1))}) == 4
    assert [item.index for item in three] == [0, 1, 2]
    assert {(item.task, item.length) for item in three} == {(task.name, 700)}


@TASK
def test_queries_are_well_formed(task: Task) -> None:
    for item in items(task, 1024, 3):
        assert 1 <= len(item.queries) <= 8
        assert len({query.text for query in item.queries}) >= min(4, len(item.queries))
        for query in item.queries:
            assert len(query.options) == len(set(query.options)) == 4
            assert all(o.startswith(" ") and o == o.rstrip() for o in query.options)
            assert query.lead == query.lead.strip() and query.text == query.text.strip()
            assert all(answer in query.options[0] for answer in query.answers)
            assert 0 <= query.depth <= 1 and query.most > 0
            assert json.loads(json.dumps(query.about)) == query.about


@TASK
def test_depths_are_spread(task: Task) -> None:
    if task.name == "tools":
        pytest.skip("its schemas stand at the start")
    found = np.array([q.depth for item in items(task, 2048, 20) for q in item.queries])
    quarters = np.bincount((found * 4).astype(int), minlength=4) / len(found)
    # Parts of a fact lie in a fifth of the context, so that means stay a tenth off the ends.
    assert quarters.min() > 0.15 and abs(found.mean() - 0.5) < 0.06
    assert found.min() < 0.15 and found.max() > 0.85
    alone = [items(task, 600, 1, queries=1, seed=s)[0].queries[0].depth for s in range(20)]
    assert np.ptp(alone) > 0.5 or task.name == "common-words", "one question, anywhere"


@TASK
def test_options_do_not_give_the_answer_away(task: Task) -> None:
    """Neither length nor digits nor letters tell: guessing by them is right in a fourth."""
    rules = {
        "longest": len,
        "shortest": lambda o: -len(o),
        "most digits": lambda o: sum(c.isdigit() for c in o),
        "first in the alphabet": lambda o: [-ord(c) for c in o],
        "last in the alphabet": str,
        "digit sum": lambda o: sum(int(c) for c in o if c.isdigit()),
    }
    queries = [q for item in items(task, 700, 100) for q in item.queries]
    for name, rule in rules.items():
        hits = []
        for query in queries:
            scores = [rule(option) for option in query.options]  # type: ignore[operator]
            best = max(scores)
            hits.append((scores[0] == best) / scores.count(best))
        error = np.std(hits) / len(hits) ** 0.5 + 1e-9
        # Questions of one item share options, so independence is not quite given: 4.5 sigma.
        assert abs(np.mean(hits) - 0.25) < 4.5 * error, (name, np.mean(hits), error)


@TASK
def test_options_have_no_common_core(task: Task) -> None:
    """The right option is no more like the others than they are among one another."""

    def shared(a: str, b: str) -> float:
        x, y = set(_WORD.findall(a)), set(_WORD.findall(b))
        return len(x & y) / len(x | y)

    hits = []
    for item in items(task, 700, 60):
        for q in item.queries:
            scores = [sum(shared(a, b) for b in q.options if b != a) for a in q.options]
            scores = [round(score, 9) for score in scores]
            hits.append((scores[0] == max(scores)) / scores.count(max(scores)))
    error = np.std(hits) / len(hits) ** 0.5 + 1e-9
    assert abs(np.mean(hits) - 0.25) < 4.5 * error


@TASK
def test_128k_tokens_take_seconds(task: Task) -> None:
    calls = 0

    def counted(text: str) -> int:
        nonlocal calls
        calls += len(text) > 50_000
        return count(text)

    start = time.perf_counter()
    (item,) = make_items(task, 131072, 1, 8, 0, counted)
    assert time.perf_counter() - start < 20, "about half a second on a quiet machine"
    assert calls <= 10, "counting 128K tokens is what costs"
    assert count(item.context) > 0.95 * 130_000 and len(item.queries) == 8
    assert all(task.right(q, task.solve(item.context, q)) for q in item.queries)


@TASK
@pytest.mark.parametrize("n", [1, 3, 40])
def test_as_many_questions_as_asked_for_where_there_is_room(task: Task, n: int) -> None:
    (item,) = items(task, 20000, 1, queries=n)
    assert len(item.queries) == n
    assert all(task.right(q, task.solve(item.context, q)) for q in item.queries)


@TASK
def test_a_very_short_length_is_refused_with_the_least(task: Task) -> None:
    for length in (-3, 1, 40):
        with pytest.raises(NybbleError, match=f"too short for the task {task.name}") as caught:
            items(task, length)
        assert caught.value.seen == f"{length} tokens"
    least = int(re.sub(r"\D", "", str(caught.value.allowed)))
    assert 40 < least < 300
    assert items(task, round(1.2 * least))


@pytest.mark.parametrize("bad", [(0, 1), (1, 0), (-1, 1)])
def test_numbers_are_positive(bad: tuple[int, int]) -> None:
    with pytest.raises(NybbleError, match="must be positive"):
        make_items(TASKS["needle"], 512, *bad, 0, count)


def test_contexts_are_pinned() -> None:
    """The same seed gives the same text in every release, or results cannot be compared."""
    digests = {}
    for name, task in TASKS.items():
        (item,) = items(task, 1024, 1, seed=7)
        text = json.dumps([item.context, [[q.text, q.lead, q.options] for q in item.queries]])
        digests[name] = hashlib.sha256(text.encode()).hexdigest()[:12]
    assert digests == PINNED


PINNED = {
    "needle": "81d31d14a3a6",
    "multi-key": "5d8b0fcd84a8",
    "multi-value": "4a7745ba7b72",
    "tracking": "d059fb851379",
    "common-words": "0c4c5eec7446",
    "facts": "21d03971d7e2",
    "copy": "8fe25d29d0c6",
    "tools": "78f56fec139c",
}


def test_tasks_are_named_and_have_a_source() -> None:
    assert all(name == task.name and task.title and "https://" in task.source
               for name, task in TASKS.items())  # fmt: skip


def test_filler_has_no_answers() -> None:
    """No word of an answer is in the filler, and no digit."""
    import random
    from itertools import islice

    from nybble.scoring.tasks.filler import CLOSERS, sentences

    drawn = list(islice(sentences(random.Random(0)), 20_000))
    text = " ".join((*drawn, *CLOSERS)).lower()
    known = set(re.findall(r"\w+", text))
    assert len(known) > 500 and not re.search(r"\d|\"|=|/", text)
    assert len(set(drawn)) > 0.8 * len(drawn)
    pools = (words.SECRET_WORDS, words.FIRST_NAMES, words.LAST_NAMES, words.TOWNS, words.COLOURS,
             words.ANIMALS, words.DRINKS, words.INSTRUMENTS, words.MONTHS,
             words.CRAFTS)  # fmt: skip
    for pool in pools:
        assert len(set(pool)) == len(pool)
        assert not known & {word.lower() for word in pool}
    keys = {*words.KEY_ADJECTIVES, *words.KEY_NOUNS}
    assert not keys & {*words.SECRET_WORDS}
    assert len(keys) == len(words.KEY_ADJECTIVES) + len(words.KEY_NOUNS)
