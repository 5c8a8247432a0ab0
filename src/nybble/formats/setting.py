"""A KV setting: K type, V type and rotation; written `q8_0/q4_0` or `q4_0/q4_0-norot`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nybble.errors import NybbleError
from nybble.formats.types import KVType, kv_type

_NOROT = "-norot"


@dataclass(frozen=True, order=True)
class KVSetting:
    """All that defines a cache.

    Attributes:
        k: name of the K type.
        v: name of the V type.
        rotation: whether the engine's rotation is left on. It acts on quantized sides only,
            so a setting without one always has it on, and one name means one cache.
    """

    k: str
    v: str
    rotation: bool = True

    def __str__(self) -> str:
        return f"{self.k}/{self.v}" + ("" if self.rotation else _NOROT)

    @property
    def k_type(self) -> KVType:
        """The K side's type."""
        return kv_type(self.k)

    @property
    def v_type(self) -> KVType:
        """The V side's type."""
        return kv_type(self.v)

    @property
    def quantized(self) -> bool:
        """Whether at least one side is quantized."""
        return self.k_type.quantized or self.v_type.quantized

    @property
    def bits(self) -> float:
        """Stored bits an element, mean of K and V (equal head sizes)."""
        return (self.k_type.bits + self.v_type.bits) / 2

    def halves(self) -> tuple[KVSetting, KVSetting]:
        """K alone and V alone: the other side left in f16."""
        return make(self.k, "f16", self.rotation), make("f16", self.v, self.rotation)


def make(k: str, v: str, rotation: bool = True) -> KVSetting:
    """Build a setting; rotation is dropped to its default where nothing is quantized."""
    kt, vt = kv_type(k), kv_type(v)
    return KVSetting(kt.name, vt.name, rotation or not (kt.quantized or vt.quantized))


def parse(text: str) -> KVSetting:
    """Read `K/V`, `K/V-norot`, or a single type for both sides.

    Raises:
        NybbleError: not of that form, or an unknown type.
    """
    body, off = text.strip().lower(), False
    if body.endswith(_NOROT):
        body, off = body[: -len(_NOROT)], True
    parts = body.split("/")
    if len(parts) > 2 or not all(parts):
        raise NybbleError(
            "a KV setting is written K/V",
            seen=text,
            allowed="two KV types and a slash, for example q8_0/q4_0",
            hint="nybble formats",
        )
    return make(parts[0], parts[-1], not off)


def expand(
    kv: str | None, k: str | None, v: str | None, rotation: Sequence[bool] = (True,)
) -> list[KVSetting]:
    """Settings from the command line, in the order written, without repeats.

    Args:
        kv: comma list of settings, `q8_0/q4_0,q4_0/q4_0`.
        k: comma list of K types, crossed with `v`.
        v: comma list of V types; a missing side of the cross is f16.
        rotation: which of on and off to run for quantized settings.
    """
    found: list[KVSetting] = []
    if kv:
        found += [parse(part) for part in kv.split(",") if part.strip()]
    if k or v:
        ks = [part.strip() for part in (k or "f16").split(",") if part.strip()]
        vs = [part.strip() for part in (v or "f16").split(",") if part.strip()]
        found += [make(a, b) for a in ks for b in vs]
    out: list[KVSetting] = []
    for setting in found:
        # `-norot` in the name already decides; otherwise --rotation does.
        modes = rotation if setting.quantized and setting.rotation else (setting.rotation,)
        out += [make(setting.k, setting.v, on) for on in modes]
    return unique(out)


def unique(settings: Iterable[KVSetting]) -> list[KVSetting]:
    """Drop repeats, keep the order."""
    return list(dict.fromkeys(settings))


def check_head_size(setting: KVSetting, head_k: Iterable[int], head_v: Iterable[int]) -> None:
    """Refuse a type whose block does not divide every layer's head size.

    Source: llama_init_from_model in llama.cpp refuses the same with a log line.

    Raises:
        NybbleError: names the side, the head size and the types that fit.
    """
    sides = [("K", setting.k_type, set(head_k)), ("V", setting.v_type, set(head_v))]
    fits = "/".join("f16" if any(h % t.block for h in heads) else t.name for _, t, heads in sides)
    for side, kind, heads in sides:
        bad = sorted(h for h in heads if h % kind.block)
        if bad:
            raise NybbleError(
                f"{side} type {kind.name} stores blocks of {kind.block} elements, which does "
                f"not divide this model's {side} head size",
                seen=f"{setting} with head size {', '.join(map(str, bad))}",
                allowed="f16, bf16, f32 for this model",
                hint="no block type fits: keep f16" if fits == "f16/f16" else f"--kv {fits}",
            )
