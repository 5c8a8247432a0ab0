"""Tables of bench/generate and bench/runtime_quality, from their results alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from common import table


def summary(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry a model, prompt and cache: medians of its rounds, the largest peak."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in runs:
        key = (run["model"], run["prompt"], run["cache"], run["dtype"])
        groups.setdefault(key, []).append(run)
    found = []
    for same in groups.values():
        good = [run for run in same if "failed" not in run]
        if not good:
            found.append(same[0])
            continue
        middle = {
            key: median(run[key] for run in good)
            for key in ("prefill_tokens_per_s", "decode_tokens_per_s")
        }
        worst = max(good, key=lambda run: run["peak_bytes"])
        found.append({**worst, **middle, "rounds": len(good)})
    return found


def generate_lines(runs: Sequence[dict[str, Any]]) -> str:
    """All runs of bench/generate, rounds put together."""
    rows = []
    for run in summary(runs):
        cache = f"{run['cache']} {run['dtype']}" if run["cache"] == "dynamic" else run["cache"]
        head = [f"{run['model']}, {run['prompt']:,}", cache]
        if "failed" in run:
            rows.append([*head, run["failed"], "", "", "", "", ""])
            continue
        held, over = run["bytes_stored"], run["over"]
        rows.append([
            *head, f"{run['prefill_tokens_per_s']:.0f}", f"{run['decode_tokens_per_s']:.1f}",
            mib(run["weights_bytes"]), "" if held is None else mib(held), mib(run["peak_bytes"]),
            "" if over is None else f"{over:+.1%}",
        ])  # fmt: skip
    header = ["model, prompt", "cache", "prefill tokens/s", "decode tokens/s", "weights MiB",
              "cache MiB", "peak MiB", "peak over both"]  # fmt: skip
    return table(header, rows)


def mib(size: int) -> str:
    """Bytes in MiB."""
    return f"{size / 2**20:,.1f}"


def span(found: Mapping[str, Any]) -> str:
    """A value with its interval, if it has one."""
    if found.get("low") is None:
        return f"{found['value']:.2g}"
    return f"{found['value']:.2g} [{found['low']:.2g}, {found['high']:.2g}]"


def quality_lines(result: Mapping[str, Any]) -> str:
    """All settings of bench/runtime_quality."""
    rows = [["noise floor (bf16 against f16)", "", span(result["floor"]), *[""] * 4]]
    for setting, found in result["rows"].items():
        ours, again = found["packed"], found["again"]
        rows.append([
            setting, span(ours["kld"]), span(found["simulated"]), span(ours["difference"]),
            span(again["difference"]), span(ours["to_simulated"]), span(again["to_simulated"]),
        ])  # fmt: skip
    header = ["KV setting", "KLD, nybble.Cache", "KLD, simulated", "difference",
              "simulated again: difference", "KLD, nybble.Cache to simulated",
              "KLD, simulated again to simulated"]  # fmt: skip
    return table(header, rows)
