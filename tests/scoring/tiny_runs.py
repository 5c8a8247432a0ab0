"""Requests for short runs on tiny models, and what is asked of their results."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from nybble.formats import parse
from nybble.results.records import Measurement, Row
from nybble.scoring.measure import Result
from nybble.scoring.request import MeasureRequest

CONTEXT, DOCUMENTS = 128, 6
SCORED = CONTEXT - 1 - CONTEXT // 2  # positions 64 to 126
SETTINGS = ("q8_0", "q5_0", "q4_0", "q4_0-norot")


def request(model: Path, text: Path, out: Path, *settings: str, **changes: Any) -> MeasureRequest:
    base: dict[str, Any] = {
        "model": model, "text": (text,), "out": out, "contexts": (CONTEXT,), "threads": 2,
        "documents": DOCUMENTS, "settings": tuple(parse(s) for s in settings or SETTINGS),
    }  # fmt: skip
    return MeasureRequest(**{**base, **changes})


def row(result: Result, setting: str, role: str = "candidate", **fields: Any) -> Row:
    (found,) = [
        r for r in result.measurement.rows
        if r.setting == str(parse(setting)) and r.role == role
        and all(getattr(r, k) == v for k, v in fields.items())
    ]  # fmt: skip
    return found


def kld(found: Row) -> float:
    return found.metrics["mean_kld"].value


def cells(folder: Path) -> dict[str, int]:
    """Finished cells and when they were written."""
    return {p.name: p.stat().st_mtime_ns for p in (folder / "rows").glob("*.parquet")}


def comparable(found: Measurement) -> Measurement:
    return dataclasses.replace(found, created="", timing={}, command="")
