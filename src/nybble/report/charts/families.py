"""Which engine a KV type is of, told from its name: the report reads records and knows no types."""

from __future__ import annotations

from typing import NamedTuple

from nybble.results.records import Row

_WIDE = ("f16", "bf16", "f32")


class Family(NamedTuple):
    """Whose KV types these are, told from how their names begin, and their mark.

    Attributes:
        name: an engine, or a method that has a name of its own.
        prefixes: beginnings of type names.
        marker: matplotlib's.
        colour: number in the theme's series, or one of its own colours by name.
        hollow: only the outline.
    """

    name: str
    prefixes: tuple[str, ...]
    marker: str
    colour: int | str
    hollow: bool = False


# The first family whose prefix fits is taken, so longer prefixes come before "q". Formats that
# several engines read (fp8, nvfp4) go by the engine whose code nybble follows.
FAMILIES = (
    Family("nybble", ("nyb",), "*", "fg"),
    Family("transformers", ("quanto", "hqq"), "v", 4),
    Family("llama.cpp", ("q", "iq", "tq"), "o", 0),
    Family("SGLang", ("fp4_mx",), "p", 5, hollow=True),
    Family("LMDeploy", ("lmdeploy",), "P", 5),
    Family("TurboQuant", ("turboquant",), "s", 1, hollow=True),
    Family("KIVI", ("kivi",), "X", "muted"),
    Family("vLLM", ("int", "fp8", "nvfp4", "mxfp"), "s", 1),
    Family("ExLlama", ("exl",), "^", 2),
    Family("mlx-lm", ("mlx",), "D", 3),
)
OTHER = Family("other", (), "h", "muted", hollow=True)


def family(row: Row) -> Family:
    """The family of a setting's K type, or of its V type where K is left at 16 bits."""
    name = row.v_type if row.k_type in _WIDE else row.k_type
    return next((f for f in FAMILIES if name.startswith(f.prefixes)), OTHER)
