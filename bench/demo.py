"""Run the README's demo and remake the README's table, its picture and the example report.

    python bench/demo.py

Writes bench/results/demo/{summary.json,report.html}, docs/img/quality.svg, and the block between
the markers in README.md. Time is the wall time of the whole command.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import RESULTS, save
from nybble.report.plots import save_picture
from nybble.results.records import from_json

ROOT = Path(__file__).parents[1]
MARKERS = ("<!-- demo -->", "<!-- /demo -->")


def main() -> None:
    """Run the command as a user would and keep what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "NYBBLE_CACHE": f"{folder}/cache"}
        start = time.perf_counter()
        run = subprocess.run(
            [sys.executable, "-m", "nybble", "measure"],
            cwd=folder, env=env, stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        found = next(Path(folder).glob("nybble-results/*/summary.json"))
        kept = RESULTS / "demo"
        kept.mkdir(parents=True, exist_ok=True)
        for name in ("summary.json", "report.html", "report.md"):
            shutil.copy(found.with_name(name), kept / name)
    measurement = from_json((kept / "summary.json").read_text(encoding="utf-8"))
    save_picture(measurement, ROOT / "docs" / "img" / "quality.svg")
    printed = "\n".join(line.rstrip() for line in run.stdout.strip().splitlines())
    block = f"{MARKERS[0]}\n```\n$ nybble measure\n{printed}\n```\n{MARKERS[1]}"
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    pattern = re.compile(re.escape(MARKERS[0]) + ".*?" + re.escape(MARKERS[1]), re.DOTALL)
    readme.write_text(pattern.sub(lambda _: block, text), encoding="utf-8")
    save("demo", {"wall_s": round(seconds, 1), "timing": measurement.timing})
    print(f"{seconds:.0f} s\n{printed}")


if __name__ == "__main__":
    main()
