"""A KV setting: K type, V type, rotation and what surrounds them.

Written `q8_0/q4_0`, `q4_0/q4_0-norot`, `q4_0/q4_0+first4+recent128`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from nybble.errors import NybbleError
from nybble.formats.around import PLAIN, Around, parse_around
from nybble.formats.kvtype import KVType
from nybble.formats.registry import ALIASES, KV_TYPES, kv_type

_NOROT = "-norot"


@dataclass(frozen=True, order=True)
class KVSetting:
    """All that defines a cache.

    Attributes:
        k: name of the K type.
        v: name of the V type.
        rotation: whether the engine's rotation is left on, where it can be switched. A setting
            without a type that is rotated so always has it on, and one name means one cache.
        around: protected tokens, windows, skipped layers and the like.
    """

    k: str
    v: str
    rotation: bool = True
    around: Around = PLAIN

    def __str__(self) -> str:
        return f"{self.k}/{self.v}" + ("" if self.rotation else _NOROT) + str(self.around)

    @property
    def k_type(self) -> KVType:
        """The K side's type."""
        return kv_type(self.k).of_side("K")

    @property
    def v_type(self) -> KVType:
        """The V side's type."""
        return kv_type(self.v).of_side("V")

    @property
    def latent_type(self) -> KVType:
        """The type of a latent: a value in the type named for K, stored as values are."""
        return kv_type(self.k).of_side("V")

    @property
    def quantized(self) -> bool:
        """Whether at least one side is quantized somewhere."""
        return any(kv_type(name).quantized for name in self.types)

    @property
    def types(self) -> tuple[str, ...]:
        """Names of all types in it, without repeats."""
        return tuple(
            dict.fromkeys([self.k, self.v, *(n for a in self.around.at for n in (a.k, a.v))])
        )

    @property
    def calibrated(self) -> bool:
        """Whether it needs statistics of the model's keys and queries."""
        types = any(kv_type(name).calibrated for name in self.types)
        return types or self.around.mean or self.around.scale

    @property
    def llamacpp(self) -> bool:
        """Whether llama.cpp itself can run it, rather than a simulation only."""
        known = all(kv_type(name).ggml_id is not None for name in self.types)
        return known and self.around == PLAIN

    @property
    def apart(self) -> KVSetting:
        """The same with K and V apart in every layer: without `+latent`."""
        return replace(self, around=replace(self.around, latent=False))

    @property
    def bits(self) -> float:
        """Stored bits an element, mean of K and V at a head size of 128."""
        return (self.k_type.bits + self.v_type.bits) / 2

    def halves(self) -> tuple[KVSetting, KVSetting]:
        """K alone and V alone: the other side left in f16. A latent has no halves."""
        around = self.apart.around
        k_at = tuple(replace(at, v="f16") for at in around.at)
        v_at = tuple(replace(at, k="f16") for at in around.at)
        return (
            make(self.k, "f16", self.rotation, replace(around, at=k_at)),
            make("f16", self.v, self.rotation, replace(around, at=v_at)),
        )

    def at_layer(self, layer: int, n_layers: int) -> list[tuple[int | None, str, str]]:
        """Types in one layer: (KV head or None for all, K, V); later ones win."""
        found: list[tuple[int | None, str, str]] = [(None, self.k, self.v)]
        found += [(a.head, a.k, a.v) for a in self.around.at if a.covers(layer, n_layers)]
        if layer in self.around.skip or layer - n_layers in self.around.skip:
            found.append((None, "f16", "f16"))
        return found


def make(k: str, v: str, rotation: bool = True, around: Around = PLAIN) -> KVSetting:
    """Build a setting; rotation is dropped to its default where nothing is rotated.

    Raises:
        NybbleError: an unknown type, one that is made for the other side or, of a latent, for keys
            alone, or windows that contradict each other or the type.
    """
    pairs = [(k, v), *((a.k, a.v) for a in around.at)]
    types = [(kv_type(a), kv_type(b)) for a, b in pairs]
    for sides in types:
        for side, kind in zip("KV", sides, strict=True):
            if side not in kind.sides:
                other = [t.name for t in KV_TYPES.values() if t.sides == side]
                raise NybbleError(
                    f"{kind.name} is made for {kind.sides} and cannot store {side}",
                    seen="/".join(t.name for t in sides),
                    allowed=f"a type for {side}, for example {', '.join(['q4_0', *other])}",
                    hint="nybble formats",
                )
    _check_windows(around, [t for pair in types for t in pair])
    if around.latent:
        _check_latent([k_type for k_type, _ in types])
    switchable = not around.rotate and any(t.rotation == "llama" for pair in types for t in pair)
    return KVSetting(types[0][0].name, types[0][1].name, rotation or not switchable, around)


def _check_windows(around: Around, types: list[KVType]) -> None:
    if around.recent and around.chunk:
        raise NybbleError(
            "a setting has one window of raw keys",
            seen=f"+recent{around.recent} and +chunk{around.chunk}",
            allowed="one of them",
        )
    window = around.recent or around.chunk
    for kind in types:
        if window and (window % kind.tokens or (around.recent and kind.tokens > 1)):
            raise NybbleError(
                f"{kind.name} stores {kind.tokens} tokens together, which this window would cut",
                seen=f"+recent{around.recent}" if around.recent else f"+chunk{around.chunk}",
                allowed=f"+chunk of a multiple of {kind.tokens}, or the type's own window",
            )


def _check_latent(keys: list[KVType]) -> None:
    for kind in keys:
        if "V" not in kind.sides:
            raise NybbleError(
                f"a latent is a value, and {kind.name} is made for keys",
                seen=f"{kind.name} with +latent",
                allowed="a type for K and V as the K type, for example q4_0",
                hint="nybble formats",
            )


def parse(text: str) -> KVSetting:
    """Read `K/V`, `K/V-norot`, a single type for both sides, or an alias, and what follows it.

    Raises:
        NybbleError: not of that form, or an unknown type.
    """
    body, *modifiers = text.strip().lower().split("+")
    off = body.endswith(_NOROT)
    body = body.removesuffix(_NOROT)
    around = parse_around(modifiers, text)
    parts = body.split("/")
    if body in ALIASES:
        base = parse(ALIASES[body])
        parts, around = [base.k, base.v], base.around.merged(around)
    if len(parts) > 2 or not all(parts):
        raise NybbleError(
            "a KV setting is written K/V",
            seen=text,
            allowed="two KV types and a slash, for example q8_0/q4_0",
            hint="nybble formats",
        )
    setting = make(parts[0], parts[-1], not off, around)
    if off and setting.rotation and setting.quantized:
        raise NybbleError(
            "this setting has no rotation that could be switched off",
            seen=text,
            allowed="-norot behind llama.cpp's quantized types",
            hint=f"--kv {setting}",
        )
    return setting


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
        out += [make(setting.k, setting.v, on, setting.around) for on in modes]
    return unique(out)


def rotations(text: str) -> tuple[bool, ...]:
    """`on`, `off` or `on,off`, as `expand` takes them.

    Raises:
        NybbleError: anything else.
    """
    parts = [part.strip().lower() for part in text.split(",") if part.strip()]
    if not parts or not set(parts) <= {"on", "off"}:
        raise NybbleError("unknown value for rotation", seen=text, allowed="on, off or on,off")
    return tuple(dict.fromkeys(part == "on" for part in parts))


def unique(settings: Iterable[KVSetting]) -> list[KVSetting]:
    """Drop repeats, keep the order."""
    return list(dict.fromkeys(settings))


def check_head_size(setting: KVSetting, head_k: Iterable[int], head_v: Iterable[int]) -> None:
    """Refuse a type whose block does not divide every layer's head size.

    Source: llama_init_from_model in llama.cpp refuses the same with a log line.

    Raises:
        NybbleError: names the side, the head size and the types that fit.
    """
    pairs = [(setting.k, setting.v), *((a.k, a.v) for a in setting.around.at)]
    heads = (set(head_k), set(head_v))
    for pair in pairs:
        sides = [
            (side, kv_type(n).of_side(side), h)
            for side, n, h in zip("KV", pair, heads, strict=True)
        ]
        fits = "/".join(t.name if all(map(t.fits, h)) else "f16" for _, t, h in sides)
        for side, kind, sizes in sides:
            bad = sorted(h for h in sizes if not kind.fits(h))
            if bad:
                raise NybbleError(
                    f"{side} type {kind.name} stores blocks of {kind.block} elements, which does "
                    f"not divide this model's {side} head size",
                    seen=f"{setting} with head size {', '.join(map(str, bad))}",
                    allowed="f16, bf16, f32 for this model",
                    hint="no type of such blocks fits: keep f16"
                    if fits == "f16/f16"
                    else f"--kv {fits}",
                )
