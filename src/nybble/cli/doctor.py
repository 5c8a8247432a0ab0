"""`nybble doctor`: versions, CPU, optional parts, and the command that mends what is missing."""

from __future__ import annotations

import json
import shutil

import click

from nybble.doctor import Finding, examine


@click.command()
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def doctor(as_json: bool) -> int:
    """Check this installation; exit 1 if the engine cannot run."""
    findings = examine()
    if as_json:
        click.echo(json.dumps([vars(f) for f in findings], indent=1))
    else:
        width = min(shutil.get_terminal_size((100, 20)).columns, 120)
        for finding in findings:
            click.echo(_line(finding, width))
    return 1 if any(f.state == "broken" for f in findings) else 0


def _line(finding: Finding, width: int) -> str:
    mark = {"ok": "ok     ", "missing": "missing", "broken": "BROKEN "}[finding.state]
    line = f"{mark}  {finding.name:<18} {finding.detail}"
    if len(line) > width:
        line = line[: width - 3] + "..."
    return line + (f"\n{'':9}get it: {finding.fix}" if finding.fix else "")
