"""Cells held against a policy: GO, NO-GO or INCONCLUSIVE for every rule and cell."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nybble.errors import nearest
from nybble.results.base.cell import Cell
from nybble.results.policy import FIELDS, Policy, Rule
from nybble.results.records import Estimate

GATE_SCHEMA_VERSION = 1
State = Literal["GO", "NO-GO", "INCONCLUSIVE", "SKIPPED"]
Increase = Callable[[Cell, str], Estimate | str]
_SHOWN = 6  # values that a reason lists
_BOUNDS = ("mean_kld", "median_kld", "p99_kld", "p999_kld", "max_kld")  # of a top-k comparison


@dataclass(frozen=True)
class Check:
    """One rule, or guard, on one cell.

    Attributes:
        rule: its name; "guard: ..." for a guard.
        cell: what it was checked on, in words.
        state: "GO", "NO-GO", "INCONCLUSIVE", or "SKIPPED" where a rule that is not required
            matches nothing.
        passed: whether the gate lets it pass.
        number: what was measured, None where there is no number.
        verdict: the cell's verdict, for a rule about it.
        limit: in words.
        reason: what decided.
    """

    rule: str
    cell: str
    state: State
    passed: bool
    number: Estimate | None = None
    verdict: str = ""
    limit: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Gate:
    """What a gate found.

    Attributes:
        policy: name of its file.
        policy_sha256: of its bytes.
        base: what was checked.
        against: the baseline, empty for none.
        passed: whether every check passed.
        checks: rules in their order, then guards.
    """

    policy: str
    policy_sha256: str
    base: str
    against: str
    passed: bool
    checks: list[Check]
    schema_version: int = GATE_SCHEMA_VERSION

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON takes it."""
        return dataclasses.asdict(self)


def gate(
    policy: Policy,
    cells: Sequence[Cell],
    *,
    base: str,
    damaged: Sequence[tuple[str, str]] = (),
    against: str = "",
    increase: Increase | None = None,
) -> Gate:
    """Check cells.

    Args:
        policy: the rules.
        cells: of a base, guard rows included.
        base: its name.
        damaged: path and reason of every record that could not be read.
        against: name of the baseline.
        increase: how much a metric of a cell has grown against the baseline, paired; or why that
            cannot be said. Needed where `policy.needs_baseline`.
    """
    checks: list[Check] = []
    about: dict[int, Cell] = {}
    for rule in policy.rules:
        matched = [c for c in cells if rule.matches(c)]
        about.update((id(c), c) for c in matched)
        checks += _checked(rule, matched, cells, increase)
    checks += _guards(policy, list(about.values()), cells, damaged)
    passed = all(check.passed for check in checks)
    return Gate(policy.source, policy.sha256, base, against, passed, checks)


def _checked(
    rule: Rule, matched: Sequence[Cell], cells: Sequence[Cell], increase: Increase | None
) -> Iterator[Check]:
    done = [c for c in matched if c.status == "done"]
    if not done:
        reason = "every cell it is about has failed" if matched else _no_match(rule, cells)
        state: State = "NO-GO" if rule.required else "SKIPPED"
        yield Check(rule.name, "no cell", state, not rule.required, None, "", rule.limit_text,
                    reason)  # fmt: skip
    for cell in done:
        if rule.kind == "verdict":
            number, (state, reason) = None, _by_verdict(rule, cell)
        elif rule.kind == "max_increase":
            assert increase is not None
            found = increase(cell, rule.metric)
            number = found if isinstance(found, Estimate) else None
            state, reason = decide(rule, number)
            reason = found if isinstance(found, str) else reason
        else:
            number = cell.metrics.get(rule.metric)
            state, reason = decide(rule, number)
            if state == "GO" and cell.top_k and rule.kind == "max" and rule.metric in _BOUNDS:
                state = "INCONCLUSIVE"
                reason = f"a lower bound (top-{cell.top_k}) can break a limit, not keep it"
        yield Check(
            rule.name, describe(cell), state, state == "GO" or (state != "NO-GO" and rule.lenient),
            number, cell.verdict if rule.kind == "verdict" else "", rule.limit_text, reason,
        )  # fmt: skip


def decide(rule: Rule, number: Estimate | None) -> tuple[State, str]:
    """Hold a number against a rule's limit.

    Outside the limit at the end that counts: INCONCLUSIVE where the value itself is inside, else
    NO-GO. Without an interval a value outside is NO-GO, one inside INCONCLUSIVE, unless the value
    is what counts.
    """
    if number is None:
        return "INCONCLUSIVE", f"{rule.metric} was not measured"

    def inside(x: float) -> bool:
        return x >= rule.limit if rule.kind == "min" else x <= rule.limit

    ends = {"value": number.value, "low": number.low, "high": number.high}
    end = ends[rule.by]
    if end is None:
        if not inside(number.value):
            return "NO-GO", "the value is outside"
        return "INCONCLUSIVE", "too few documents for an interval"
    if inside(end):
        return "GO", ""
    if inside(number.value):
        return "INCONCLUSIVE", "the value is inside, the interval reaches outside"
    return "NO-GO", "the value is outside"


def _by_verdict(rule: Rule, cell: Cell) -> tuple[State, str]:
    if cell.verdict in rule.verdicts:
        return "GO", cell.reason
    if cell.verdict in ("", "unresolved"):
        return "INCONCLUSIVE", cell.reason or "the row has no verdict"
    return "NO-GO", cell.reason


def describe(cell: Cell) -> str:
    """`Gemma 3 270M, q8_0/q4_0 at 4,096 (run runs/a)`."""
    run = "" if cell.run == "." else f" (run {cell.run})"
    return f"{cell.model}, {cell.setting} at {cell.context:,}{run}"


def _no_match(rule: Rule, cells: Sequence[Cell]) -> str:
    """Why a rule is about nothing: the first key that no cell of the base has."""
    for key, values in rule.where.items():
        seen = sorted({str(getattr(c, FIELDS[key])) for c in cells})
        alone = dataclasses.replace(rule, where={"role": ("*",), key: values})
        if not any(alone.matches(c) for c in cells):
            near = nearest(str(values[0]), seen)
            asked = ", ".join(map(str, values))
            there = ", ".join(seen[:_SHOWN]) + (", ..." if len(seen) > _SHOWN else "")
            return f"no cell has {key} {asked}" + (
                f"; did you mean {near}?" if near else f"; there are {there or 'no cells'}"
            )
    return "no cell matches all of where" if rule.where else "there is no cell"


def _guards(
    policy: Policy, about: Sequence[Cell], cells: Sequence[Cell],
    damaged: Sequence[tuple[str, str]],
) -> Iterator[Check]:  # fmt: skip
    guards = policy.guards
    for path, reason in damaged if guards.failed else ():
        yield _guard("readable records", path, "NO-GO", reason=reason)
    for cell in about if guards.failed else ():
        if cell.status != "done":
            yield _guard("no failed rows", describe(cell), "NO-GO", reason=cell.error)
    guarding: dict[tuple[str, str, int], dict[str, Cell]] = {}
    for c in cells:
        if c.own and c.role in ("identity", "floor") and c.status == "done":
            guarding.setdefault((c.run, c.sha256, c.context), {})[c.role] = c
    groups = {(c.run, c.sha256, c.context): c for c in about}
    for (run, sha256, context), cell in groups.items():
        rows = guarding.get((run, sha256, context), {})
        where = f"{cell.model} at {context:,}" + ("" if run == "." else f" (run {run})")
        if guards.identity:
            yield _identity(where, rows.get("identity"))
        if guards.floor:
            floor = rows.get("floor")
            number = floor.metrics.get("mean_kld") if floor else None
            yield _guard("noise floor", where, "GO" if number else "NO-GO", number, "is measured",
                         "" if number else "there is no finished noise floor row")  # fmt: skip


def _identity(where: str, row: Cell | None) -> Check:
    number = row.metrics.get("max_kld") if row else None
    limit = "max_kld exactly 0"
    if number is None:
        return _guard("identity", where, "NO-GO", None, limit, "there is no finished identity row")
    exact = number.value == 0
    reason = "" if exact else "f16 against itself differs: the engine is not deterministic"
    return _guard("identity", where, "GO" if exact else "NO-GO", number, limit, reason)


def _guard(
    name: str, where: str, state: State, number: Estimate | None = None, limit: str = "",
    reason: str = "",
) -> Check:  # fmt: skip
    return Check(f"guard: {name}", where, state, state == "GO", number, "", limit, reason)
