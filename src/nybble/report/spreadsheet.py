"""The measurement as CSV, for spreadsheets and scripts."""

from __future__ import annotations

import csv
import io

from nybble.report import describe, view
from nybble.report import format as fmt
from nybble.results.records import Estimate, Measurement


def csv_text(m: Measurement) -> str:
    """One line per row; every metric with its interval; full precision, no rounding."""
    metrics = list(describe.METRIC_NAMES)
    metrics += sorted({n for r in m.rows for n in r.metrics} - set(metrics))
    plain = (
        "role model reference setting context k_type v_type rotation_k rotation_v bits "
        "bytes_per_token cache_bytes n_documents n_tokens n_nonfinite simulated status"
    ).split()
    places = ("of", "layer", "side", "head")
    head = ["model_name", *plain, "verdict", "reason", "error", "part_of", *places[1:]]
    served = ("engine", "version", "top_k", "read", "reported")
    head += [f"served_{name}" for name in served] if any(r.served for r in m.rows) else []
    head += [n + end for n in metrics for end in ("", "_low", "_high")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for row in m.rows:
        line: list[object] = [safe(view.model_name(m, row.model, 200))]
        line += [safe(getattr(row, name)) for name in plain]
        line += [safe(row.verdict.label), safe(row.verdict.reason)] if row.verdict else ["", ""]
        line.append(safe(row.error or ""))
        line += [safe(getattr(row.part, name)) if row.part else "" for name in places]
        if f"served_{served[0]}" in head:
            line += [safe(getattr(row.served, name)) if row.served else "" for name in served]
        for name in metrics:
            found = row.metrics.get(name)
            line += ends(found)
        writer.writerow(line)
    return out.getvalue()


def safe(value: object) -> object:
    """Text that a spreadsheet would run as a formula gets a leading quote."""
    if not isinstance(value, str):
        return value
    text = fmt.clean(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def ends(estimate: Estimate | None) -> list[object]:
    """A number and its interval in three cells, empty where there is none."""
    return [estimate.value, estimate.low, estimate.high] if estimate else ["", "", ""]
