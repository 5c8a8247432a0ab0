"""KV types and KV settings. Knows nothing of models or engines."""

from nybble.formats.setting import KVSetting, check_head_size, expand, make, parse, unique
from nybble.formats.types import KV_TYPES, KVType, kv_type

__all__ = [
    "KV_TYPES",
    "KVSetting",
    "KVType",
    "check_head_size",
    "expand",
    "kv_type",
    "make",
    "parse",
    "unique",
]
