"""Labels of a metric in Prometheus's text format.

Source: prometheus.io/docs/instrumenting/exposition_formats ("Text format details"): label values
are any UTF-8 with a backslash, a quotation mark and a line feed written as two characters each.
"""

from __future__ import annotations

import re

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r'[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"[ \t]*([,}])')
_ESCAPE = re.compile(r"\\(.)")
_ESCAPED = {"\\": "\\", '"': '"', "n": "\n"}


def label_sets(metrics: str, name: str) -> list[dict[str, str]]:
    """The labels of every sample of a metric, in the order of the text.

    A line that is not well formed, or cut off, is left out; a sample without labels has none.

    Args:
        metrics: text of a scrape.
        name: of the metric, with its suffix.
    """
    found = []
    for line in metrics.split("\n"):
        if line.startswith(name):
            labels = _labels(line, len(name))
            if labels is not None:
                found.append(labels)
    return found


def has_metric(metrics: str, prefix: str) -> bool:
    """Whether a sample's name begins so."""
    return any(line.startswith(prefix) and _NAME.match(line) for line in metrics.split("\n"))


def _labels(line: str, at: int) -> dict[str, str] | None:
    rest = line[at:].lstrip(" \t")
    if not rest.startswith("{"):
        # A longer name that begins the same is another metric.
        return {} if line[at : at + 1] in (" ", "\t") else None
    labels: dict[str, str] = {}
    at = len(line) - len(rest) + 1
    if line[at:].lstrip(" \t").startswith("}"):
        return labels
    while True:
        part = _LABEL.match(line, at)
        if part is None:
            # A comma may come last.
            return labels if labels and line[at:].lstrip(" \t").startswith("}") else None
        labels[part[1]] = _ESCAPE.sub(lambda m: _ESCAPED.get(m[1], m[0]), part[2])
        if part[3] == "}":
            return labels
        at = part.end()
