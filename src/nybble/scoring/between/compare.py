"""Compare two runs, or two settings of one, over the tokens that both scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import duckdb

from nybble.errors import NybbleError
from nybble.results.base.cell import Cell
from nybble.results.compared import Compared, Contrast, Pair
from nybble.scoring.between.contrast import fill, judged
from nybble.scoring.between.shared import Place, Shared, database, shared
from nybble.scoring.between.sides import Run, choose, side

_FLOORS = 2.0  # a row within twice the noise floor is not resolved anywhere in nybble
# What else may differ between two sides, by the words for it.
_TOLD = {
    "model": "model", "sha256": "weights", "scored": "scored weights", "engine": "engine",
    "engine_version": "engine version", "via": "via", "cpu": "processor",
    "simulated": "simulated bytes", "top_k": "top k",
}  # fmt: skip


@dataclass
class _Told:
    """Notes in the order of their first finding, and why pairs were refused."""

    notes: dict[str, None] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)


def compare(
    a: str,
    b: str,
    *,
    settings: Sequence[str] = (),
    contexts: Sequence[int] = (),
    margin: float | None = None,
    told: Callable[[str], None] = lambda _: None,
) -> Compared:
    """Compare two sides by their token rows.

    Args:
        a: `RUN[:MODEL][:K/V]`, see scoring/between/sides.py.
        b: the same. Where only one names a setting, it is taken on both sides; where neither
            does, every setting that both measured.
        settings: of those, these only.
        contexts: these only; all that both have if empty.
        margin: nats within which a difference of mean KLD is none; None for twice the larger
            noise floor of the two.
        told: hears of every pair before it is read.

    Returns:
        A pair for every setting and context. Where two rows of one model share no token, their
        own numbers stand side by side, unpaired and without a verdict.

    Raises:
        NybbleError: nothing can be compared; it says why.
    """
    one, two = choose(a), choose(b)
    heard, found = _Told(), []
    with database() as db:
        for cell_a, cell_b in _cells(one, two, settings, contexts, heard):
            told(f"{cell_a.setting} and {cell_b.setting} at context {cell_a.context:,}")
            pair = _pair(db, (one, cell_a), (two, cell_b), margin, heard)
            found += [pair] if pair else []
    if not found:
        raise NybbleError(
            f"the two share no token: {'; '.join(dict.fromkeys(heard.refused))}",
            seen=f"{one.folder} and {two.folder}",
            allowed="the same text, tokenizer, framing, contexts and --score-from in both",
            hint="nybble measure with the same --text or --category, --context and --score-from",
        )
    for reason in dict.fromkeys(heard.refused):
        heard.notes[f"left out: {reason}"] = None
    return Compared(judged(found), list(heard.notes))


def _cells(
    one: Run, two: Run, settings: Sequence[str], contexts: Sequence[int], heard: _Told
) -> Iterator[tuple[Cell, Cell]]:
    """What is compared with what, from the shortest context to the longest."""
    names = _settings(one, two, settings)
    common = sorted({c.context for c in one.done} & {c.context for c in two.done})
    unknown = [c for c in contexts if c not in common]
    if unknown or not common:
        seen = ", ".join(map(str, unknown)) if unknown else _contexts(one, two)
        raise NybbleError(
            "the two have no such context in common" if unknown else "no context in common",
            seen=seen, allowed=[str(c) for c in common] or "one that both runs have",
            hint="nybble measure with the same --context",
        )  # fmt: skip
    if not (one.setting or two.setting or settings):
        _note_apart(one, two, lambda run: run.settings, "of ", heard)
    if not contexts:
        _note_apart(
            one, two, lambda run: [f"{c.context:,}" for c in run.done], "at context ", heard
        )
    found = 0
    for context in common:
        for name_a, name_b in names:
            if contexts and context not in contexts:
                continue
            cells = one.cell(name_a, context), two.cell(name_b, context)
            for run, name, cell in zip((one, two), (name_a, name_b), cells, strict=True):
                if cell is None:
                    heard.notes[f"{run.text} has no finished row of {name} at {context:,}"] = None
            if cells[0] is not None and cells[1] is not None:
                found += 1
                yield cells[0], cells[1]
    if not found:
        raise NybbleError("no setting was measured at one context by both", seen="; ".join(
            heard.notes), hint="--kv and --context of rows that both runs have")  # fmt: skip


def _contexts(one: Run, two: Run) -> str:
    sides = ((one, {c.context for c in one.done}), (two, {c.context for c in two.done}))
    return "; ".join(f"{run.text}: {', '.join(map(str, sorted(c))) or 'none'}" for run, c in sides)


def _settings(one: Run, two: Run, wanted: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of settings."""
    if one.setting or two.setting:
        if wanted:
            raise NybbleError("a setting is named twice", seen=f"--kv {', '.join(wanted)}",
                              allowed="--kv, or a setting behind the run's colon")  # fmt: skip
        a = one.setting or one.named(two.setting or "")
        b = two.setting or two.named(one.setting or "")
        names = [(a, b)]
    elif wanted:
        names = [(one.named(name), two.named(name)) for name in dict.fromkeys(wanted)]
    else:
        names = [(name, name) for name in one.settings if name in two.settings]
    same = one.folder.resolve() == two.folder.resolve() and one.label == two.label
    if same and any(a == b for a, b in names):
        raise NybbleError(
            "A and B are the same rows", seen=f"{one.text} and {two.text}",
            allowed=f"two runs, two models of a run, or two of {', '.join(one.settings)}",
            hint="nybble results compare "
            + " ".join(f"{one.folder}:{name}" for name in (*one.settings, "K/V", "K/V")[:2]),
        )  # fmt: skip
    if not names:
        raise NybbleError(
            "no KV setting in common",
            seen=f"{one.text}: {', '.join(one.settings) or 'none'}; "
            f"{two.text}: {', '.join(two.settings) or 'none'}",
            allowed="a setting that both have, or one behind each run's colon",
            hint=f"nybble results compare {one.folder}:K/V {two.folder}:K/V",
        )
    return names


def _pair(
    db: duckdb.DuckDBPyConnection, a: tuple[Run, Cell], b: tuple[Run, Cell],
    margin: float | None, heard: _Told,
) -> Pair | None:  # fmt: skip
    (one, cell_a), (two, cell_b) = a, b
    context = cell_a.context
    found = shared(db, _place(one, cell_a), _place(two, cell_b))
    floors = [f for run in (one, two) if (f := run.floor(context))]
    within = margin if margin is not None else max(floors, default=0.0) * _FLOORS or None
    pair = Pair(side(one, cell_a), side(two, cell_b), context, margin=within)
    _note(pair, found, heard)
    if not found.why_none:
        for run, cell, only in ((one, cell_a, found.only_a), (two, cell_b, found.only_b)):
            _note_rows(run, cell, only + found.n_tokens + found.n_nonfinite, heard)
        return fill(pair, found)
    at = f"{cell_a.setting} and {cell_b.setting} at context {context:,}: {found.why_none}"
    alike = cell_a.setting == cell_b.setting and (
        cell_a.sha256 == cell_b.sha256 or (cell_a.model == cell_b.model and not found.other_chunks)
    )
    if not alike:
        heard.refused.append(at)
        return None
    heard.notes[f"unpaired numbers, each from its own run: {found.why_none}"] = None
    return _unpaired(pair, cell_a, cell_b, found.why_none)


def _place(run: Run, cell: Cell) -> Place:
    return Place(run.folder, run.label, cell.role, cell.setting, cell.context)


def _unpaired(pair: Pair, a: Cell, b: Cell, why: str) -> Pair:
    """Each side's own numbers, from its record."""
    names = [m for m in ("mean_kld", "same_top", "flips") if m in a.metrics and m in b.metrics]
    metrics: dict[str, Contrast] = {m: Contrast(a.metrics[m], b.metrics[m]) for m in names}
    return replace(pair, only_a=a.n_tokens, only_b=b.n_tokens, metrics=metrics, margin=None,
                   reason=f"unpaired: {why}")  # fmt: skip


def _note(pair: Pair, found: Shared, heard: _Told) -> None:
    differ = False
    for name, words in _TOLD.items():
        a, b = getattr(pair.a, name), getattr(pair.b, name)
        if a != b and not (name == "sha256" and pair.a.model != pair.b.model):
            differ = True
            a, b = (str(v)[:12] if name == "sha256" else str(v) or "not told" for v in (a, b))
            heard.notes[f"A and B differ in {words}: {a}, {b}"] = None
    if differ:
        text = "each side is compared with the 16-bit cache of its own weights, in its own run"
        heard.notes[text] = None
    if pair.a.top_k or pair.b.top_k:
        heard.notes["mean KLDs of a top-k comparison through a server are lower bounds"] = None
    if found.other_chunks and not found.why_none:
        heard.notes[f"{found.other_chunks} chunks hold other tokens in the two runs and are left "
                    f"out at context {pair.context:,}"] = None  # fmt: skip


def _note_apart(
    one: Run, two: Run, has: Callable[[Run], Sequence[str]], what: str, heard: _Told
) -> None:
    """Note what only one side has, a failed row of the other included."""
    for run, other in ((one, two), (two, one)):
        only = dict.fromkeys(name for name in has(run) if name not in has(other))
        if only:
            heard.notes[f"only {run.text} has finished rows {what}{', '.join(only)}"] = None


def _note_rows(run: Run, cell: Cell, n: int, heard: _Told) -> None:
    told = cell.n_tokens + cell.n_nonfinite
    if n != told:
        heard.notes[
            f"{run.text} has {n:,} token rows of {cell.setting} at context {cell.context:,}, its "
            f"summary tells of {told:,}: cells of another command are in the folder"
        ] = None
