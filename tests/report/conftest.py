"""Measurements for the tests of the report; how they are built is in report_builders.py."""

from __future__ import annotations

import dataclasses

import pytest
from report_builders import (
    CATEGORIES,
    DRIFT,
    ERROR,
    IMAGE,
    forty,
    hardened_of,
    measurement,
    model,
    parts,
    references,
    row,
    simulated,
    split_of_both,
)

from nybble.results.hardened import Hardened
from nybble.results.records import Measurement, Row


@pytest.fixture
def one() -> Measurement:
    """Five settings, one failed row, floor and identity."""
    rows = [row(s, k) for s, k in DRIFT.items()]
    failed = Row("q5_1/q5_1", "candidate", 4096, "q5_1", "q5_1", status="failed", error=ERROR)
    return measurement([*rows, failed, *references(4096)])


@pytest.fixture
def two_models() -> Measurement:
    """An instruct model and its hardened copy, each against both 16-bit caches."""
    rows = []
    for label, other, shrink in (("a", "b", 1.0), ("b", "a", 0.22)):
        for setting in ("q8_0/q8_0", "q8_0/q4_0", "q4_0/q4_0"):
            own = DRIFT[setting] * shrink
            rows.append(row(setting, own, model=label, reference=label))
            rows.append(row(setting, own + 0.012, model=label, reference=other))
        rows += references(4096, label)
        rows.append(row("f16/f16", 0.012, role="cross", model=label, reference=other))
    return measurement(rows, [model(), model("b", f"Gemma 3 1B hardened {IMAGE}")])


@pytest.fixture
def two_contexts() -> Measurement:
    """Three settings at two contexts."""
    rows = []
    for context, grow in ((4096, 1.0), (16384, 1.7)):
        for setting in ("q8_0/q8_0", "q8_0/q4_0", "q4_0/q4_0"):
            rows.append(row(setting, DRIFT[setting] * grow, context=context))
        rows += references(context)
    return measurement(rows, [model(name="Gemma 3 1B IT")])


@pytest.fixture
def few() -> Measurement:
    """Three documents, so no interval anywhere."""
    rows = [row(s, k, documents=3) for s, k in DRIFT.items()]
    return measurement([*rows, *references(4096, documents=3)], [model(name="tiny")])


@pytest.fixture
def many() -> Measurement:
    """Forty simulated settings, some with long names."""
    return forty()


@pytest.fixture
def taken_apart() -> Measurement:
    """Two settings, each with every layer alone, in simulated caches."""
    rows = [row(s, DRIFT[s]) for s in ("q4_0/q4_0", "q8_0/q4_0")]
    rows += parts("q4_0/q4_0", DRIFT["q4_0/q4_0"]) + parts("q8_0/q4_0", DRIFT["q8_0/q4_0"])
    return simulated(measurement([*rows, *references(4096)], [model(name="Gemma 3 270M")]))


@pytest.fixture
def by_head() -> Measurement:
    """One setting with every KV head alone, on three documents; the whole is not there."""
    rows = parts("q4_0/q4_0", 0.043, layers=6, heads=4, documents=3)
    return simulated(measurement([*rows, *references(4096, documents=3)], [model(name="small")]))


@pytest.fixture
def hardened(two_models: Measurement) -> Hardened:
    """A model before and after, with the keys of every layer alone."""
    return hardened_of(two_models, split_of_both())


@pytest.fixture
def hardened_bare(two_models: Measurement) -> Hardened:
    """The same on texts of no category, not taken apart, without layers or a command."""
    rows = [dataclasses.replace(r, by_category=[], by_position=[]) for r in two_models.rows]
    m = dataclasses.replace(two_models, rows=rows, command="")
    return dataclasses.replace(hardened_of(m, None), layers=())


@pytest.fixture
def hardened_deep(two_models: Measurement) -> Hardened:
    """Eighty layers, keys and values, and kinds of text with names that do not fit."""
    names = {n: f"{n} of a long and {IMAGE} hostile name" for n in CATEGORIES}
    rows = [
        dataclasses.replace(
            r, by_category=[dataclasses.replace(s, name=names[s.name]) for s in r.by_category]
        )
        for r in two_models.rows
    ]
    m = dataclasses.replace(two_models, rows=rows)
    return hardened_of(m, split_of_both("q4_0/q4_0", 80, "KV"))
