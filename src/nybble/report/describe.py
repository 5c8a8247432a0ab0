"""How a measurement was made, as short label and text pairs, read from its protocol.

The protocol is a free-form part of the record, so nothing here relies on a key being there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from nybble.report import format as fmt
from nybble.report import view
from nybble.results.records import Measurement

FLOOR = (
    "The noise floor compares a bf16 with an f16 cache on the same tokens; drift below it "
    "cannot be told from 16-bit rounding."
)
IDENTITY = "The identity row compares f16 with itself and must be 0."
SCOPE = "Other text, contexts and engines may give other numbers."

METRIC_NAMES = {
    "mean_kld": "mean KLD",
    "median_kld": "median KLD",
    "p99_kld": "p99 KLD",
    "p999_kld": "p99.9 KLD",
    "max_kld": "largest KLD",
    "same_top": "same top token",
    "flips": "flips",
    "nll_diff": "NLL difference",
    "ppl_ratio": "PPL ratio",
    "ppl_ref": "reference PPL",
    "ppl": "PPL",
    "rms_dp": "RMS Δp",
}
FRACTIONS = ("same_top", "flips", "rms_dp")


class Entry(NamedTuple):
    """A label and its text."""

    label: str
    text: str


class Text(NamedTuple):
    """A kind of text that was scored: category or file, its licence and source."""

    name: str
    licence: str
    source: str


def engine(m: Measurement, short: bool = False) -> str:
    """`llama.cpp b9637 via prefill`, `transformers 5.23.0 (simulated caches) via prefill`.

    Args:
        m: the measurement.
        short: leave version and `via` out.
    """
    name = fmt.clean(m.protocol.get("engine", "unknown engine"), 40)
    version, via = m.versions.get(name), m.protocol.get("via")
    line = f"{name} {fmt.clean(version, 40)}" if version and not short else name
    line += " (simulated caches)" if view.simulated(m) else ""
    line += " (through a server, top-k)" if any(r.served for r in m.rows) else ""
    return f"{line} via {fmt.clean(via, 60)}" if via and not short else line


def headline(m: Measurement) -> str:
    """`Gemma 3 270m in llama.cpp`."""
    engines = f" in {engine(m, short=True)}" if "engine" in m.protocol else ""
    return view.names(m) + engines


def texts(m: Measurement) -> list[Text]:
    """The scored texts with licences."""
    return list(dict.fromkeys(_texts(m.protocol.get("text"), "")))


def text_line(m: Measurement, limit: int = 120) -> str:
    """The scored texts' names on one line."""
    return fmt.clean(", ".join(t.name for t in texts(m)) or "not recorded", limit)


def scale(m: Measurement) -> str:
    """`24 documents, 93,696 tokens`: the largest row's counts."""
    tokens = max((r.n_tokens for r in m.rows), default=0)
    return f"{fmt.plural(view.documents(m), 'document')}, {fmt.plural(tokens, 'token')} scored"


def thresholds(m: Measurement) -> list[str]:
    """`mean KLD: safe up to 0.01, broken from 0.1` for each metric with thresholds."""
    found = m.protocol.get("thresholds")
    lines = []
    for metric in found if isinstance(found, dict) else ():
        pair = view.limits(m, metric)
        if pair is None:
            continue
        write = fmt.percent if metric in FRACTIONS else fmt.tick
        safe, broken = write(pair.safe), write(pair.broken)
        name = METRIC_NAMES.get(metric, fmt.clean(metric, 40))
        if pair.safe <= pair.broken:
            lines.append(f"{name}: safe up to {safe}, broken above {broken}")
        else:
            lines.append(f"{name}: safe from {safe}, broken below {broken}")
    return lines


def how(m: Measurement) -> list[Entry]:
    """How it was measured."""
    found = []
    for model in m.models:
        prefix = f"model {model.label}: " if len(m.models) > 1 else ""
        window = (
            f", sliding window {fmt.count(model.sliding_window)}" if (model.sliding_window) else ""
        )
        found += [
            Entry(f"{prefix}file", f"{fmt.clean(model.file, 120)} ({fmt.size(model.size_bytes)})"),
            Entry(f"{prefix}sha256", fmt.clean(model.sha256, 80)),
            Entry(
                f"{prefix}architecture",
                f"{fmt.clean(model.architecture, 40)}, trained for "
                f"{fmt.count(model.context_length)} tokens{window}",
            ),
            Entry(
                f"{prefix}weights",
                f"{fmt.clean(model.scored_weights, 60)} (shipped as "
                f"{fmt.clean(model.shipped_weights, 40)})",
            ),
            Entry(f"{prefix}framing", fmt.clean(model.framing, 300)),
        ]
    found.append(Entry("engine", engine(m)))
    if "score_from" in m.protocol:
        found.append(Entry("scored positions", _positions(m.protocol["score_from"])))
    contexts = sorted({r.context for r in m.rows})
    found.append(Entry("context", ", ".join(map(fmt.count, contexts)) + " tokens"))
    found.append(Entry("scored", scale(m).removesuffix(" scored")))
    found.append(Entry("intervals", _intervals(m)))
    found.append(Entry("noise floor", f"{FLOOR} {IDENTITY}"))
    lines = thresholds(m)
    if lines:
        found.append(Entry("thresholds", "; ".join(lines)))
    known = {"engine", "via", "score_from", "contexts", "documents", "bootstrap_draws", "draws"}
    known |= {"thresholds", "text", "framing", "min_documents_for_interval", "simulated"}
    for key, value in m.protocol.items():
        if key not in known and isinstance(value, (str, int, float)):
            found.append(Entry(fmt.clean(key, 40).replace("_", " "), fmt.clean(value, 120)))
    return found


def setup(m: Measurement) -> list[Entry]:
    """Versions, hardware and time."""
    found = [Entry(fmt.clean(k, 40), fmt.clean(v, 120)) for k, v in m.versions.items()]
    for key, value in m.hardware.items():
        if value is None or value == "":
            text = "unknown"
        elif key.endswith("_gib"):
            key, text = key.removesuffix("_gib"), f"{fmt.clean(value, 40)} GiB"
        elif isinstance(value, (list, tuple)):
            text = fmt.clean(", ".join(map(str, value)), 300)
        else:
            text = fmt.clean(value, 300)
        found.append(Entry(fmt.clean(key, 40).replace("_", " "), text))
    for key, seconds in m.timing.items():
        share = "share" in key
        text = fmt.percent(seconds) if share else f"{seconds:,.1f} s"
        found.append(Entry(fmt.clean(key, 40).removesuffix("_s").replace("_", " "), text))
    found.append(Entry("created", fmt.clean(m.created, 40)))
    found.append(Entry("schema / metrics", f"{m.schema_version} / {m.metrics_version}"))
    return found


def _intervals(m: Measurement) -> str:
    if not view.has_intervals(m):
        return view.notes(m)[0]
    draws = m.protocol.get("bootstrap_draws", m.protocol.get("draws"))
    shown = f", {fmt.count(draws)} draws" if isinstance(draws, int) else ""
    return f"95 % paired bootstrap over documents{shown}"


def _positions(score_from: object) -> str:
    """`score_from` is the fraction of each context that only fills the cache."""
    if isinstance(score_from, (int, float)) and 0 <= score_from < 1:
        share = fmt.percent(float(score_from))
        return f"the first {share} of each context fills the cache, the rest is scored"
    return f"from {fmt.clean(score_from, 40)} on"


def _texts(found: Any, name: str) -> Iterator[Text]:
    """Walk lists and mappings of texts; a leaf is a name, or a mapping with its licence."""
    if isinstance(found, str):
        yield Text(name or fmt.clean(found, 120), fmt.clean(found, 60) if name else "", "")
    elif isinstance(found, dict):
        if {"category", "licence", "license", "source", "name", "path"} & set(found):
            label = found.get("name") or found.get("category") or found.get("path") or name
            title = found.get("title")
            label = f"{label} ({title})" if title else label
            licence = found.get("licence") or found.get("license") or "not stated"
            source = fmt.clean(found.get("source", ""), 200)
            yield Text(fmt.clean(label, 120), fmt.clean(licence, 60), source)
        else:
            for key, value in found.items():
                label = "" if key in ("categories", "files") else fmt.clean(key, 120)
                yield from _texts(value, label)
    elif isinstance(found, (list, tuple)):
        for value in found:
            yield from _texts(value, "")
    elif name:
        yield Text(name, "", "")
