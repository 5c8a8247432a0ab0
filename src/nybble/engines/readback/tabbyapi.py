"""TabbyAPI, the server of ExLlamaV3: it repeats the mode that was asked for.

Read in theroyallab/tabbyAPI (2026-11-28): backends/exllamav3/model.py at 004e837 (create_cache,
model_info), endpoints/core/router.py at 2c3bc71 and 03189bc (GET /v1/model, /v1/models),
endpoints/core/types/model.py at 1c5cd3b (owned_by). It has no version. Not run here.

create_cache knows Q4, Q6, Q8 and two numbers of bits from 2 to 8; any other string is a 16-bit
cache without a word, while /v1/model repeats the string. The log has no line on the cache's type.
"""

from __future__ import annotations

import re

from nybble.engines.readback.base import Http, Reader, Reading
from nybble.engines.readback.values import integer, mapping, owners, served, text

_MODEL = "/v1/model"
_OWNER = "tabbyAPI"
_NAMES = {"Q4": ("4", "4"), "Q6": ("6", "6"), "Q8": ("8", "8"), "FP16": ("FP16", "FP16")}
_BITS = re.compile(r"([2-8])\s*,\s*([2-8])")


class TabbyReader(Reader):
    """`python main.py` of TabbyAPI."""

    engine = "exllamav3"

    def recognise(self, http: Http) -> bool:
        """By the owner of its models."""
        return mapping(http.json(_MODEL)).get("owned_by") == _OWNER or _OWNER in owners(
            served(http)
        )

    def read(self, http: Http, log: str | None) -> Reading:
        """All from /v1/model, the types as an echo."""
        card = mapping(http.json(_MODEL))
        told = mapping(card.get("parameters"))
        mode = text(told.get("cache_mode"))
        k, v, notes = cache_mode(mode)
        if not card:
            notes = ("no model is loaded",)
        return Reading(
            engine=self.engine,
            k=k,
            v=v,
            echo=mode is not None,
            tokens=integer(told.get("cache_size")),
            context=integer(told.get("max_seq_len")),
            sequences=integer(told.get("max_batch_size")),
            model=text(card.get("id")),
            sources=(_MODEL,),
            notes=notes,
        )


def cache_mode(mode: str | None) -> tuple[str | None, str | None, tuple[str, ...]]:
    """K type and V type by ExLlamaV3's names, and a note where the mode is none that it knows."""
    if mode is None:
        return None, None, ()
    if mode in _NAMES:
        return (*_NAMES[mode], (f"cache_mode {mode}",))
    bits = _BITS.fullmatch(mode)
    if bits:
        return bits[1], bits[2], (f"cache_mode {mode}",)
    said = f"cache_mode {mode} is none that TabbyAPI knows: by its source the cache is FP16"
    return mode, mode, (said,)
