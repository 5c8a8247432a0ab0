"""Two models: the four cells {model a, model b} x {16-bit, quantized KV}.

Each cell has two distances: to the same model's 16-bit cache, and to the other model's.
"""

from __future__ import annotations

from dataclasses import dataclass

from nybble.report import format as fmt
from nybble.report import view
from nybble.results.records import Estimate, Measurement, Row

OWN = "to own 16-bit reference"
OTHER = "to the other's 16-bit reference"
OWN_QUESTION = "What does the cache type cost this model?"
OTHER_QUESTION = "How far is this deployment from the other model in total?"


@dataclass(frozen=True)
class Cell:
    """One model with one cache at one context.

    Attributes:
        model: "a" or "b".
        setting: KV setting, "f16/f16" for the 16-bit cells.
        context: tokens.
        quantized: False for the 16-bit cells.
        own: KLD to the model's own 16-bit cache.
        other: KLD to the other model's 16-bit cache.
    """

    model: str
    setting: str
    context: int
    quantized: bool
    own: Estimate | None
    other: Estimate | None


def cells(m: Measurement) -> list[Cell]:
    """The cells by context and setting, 16-bit first; none when one model was measured."""
    cross = [r for r in m.rows if r.model != r.reference]
    if len(m.models) < 2 or not cross:
        return []
    found = []
    labels = [x.label for x in m.models]
    for context in sorted({r.context for r in m.rows}):
        rows = [r for r in m.rows if r.context == context]
        for label in labels:
            own = [r for r in rows if r.model == r.reference == label and r.role == "identity"]
            other = [r for r in rows if r.model == label != r.reference and r.role == "cross"]
            setting = (own or other)[0].setting if own or other else "16-bit"
            found.append(Cell(label, setting, context, False, _mean(own), _mean(other)))
        order = [r for g in view.groups(m) if g.context == context for r in g.candidates]
        for setting in dict.fromkeys(r.setting for r in order):
            for label in labels:
                same = [
                    r for r in rows if (r.setting, r.model, r.role) == (setting, label, "candidate")
                ]
                own = [r for r in same if r.reference == label]
                other = [r for r in same if r.reference != label]
                if own or other:
                    found.append(Cell(label, setting, context, True, _mean(own), _mean(other)))
    return found


def header(m: Measurement) -> tuple[str, ...]:
    """Column titles of the table of cells."""
    context = ("context",) if len({r.context for r in m.rows}) > 1 else ()
    return ("model", *context, "KV type", f"mean KLD {OWN}", f"mean KLD {OTHER}")


def texts(m: Measurement, gap: str = ", ") -> list[tuple[str, ...]]:
    """The table of cells as text, matching `header`."""
    several = len({r.context for r in m.rows}) > 1
    return [
        (
            cell.model,
            *((fmt.count(cell.context),) if several else ()),
            fmt.setting(cell.setting),
            fmt.kld_with_interval(cell.own, gap),
            fmt.kld_with_interval(cell.other, gap),
        )
        for cell in cells(m)
    ]


def _mean(rows: list[Row]) -> Estimate | None:
    return next((r.metrics["mean_kld"] for r in rows if "mean_kld" in r.metrics), None)
