"""Peak memory of the engine process: flat as the text grows; how it grows with settings.

    python bench/memory.py

Each run is a fresh process on the demo model; the peak is its VmHWM at the end, in MiB.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from common import save
from nybble import MeasureRequest, measure, parse_setting
from nybble.scoring.request import Silent

ONE = ("q4_0/q4_0",)
FOUR = ("q8_0/q8_0", "q8_0/q4_0", "q5_1/q5_1", "q4_0/q4_0")


class Peak(Silent):
    """Reads the child's peak while it is alive; the last reading counts."""

    def __init__(self) -> None:
        """No reading yet."""
        self.mib = 0.0

    def advance(self, done: float) -> None:
        """Read VmHWM of our child."""
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                text = status.read_text()
            except OSError:
                continue
            parent = re.search(r"PPid:\s+(\d+)", text)
            found = re.search(r"VmHWM:\s+(\d+)", text)
            if parent and found and int(parent[1]) == os.getpid():
                self.mib = max(self.mib, int(found[1]) / 1024)


def peak(settings: tuple[str, ...], documents: int, context: int) -> dict[str, float]:
    """One run: peak MiB and the MiB of all caches it held."""
    watch = Peak()
    with tempfile.TemporaryDirectory() as folder:
        request = MeasureRequest(
            settings=tuple(map(parse_setting, settings)),
            categories=("prose",),
            documents=documents,
            contexts=(context,),
            out=Path(folder),
        )
        measurement = measure(request, watch).measurement
    caches = sum(r.cache_bytes for r in measurement.rows if r.role == "candidate")
    return {"peak_mib": round(watch.mib, 1), "candidate_caches_mib": round(caches / 2**20, 1)}


def main() -> None:
    """Text length, then settings, then context."""
    runs = {
        "1 setting, 1 document, 1024": peak(ONE, 1, 1024),
        "1 setting, 6 documents, 1024": peak(ONE, 6, 1024),
        "4 settings, 1 document, 1024": peak(FOUR, 1, 1024),
        "4 settings, 1 document, 4096": peak(FOUR, 1, 4096),
    }
    first, longer, four, wide = runs.values()
    growth = (four["peak_mib"] - first["peak_mib"]) / 3
    caches = (four["candidate_caches_mib"] - first["candidate_caches_mib"]) / 3
    path = save(
        "memory",
        {
            "runs": runs,
            "growth_with_text": longer["peak_mib"] / first["peak_mib"],
            "mib_per_added_setting": round(growth, 1),
            "of_which_cache": round(caches, 1),
            "growth_1024_to_4096": round(wide["peak_mib"] - four["peak_mib"], 1),
            "caches_1024_to_4096": round(
                wide["candidate_caches_mib"] - four["candidate_caches_mib"], 1
            ),
        },
    )
    print(path.read_text())


if __name__ == "__main__":
    main()
