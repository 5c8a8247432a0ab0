"""Requests for short runs of generation on tiny models, and what is asked of their results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nybble.formats import parse
from nybble.results.tasks import Divergence
from nybble.scoring.generation.generate import Generated
from nybble.scoring.generation.request import GenerateRequest

PROMPTS, LIMIT = 6, 64


def request(model: Path, out: Path, *settings: str, **changes: Any) -> GenerateRequest:
    base: dict[str, Any] = {
        "model": model, "out": out, "limit": LIMIT, "prompts": PROMPTS, "prompt_tokens": 64,
        "threads": 2, "categories": ("prose",),
        "settings": tuple(parse(s) for s in settings or ("q8_0", "q4_0")),
    }  # fmt: skip
    return GenerateRequest(**{**base, **changes})


def row(found: Generated, setting: str, role: str = "candidate") -> Divergence:
    (one,) = [
        r for r in found.run.rows if r.setting == str(parse(setting)) and r.role == role
    ]  # fmt: skip
    return one


def cells(folder: Path) -> dict[str, int]:
    """Finished cells and when they were written."""
    return {p.name: p.stat().st_mtime_ns for p in (folder / "generated").glob("*.parquet")}
