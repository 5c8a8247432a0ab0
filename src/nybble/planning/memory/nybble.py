"""nybble's own runtime: packed pages in transformers, one latent where keys follow from values.

Source: `runtime/pages.py` (pages of 64 tokens, one kept spare behind a window), `runtime/strand.py`
(first tokens and a recent window in f16 beside the packed body) and `runtime/reference.py` (tiles);
tests/planning/test_memory_nybble.py holds it against a cache's own count.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nybble.engines.known.nybble import stores
from nybble.environment import VERSION
from nybble.errors import NybbleError
from nybble.formats.registry import kv_type
from nybble.formats.setting import KVSetting, check_head_size, make
from nybble.models.geometry import Geometry, Layer
from nybble.planning.memory.base import Load, Memory, MemoryModel, Part, Use
from nybble.planning.memory.rows import (
    activations_part,
    kv_part,
    refuse_kinds,
    up,
    weights_part,
)

PAGE = 64  # tokens; runtime/layout.py
CHUNK = 512  # tokens of a prefill chunk; the default of runtime/generate.py
TILE = 512  # tokens unpacked at a time; runtime/reference.py
SCORES = 1 << 21  # scores held at a time; runtime/reference.py
_FEW_BYTES = 1.5  # a weight, from which on weights are 16-bit; as planning/throughput.py
_PLAIN = ("f16/f16", "q8_0/q8_0", "nyb4/nyb4", "q4_0/q4_0")
_LATENT = ("f16/f16+latent", "q8_0/q8_0+latent", "q4_0/q4_0+latent")
_SIXTEEN = KVSetting("f16", "f16")


@dataclass(frozen=True)
class _Alike:
    """Layers that are stored alike.

    Attributes:
        window: tokens they look back; None for all.
        setting: of their K and V, with nothing around it.
        latent: whether the value alone is kept, in the K type.
        first: first tokens kept in f16, apart from the others.
        recent: last tokens kept in f16.
    """

    window: int | None
    setting: KVSetting
    latent: bool
    first: int
    recent: int


class Nybble(MemoryModel):
    """`nybble generate` and `nybble.Cache`, the prompt in chunks of 512 tokens."""

    engine = "nybble"
    version = VERSION
    source = "src/nybble/runtime"
    settings = _PLAIN

    def listed(self, geometry: Geometry) -> tuple[str, ...]:
        """Also latent settings, for models with layers whose keys follow from their values."""
        return (*_PLAIN, *_LATENT) if any(map(keeps_latent, geometry.layers)) else _PLAIN

    def check(self, geometry: Geometry, setting: KVSetting) -> None:
        """Refuse types that store tokens together, heads of a layer stored apart, other layers.

        Raises:
            NybbleError: see above; or a head size that a type's blocks do not divide, or a latent
                in a model whose keys do not follow from its values.
        """
        for name in setting.types:
            if not stores(kv_type(name)):
                raise NybbleError(
                    f"{self.engine} stores every token by itself, which {name} does not",
                    seen=str(setting), allowed="nyb4, q8_0, q5_1, q5_0, q4_1, q4_0, f16 and others",
                    hint="--kv q4_0/q4_0",
                )  # fmt: skip
        if any(at.head is not None for at in setting.around.at):
            raise NybbleError(
                f"{self.engine} stores all heads of a layer alike", seen=str(setting),
                allowed="+at with layers only", hint=f"--kv {setting.k}/{setting.v}",
            )  # fmt: skip
        if setting.around.latent and not any(map(keeps_latent, geometry.layers)):
            raise NybbleError(
                "this model has no layers whose keys follow from their values: no latent to keep",
                seen=f"{geometry.architecture} with {setting}", allowed=str(setting.apart),
                hint=f"--kv {setting.apart}",
            )  # fmt: skip
        refuse_kinds(geometry, self.engine, ("recurrent", "latent"),
                     "its layers are full or sliding attention")  # fmt: skip
        kept = geometry.of_kind("global", "sliding")
        check_head_size(setting, {x.k_dim for x in kept}, {x.v_dim for x in kept})

    def memory(self, geometry: Geometry, setting: KVSetting, load: Load) -> Memory:
        """Pages at `context` tokens, and what the last chunk of a prompt of that length adds."""
        chunk = min(load.ubatch or CHUNK, load.context)
        parts = weights_part(geometry)
        for alike, layers in _groups(geometry, setting).items():
            parts += _pages(alike, layers, chunk, load)
        parts.append(_attention(geometry, chunk, load))
        parts += _unpacked(geometry)
        parts.append(activations_part(geometry, chunk * load.sequences, 1))
        return Memory(tuple(parts), tuple(_notes(geometry, load)))


def keeps_latent(layer: Layer) -> bool:
    """Whether a layer's keys can be left out: they are made of its values, of every token."""
    return layer.kind == "global" and layer.k_is_v


def _groups(geometry: Geometry, setting: KVSetting) -> dict[_Alike, list[Layer]]:
    """Layers with a cache of their own; a shared layer's is its source's."""
    found: dict[_Alike, list[Layer]] = {}
    for i, layer in enumerate(geometry.layers):
        if layer.kind in ("global", "sliding"):
            _, k, v = setting.at_layer(i, len(geometry.layers))[-1]
            latent = setting.around.latent and keeps_latent(layer)
            of = make(k, k if latent else v)
            alike = _Alike(layer.window, of, latent, *_raw(of, setting))
            found.setdefault(alike, []).append(layer)
    return found


def _raw(of: KVSetting, setting: KVSetting) -> tuple[int, int]:
    """First and last tokens that stay in f16: none where both sides are 16-bit anyway."""
    kinds = [kind for kind in (of.k_type, of.v_type) if kind.quantized]
    if not kinds:
        return 0, 0
    around = setting.around
    first = max(kind.first for kind in kinds) if around.first is None else around.first
    own = [kind.reads.tokens for kind in kinds if kind.reads.rule == "recent"]
    return first, around.recent or (0 if around.chunk else max(own, default=0))


def _pages(alike: _Alike, layers: list[Layer], chunk: int, load: Load) -> list[Part]:
    """Pages of layers that are stored alike: packed, f16, and what a chunk adds for a moment."""
    window, recent = alike.window, alike.recent
    first = min(alike.first, load.context)
    rest = load.context - first
    many = f"{len(layers)} {'global' if window is None else 'sliding'} layers"
    raw = f"of {many}, f16"
    parts = _side(alike, layers, _SIXTEEN, (up(first, PAGE), 0), load, f"first tokens {raw}")
    held = (up(rest, PAGE), 0) if window is None else _ring(rest, window, chunk)
    parts += _side(alike, layers, alike.setting, held, load, many)
    if recent:  # packed as well, and so held twice
        held = _ring(rest, min(recent, window or recent), chunk)
        parts += _side(alike, layers, _SIXTEEN, held, load, f"last tokens {raw}")
    return parts


def _ring(tokens: int, window: int, chunk: int) -> tuple[int, int]:
    """Tokens of the pages behind a window, and those that a prefill chunk adds.

    The first page starts with up to 63 tokens that no query sees any more.
    """
    every = up(tokens, PAGE)
    held = min(up(window + PAGE - 1, PAGE), every)
    return held, min(up(window + chunk - 1 + PAGE - 1, PAGE), every) - held


def _side(
    alike: _Alike,
    layers: list[Layer],
    stored: KVSetting,
    tokens: tuple[int, int],
    load: Load,
    what: str,
) -> list[Part]:
    """K and V of tokens that stay and of those of a prefill chunk, or the latents of both."""
    uses: tuple[tuple[Use, str], ...] = (("cache", what), ("scratch", f"{what}, in prefill"))
    parts: list[Part] = []
    for (use, name), n in zip(uses, tokens, strict=True):
        cells = n * load.sequences
        if not alike.latent:
            parts += kv_part(layers, stored, cells, name, use)
            continue
        # A latent is a value, and stored as values are, in the type named for K.
        values = [replace(x, k_dim=0) for x in layers]
        parts += [
            replace(part, name=part.name.replace("V of", "latents of", 1))
            for part in kv_part(values, KVSetting(stored.k, stored.k), cells, name, use)
        ]
    return parts


def _attention(geometry: Geometry, chunk: int, load: Load) -> Part:
    """What one layer's attention to a chunk holds in float32; tiles are unpacked one by one."""
    most, how = 0, ""
    for layer in geometry.of_kind("global", "sliding"):
        rows = layer.heads * chunk * load.sequences
        both = layer.k_dim + layer.v_dim
        tile = min(TILE, up(load.context, PAGE))
        scores = min(SCORES, rows * tile)
        unpacked = tile * layer.kv_heads * load.sequences * both
        n_bytes = 4 * (rows * both + scores + unpacked)
        if n_bytes > most:
            most = n_bytes
            how = (
                f"({rows:,} rows x {both:,} of query and sum + {scores:,} scores + {tile:,} "
                f"tokens x {unpacked // tile:,} unpacked) x 4 B"
            )
    return Part("scratch", "attention of one chunk, one layer", most, how, estimated=True)


def _packed(geometry: Geometry) -> bool:
    weights = geometry.weights
    return weights is not None and weights.n_bytes <= _FEW_BYTES * weights.n_params


def _unpacked(geometry: Geometry) -> list[Part]:
    """Packed weights are unpacked matrix by matrix when many tokens are read (bitsandbytes)."""
    if not _packed(geometry):
        return []
    return [Part("scratch", "one matrix of weights, unpacked",
                 2 * geometry.hidden * geometry.intermediate,
                 f"{geometry.hidden:,} x {geometry.intermediate:,} x 2 B",
                 estimated=True)]  # fmt: skip


def _notes(geometry: Geometry, load: Load) -> list[str]:
    notes = []
    if _packed(geometry):
        notes.append(
            "weights of few bits stay small as bitsandbytes, GPTQ, AWQ, HQQ or torchao ones; "
            "transformers 5.23 unpacks compressed-tensors (w4a16) and GGUF weights to 16 bits"
        )
    if load.vendor in ("nvidia", "amd", "what-if"):
        notes.append("its kernels for GPUs (Triton) were checked in an interpreter only and "
                     "measured on none: no speed is told")  # fmt: skip
    elif load.vendor in ("intel", "apple"):
        notes.append("it has no kernel for these cards: plain torch reads the cache")
    if load.cards > 1:
        notes.append("a model split over several cards was never tried")
    return notes
