"""A gate's policy: rules in a TOML file, which cells they are about, and what each must keep.

    [[rule]]
    name = "4-bit values stay safe"
    where = { kv = "q8_0/q4_0", context = [4096, 8192], model = "Gemma*" }
    metric = "mean_kld"
    max = 0.02

`load_policy` reads one; results/gate.py holds cells against it. docs/gate.md has every key.
"""

from __future__ import annotations

import fnmatch
import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from nybble.errors import NybbleError, unknown
from nybble.results.base.cell import Cell
from nybble.toml import read_toml

End = Literal["value", "low", "high"]
Kind = Literal["max", "min", "max_increase", "verdict"]

KINDS: tuple[Kind, ...] = ("max", "min", "max_increase", "verdict")
ENDS: tuple[End, ...] = ("value", "low", "high")
METRICS = (
    "mean_kld", "median_kld", "p99_kld", "p999_kld", "max_kld", "same_top", "flips", "nll_diff",
    "ppl_ratio", "ppl", "ppl_ref", "rms_dp", "mean_kld_high", "tail_mass",
)  # fmt: skip
INCREASES = ("mean_kld", "flips", "nll")  # what grows as a cache gets worse, token by token
VERDICTS = ("safe", "degraded", "broken", "unresolved")
# Key of `where` -> field of a cell.
FIELDS = {
    "kv": "setting", "k_type": "k_type", "v_type": "v_type", "context": "context",
    "model": "model", "file": "file", "weights": "weights", "scored": "scored",
    "architecture": "architecture", "engine": "engine", "engine_version": "engine_version",
    "via": "via", "run": "run", "role": "role", "cpu": "cpu", "device": "device",
}  # fmt: skip
_RULE = ("name", "where", "metric", *KINDS, "by", "inconclusive", "required")
_GUARDS = ("identity", "floor", "failed")
_PASSES = ("fail", "pass")
_EXAMPLE = "docs/gate.md has a policy to start from"


@dataclass(frozen=True)
class Rule:
    """One limit for some cells.

    Attributes:
        name: in words.
        where: key of `FIELDS` -> accepted values; text may hold * ? and [...], case is ignored.
        kind: what is asked: "max", "min", "max_increase" or "verdict".
        metric: whose estimate; empty for a verdict.
        limit: of that metric; 0 for a verdict.
        verdicts: accepted ones.
        by: the end of the interval that must keep the limit.
        lenient: whether an inconclusive check passes.
        required: whether it fails where no cell matches.
    """

    name: str
    where: Mapping[str, tuple[str | int, ...]]
    kind: Kind
    metric: str
    limit: float
    verdicts: tuple[str, ...]
    by: End
    lenient: bool
    required: bool

    def matches(self, cell: Cell) -> bool:
        """Whether the rule is about a cell: its own weights' reference, a candidate if not told."""
        role = () if "role" in self.where else (("role", ("candidate",)),)
        wanted = (*self.where.items(), *role)
        return cell.own and all(
            any(_matches(getattr(cell, FIELDS[key]), value) for value in values)
            for key, values in wanted
        )

    @property
    def limit_text(self) -> str:
        """The limit in words, for example `mean_kld (high) at most 0.02`."""
        if self.kind == "verdict":
            return f"verdict {' or '.join(self.verdicts)}"
        words = {"max": "at most", "min": "at least", "max_increase": "up by at most"}[self.kind]
        return f"{self.metric} ({self.by}) {words} {self.limit:g}"


@dataclass(frozen=True)
class Guards:
    """Checks beside the rules, of the runs that a rule is about.

    Attributes:
        identity: f16 against itself must be there and exactly 0.
        floor: the noise floor must be there.
        failed: whether a failed row that a rule is about, or a damaged record, fails the gate.
    """

    identity: bool = True
    floor: bool = True
    failed: bool = True


@dataclass(frozen=True)
class Policy:
    """Rules and guards.

    Attributes:
        source: name of its file.
        sha256: of its bytes.
        rules: at least one.
        guards: checks beside them.
    """

    source: str
    sha256: str
    rules: tuple[Rule, ...]
    guards: Guards

    @property
    def needs_baseline(self) -> bool:
        """Whether a rule compares with another run."""
        return any(rule.kind == "max_increase" for rule in self.rules)


def load_policy(path: Path) -> Policy:
    """Read a policy.

    Raises:
        NybbleError: no TOML, an unknown key, value or metric, or a rule without a limit.
    """
    found, data = read_toml(path, "the policy", "a TOML file with [[rule]] tables", _EXAMPLE)
    _known(found, ("rule", "guards"), str(path))
    rules = found.get("rule")
    if not isinstance(rules, list) or not rules:
        raise NybbleError("the policy has no rule", seen=path,
                          allowed="at least one [[rule]] table", hint=_EXAMPLE)  # fmt: skip
    return Policy(
        source=path.name,
        sha256=hashlib.sha256(data).hexdigest(),
        rules=tuple(_rule(rule, i, path) for i, rule in enumerate(rules, 1)),
        guards=_guards(found.get("guards", {}), path),
    )


def _matches(seen: object, wanted: str | int) -> bool:
    if isinstance(wanted, str):
        return fnmatch.fnmatchcase(str(seen).lower(), wanted.lower())
    return seen == wanted


def _guards(table: object, path: Path) -> Guards:
    where = f"[guards] of {path}"
    found = _table(table, where)
    _known(found, _GUARDS, where)
    return Guards(
        identity=_flag(found, "identity", True, where),
        floor=_flag(found, "floor", True, where),
        failed=_word(found, "failed", _PASSES, "fail", where) == "fail",
    )


def _rule(table: object, number: int, path: Path) -> Rule:
    place = f"rule {number} of {path}"
    found = _table(table, place)
    name = found.get("name", f"rule {number}")
    if not isinstance(name, str) or not name.strip():
        raise NybbleError("a rule's name is a text", seen=f"{name!r} in {place}")
    place = f"rule {number} ({name[:60]}) of {path}"
    _known(found, _RULE, place)
    kinds = [kind for kind in KINDS if kind in found]
    if len(kinds) != 1:
        raise NybbleError(
            "a rule has exactly one limit", seen=f"{', '.join(kinds) or 'none'} in {place}",
            allowed=KINDS, hint='metric = "mean_kld" and max = 0.02',
        )  # fmt: skip
    kind = kinds[0]
    metric, limit, verdicts = _limit(found, kind, place)
    by = _word(found, "by", ENDS, "low" if kind == "min" else "high", place)
    return Rule(
        name=name.strip(), where=_where(found.get("where", {}), place), kind=kind, metric=metric,
        limit=limit, verdicts=verdicts, by=cast(End, by),
        lenient=_word(found, "inconclusive", _PASSES, "fail", place) == "pass",
        required=_flag(found, "required", True, place),
    )  # fmt: skip


def _limit(found: Mapping[str, Any], kind: Kind, place: str) -> tuple[str, float, tuple[str, ...]]:
    """Metric, limit and accepted verdicts."""
    if kind == "verdict":
        for key in ("metric", "by"):
            if key in found:
                raise NybbleError(f"a rule for a verdict takes no {key}", seen=place)
        return "", 0.0, _words(found["verdict"], "verdict", VERDICTS, place)
    known = INCREASES if kind == "max_increase" else METRICS
    if "metric" not in found:
        raise NybbleError("a rule names its metric", seen=place, allowed=known,
                          hint='metric = "mean_kld"')  # fmt: skip
    limit = found[kind]
    number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
    if not number or not math.isfinite(limit):
        raise NybbleError(f"{kind} is a number", seen=f"{limit!r} in {place}",
                          hint=f"{kind} = 0.02")  # fmt: skip
    return _word(found, "metric", known, "", place), float(limit), ()


def _where(table: object, place: str) -> dict[str, tuple[str | int, ...]]:
    where = f"where in {place}"
    found = {}
    given = _table(table, where)
    _known(given, tuple(FIELDS), where)
    for key, value in given.items():
        values = value if isinstance(value, list) else [value]
        kind: type = int if key == "context" else str
        if not values or any(type(v) is not kind for v in values):
            raise NybbleError(
                f"{key} is {'a number' if kind is int else 'a text'}, or a list of them",
                seen=f"{value!r} in {where}",
                hint="context = [4096, 8192]" if kind is int else f'{key} = "Gemma*"',
            )
        found[key] = tuple(values)
    return found


def _table(value: object, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise NybbleError("a table was expected in the policy", seen=f"{value!r} for {place}",
                          hint=_EXAMPLE)  # fmt: skip
    return value


def _known(found: Iterable[str], known: tuple[str, ...], place: str) -> None:
    for key in found:
        if key not in known:
            raise unknown("unknown key in the policy", key, known, seen=f"{key} in {place}")


def _flag(found: Mapping[str, Any], key: str, default: bool, place: str) -> bool:
    value = found.get(key, default)
    if not isinstance(value, bool):
        raise NybbleError(f"{key} is true or false", seen=f"{value!r} in {place}")
    return value


def _word(
    found: Mapping[str, Any], key: str, known: tuple[str, ...], default: str, place: str
) -> str:
    return _words(found.get(key, default), key, known, place, most=1)[0]


def _words(
    value: object, key: str, known: tuple[str, ...], place: str, most: int | None = None
) -> tuple[str, ...]:
    values = value if isinstance(value, list) and most is None else [value]
    for one in values:
        if one not in known:
            raise unknown(f"unknown {key} in the policy", str(one), known,
                          seen=f"{one!r} in {place}")  # fmt: skip
    if not values:
        raise NybbleError(f"{key} is empty", seen=place, allowed=known)
    return tuple(values)
