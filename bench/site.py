"""The leaderboard of a base of 10,000 cells: time to build it, and to draw it in Chromium.

    python bench/site.py [--models 60] [--keep FOLDER]

Cells are drawn, not measured: 60 models, 40 KV settings of all families, four contexts, with noise
floor and identity, six categories each. Making the index of a new base, which is kept, is told
apart. Asked: build under 60 s, first table under 2 s.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from common import save
from nybble.report.site.build import build_site
from nybble.report.site.details import details_of
from nybble.results.base.base import open_base
from nybble.results.records import Estimate, Row, to_json

sys.path += [str(Path(__file__).parents[1] / "tests" / n) for n in (".", "report")]
from report_builders import forty  # noqa: E402

CONTEXTS = (1024, 4096, 16384, 65536)
LOADS = 5
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
         "--disable-background-networking")  # fmt: skip
_DRAWN = "return performance.getEntriesByName('nybble-drawn')[0].startTime"
_PAINT = "return performance.getEntriesByName('first-contentful-paint').map(p => p.startTime)[0]"
# Until the change was drawn and a frame was shown after it.
_TIMED = """
const done = arguments[0], start = performance.now();
window.addEventListener('hashchange', () => requestAnimationFrame(() => requestAnimationFrame(
  () => done(performance.now() - start))), {once: true});
"""


def write(base: Path, models: int) -> None:
    """A run a model: forty drawn settings and their guards at each context."""
    rng = np.random.default_rng(0)
    template = forty()
    for i in range(models):
        simulated = i % 3 == 0
        scale = float(rng.gamma(2.0, 0.5)) + 0.1
        rows = [
            _scaled(dataclasses.replace(row, context=context, simulated=simulated),
                    scale * float(rng.lognormal(0, 0.15)))
            for context in CONTEXTS for row in template.rows
        ]  # fmt: skip
        model = dataclasses.replace(
            template.models[0], name=f"Model {i // 2:02} {1 + i % 2}B IT",
            file=f"model-{i:02}-Q4_K_M.gguf", architecture=f"family{i // 6}",
            sha256=hashlib.sha256(str(i).encode()).hexdigest(),
        )  # fmt: skip
        engine = "transformers" if simulated else "llama.cpp"
        record = dataclasses.replace(
            template, models=[model], rows=rows, protocol=template.protocol | {"engine": engine}
        )
        (base / f"{i:02}").mkdir(parents=True)
        (base / f"{i:02}" / "summary.json").write_text(to_json(record), encoding="utf-8")


def _scaled(row: Row, by: float) -> Row:
    def scaled(metrics: dict[str, Estimate]) -> dict[str, Estimate]:
        return {
            name: Estimate(*(None if v is None else v * by for v in dataclasses.astuple(found)))
            if name.endswith("_kld") else found
            for name, found in metrics.items()
        }  # fmt: skip

    slices = [dataclasses.replace(s, metrics=scaled(s.metrics)) for s in row.by_category]
    return dataclasses.replace(row, metrics=scaled(row.metrics), by_category=slices)


def in_chromium(index: Path) -> dict[str, Any]:
    """Seconds until the first table is there and painted, and of a sort and a filter."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in FLAGS:
        options.add_argument(flag)
    service = webdriver.ChromeService("/usr/bin/chromedriver")
    with webdriver.Chrome(options=options, service=service) as browser:
        drawn, painted, sort, search = [], [], [], []
        for _ in range(LOADS):
            browser.get("about:blank")
            browser.get(index.as_uri())
            drawn.append(browser.execute_script(_DRAWN))
            time.sleep(0.5)
            painted.append(browser.execute_script(_PAINT))
            sort.append(
                browser.execute_async_script(
                    _TIMED + "document.querySelector('[data-sort=kld]').click();"
                )
            )
            search.append(
                browser.execute_async_script(
                    _TIMED + "const q = document.getElementById('f-q'); q.value = 'q4_0 family';"
                    "q.dispatchEvent(new Event('input', {bubbles: true}));"
                )
            )
        version = browser.capabilities["browserVersion"]
    return {
        "chromium": version, "loads": LOADS,
        **{f"{name}_s": {"median": round(statistics.median(ms) / 1000, 3),
                         "worst": round(max(ms) / 1000, 3)}
           for name, ms in (("first_table", drawn), ("first_paint", painted), ("sort", sort),
                            ("search", search))},
    }  # fmt: skip


def main() -> None:
    """Build, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=60)
    parser.add_argument("--keep", type=Path, help="new folder for the base and the site")
    args = parser.parse_args()
    folder = args.keep or Path(tempfile.mkdtemp())
    base, out = folder / "base", folder / "site"
    write(base, args.models)
    took: dict[str, tuple[float, float]] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        took[name] = (time.perf_counter() - wall, time.process_time() - cpu)

    with timed("first_index"), open_base(base):
        pass
    with timed("command"), open_base(base) as opened:  # all that nybble report build does
        with timed("details"):
            details = details_of(opened, {})
        with timed("site"):
            site = build_site(opened.cells, opened.externals, out, details=details)
        n_cells = len(opened.cells)
    sizes = {p.relative_to(out).as_posix(): p.stat().st_size
             for p in out.rglob("*") if p.is_file()}  # fmt: skip
    numbers = {
        "cells": n_cells, "models": args.models, "files": site.files,
        "load_average": round(os.getloadavg()[0], 1),
        **{f"{name}_s": {"wall": round(wall, 2), "cpu": round(cpu, 2)}
           for name, (wall, cpu) in took.items()},
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "site_bytes": sum(sizes.values()), "data_js_bytes": sizes["assets/data.js"],
        "largest_page_bytes": max(v for k, v in sizes.items() if k.endswith(".html")),
        **in_chromium(site.index),
    }  # fmt: skip
    print(save("site", numbers).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
