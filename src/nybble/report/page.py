"""One HTML file with everything in it: no address is ever fetched, no library is loaded.

Every name in a record may be hostile. Jinja2 escapes all text; the trusted parts (our style
sheets, our script, the rewritten SVG and JSON) are marked as such here and nowhere else; and a
content security policy lets run only the one script whose hash it names.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from nybble.report import format as fmt

if TYPE_CHECKING:
    from jinja2 import Environment

    from nybble.report.describe import Entry
    from nybble.report.plots import Chart

_UNSAFE = re.compile("[<>&\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True)
class Grid:
    """A table: column titles and rows, texts all."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


@dataclass(frozen=True)
class Page:
    """What every page has, whatever it tells; texts are cleaned by who makes them.

    Attributes:
        id: element that holds the record.
        json: the record.
        title: of the window.
        eyebrow: kind of page.
        name: heading.
        sub: line below it.
        how: label and text of how it was made.
        setup: versions and hardware.
        warnings: what a reader must know.
        command: words of the command that makes it again.
        version: nybble's.
        how_title: heading of `how`.
        whole: what the record is.
        styles: style sheets beside the common one.
    """

    id: str
    json: str
    title: str
    eyebrow: str
    name: str
    sub: str
    how: list[Entry]
    setup: list[Entry]
    warnings: list[str]
    command: list[str]
    version: str
    how_title: str = "How it was measured"
    whole: str = "run"
    styles: tuple[str, ...] = ()


def render(template: str, page: Page, **values: Any) -> str:
    """A page as HTML.

    Args:
        template: its file in templates/, which fills in the blocks of page.html.j2.
        page: what every page has.
        values: what this kind of page has.
    """
    from markupsafe import Markup

    script = asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _environment().get_template(template).render(
        page=page,
        json=json_part(page.json),
        css=Markup("".join(map(asset, ("report.css", *page.styles)))),
        js=Markup(script),
        script_hash=f"sha256-{digest}",
        pieces=fmt.pieces,
        **values,
    )  # fmt: skip


def drawn(chart: Chart | None) -> dict[str, Any] | None:
    """A chart for a template; its SVG was rewritten by charts/svg.py and is trusted."""
    from markupsafe import Markup

    return vars(chart) | {"svg": Markup(chart.svg)} if chart else None


def json_part(text: str) -> Any:
    """A record for a script element of a template."""
    from markupsafe import Markup

    return Markup(script_json(text))


def script_json(text: str) -> str:
    """JSON rewritten so that it cannot end or open a script element or a comment."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def asset(name: str) -> str:
    """A file of this folder."""
    return resources.files("nybble.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("nybble.report", "templates"),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
