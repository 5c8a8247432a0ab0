"""A result base as a static site: a board, a page a model, a page a KV type, a comparison.

Everything in a base is somebody's file. Jinja2 escapes all text and scripts set text alone; what
is trusted is our own style sheets and scripts, and the rewritten SVG. Nothing is fetched, so the
site works from a disk, and equal bases give equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nybble.environment import VERSION
from nybble.errors import NybbleError
from nybble.report import describe, html
from nybble.report import format as fmt
from nybble.report.page import asset
from nybble.report.site import data, entries, files, pages, texts
from nybble.report.site.details import Details
from nybble.report.site.entries import Model
from nybble.results.base.cell import Cell
from nybble.results.base.external import Imported

if TYPE_CHECKING:
    from jinja2 import Environment

    from nybble.report.site.pages import TypePage

TITLE = "KV cache leaderboard"
_ASSETS = ("site.css", "state.js", "filters.js", "board.js", "compare.js", "copy.js")
_TERMS = ("mean KLD", "p99.9 KLD", "same top", "flips", "unresolved")


@dataclass(frozen=True)
class Site:
    """What was built.

    Attributes:
        index: the page to open.
        files: all files written, the manifest left out.
        removed: stale files of an earlier build that went.
    """

    index: Path
    files: int
    removed: int


@dataclass(frozen=True)
class _Entry:
    """A model's line on the first page; the floor is the highest of its contexts."""

    model: Model
    settings: int
    contexts: str
    floor: texts.Number
    best: Cell | None


def build_site(
    cells: Sequence[Cell],
    imported: Sequence[Imported],
    out: Path,
    *,
    title: str = TITLE,
    details: Details | None = None,
) -> Site:
    """Build the site of a result base.

    Args:
        cells: all of the base, in any order.
        imported: numbers of other harnesses; they get a page of their own.
        out: folder; new, empty, or an earlier site, whose own files are replaced.
        title: of the site.
        details: what records say beyond cells: slices by category, framing, KV types.

    Raises:
        NybbleError: there is nothing to show, or the folder cannot be used.
    """
    old = files.owned(out)
    found = entries.models(cells)
    if not found and not imported:
        raise NybbleError(
            "nothing to show: the result base has no measurement",
            allowed="folders of runs",
            hint="nybble measure MODEL --out BASE/NAME",
        )
    made = _files(found, imported, fmt.clean(title, 120), details or Details())
    removed = files.write(out, made, old)
    return Site(out / "index.html", len(made), removed)


def _files(
    found: Sequence[Model], imported: Sequence[Imported], title: str, details: Details
) -> dict[str, str]:
    types = pages.types(found)
    harnesses = pages.harnesses(imported)
    environment = _environment(title, bool(harnesses))
    made = {f"assets/{n}": asset(f"site/assets/{n}") for n in _ASSETS}
    made["assets/report.css"] = asset("report.css")
    made["assets/data.js"] = data.script(found)

    def page(template: str, root: str = "", **values: Any) -> str:
        return environment.get_template(f"{template}.html.j2").render(
            root=root, here=template, **values
        )

    made["index.html"] = page("index", **_index(found, types))
    made["compare.html"] = page("compare")
    if harnesses:
        made["other.html"] = page("other", harnesses=harnesses)
    by_weights = {m.first.sha256: m for m in found}
    for model in found:
        values = _model(model, found, by_weights, details)
        made[f"models/{model.id}.html"] = page("model", "../", **values)
    for kv in types:
        note = details.types.get(kv.name)
        made[f"types/{kv.page}.html"] = page("type", "../", page=kv, note=note)
    return made


def _index(found: Sequence[Model], types: Sequence[TypePage]) -> Mapping[str, Any]:
    from nybble.report.site import pictures

    ranked = [c for m in found for c in m.ranked]
    settings = {c.setting for c in ranked}
    summary = (
        f"{fmt.plural(len(ranked), 'measurement')} of {fmt.plural(len(settings), 'KV setting')} "
        f"on {fmt.plural(len(found), 'model')}"
    )
    return {
        "summary": summary,
        "rows": [_entry(m) for m in found],
        "types": types,
        "overall": pictures.of_all(found),
        "glossary": [e for e in html.GLOSSARY if e.label in _TERMS] + [
            describe.Entry("noise floor", "Mean KLD between two 16-bit formats on the same text.")
        ],
    }  # fmt: skip


def _entry(model: Model) -> _Entry:
    contexts = sorted({c.context for c in model.ranked})
    floors = [c.metrics["mean_kld"] for c in model.of_role("floor") if "mean_kld" in c.metrics]
    return _Entry(
        model,
        len({c.setting for c in model.ranked}),
        ", ".join(map(fmt.count, contexts)) or fmt.NONE,
        texts.number(max(floors, key=lambda e: e.value, default=None)),
        entries.smallest_safe(model),
    )


def _model(
    model: Model, found: Sequence[Model], by_weights: Mapping[str, Model], details: Details
) -> Mapping[str, Any]:
    from nybble.report.site import pictures

    return {
        "model": model,
        "best": entries.smallest_safe(model),
        "charts": pictures.of_model(model),
        "ways": pages.ways(model, details),
        "against": [(c, by_weights.get(c.reference)) for c in model.cells if not c.own],
        "siblings": [(m, entries.smallest_safe(m)) for m in entries.siblings(model, found)],
        "runs": pages.runs(model, details),
    }


def _environment(title: str, has_other: bool) -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("nybble.report.site", "templates"),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.globals.update(
        title=title, has_other=has_other, version=VERSION, t=texts, verdict=entries.verdict,
        clean=fmt.clean, bits=fmt.bits, count=fmt.count, plural=fmt.plural, size=fmt.size,
        pieces=fmt.pieces, plain=_plain,
    )  # fmt: skip
    return environment


def _plain(value: float) -> str:
    """A number of another harness, in its own unit."""
    return f"{value:.6g}"
