"""KV types and KV settings. Knows nothing of models or engines."""

from nybble.formats.kvtype import KVType
from nybble.formats.registry import ALIASES, KV_TYPES, kv_type
from nybble.formats.setting import (
    KVSetting,
    check_head_size,
    expand,
    make,
    parse,
    rotations,
    unique,
)

__all__ = [
    "ALIASES",
    "KV_TYPES",
    "KVSetting",
    "KVType",
    "check_head_size",
    "expand",
    "kv_type",
    "make",
    "parse",
    "rotations",
    "unique",
]
