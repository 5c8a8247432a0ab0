"""Whether a run's token rows are the ones its summary speaks of."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import duckdb

from nybble.results.base.find import ROWS
from nybble.results.records import Measurement, Row
from nybble.results.validate.check import Check, verdict
from nybble.results.validate.guards import label

NAMES, NUMBERS = "cell names", "rows give the summary's numbers"
_TOLERANCE = 1e-6  # relative; rows are float32, sums float64 in both places
_FLIP_MARGIN = 0.5  # nats; FLIP_MARGIN of scoring/statistics.py
_NAME = re.compile(r"c(\d{1,9})-(.{1,80})-[0-9a-f]{16}")
_CELL = ("model", "reference", "role", "setting", "context", "category", "document", "chunk")
_QUERY = f"""
WITH named AS (
  SELECT *, isfinite(kld) AND isfinite(nll) AND isfinite(nll_ref) AS finite,
         CAST(kld AS DOUBLE) AS wide
  FROM read_parquet(?, filename = true, union_by_name = true)
)
SELECT filename, {", ".join(_CELL)},
  count(*) FILTER (finite), count(*) FILTER (NOT finite), sum(wide) FILTER (finite),
  count(*) FILTER (finite AND top = top_ref),
  count(*) FILTER (finite AND top <> top_ref AND margin_ref > {_FLIP_MARGIN})
FROM named GROUP BY ALL ORDER BY ALL
"""


@dataclass
class _Cell:
    """One file's part of one row of the summary."""

    file: str
    key: tuple[object, ...]
    n: int
    nonfinite: int
    kld: float
    same: int
    flips: int


def check_rows(folder: Path, record: Measurement) -> list[Check]:
    """Names of the cells, and the summary's numbers computed again from them.

    Args:
        folder: of the run.
        record: its summary.
    """
    place = folder / ROWS
    files = sorted(str(p) for p in place.glob("*.parquet")) if place.is_dir() else []
    if not files:
        return [Check(name, "skipped", "rows not included") for name in (NAMES, NUMBERS)]
    try:
        cells = _cells(files)
    except duckdb.Error as error:
        first = str(error).splitlines()[0].replace(str(folder), ".")
        return [Check(NAMES, "skipped", "rows cannot be read"),
                Check(NUMBERS, "fail", f"rows cannot be read: {first[:200]}")]  # fmt: skip
    return [_names(cells), _numbers(cells, record)]


def _cells(files: list[str]) -> list[_Cell]:
    with duckdb.connect(":memory:") as db:
        found = db.execute(_QUERY, [files]).fetchall()
    width = 1 + len(_CELL)
    return [
        _Cell(Path(str(r[0])).stem, tuple(r[1:width]), r[width], r[width + 1],
              r[width + 2] or 0.0, r[width + 3], r[width + 4])
        for r in found
    ]  # fmt: skip


def _names(cells: list[_Cell]) -> Check:
    """A file's name says its context and setting; no cell is there twice, no file holds two."""
    wrong = []
    files: dict[str, int] = defaultdict(int)
    seen: dict[tuple[object, ...], str] = {}
    for cell in cells:
        files[cell.file] += 1
        setting, context = str(cell.key[3]), cell.key[4]
        match = _NAME.fullmatch(cell.file)
        plain = re.sub(r"[^A-Za-z0-9_.+-]", "-", setting)[:80]
        if not match or int(match[1]) != context or match[2] != plain:
            wrong.append(f"{cell.file} holds {setting} at {context}")
        other = seen.setdefault(cell.key, cell.file)
        if other != cell.file:
            wrong.append(f"{cell.file} and {other} are the same cell")
    wrong += [f"{file} holds {n} cells" for file, n in files.items() if n > 1]
    return verdict(NAMES, wrong, f"{len(files):,} cells")


def _numbers(cells: list[_Cell], record: Measurement) -> Check:
    groups: dict[tuple[object, ...], list[_Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell.key[:5]].append(cell)
    wrong, compared = [], 0
    for row in record.rows:
        if row.status != "done":
            continue
        mine = groups.get((row.model, row.reference, row.role, row.setting, row.context), [])
        compared += 1
        if mine:
            wrong += [f"{label(row)}: {problem}" for problem in _differences(row, mine)]
        else:
            wrong.append(f"{label(row)}: no rows")
    return verdict(NUMBERS, wrong, f"{compared:,} rows, {sum(c.n for c in cells):,} tokens")


def _differences(row: Row, cells: list[_Cell]) -> list[str]:
    n = sum(c.n for c in cells)
    documents = len({(c.key[5], c.key[6]) for c in cells if c.n})
    if n > row.n_tokens:
        return [f"{n:,} tokens in rows, {row.n_tokens:,} in the summary: cells of another command "
                "lie in the folder; measure into an empty one"]  # fmt: skip
    counts = {
        "n_tokens": (n, row.n_tokens),
        "n_documents": (documents, row.n_documents),
        "n_nonfinite": (sum(c.nonfinite for c in cells), row.n_nonfinite),
    }
    found = [f"{name} {a:,} in rows, {b:,} in the summary"
             for name, (a, b) in counts.items() if a != b]  # fmt: skip
    sums = {
        "mean_kld": sum(c.kld for c in cells),
        "same_top": float(sum(c.same for c in cells)),
        "flips": float(sum(c.flips for c in cells)),
    }
    for name, total in sums.items():
        value = total / n if n else math.nan
        told = row.metrics[name].value if name in row.metrics else math.nan
        if not math.isclose(value, told, rel_tol=_TOLERANCE, abs_tol=1e-12):
            found.append(f"{name} {value:.8g} in rows, {told:.8g} in the summary")
    return found
