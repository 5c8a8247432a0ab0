"""What surrounds a type in a setting: protected tokens, windows, layers, means, scales, rotations.

Written behind the types with a plus sign each, in any order; the canonical order is that of
`Around`'s fields: `q4_0/q4_0+first4+recent128+skip0.-1+mean+scale+search+rot32+latent`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from nybble.errors import NybbleError, unknown

_LAYERS = r"-?\d+(?:--?\d+)?(?:\.-?\d+(?:--?\d+)?)*"
_AT = re.compile(rf"(?P<layers>{_LAYERS})(?:h(?P<head>\d+))?:(?P<k>[a-z0-9_]+)/(?P<v>[a-z0-9_]+)")
ROTATE = ("32", "random", "llama")


@dataclass(frozen=True, order=True)
class At:
    """Other types in some layers, or in one KV head of them.

    Attributes:
        layers: layer indices; negative ones count from the last layer.
        k: K type there.
        v: V type there.
        head: KV head, or None for all.
    """

    layers: tuple[int, ...]
    k: str
    v: str
    head: int | None = None

    def __str__(self) -> str:
        head = "" if self.head is None else f"h{self.head}"
        return f"+at{join_layers(self.layers)}{head}:{self.k}/{self.v}"

    def covers(self, layer: int, n_layers: int) -> bool:
        """Whether it speaks of this layer of a model with n_layers."""
        return layer in self.layers or layer - n_layers in self.layers


@dataclass(frozen=True, order=True)
class Around:
    """Everything in a setting besides the two types and the engine's own rotation.

    Attributes:
        first: first tokens kept in f16; None for what the type itself does.
        recent: last tokens a query sees unquantized.
        chunk: tokens of a prefill chunk that sees itself unquantized.
        skip: layers left in f16.
        mean: remove the calibrated mean of the keys.
        scale: scale K's channels by the calibrated (E[k^2] / E[q^2]) ** (1/4).
        search: choose every block's scale by least error.
        rotate: a rotation put around types that have none of their own.
        latent: where keys are a function of the values (`models.geometry.Layer.k_is_v`), keep the
            value alone, in the type named for K. Another cache with another loss, and so a part of
            the setting.
        at: other types in some layers or heads.
    """

    first: int | None = None
    recent: int = 0
    chunk: int = 0
    skip: tuple[int, ...] = ()
    mean: bool = False
    scale: bool = False
    search: bool = False
    rotate: str = ""
    latent: bool = False
    at: tuple[At, ...] = ()

    def __str__(self) -> str:
        parts = [f"+first{self.first}"] if self.first is not None else []
        parts += [f"+recent{self.recent}"] if self.recent else []
        parts += [f"+chunk{self.chunk}"] if self.chunk else []
        parts += [f"+skip{join_layers(self.skip)}"] if self.skip else []
        parts += [f"+{n}" for n in ("mean", "scale", "search") if getattr(self, n)]
        parts += [f"+rot{self.rotate}"] if self.rotate else []
        parts += ["+latent"] if self.latent else []
        return "".join([*parts, *map(str, self.at)])

    def merged(self, other: Around) -> Around:
        """This, with what `other` sets put on top."""
        changed = {
            f.name: getattr(other, f.name)
            for f in fields(self)
            if getattr(other, f.name) != f.default
        }
        if "at" in changed:
            changed["at"] = (*self.at, *other.at)
        return replace(self, **changed)


PLAIN = Around()  # nothing around the types


def join_layers(layers: tuple[int, ...]) -> str:
    """Write layers with dots, runs with a dash: (0, 1, 2, 7, -1) -> "0-2.7.-1"."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1 and (layer < 0) == (runs[-1][0] < 0):
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    words = [[f"{a}-{b}"] if b - a > 1 else list(map(str, range(a, b + 1))) for a, b in runs]
    return ".".join(word for part in words for word in part)


def split_layers(text: str) -> tuple[int, ...]:
    """Read what `join_layers` wrote; sorted, without repeats.

    Raises:
        ValueError: not of that form, or a run that is backwards or too long.
    """
    found: list[int] = []
    for part in text.split("."):
        match = re.fullmatch(r"(-?[0-9]{1,4})(?:-(-?[0-9]{1,4}))?", part)
        if match is None:
            raise ValueError(part)
        low = int(match[1])
        high = int(match[2]) if match[2] else low
        if high < low:
            raise ValueError(part)
        found += range(low, high + 1)
    # Non-negative ones first: "0.1.-2.-1" reads from the first layer to the last.
    return tuple(sorted(dict.fromkeys(found), key=lambda n: (n < 0, n)))


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,7}", text):
        raise ValueError(text)
    value = int(text)
    if not 1 <= value <= 1 << 20:
        raise ValueError(text)
    return value


def _first(text: str) -> int:
    return 0 if text == "0" else _count(text)


def _rotate(text: str) -> str:
    if text not in ROTATE:
        raise ValueError(text)
    return text


def _at(text: str) -> tuple[At, ...]:
    match = _AT.fullmatch(text)
    if match is None:
        raise ValueError(text)
    head = int(match["head"]) if match["head"] else None
    return (At(split_layers(match["layers"]), match["k"], match["v"], head),)


def _flag(text: str) -> bool:
    if text:
        raise ValueError(text)
    return True


_READERS: dict[str, tuple[Callable[[str], object], str]] = {
    "first": (_first, "+first4"),
    "recent": (_count, "+recent128"),
    "chunk": (_count, "+chunk512"),
    "skip": (split_layers, "+skip0.1.-1"),
    "mean": (_flag, "+mean"),
    "scale": (_flag, "+scale"),
    "search": (_flag, "+search"),
    "rot": (_rotate, "+rot32, +rotrandom or +rotllama"),
    "latent": (_flag, "+latent"),
    "at": (_at, "+at0.5-7:q8_0/q4_0 or +at3h1:q4_0/f16"),
}


def parse_around(parts: list[str], text: str) -> Around:
    """Read modifiers, without their plus signs.

    Args:
        parts: for example ["first4", "mean"].
        text: the whole setting, for the error.

    Raises:
        NybbleError: an unknown modifier, or a value out of range.
    """
    found = PLAIN
    for part in parts:
        name = next((n for n in _READERS if part.startswith(n)), None)
        if name is None:
            raise unknown("unknown part of a KV setting", part, _READERS, mark="+",
                          seen=f"+{part} in {text}", hint="nybble formats",
                          allowed=[example for _, example in _READERS.values()])  # fmt: skip
        reader, example = _READERS[name]
        try:
            value = reader(part[len(name) :])
        except ValueError as error:
            raise NybbleError(
                "a part of a KV setting has a value it cannot have",
                seen=f"+{part} in {text}",
                allowed=example,
            ) from error
        found = found.merged(Around(**{"rotate" if name == "rot" else name: value}))  # type: ignore[arg-type]
    return found
