"""Policies: what is refused, what a rule is about, and how numbers are held against limits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nybble.errors import NybbleError
from nybble.results.base.cell import Cell, cells_of
from nybble.results.gate import decide, gate
from nybble.results.policy import Rule, load_policy
from nybble.results.records import Estimate
from run_folders import write_run

RULE = '[[rule]]\nmetric = "mean_kld"\nmax = 0.02\n'


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[Cell]:
    record = write_run(tmp_path_factory.mktemp("policy") / "a", model="Gemma 3 [QAT]")
    return list(cells_of(record, "runs/a"))


def policy(folder: Path, text: str):  # type: ignore[no-untyped-def]
    (folder / "policy.toml").write_text(text, encoding="utf-8")
    return load_policy(folder / "policy.toml")


def states(found) -> list[tuple[str, str, bool]]:  # type: ignore[no-untyped-def]
    return [(c.cell.split(",")[1].split()[0], c.state, c.passed) for c in found.checks
            if not c.rule.startswith("guard")]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no rule"),
        ("rule = 3", "no rule"),
        ("[[rule]", "cannot read"),
        ("[[rules]]\nmax = 1", "did you mean rule"),
        ('[[rule]]\nmetrik = "mean_kld"\nmax = 1', "did you mean metric"),
        ('[[rule]]\nmetric = "mean_kdl"\nmax = 1', "did you mean mean_kld"),
        ('[[rule]]\nmetric = "mean_kld"', "exactly one limit"),
        ('[[rule]]\nmetric = "mean_kld"\nmax = 1\nmin = 0', "exactly one limit"),
        ("[[rule]]\nmax = 1", "names its metric"),
        ('[[rule]]\nmetric = "mean_kld"\nmax = "1"', "max is a number"),
        ('[[rule]]\nmetric = "mean_kld"\nmax = true', "max is a number"),
        ('[[rule]]\nmetric = "mean_kld"\nmax = nan', "max is a number"),
        ('[[rule]]\nmetric = "same_top"\nmax_increase = 1', "unknown metric"),
        ('[[rule]]\nverdict = ["save"]', "did you mean safe"),
        ("[[rule]]\nverdict = []", "verdict is empty"),
        ('[[rule]]\nmetric = "mean_kld"\nverdict = ["safe"]', "takes no metric"),
        (RULE + 'by = "hihg"', "did you mean high"),
        (RULE + 'inconclusive = "passes"', "did you mean pass"),
        (RULE + 'required = "yes"', "true or false"),
        (RULE + 'where = "all"', "a table was expected"),
        (RULE + 'where = { kvs = "q8_0" }', "did you mean kv"),
        (RULE + 'where = { context = "4096" }', "context is a number"),
        (RULE + "where = { kv = [] }", "kv is a text"),
        (RULE + "where = { model = 3 }", "model is a text"),
        (RULE + "name = 3", "name is a text"),
        (RULE + "[guards]\nidentiy = false", "did you mean identity"),
        (RULE + '[guards]\nfloor = "no"', "true or false"),
        (RULE + "guards = 3", "unknown key"),
    ],
)
def test_bad_policies_are_refused_with_the_place(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(NybbleError) as caught:
        policy(tmp_path, text)
    assert says in str(caught.value)
    assert "policy.toml" in str(caught.value)


def test_missing_huge_and_binary_files(tmp_path: Path) -> None:
    for path in (tmp_path / "no.toml", tmp_path):
        with pytest.raises(NybbleError, match="cannot read the policy"):
            load_policy(path)
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(NybbleError, match="cannot read the policy"):
        load_policy(tmp_path / "b.toml")
    (tmp_path / "c.toml").write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(NybbleError, match="larger than 1,048,576 bytes"):
        load_policy(tmp_path / "c.toml")


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False)
    | st.text(max_size=6)
    | st.sampled_from(["mean_kld", "safe", "high", "fail"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["kv", "context", "model", "x"]), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip
_KEYS = st.sampled_from(
    ["name", "where", "metric", "max", "min", "max_increase", "verdict", "by", "inconclusive",
     "required", "other"]
)  # fmt: skip


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return "inf" if value == float("inf") else "-inf" if value < -1e308 else repr(value)
    return '"none"' if value is None else json.dumps(value)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(_KEYS, _VALUES, max_size=5))
def test_any_table_is_a_rule_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, table: dict[str, object]
) -> None:
    lines = ["[[rule]]", *(f"{k} = {_toml(v)}" for k, v in table.items())]
    folder = tmp_path_factory.getbasetemp()
    try:
        found = policy(folder, "\n".join(lines))
    except NybbleError as error:
        assert "policy.toml" in str(error)
    else:
        assert found.rules[0].kind in table and "other" not in table


def test_a_rule_is_about_candidates_that_all_filters_match(
    tmp_path: Path, cells: list[Cell]
) -> None:
    def about(where: str) -> list[str]:
        rule = policy(tmp_path, RULE + f"where = {{ {where} }}").rules[0]
        return [c.setting for c in cells if rule.matches(c)]

    assert about("") == ["q8_0/q8_0", "q8_0/q4_0", "q4_0/q4_0"]
    assert about('kv = "q8_0/*"') == ["q8_0/q8_0", "q8_0/q4_0"]
    assert about('k_type = "q4_0", context = [1024, 4096]') == ["q4_0/q4_0"]
    assert about('model = "gemma*"') == about('model = "GEMMA 3 [[]QAT]"') == about("")
    assert about('model = "Llama*"') == about("context = 77") == []
    assert about('role = "floor"') == ["bf16/bf16"]
    other = [replace(c, reference="1" * 64) for c in cells]
    rule = policy(tmp_path, RULE).rules[0]
    assert not any(rule.matches(c) for c in other)


def _rule(kind: str, limit: float, by: str) -> Rule:
    return Rule("r", {}, kind, "mean_kld", limit, (), by, False, True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "by", "low", "value", "high", "state"),
    [
        ("max", "high", 0.1, 0.2, 0.3, "GO"),
        ("max", "high", 0.1, 0.2, 0.31, "INCONCLUSIVE"),
        ("max", "high", 0.1, 0.31, 0.4, "NO-GO"),
        ("max", "value", 0.1, 0.3, 0.9, "GO"),
        ("max", "value", 0.1, 0.31, 0.9, "NO-GO"),
        ("max", "low", 0.3, 0.5, 0.9, "GO"),
        ("max", "low", 0.31, 0.5, 0.9, "NO-GO"),
        ("max", "high", None, 0.2, None, "INCONCLUSIVE"),
        ("max", "high", None, 0.31, None, "NO-GO"),
        ("max", "value", None, 0.3, None, "GO"),
        ("min", "low", 0.3, 0.5, 0.9, "GO"),
        ("min", "low", 0.29, 0.5, 0.9, "INCONCLUSIVE"),
        ("min", "low", 0.1, 0.29, 0.9, "NO-GO"),
        ("min", "high", 0.1, 0.29, 0.3, "GO"),
        ("max_increase", "high", -0.1, 0.1, 0.4, "INCONCLUSIVE"),
    ],
)
def test_the_end_that_counts_decides(
    kind: str, by: str, low: float | None, value: float, high: float | None, state: str
) -> None:
    assert decide(_rule(kind, 0.3, by), Estimate(value, low, high))[0] == state


def test_a_gate_checks_every_cell_and_its_guards(tmp_path: Path, cells: list[Cell]) -> None:
    found = gate(policy(tmp_path, RULE), cells, base="b")
    assert states(found) == [
        ("q8_0/q8_0", "GO", True), ("q8_0/q4_0", "GO", True), ("q4_0/q4_0", "NO-GO", False)
    ]  # fmt: skip
    guards = {c.rule: c.state for c in found.checks if c.rule.startswith("guard")}
    assert guards == {"guard: identity": "GO", "guard: noise floor": "GO"}
    assert not found.passed
    only = policy(tmp_path, RULE + 'where = { kv = "q8_0/*" }')
    assert gate(only, cells, base="b").passed


def test_inconclusive_passes_only_where_the_rule_says_so(tmp_path: Path, cells: list[Cell]) -> None:
    cell = next(c for c in cells if c.setting == "q8_0/q4_0")
    limit = cell.metrics["mean_kld"].value * 1.001
    text = f'[[rule]]\nmetric = "mean_kld"\nwhere.kv = "q8_0/q4_0"\nmax = {limit}\n'
    strict, lenient = policy(tmp_path, text), policy(tmp_path, text + 'inconclusive = "pass"')
    assert states(gate(strict, cells, base="b")) == [("q8_0/q4_0", "INCONCLUSIVE", False)]
    assert gate(lenient, cells, base="b").passed


def test_no_match_is_no_go_unless_optional(tmp_path: Path, cells: list[Cell]) -> None:
    text = RULE + 'where = { kv = "q8_0/q4_1" }\n'
    (check,) = gate(policy(tmp_path, text), cells, base="b").checks
    assert (check.state, check.passed) == ("NO-GO", False)
    assert "did you mean" in check.reason
    found = gate(policy(tmp_path, text + "required = false"), cells, base="b")
    assert found.passed and found.checks[0].state == "SKIPPED"


def test_guards_can_fail_and_be_switched_off(tmp_path: Path, cells: list[Cell]) -> None:
    text = RULE + 'where = { kv = "q8_0/*" }\n'
    off = policy(tmp_path, text + '[guards]\nidentity = false\nfloor = false\nfailed = "pass"')
    text = text + "[guards]"
    inexact = [replace(c, metrics={**c.metrics, "max_kld": Estimate(1e-9)})
               if c.role == "identity" else c for c in cells]  # fmt: skip
    bare = [c for c in cells if c.role == "candidate"]
    failed = [replace(c, status="failed", error="out of memory", metrics={})
              if c.setting == "q8_0/q4_0" else c for c in cells]  # fmt: skip
    for broken, names in (
        (inexact, ["guard: identity"]),
        (bare, ["guard: identity", "guard: noise floor"]),
        (failed, ["guard: no failed rows"]),
    ):
        found = gate(policy(tmp_path, text), broken, base="b")
        assert [c.rule for c in found.checks if not c.passed] == names
        assert gate(off, broken, base="b").passed
    damaged = [("x/summary.json", "truncated")]
    found = gate(policy(tmp_path, text), cells, base="b", damaged=damaged)
    assert [c.cell for c in found.checks if not c.passed] == ["x/summary.json"]
    other_run = [replace(c, run="runs/b") for c in bare if c.setting == "q4_0/q4_0"]
    assert gate(policy(tmp_path, text), [*cells, *other_run], base="b").passed


def test_a_rule_whose_cells_all_failed_is_no_go(tmp_path: Path, cells: list[Cell]) -> None:
    failed = [replace(c, status="failed", metrics={}) for c in cells]
    text = policy(tmp_path, RULE + '[guards]\nidentity = false\nfloor = false\nfailed = "pass"')
    assert [c.state for c in gate(text, failed, base="b").checks] == ["NO-GO"]


def test_verdicts(tmp_path: Path, cells: list[Cell]) -> None:
    labels = {"q8_0/q8_0": "safe", "q8_0/q4_0": "unresolved", "q4_0/q4_0": "broken"}
    judged = [replace(c, verdict=labels.get(c.setting, "")) for c in cells]
    found = gate(policy(tmp_path, '[[rule]]\nverdict = ["safe", "degraded"]'), judged, base="b")
    assert [s for _, s, _ in states(found)] == ["GO", "INCONCLUSIVE", "NO-GO"]


def test_a_lower_bound_breaks_a_limit_and_never_keeps_it(tmp_path: Path, cells: list[Cell]) -> None:
    served = [replace(c, top_k=64) for c in cells]
    found = gate(policy(tmp_path, RULE), served, base="b")
    assert [s for _, s, _ in states(found)] == ["INCONCLUSIVE", "INCONCLUSIVE", "NO-GO"]
    least = policy(tmp_path, '[[rule]]\nmetric = "same_top"\nmin = 0.5')
    assert [s for _, s, _ in states(gate(least, served, base="b"))] == ["GO"] * 3


def test_increase_asks_the_baseline(tmp_path: Path, cells: list[Cell]) -> None:
    text = policy(tmp_path, '[[rule]]\nmetric = "flips"\nmax_increase = 0.01')
    assert text.needs_baseline and not policy(tmp_path, RULE).needs_baseline
    answers = {"q8_0/q8_0": Estimate(0.0, -0.001, 0.001), "q8_0/q4_0": Estimate(0.02, 0.015, 0.03)}

    def increase(cell: Cell, metric: str) -> Estimate | str:
        assert metric == "flips"
        return answers.get(cell.setting, "shares no token")

    found = gate(text, cells, base="b", against="a", increase=increase)
    assert [s for _, s, _ in states(found)] == ["GO", "NO-GO", "INCONCLUSIVE"]
    assert found.checks[2].reason == "shares no token"
