"""How the report writes numbers and foreign text: one place, so that every output agrees.

Foreign text (model names, file names, errors, commands) may hold anything: terminal escapes,
right-to-left overrides, half surrogate pairs. `clean` is what makes it printable; escaping for
Markdown, CSV or HTML comes on top, where the text is written.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable

from nybble.results.records import Estimate

NONE = "–"  # what a cell shows when there is no number
LONG = 24  # characters of a KV setting that a picture shows, and that a table never breaks
_MOST = 2000  # characters of a KV setting in a table: any that a user would write, no novel
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def kld(value: float | None) -> str:
    """Nats with two significant digits: `0.0054`, `4.4e-05`, `12`; exactly zero is `0`."""
    if value is None:
        return NONE
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return "not finite"
    size = abs(value)
    if size < 1e-4:
        return f"{value:.1e}"
    return f"{value:.0f}" if size >= 9.95 else f"{value:#.2g}"


def interval(estimate: Estimate | None, gap: str = ", ") -> str:
    """`[low, high]`, or nothing where there are too few documents for one."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    return f"[{kld(estimate.low)}{gap}{kld(estimate.high)}]"


def kld_with_interval(estimate: Estimate | None, gap: str = ", ") -> str:
    """`0.0054 [0.0049, 0.0060]`."""
    if estimate is None:
        return NONE
    return f"{kld(estimate.value)} {interval(estimate, gap)}".rstrip()


def percent(fraction: float | None) -> str:
    """One decimal between 10 % and 99 %, two outside; never rounded to a full 0 or 100 %."""
    if fraction is None:
        return NONE
    if fraction == 0:
        return "0"
    if not math.isfinite(fraction):
        return "not finite"
    if fraction == 1:
        return "100%"
    value = 100 * fraction
    if 0 < value < 0.005:
        return "<0.01%"
    if 99.995 <= value < 100:
        return ">99.99%"
    return f"{value:.1f}%" if 10 <= abs(value) < 99 else f"{value:.2f}%"


def ratio(value: float | None) -> str:
    """A perplexity ratio with four decimals; exactly one is `1`."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "not finite"
    if value == 1:
        return "1"
    return f"{value:.4f}" if value < 100 else f"{value:.3g}"


def times(factor: float | None) -> str:
    """How many times lower: `1.07`, `4.3`, `118`; a dash where nothing was left to divide by."""
    if factor is None or not math.isfinite(factor):
        return NONE
    return f"{factor:.0f}" if factor >= 99.5 else f"{factor:.{2 - (factor >= 1.995)}f}"


def size(n_bytes: float | None) -> str:
    """Bytes in the largest unit that keeps the number at 1 or more: `4.50 KiB`, `1.21 GiB`."""
    if n_bytes is None:
        return NONE
    if n_bytes == 0:
        return "0"
    value, unit = float(n_bytes), 0
    while abs(value) >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{_three(value) if unit else format(value, 'g')} {_UNITS[unit]}"


def mib(n_bytes: float) -> str:
    """Bytes as a plain number of MiB with three significant digits: `0.44`, `12.3`, `1,234`."""
    return "0" if n_bytes == 0 else _three(n_bytes / 2**20)


def bits(value: float) -> str:
    """Bits an element: `16`, `8.5`, `6.25`."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if value else NONE


def count(value: float) -> str:
    """A whole number with thousands separated: `16,384`."""
    return f"{value:,.0f}"


def tick(value: float) -> str:
    """A number on an axis: `0.001`, `1e-05`, `12`."""
    return f"{value:g}"


def plural(n: int, noun: str) -> str:
    """`1 document`, `24 documents`."""
    return f"{count(n)} {noun}" + ("" if n == 1 else "s")


def clean(text: object, limit: int | None = None) -> str:
    """Make foreign text printable on one line, and shorten it to `limit` characters.

    Control and format characters (terminal escapes, text direction), half surrogate pairs and
    what XML forbids become U+FFFD; any run of white space becomes one space.
    """
    line = " ".join(str(text).split())
    line = "".join("\ufffd" if _unprintable(c) else c for c in line)
    if limit is not None and len(line) > limit:
        line = line[: limit - 1].rstrip() + "…"
    return line


def setting(text: object) -> str:
    """A KV setting in full, for tables and tooltips."""
    return clean(text, _MOST)


def label(text: object) -> str:
    """A KV setting as pictures show it: short, with an ellipsis where it had to be."""
    return clean(text, LONG)


def pieces(text: str, width: int = LONG) -> list[str]:
    """Cut a KV setting into lines of at most `width`; joined they are the text again.

    Cuts are before a plus sign, else after a slash, else inside a name, else where they must.
    """
    found: list[str] = []
    line = ""
    for modifier in re.split(r"(?=\+)", text):
        if len(line) + len(modifier) <= width:
            line += modifier
            continue
        found.append(line)
        line = modifier
        while len(line) > width:
            cut = line.rfind("/", 0, width) + 1
            cut = cut or max(line.rfind(c, 0, width) for c in "_:. ") + 1 or width
            found.append(line[:cut])
            line = line[cut:]
    return [piece for piece in (*found, line) if piece] or [""]


def _unprintable(char: str) -> bool:
    if char in "\u200c\u200d":  # joiners: Persian, Indic scripts and emoji need them
        return False
    return unicodedata.category(char) in ("Cc", "Cf", "Cs") or char in "\ufffe\uffff"


def _three(value: float) -> str:
    """Three significant digits without an exponent."""
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"


def with_interval(
    found: Estimate | None, one: Callable[[float], str], end: Callable[[float], str] | None = None
) -> str:
    """A number and its interval where it has one, `55% [36, 86]`.

    Args:
        found: the estimate.
        one: writes the value.
        end: writes the ends; as the value if None.
    """
    if found is None:
        return NONE
    if found.low is None or found.high is None:
        return one(found.value)
    end = end or one
    return f"{one(found.value)} [{end(found.low)}, {end(found.high)}]"
