"""What each page shows: models by way of scoring, KV types by model, other harnesses apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nybble.report import format as fmt
from nybble.report.site import entries, texts
from nybble.report.site.details import Details, key
from nybble.report.site.entries import Model
from nybble.results.base.cell import Cell
from nybble.results.base.external import External, Imported
from nybble.results.records import Slice


@dataclass(frozen=True)
class Line:
    """A setting's cells, one list a context; several where several runs measured the same."""

    setting: str
    bits: float
    reference: str
    at: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Kinds:
    """Settings by category of text, at one context."""

    context: int
    names: tuple[str, ...]
    lines: tuple[tuple[Cell, tuple[Slice | None, ...]], ...]


@dataclass(frozen=True)
class Way:
    """All that was measured on a model in one way of scoring on one mix of texts.

    Attributes:
        title: engine, cache, how it was read.
        about: texts, versions, hardware.
        contexts: columns of the grid.
        lines: rows of the grid, references last.
        cells: every one with all numbers, longest context first.
        kinds: by category; None where the records' slices are not known.
    """

    title: str
    about: tuple[tuple[str, str], ...]
    contexts: tuple[int, ...]
    lines: tuple[Line, ...]
    cells: tuple[Cell, ...]
    kinds: Kinds | None


@dataclass(frozen=True)
class Run:
    """A run folder, and how to make it again."""

    folder: str
    command: str
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class TypePage:
    """A KV type and everything measured with it.

    Attributes:
        name: of the type.
        page: its file's name.
        groups: title -> model and cell; both sides, K alone, V alone.
    """

    name: str
    page: str
    groups: tuple[tuple[str, tuple[tuple[Model, Cell], ...]], ...]

    @property
    def n_models(self) -> int:
        """Models it was measured on."""
        return len({m.id for _, rows in self.groups for m, _ in rows})

    @property
    def n_cells(self) -> int:
        """Measurements with it."""
        return sum(len(rows) for _, rows in self.groups)


@dataclass(frozen=True)
class Harness:
    """Numbers of one other tool, and the files that they came in."""

    name: str
    rows: tuple[tuple[Imported, External], ...]
    sources: tuple[Imported, ...]


def ways(model: Model, details: Details) -> list[Way]:
    """A model's cells against its own 16-bit cache: stored ones first, then by their number."""
    groups: dict[tuple[object, ...], list[Cell]] = {}
    for c in model.of_role("candidate", "floor", "identity"):
        group = (c.engine, c.via, c.scored, c.simulated, c.top_k, c.categories)
        groups.setdefault(group, []).append(c)
    found = [_way(g, details) for _, g in sorted(groups.items(), key=lambda kv: str(kv[0]))]
    return sorted(found, key=lambda w: (entries.way(w.cells[0]), -len(w.cells), w.title, w.about))


def _way(cells: list[Cell], details: Details) -> Way:
    contexts = tuple(sorted({c.context for c in cells}))
    rows: dict[tuple[str, str], list[Cell]] = {}
    for c in cells:
        rows.setdefault((c.setting, c.role), []).append(c)
    lines = [
        Line(
            texts.setting(mine[0]), mine[0].bits,
            {"floor": "noise floor", "identity": "identity"}.get(role, ""),
            tuple(tuple(c for c in mine if c.context == n) for n in contexts),
        )
        for (_, role), mine in rows.items()
    ]  # fmt: skip
    lines.sort(key=lambda x: (x.reference == "identity", x.reference != "", -x.bits, x.setting))
    leader = next((c for c in cells if c.role == "candidate"), cells[0])
    return Way(
        title=texts.scoring(leader),
        about=_about(cells),
        contexts=contexts,
        lines=tuple(lines),
        cells=tuple(sorted(cells, key=lambda c: (c.role, -c.context, -c.bits, entries.order(c)))),
        kinds=_kinds(cells, details),
    )


def _about(cells: Sequence[Cell]) -> tuple[tuple[str, str], ...]:
    def span(numbers: set[int], noun: str) -> str:
        low, high = min(numbers), max(numbers)
        return (
            fmt.plural(high, noun)
            if low == high
            else f"{fmt.count(low)} to " + fmt.plural(high, noun)
        )

    main = [c for c in cells if c.role == "candidate"] or list(cells)
    found = (
        ("engine", _several(texts.engine(c) for c in cells)),
        ("texts", fmt.clean(cells[0].categories.replace(",", ", "), 200)),
        ("scored for each setting and context",
         span({c.n_documents for c in main}, "document") + ", "
         + span({c.n_tokens for c in main}, "token")),
        ("hardware", _several(texts.hardware(c) for c in cells)),
    )  # fmt: skip
    return tuple((label, text) for label, text in found if text)


def _several(found: Iterable[str], most: int = 6) -> str:
    names = sorted(set(found))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return "; ".join(names[:most]) + more


def _kinds(cells: Sequence[Cell], details: Details) -> Kinds | None:
    known = [(c, details.slices.get(key(c))) for c in cells if c.role == "candidate"]
    found = [(c, s) for c, s in known if s]
    if not found:
        return None
    context = max(c.context for c, _ in found)
    found = [(c, s) for c, s in found if c.context == context]
    names = tuple(dict.fromkeys(x.name for _, s in found for x in s))
    if len(names) < 2:
        return None
    lines = []
    for cell, some in sorted(found, key=lambda pair: (-pair[0].bits, entries.order(pair[0]))):
        by_name = {x.name: x for x in some}
        lines.append((cell, tuple(by_name.get(n) for n in names)))
    return Kinds(context, names, tuple(lines))


def runs(model: Model, details: Details) -> list[Run]:
    """The runs that measured a model, by folder."""
    groups: dict[str, list[Cell]] = {}
    for cell in model.cells:
        groups.setdefault(cell.run, []).append(cell)
    found = []
    for folder, cells in sorted(groups.items()):
        c = cells[0]
        facts = (
            ("engine", _several(map(texts.engine, cells))),
            ("framing", fmt.clean(details.framing.get((folder, c.sha256), ""), 300)),
            ("contexts", ", ".join(fmt.count(n) for n in sorted({x.context for x in cells}))),
            ("hardware", texts.hardware(c)),
            ("nybble", fmt.clean(c.nybble, 40)),
            ("created", fmt.clean(c.created, 40)),
            ("sha256 of the scored tokens", fmt.clean(c.text_sha256, 80)),
        )
        found.append(Run(fmt.clean(folder, 200), fmt.clean(c.command, 2000),
                         tuple(f for f in facts if f[1])))  # fmt: skip
    return found


def types(found: Sequence[Model]) -> list[TypePage]:
    """KV types in alphabetical order."""
    groups: dict[str, dict[str, list[tuple[Model, Cell]]]] = {}
    for model in found:
        for cell in model.ranked:
            both = cell.k_type == cell.v_type
            for name, side in ((cell.k_type, "K"), (cell.v_type, "V")):
                title = "K and V" if both else f"{side} alone"
                if not (both and side == "V"):
                    groups.setdefault(name, {}).setdefault(title, []).append((model, cell))
    return [
        TypePage(
            name, entries.type_page(name),
            tuple((t, tuple(_by_model(sides[t]))) for t in ("K and V", "K alone", "V alone")
                  if t in sides),
        )
        for name, sides in sorted(groups.items())
    ]  # fmt: skip


def _by_model(rows: list[tuple[Model, Cell]]) -> list[tuple[Model, Cell]]:
    return sorted(
        rows,
        key=lambda r: (r[0].label.lower(), r[0].id, r[1].setting, r[1].context,
                       entries.order(r[1])),
    )  # fmt: skip


def harnesses(imported: Sequence[Imported]) -> list[Harness]:
    """Other tools' numbers, one table each."""
    groups: dict[str, list[Imported]] = {}
    for record in imported:
        groups.setdefault(record.harness, []).append(record)
    found = []
    for name, records in sorted(groups.items()):
        records.sort(key=lambda r: (r.source, str(r.sha256), str(r.created)))
        rows = [(r, x) for r in records for x in r.rows]
        rows.sort(key=lambda p: (p[1].model, p[1].task, p[1].metric, p[1].setting, str(p[1]),
                                 str(p[0].sha256)))  # fmt: skip
        found.append(Harness(fmt.clean(name, 80), tuple(rows), tuple(records)))
    return found
