"""From a drawn figure to SVG text that is safe and steady inside one page with others.

matplotlib's SVG is parsed and rewritten: ids get a prefix, stand-in colours become CSS
variables, marks get <title> tooltips; metadata, fonts, the global style sheet and all
namespaces go (inline SVG needs none), so the page holds no address at all.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET

from matplotlib.figure import Figure

from nybble.report.charts.canvas import DARK, PRINT, VARIABLES, Picture, variables

_COLOUR = re.compile("|".join(VARIABLES))
_FONT = re.compile(r"font-family: [^;]*;? ?")
_REFERENCE = re.compile(r"#([\w.-]+)\)")
_FAMILY = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def inline(picture: Picture, prefix: str) -> str:
    """SVG text for a page: no size of its own, ids under `prefix`, colours by variables."""
    root = _parse(picture.figure, picture)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", picture.summary)
    root.set("id", prefix)
    for element in root.iter():
        if element is not root and "id" in element.attrib:
            element.set("id", f"{prefix}-{element.attrib['id']}")
        for name, value in element.attrib.items():
            if name == "href" and value.startswith("#"):
                element.set(name, f"#{prefix}-{value[1:]}")
            elif name in ("style", "clip-path", "fill", "stroke"):
                element.set(name, _REFERENCE.sub(rf"#{prefix}-\1)", value))
    _variables(root)
    return ET.tostring(root, encoding="unicode")


def standalone(picture: Picture) -> str:
    """An SVG file: own colours on white, tooltips, a title for screen readers."""
    root = _parse(picture.figure, picture)
    root.set("xmlns", "http://www.w3.org/2000/svg")
    root.set("font-family", _FAMILY)
    root.set("role", "img")
    root.set("aria-label", picture.summary)
    view = root.get("viewBox", "0 0 0 0").split()
    white = ET.Element("rect", {"width": view[2], "height": view[3], "fill": "#ffffff"})
    root.insert(0, white)
    return _file(root)


def adaptive(picture: Picture) -> str:
    """An SVG file that is light or dark as the page around it, on a background of its own."""
    root = _parse(picture.figure, picture)
    _variables(root)
    root.set("xmlns", "http://www.w3.org/2000/svg")
    root.set("font-family", _FAMILY)
    root.set("role", "img")
    root.set("aria-label", picture.summary)
    light, dark = (
        "svg{" + "".join(f"{name}:{colour};" for name, colour in variables(theme).items()) + "}"
        for theme in (PRINT, DARK)
    )
    sheet = ET.Element("style")
    sheet.text = f"{light}@media(prefers-color-scheme:dark){{{dark}}}"
    view = root.get("viewBox", "0 0 0 0").split()
    back = ET.Element("rect", {"width": view[2], "height": view[3], "style": "fill: var(--bg)"})
    root[:0] = [sheet, back]
    return _file(root)


def _file(root: ET.Element) -> str:
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _variables(root: ET.Element) -> None:
    """Turn stand-in colours into CSS variables."""
    for element in root.iter():
        for name in ("style", "fill", "stroke"):
            if name in element.attrib:
                value = element.attrib[name]
                element.set(name, _COLOUR.sub(lambda found: VARIABLES[found[0]], value))


def _parse(figure: Figure, picture: Picture) -> ET.Element:
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    root = ET.fromstring(out.getvalue())
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for name in list(element.attrib):
            value = element.attrib.pop(name)
            element.set(name.rpartition("}")[2], value)
        if "style" in element.attrib:
            element.set("style", _FONT.sub("", element.attrib["style"]))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in ("metadata", "style"):
                parent.remove(child)
    root.set("stroke-linejoin", "round")
    root.set("stroke-linecap", "butt")
    _tooltips(root, picture.tips)
    return root


def _tooltips(root: ET.Element, tips: dict[str, str]) -> None:
    for element in root.iter():
        text = tips.get(element.get("id", ""))
        if text is not None:
            title = ET.Element("title")
            title.text = text
            element.insert(0, title)
            element.set("class", "mark")
