"""What validating a result leaves: one line a check, and what it was that failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["pass", "warn", "fail", "skipped"]
_SHOWN = 3  # problems that a reason spells out


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: of the check.
        state: "warn" is for a person to judge and fails nothing.
        reason: what was found; empty where nothing is to be said.
    """

    name: str
    state: State
    reason: str = ""


@dataclass(frozen=True)
class Validation:
    """All checks of one run folder or one imported file.

    Attributes:
        place: the folder or file.
        checks: in the order of the report.
    """

    place: str
    checks: list[Check]

    @property
    def failed(self) -> bool:
        """Whether any check failed."""
        return any(check.state == "fail" for check in self.checks)

    def count(self, state: State) -> int:
        """Checks that ended so."""
        return sum(check.state == state for check in self.checks)


def verdict(name: str, problems: Sequence[str], passed: str = "", bad: State = "fail") -> Check:
    """A check that passes where there are no problems, else names the first few."""
    if not problems:
        return Check(name, "pass", passed)
    more = f"; and {len(problems) - _SHOWN:,} more" if len(problems) > _SHOWN else ""
    return Check(name, bad, "; ".join(problems[:_SHOWN]) + more)
