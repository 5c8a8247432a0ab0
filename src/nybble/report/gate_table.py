"""What a gate found: terminal, Markdown for a pull request, JUnit XML for CI systems."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree

from nybble.report import format as fmt
from nybble.report.table import md
from nybble.results.gate import Check, Gate

if TYPE_CHECKING:
    from rich.table import Table

HEADER = ("", "rule", "cell", "number", "limit", "reason")
_STYLES = {"GO": "green", "NO-GO": "red", "INCONCLUSIVE": "yellow", "SKIPPED": "dim"}


def conclusion(found: Gate) -> str:
    """`NO-GO: 2 of 9 checks do not pass`."""
    failed = sum(not check.passed for check in found.checks)
    n = fmt.plural(len(found.checks), "check")
    if found.passed:
        return f"GO: {n} of {fmt.clean(found.policy, 80)}"
    return f"NO-GO: {failed} of {n} {'does' if failed == 1 else 'do'} not pass"


def state(check: Check) -> str:
    """The state; where an inconclusive one passes it says so."""
    return check.state + (" (passes)" if check.state == "INCONCLUSIVE" and check.passed else "")


def cells(check: Check) -> list[str]:
    """One line under `HEADER`."""
    # Four digits: 0.0201 must not stand as 0.02 beside a limit of 0.02.
    number = fmt.with_interval(check.number, lambda x: f"{x:.4g}")
    return [
        state(check), fmt.clean(check.rule, 80), fmt.clean(check.cell, 200),
        number if check.number else fmt.clean(check.verdict, 20), fmt.clean(check.limit, 80),
        fmt.clean(check.reason, 300),
    ]  # fmt: skip


def rich_table(found: Gate) -> Table:
    """All checks."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, collapse_padding=True)
    for title in HEADER:
        table.add_column(title, overflow="fold", no_wrap=title == "")
    for check in found.checks:
        words = [Text(cell) for cell in cells(check)]
        words[0].stylize(_STYLES[check.state])
        table.add_row(*words)
    return table


def markdown(found: Gate) -> str:
    """A table to paste into a pull request; what does not pass comes first."""
    against = f", against {fmt.clean(found.against, 120)}" if found.against else ""
    lines = [
        f"**{md(conclusion(found))}**", "",
        f"{md(fmt.clean(found.base, 120))} by {md(fmt.clean(found.policy, 80))} "
        f"(sha256 {found.policy_sha256[:12]}){md(against)}", "",
        f"| {' | '.join(HEADER)} |", "|---" * len(HEADER) + "|",
    ]  # fmt: skip
    for check in sorted(found.checks, key=lambda c: c.passed):
        lines.append(f"| {' | '.join(map(md, cells(check)))} |")
    return "\n".join(lines)


def junit(found: Gate) -> str:
    """A test suite: a case for every check, a failure for each that does not pass."""
    failed = sum(not check.passed for check in found.checks)
    skipped = sum(check.state == "SKIPPED" for check in found.checks)
    suite = ElementTree.Element(
        "testsuite", name="nybble results gate", tests=str(len(found.checks)),
        failures=str(failed), errors="0", skipped=str(skipped),
    )  # fmt: skip
    for check in found.checks:
        case = ElementTree.SubElement(
            suite, "testcase", classname=fmt.clean(check.rule), name=fmt.clean(check.cell)
        )
        _, _, _, number, limit, reason = cells(check)
        text = "; ".join(part for part in (number, limit, reason) if part)
        if not check.passed:
            failure = ElementTree.SubElement(case, "failure", message=text, type=check.state)
            failure.text = f"{check.state}: {text}"
        elif check.state == "SKIPPED":
            ElementTree.SubElement(case, "skipped", message=text)
        else:
            ElementTree.SubElement(case, "system-out").text = f"{state(check)}: {text}"
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
