"""What pages say beyond cells: slices by category and framing, out of a base's records."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nybble.errors import NybbleError
from nybble.results.base.base import Base
from nybble.results.base.cell import Cell
from nybble.results.base.find import SUMMARY, read_text
from nybble.results.records import Estimate, Slice

Key = tuple[str, str, str, int]
_QUERY = """
    SELECT c.run, c.sha256, c.setting, c.context, s.name, s.n_documents, s.n_tokens,
        s.mean_kld, s.mean_kld_low, s.mean_kld_high
    FROM slices s JOIN cells c USING (cell)
    WHERE s.kind = 'category' AND c.role = 'candidate' AND c.sha256 = c.reference
        AND s.mean_kld IS NOT NULL
    ORDER BY ALL
"""


@dataclass(frozen=True)
class TypeNote:
    """What a KV type is, in words of its registry.

    Attributes:
        bits: stored bits an element at a head size of 128.
        layout: how the bits are spent.
        source: where the layout is read from.
        engines: that accept it.
    """

    bits: float
    layout: str
    source: str
    engines: tuple[str, ...]


@dataclass(frozen=True)
class Details:
    """What records say beyond their cells; a page leaves out what is not there.

    Attributes:
        slices: categories of a candidate against its own 16-bit cache, see `key`.
        framing: how text was put to a model, by run and sha256 of its weights.
        types: KV types by name.
    """

    slices: Mapping[Key, Sequence[Slice]] = field(default_factory=dict)
    framing: Mapping[tuple[str, str], str] = field(default_factory=dict)
    types: Mapping[str, TypeNote] = field(default_factory=dict)


def key(cell: Cell) -> Key:
    """What `Details.slices` knows a candidate by."""
    return cell.run, cell.sha256, cell.setting, cell.context


def details_of(base: Base, types: Mapping[str, TypeNote]) -> Details:
    """The details of a base.

    Args:
        base: opened.
        types: KV types by name.

    Raises:
        NybbleError: a summary went or was damaged since the base was opened.
    """
    return Details(_slices(base), _framing(base), types)


def _slices(base: Base) -> dict[Key, list[Slice]]:
    columns = next((v.columns for v in base.schema() if v.name == "slices"), [])
    if "mean_kld_high" not in {name for name, _ in columns}:  # of no run, or of none with slices
        return {}
    found: dict[Key, list[Slice]] = {}
    for run, sha256, setting, context, name, documents, tokens, *ends in base.query(_QUERY).rows:
        part = Slice(name, documents, tokens, {"mean_kld": Estimate(*ends)})
        found.setdefault((run, sha256, setting, context), []).append(part)
    return found


def _framing(base: Base) -> dict[tuple[str, str], str]:
    found = {}
    for run in sorted({c.run for c in base.cells}):
        path = base.root / run / SUMMARY
        try:
            # The base has checked the record; building all of it anew takes ten times as long.
            for model in json.loads(read_text(path))["models"]:
                found[run, str(model["sha256"])] = str(model["framing"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise NybbleError("a record changed while it was read", seen=f"{path}: {error}",
                              hint="the same command again") from error  # fmt: skip
    return found
