"""What engines that serve from GPUs share: KV heads split over cards, shares of a card."""

from __future__ import annotations

from nybble.errors import NybbleError
from nybble.formats.setting import KVSetting
from nybble.models.geometry import Geometry, Layer
from nybble.planning.memory.base import Load, Part

GIB = 1 << 30
CONTEXT_BYTES = GIB // 2  # CUDA context and libraries of one process; a rule of thumb


def heads_on_card(heads: int, cards: int, engine: str) -> int:
    """KV heads of a layer that one card of a tensor-parallel group holds, one at least.

    Raises:
        NybbleError: the heads cannot be split evenly, and cannot be copied evenly either.
    """
    if heads % cards and cards % heads:
        raise NybbleError(
            f"{engine} splits KV heads over cards evenly, or copies them evenly",
            seen=f"{heads} KV heads on {cards} cards",
            allowed=f"a divisor or a multiple of {heads} as the number of cards",
        )
    return max(1, heads // cards)


def token_bytes(layer: Layer, setting: KVSetting, cards: int, engine: str) -> int:
    """Bytes that one token takes in one layer on one card, scales included; K and V."""
    heads = heads_on_card(layer.kv_heads, cards, engine)
    k, v = setting.k_type, setting.v_type
    return heads * (k.row_bytes(layer.k_dim) + (v.row_bytes(layer.v_dim) if layer.v_dim else 0))


def symmetric(setting: KVSetting, engine: str, types: tuple[str, ...], flag: str) -> None:
    """Refuse what an engine with one flag for both sides cannot be told.

    Raises:
        NybbleError: other types, two different ones, or anything around them.
    """
    allowed = [f"{name}/{name}" for name in types]
    if str(setting) not in allowed:
        raise NybbleError(
            f"{engine} has one KV type for both sides and all layers ({flag})",
            seen=str(setting), allowed=allowed, hint=f"--kv {allowed[0]}",
        )  # fmt: skip


def context_part(load: Load) -> Part:
    """What the driver and its libraries take before the engine does anything."""
    return Part("reserve", "CUDA context", CONTEXT_BYTES * load.cards,
                f"{load.cards} x {CONTEXT_BYTES / GIB:g} GiB, a rule of thumb",
                estimated=True)  # fmt: skip


def grows(geometry: Geometry) -> tuple[Layer, ...]:
    """Layers with rows of their own, K and V or latent, in order."""
    return geometry.of_kind("global", "sliding", "latent")
