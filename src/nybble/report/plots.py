"""Pictures of a measurement, as SVG for the report or as a file for a README.

This module loads matplotlib; import it only where a picture is made.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nybble.errors import NybbleError
from nybble.report import view
from nybble.report.charts import (
    along,
    before_after,
    canvas,
    categories,
    models,
    pareto,
    quality,
    sides,
    svg,
)
from nybble.report.charts import parts as part_charts
from nybble.report.charts.canvas import Picture, Theme
from nybble.report.parts import Split
from nybble.results.records import Measurement

# In the order of the report; a picture that has nothing to show returns None.
PICTURES: dict[str, Callable[[Measurement, Theme], Picture | None]] = {
    "quality": quality.draw,
    "pareto": pareto.draw,
    "models": models.draw,
    "sides": sides.draw,
    "along": along.draw,
    "categories": categories.draw,
}
_PNG_DPI = 200


@dataclass(frozen=True)
class Chart:
    """A picture ready for a page.

    Attributes:
        key: key in `PICTURES`, also the id of the <svg>.
        title: heading.
        svg: inline <svg> element, coloured by CSS variables (see template).
        summary: its text alternative.
        caption: how to read it.
        header: column titles of the table of the same numbers.
        rows: that table.
    """

    key: str
    title: str
    svg: str
    summary: str
    caption: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


def charts(m: Measurement) -> list[Chart]:
    """Every picture that this measurement has numbers for."""
    found = []
    for key, draw in PICTURES.items():
        with canvas.style(f"nybble-{key}"):
            picture = draw(m, canvas.MARKED)
            found += [_chart(key, picture)] if picture else []
    return found


def part_chart(split: Split, key: str) -> Chart | None:
    """One setting layer by layer; None where no part has numbers."""
    with canvas.style(f"nybble-{key}"):
        picture = part_charts.draw(split, canvas.MARKED)
        return _chart(key, picture) if picture else None


def pair_chart(
    panels: Sequence[before_after.Panel], of: str, key: str, *, title: str, caption: str
) -> Chart | None:
    """Before and after, by `of` ("layer"); None where no pair has numbers."""
    with canvas.style(f"nybble-{key}"):
        picture = before_after.draw(panels, of, canvas.MARKED)
        if picture is None:
            return None
        picture.title, picture.caption = title, caption
        return _chart(key, picture)


def pareto_svg(m: Measurement, at: int | None = None) -> str:
    """Every format on one model, for a README: an SVG that follows the page's light or dark.

    Args:
        m: the measurement; its first model at the longest context is drawn.
        at: tokens of context at which stored bits are counted, one of --memory-at; bits of the
            rows as they are without.

    Raises:
        NybbleError: nothing to draw, or no bytes were recorded at this context.
    """
    with canvas.style("nybble-pareto"):
        picture = pareto.picture(m, canvas.MARKED, at)
        if picture is None:
            raise NybbleError(
                "nothing to draw: no setting was measured to the end", seen=view.names(m)
            )
        return svg.adaptive(picture)


def _chart(key: str, picture: Picture) -> Chart:
    return Chart(
        key=key,
        title=picture.title,
        svg=svg.inline(picture, f"chart-{key}"),
        summary=picture.summary,
        caption=picture.caption,
        header=picture.header,
        rows=picture.rows,
    )


def save_picture(m: Measurement, path: str | Path) -> None:
    """Write quality against bytes on white, as SVG or PNG by the file's ending.

    Raises:
        NybbleError: another ending, no finished candidate, or the file cannot be written.
    """
    nothing = NybbleError("nothing to draw: no setting was measured to the end", seen=view.names(m))
    save(path, "nybble-picture", lambda theme: quality.draw(m, theme), nothing)


def save(
    path: str | Path,
    salt: str,
    draw: Callable[[Theme], Picture | None],
    nothing: NybbleError,
    *,
    both: bool = False,
) -> None:
    """Write a picture as SVG or PNG by the file's ending.

    Args:
        path: ends in .svg or .png.
        salt: makes the ids in an SVG its own.
        draw: makes the picture in a theme; None where there is nothing to show.
        nothing: raised then.
        both: an SVG follows the page's light or dark; else it is on white, as a PNG always is.

    Raises:
        NybbleError: another ending, nothing to draw, or the file cannot be written.
    """
    target = Path(path)
    kind = target.suffix.lower()
    if kind not in (".svg", ".png"):
        raise NybbleError(
            "a picture is written as SVG or PNG", seen=target.name, allowed=".svg, .png"
        )
    follows = both and kind == ".svg"
    with canvas.style(salt):
        picture = draw(canvas.MARKED if follows else canvas.PRINT)
        if picture is None:
            raise nothing
        if kind == ".svg":
            text = svg.adaptive(picture) if follows else svg.standalone(picture)
            data = text.encode("utf-8", "replace")
        else:
            out = io.BytesIO()
            picture.figure.savefig(
                out, format="png", dpi=_PNG_DPI, facecolor="white", metadata={"Software": None}
            )
            data = out.getvalue()
    try:
        target.write_bytes(data)
    except OSError as error:
        raise NybbleError("the picture cannot be written", seen=f"{target}: {error}") from error
