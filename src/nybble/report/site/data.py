"""The board's rows as a script that sets one variable: pages opened from a disk cannot fetch.

Texts are kept once in a table and named by number. Every text is foreign: the pages put them in
place as text, never as HTML.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from nybble.report import format as fmt
from nybble.report.page import script_json
from nybble.report.site import entries, texts
from nybble.report.site.entries import Model
from nybble.results.base.cell import Cell

# Fields that are numbers, or null; all others are texts.
NUMBERS = (
    "model", "bits", "context", "rank", "floor", "low", "high", *(m.name for m in texts.METRICS)
)  # fmt: skip
_DIGITS = 7


def script(found: Sequence[Model]) -> str:
    """`window.NYBBLE = {...};` with models, texts, fields and rows in the board's order."""
    table: dict[str, int] = {}
    pairs = [(i, cell) for i, model in enumerate(found) for cell in model.ranked]
    pairs.sort(key=lambda pair: (entries.order(pair[1]), pair[0]))
    floors = [model.of_role("floor") for model in found]
    fields: list[str] = []
    rows = []
    for i, cell in pairs:
        row = _row(i, cell, floors[i])
        fields = fields or list(row)
        rows.append(
            [v if k in NUMBERS else table.setdefault(v, len(table)) for k, v in row.items()]
        )
    data = {
        "models": [
            {"id": m.id, "name": m.name, "more": m.more, "weights": fmt.clean(m.first.weights, 30)}
            for m in found
        ],
        "numbers": NUMBERS,
        "fields": fields,
        "texts": list(table),
        "rows": rows,
    }
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return f"window.NYBBLE = {script_json(text)};\n"


def _row(model: int, cell: Cell, floors: Sequence[Cell]) -> dict[str, Any]:
    label = entries.verdict(cell)
    floor = texts.number(entries.floor(cell, floors))
    mean = cell.metrics.get("mean_kld")
    row: dict[str, Any] = {
        "model": model,
        "setting": texts.setting(cell),
        "kind": entries.kind(cell),
        "k": fmt.clean(cell.k_type, 80),
        "v": fmt.clean(cell.v_type, 80),
        "bits": _short(cell.bits),
        "bits_text": fmt.bits(cell.bits),
        "verdict": label,
        "reason": fmt.clean(cell.error if label == "failed" else cell.reason, 300),
        "rank": entries.VERDICTS.index(label) if label else None,
        "floor": _short(floor.value),
        "floor_text": floor.text,
        "floor_ci": floor.interval,
        "low": _short(mean.low if mean else None),
        "high": _short(mean.high if mean else None),
        "context": cell.context,
        "context_text": fmt.count(cell.context),
        "engine": fmt.clean(cell.engine, 40),
        "version": fmt.clean(cell.engine_version, 40),
        "hardware": texts.hardware(cell),
        "command": fmt.clean(cell.command, 2000),
        "how": texts.scoring(cell),
        "texts": fmt.clean(cell.categories.replace(",", ", "), 200),
        "size": f"{fmt.plural(cell.n_documents, 'document')}, "
                f"{fmt.plural(cell.n_tokens, 'token')}",
    }  # fmt: skip
    for metric in texts.METRICS:
        found = metric.of(cell)
        row[metric.name] = _short(found.value)
        row[f"{metric.name}_text"] = found.text
        row[f"{metric.name}_ci"] = found.interval
    return row


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")
