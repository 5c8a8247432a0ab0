"""A run's report beside its records: report.md, report.html and the manifest of them all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nybble.results.records import Measurement


def write_report(folder: Path, measurement: Measurement) -> Path:
    """Write both reports of a measurement, then the manifest of its folder.

    Returns:
        The HTML report.

    Raises:
        NybbleError: the folder cannot be written.
    """
    # Imported here: the plotting library takes half a second that other commands need not pay.
    from nybble.report.html import html_report
    from nybble.report.table import markdown
    from nybble.results.manifest import write_manifest
    from nybble.results.store import write_text

    write_text(folder / "report.md", markdown(measurement))
    report = write_text(folder / "report.html", html_report(measurement))
    write_manifest(folder)
    return report
