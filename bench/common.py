"""What every bench shares: the machine's name, versions, and a result file beside the script."""

from __future__ import annotations

import datetime
import json
import subprocess
from pathlib import Path
from typing import Any

from nybble.environment import hardware, versions

RESULTS = Path(__file__).parent / "results"


def commit() -> str:
    """The commit the numbers belong to, with a plus sign if the tree was changed."""
    run = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return run.stdout.strip() or "unknown"


def save(name: str, numbers: dict[str, Any]) -> Path:
    """Write bench/results/NAME.json with machine, versions and date."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    record = {
        "bench": name,
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions(),
        **numbers,
    }
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def put(page: Path, name: str, text: str) -> None:
    """Replace what stands between <!-- NAME --> and <!-- /NAME --> in a page."""
    before, rest = page.read_text(encoding="utf-8").split(f"<!-- {name} -->\n")
    after = rest.split(f"<!-- /{name} -->")[1]
    page.write_text(f"{before}<!-- {name} -->\n{text}\n<!-- /{name} -->{after}", encoding="utf-8")


def table(header: list[str], lines: list[list[str]]) -> str:
    """Markdown, numbers to the right."""
    made = ["| " + " | ".join(header) + " |", "|---" + "|--:" * (len(header) - 1) + "|"]
    return "\n".join([*made, *("| " + " | ".join(line) + " |" for line in lines)])


def topics_text(limit: int) -> str:
    """English reference prose out of the running Python (PSF-2.0)."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[k] for k in sorted(topics))[:limit]
