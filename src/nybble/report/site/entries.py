"""What the pages are about: models with their cells, noise floors and page names."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from nybble.report import format as fmt
from nybble.results.base.cell import Cell
from nybble.results.records import Estimate

STORED, SIMULATED, BOUND = "stored", "simulated", "lower bound"
VERDICTS = ("safe", "unresolved", "degraded", "broken", "failed")  # best first
_PLAIN = re.compile(r"[a-z0-9][a-z0-9_]{0,39}")


@dataclass(frozen=True)
class Model:
    """A model with all that was measured on it.

    Attributes:
        id: name of its page, safe in a path and an address.
        name: its name.
        more: its file's name, where two models would read alike.
        cells: in the order of the board.
    """

    id: str
    name: str
    more: str
    cells: tuple[Cell, ...]

    @property
    def label(self) -> str:
        """Name that tells the model from the others of its site."""
        return f"{self.name} ({self.more})" if self.more else self.name

    @property
    def first(self) -> Cell:
        """A cell, for what all of them say of the model."""
        return self.cells[0]

    @property
    def ranked(self) -> tuple[Cell, ...]:
        """Candidates against the 16-bit cache of the model itself."""
        return tuple(c for c in self.cells if c.role == "candidate" and c.own)

    def of_role(self, *roles: str) -> list[Cell]:
        """Cells of these roles against the model's own 16-bit cache."""
        return [c for c in self.cells if c.role in roles and c.own]


def kind(cell: Cell) -> str:
    """Whether bytes were stored, simulated, or seen through a server's top k alone."""
    return SIMULATED if cell.simulated else BOUND if cell.top_k else STORED


def way(cell: Cell) -> int:
    """Place of a cell's kind in the order of pages."""
    return (STORED, BOUND, SIMULATED).index(kind(cell))


def verdict(cell: Cell) -> str:
    """One of `VERDICTS`, or nothing."""
    label = "failed" if cell.status == "failed" else cell.verdict
    return label if label in VERDICTS else ""


def kld(cell: Cell) -> float:
    """Mean KLD in nats; infinite where there is none."""
    found = cell.metrics.get("mean_kld")
    return found.value if found else math.inf


def order(cell: Cell) -> tuple[Any, ...]:
    """Order of the board: the smallest setting that is safe comes first."""
    label = verdict(cell)
    rank = VERDICTS.index(label) if label else len(VERDICTS)
    return (rank, cell.bits, kld(cell), cell.model, cell.setting, cell.context, cell.role,
            cell.engine, cell.sha256, cell.run, cell.reference, cell.engine_version)  # fmt: skip


def models(cells: Iterable[Cell]) -> list[Model]:
    """Models by name, then by weights; parts of a setting are left to their runs' reports."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.role != "part":
            groups.setdefault(cell.sha256 or f"{cell.model}\n{cell.file}", []).append(cell)
    found = {k: sorted(group, key=order) for k, group in groups.items()}
    names = {k: fmt.clean(g[0].model, 120) for k, g in found.items()}
    more = dict.fromkeys(found, "")
    for what, limit in (("file", 80), ("sha256", 12)):  # a hardened copy may keep the name
        alike: dict[tuple[str, ...], list[str]] = {}
        for k, group in found.items():
            alike.setdefault((names[k], group[0].weights, more[k]), []).append(k)
        for k in (k for same in alike.values() if len(same) > 1 for k in same):
            text = str(getattr(found[k][0], what))[:limit]
            more[k] = f"{more[k]} {fmt.clean(text)}".lstrip()
    made = [Model(page_name(names[k], k), names[k], more[k], tuple(g)) for k, g in found.items()]
    return sorted(made, key=lambda m: (m.label.lower(), m.first.weights, m.id))


def page_name(text: str, identity: str) -> str:
    """A file name out of foreign text, told apart by a hash."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].rstrip("-")
    return (
        f"{plain or 'model'}-{hashlib.sha256(identity.encode('utf-8', 'replace')).hexdigest()[:8]}"
    )


def type_page(name: str) -> str:
    """File name of a KV type's page."""
    return name if _PLAIN.fullmatch(name) else page_name(name, name)


def same_scoring(a: Cell, b: Cell) -> bool:
    """Whether two cells of a model were scored in one way on the same tokens."""
    fields = ("context", "engine", "via", "scored", "simulated", "top_k", "text_sha256")
    return all(getattr(a, name) == getattr(b, name) for name in fields)


def floor(cell: Cell, floors: Sequence[Cell]) -> Estimate | None:
    """Noise floor of a cell: of its own run, else of another run over the same tokens."""
    known = [f for f in floors if same_scoring(f, cell) and "mean_kld" in f.metrics]
    best = min(known, key=lambda f: (f.run != cell.run, f.run), default=None)
    return best.metrics["mean_kld"] if best else None


def smallest_safe(model: Model) -> Cell | None:
    """The worst cell of the smallest setting that is safe wherever it was measured.

    Stored caches are taken where there are any; a server's lower bounds never are.
    """
    groups: dict[tuple[bool, str], list[Cell]] = {}
    for cell in model.ranked:
        if not cell.top_k:
            groups.setdefault((cell.simulated, cell.setting), []).append(cell)
    safe = [g for g in groups.values() if all(verdict(c) == "safe" for c in g)]
    worst = [max(g, key=kld) for g in safe]
    return min(worst, key=lambda c: (c.simulated, c.bits, kld(c), c.setting), default=None)


def siblings(model: Model, others: Sequence[Model]) -> list[Model]:
    """Other models of the same architecture: hardened copies, other weights."""
    mine = model.first.architecture
    return [m for m in others if m.id != model.id and m.first.architecture == mine]
