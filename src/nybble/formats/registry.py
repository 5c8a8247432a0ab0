"""Every KV type. A new one is one file with `TYPES` and one line here."""

from __future__ import annotations

from nybble.errors import unknown
from nybble.formats import (
    exl2,
    exl3,
    floats,
    fp4_mx_block16,
    fp8,
    fp8_per_token_head,
    hqq,
    int4_per_token_head,
    int8_per_token_head,
    iq4_nl,
    kivi,
    lmdeploy,
    mlx,
    nvfp4,
    nyb4,
    q4_0,
    q4_1,
    q5_0,
    q5_1,
    q8_0,
    quanto,
    turboquant,
)
from nybble.formats.kvtype import KVType

_FILES = (
    floats,
    q8_0,
    q5_1,
    q5_0,
    q4_1,
    q4_0,
    iq4_nl,
    int8_per_token_head,
    int4_per_token_head,
    fp8_per_token_head,
    fp8,
    nvfp4,
    fp4_mx_block16,
    turboquant,
    exl2,
    exl3,
    mlx,
    lmdeploy,
    quanto,
    hqq,
    kivi,
    nyb4,
)

KV_TYPES: dict[str, KVType] = {t.name: t for file in _FILES for t in file.TYPES}

# Names of engines' modes that mean a K type and a V type.
ALIASES: dict[str, str] = {
    name: text for file in _FILES for name, text in getattr(file, "ALIASES", {}).items()
}


def kv_type(name: str) -> KVType:
    """Look a KV type up by name.

    Raises:
        NybbleError: unknown name; names the nearest match and all known ones.
    """
    found = KV_TYPES.get(name.strip().lower())
    if found is None:
        raise unknown("unknown KV type", name, KV_TYPES, hint="nybble formats")
    return found
