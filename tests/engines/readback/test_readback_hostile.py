"""A server's word is hostile input: no reader raises, and what it tells can be shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from played_servers import CASES, Played, answers, log, name, playing

from nybble.engines.readback import registry
from nybble.engines.readback.base import MOST_BYTES, Http, Reading

ENGINES = tuple(registry._PLACES)
BODIES = {
    "empty": b"",
    "no json": b"<html>502 Bad Gateway</html>",
    "deep": b"[" * 200_000,
    "deep object": b'{"a":' * 100_000,
    "number": b"3",
    "huge number": b"9" * 5000,
    "list": b"[1, null, {}]",
    "string": b'"ok"',
    "null": b"null",
    "no utf-8": b"\xff\xfe{}",
    "nan": b'{"version": NaN, "data": [{"owned_by": Infinity}]}',
}


def told(reading: Reading) -> list[str]:
    """Every text of a reading."""
    words = (reading.version, reading.k, reading.v, reading.skipped, reading.model)
    return [word for word in (*words, *reading.sources, *reading.notes) if word is not None]


def check(reading: Reading) -> None:
    """Printable, short, and no nonsense in the numbers."""
    for word in told(reading):
        assert word.isprintable() and len(word) <= 400
    for count in (reading.tokens, reading.n_bytes, reading.context, reading.sequences):
        assert count is None or (isinstance(count, int) and not isinstance(count, bool))
        assert count is None or count >= 0
    assert reading.bytes_per_token is None or reading.bytes_per_token >= 0


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_the_same_nonsense_everywhere(body: bytes) -> None:
    for engine in ENGINES:
        reader, http = registry.reader(engine), Played(lambda _: body)
        assert reader.recognise(http) is False
        check(reader.read(http, body.decode("utf-8", "replace")))


@pytest.mark.parametrize("body", [b"[" * (MOST_BYTES + 4096), None], ids=["huge", "broken line"])
def test_over_a_socket(body: bytes | None) -> None:
    with playing(lambda _: body) as url:
        http = Http(url, timeout=5)
        reader = registry.reader("vllm")
        assert reader.recognise(http) is False
        check(reader.read(http, None))
        http.close()


_WRONG = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.just("\ud800\x1b[31m" + "x" * 5000),
    st.just([]),
    st.just({}),
    st.just([{"a": [1]}]),
    st.just({"n_ctx": "x", "memory_usage": 3}),
)


def _spoil(value: Any, draw: st.DataObject) -> Any:
    if draw.draw(st.integers(0, 7)) == 0:
        return draw.draw(_WRONG)
    if isinstance(value, dict):
        return {key: _spoil(one, draw) for key, one in value.items()}
    if isinstance(value, list):
        return [_spoil(one, draw) for one in value]
    return value


@pytest.mark.parametrize("case", CASES, ids=name)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_wrong_types_in_the_right_places(case: Path, data: st.DataObject) -> None:
    bodies = {}
    for path, body in answers(case).items():
        try:
            bodies[path] = json.dumps(_spoil(json.loads(body), data)).encode()
        except ValueError:
            bodies[path] = body
    reader = registry.reader(case.parent.name)
    http = Played(bodies)
    assert reader.recognise(http) in (True, False)
    registry.recognised(http)
    if case.parent.name != "llama.cpp":  # whose reader keeps texts as they come
        check(reader.read(http, log(case)))


@pytest.mark.parametrize("case", CASES, ids=name)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_log_cut_and_spoilt(case: Path, data: st.DataObject) -> None:
    whole = log(case) or "Using int4 KV cache.\n"
    lines = whole.split("\n")
    kept = data.draw(st.lists(st.sampled_from(lines), max_size=12))
    parts = [line[data.draw(st.integers(0, 3)) : len(line) - data.draw(st.integers(0, 60))]
             for line in kept]  # fmt: skip
    parts.append(data.draw(st.text(max_size=40)))
    spoilt = "\n".join(parts)
    for digits in ("1", "0"):
        swapped = spoilt.replace(digits, data.draw(st.sampled_from(["9" * 30, "-", "x", digits])))
        reading = registry.reader(case.parent.name).read(Played(answers(case)), swapped)
        if case.parent.name != "llama.cpp":
            check(reading)
