"""llama.cpp's compute buffers: what the graph of one micro-batch holds at its worst moment.

ggml's allocator (`ggml/src/ggml-alloc.c`) places the tensors of the graph that
`llama_context::sched_reserve` builds for a full cache. Which of them live at once follows from the
`build_*` functions of `src/llama-graph.cpp` and was checked against llama.cpp's own account
(`bench/plan_llamacpp.py`). Flash attention is on, so no scores are kept.
"""

from __future__ import annotations

from collections.abc import Sequence

from nybble.formats.setting import KVSetting
from nybble.models.geometry import Geometry
from nybble.planning.memory.base import Load, Part
from nybble.planning.memory.llamacpp_cells import Cells, rotations, rows

COPIES = 4  # GGML_SCHED_MAX_COPIES: of a pass's inputs, when cards work as a pipeline
RESIDUALS = 5  # streams of the model's width that the allocator keeps apart
TOKEN_INPUTS = 64  # bytes a token: ids, positions, and where in the cache it goes
PER_LAYER = 256  # width of Gemma's per-layer embeddings


def compute_parts(
    geometry: Geometry, setting: KVSetting, load: Load, caches: Sequence[Cells]
) -> list[Part]:
    """The buffers of all cards; each card has its own, as large as if it ran the whole model.

    Args:
        geometry: of the model.
        setting: types of the cache.
        load: what is asked for.
        caches: with their cells.
    """
    step = rows(load)
    copies = COPIES if load.cards > 1 else 1
    on = f" on each of {load.cards} cards" if load.cards > 1 else ""
    times = f" x {copies} copies (pipeline)" if copies > 1 else ""
    sizes = rotations(caches, setting)
    # A stream's tokens see its own cells only.
    seen = [cache.each for cache in caches if cache.layers]
    busy, how = _activations(geometry, load, step, mask=2 * step * max(seen), rotated=bool(sizes))
    parts = [Part("compute", "activations of a micro-batch", busy * load.cards, how + on,
                  estimated=True)]  # fmt: skip
    masks = 2 * step * sum(seen) * copies
    parts.append(Part(
        "compute", "attention masks", masks * load.cards,
        f"{step:,} tokens x ({' + '.join(f'{n:,}' for n in seen)}) cells x 2 B{times}{on}",
        estimated=True,
    ))  # fmt: skip
    if sizes:
        n_bytes = 4 * sum(n * n for n in sizes) * copies
        squares = " + ".join(f"{n} x {n}" for n in sizes)
        parts.append(Part("compute", "rotation matrices", n_bytes * load.cards,
                          f"({squares}) x 4 B{times}{on}", estimated=True))  # fmt: skip
    return parts


def feed_forward(geometry: Geometry) -> tuple[int, str]:
    """Elements a token has in the feed-forward block at once, and the arithmetic.

    Gate, up and their product; the experts' outputs take the place of gate and up where they fit
    there, and come on top where they do not.
    """
    inner, used = geometry.intermediate, geometry.experts_used
    total, how = 3 * inner, f"3 x {inner:,} feed-forward"
    if used * geometry.hidden > 2 * inner:
        total += used * geometry.hidden
        how += f" + {used} experts' outputs x {geometry.hidden:,}"
    return total, how


def _activations(
    geometry: Geometry, load: Load, step: int, *, mask: int, rotated: bool
) -> tuple[int, str]:
    """The largest of three moments: feed-forward block, recurrent layer, logits."""
    inner, how = feed_forward(geometry)
    hidden, slots = geometry.hidden, load.sequences
    how = f"{step:,} tokens x ({RESIDUALS} x {hidden:,} hidden + {how}"
    wide = RESIDUALS * hidden + inner
    if extra := _per_layer(geometry, rotated=rotated):
        wide += extra
        how += f" + {extra:,} of per-layer embeddings"
    found = [(step * wide, how + ") x 4 B")]
    if states := [layer.state for layer in geometry.layers if layer.state]:
        # The states of all slots, read and written; then the convolution and what it feeds.
        conv, kept = (max(getattr(s, name) for s in states) for name in ("conv", "recurrent"))
        found.append((
            2 * slots * (conv + kept) + step * (conv + 3 * hidden),
            f"(2 x {slots} slots x {conv + kept:,} of state + {step:,} tokens x ({conv:,} of "
            f"convolution + 3 x {hidden:,})) x 4 B",
        ))  # fmt: skip
    # By then the masks are done with, and logits that fit there cost nothing.
    if 4 * slots * geometry.vocabulary > mask:
        found.append((
            step * RESIDUALS * hidden + slots * geometry.vocabulary,
            f"({step:,} tokens x {RESIDUALS} x {hidden:,} hidden + logits of {slots} slots x "
            f"{geometry.vocabulary:,}) x 4 B",
        ))  # fmt: skip
    most, how = max(found)
    return 4 * most + TOKEN_INPUTS * step, how


def _per_layer(geometry: Geometry, *, rotated: bool) -> int:
    """Elements a token adds where layers have embeddings of their own: Gemma 3n, Gemma 4 E2B/E4B.

    They are held twice, as projected and as laid out by layer. Where a layer's gate fits into
    what the first of them leaves, it goes there, unless rotated queries and keys are there.
    """
    name = geometry.family
    if name != "gemma3n" and not (name == "gemma4" and geometry.of_kind("shared")):
        return 0
    width, inner = PER_LAYER * len(geometry.layers), geometry.intermediate
    extra = 2 * width + (geometry.hidden if name == "gemma3n" else 0)  # AltUp's prediction
    return extra - (inner if width >= inner and not rotated else 0)


def f16_copy(
    geometry: Geometry, setting: KVSetting, load: Load, caches: Sequence[Cells]
) -> list[Part]:
    """What CUDA's flash attention adds for a cache that is not f16.

    Its matrix kernels, which read prompts, and every kernel above a head size of 256 want f16:
    K and V of the layer at hand are converted as a whole, into room behind the result that is
    reserved for a full cache (`ggml_cuda_flash_attn_ext_get_alloc_size`). Room that the
    feed-forward block uses at other times serves for it.
    """
    most, how = 0, ""
    for cache in caches:
        for layer in cache.layers:
            width = sum(
                n for n, name in ((layer.k_width, setting.k), (layer.v_width, setting.v))
                if name != "f16"
            )  # fmt: skip
            if 2 * cache.total * width > most:
                most = 2 * cache.total * width
                how = f"{cache.total:,} cells x {width:,} elements of the widest layer x 2 B"
    free = 4 * rows(load) * feed_forward(geometry)[0]
    extra = most - free
    if extra <= 0:
        return []
    how += f" - {free:,} B of the feed-forward's room"
    how += f", on each of {load.cards} cards" if load.cards > 1 else ""
    return [Part("scratch", "f16 copy of a layer's K and V", extra * load.cards, how,
                 estimated=True)]  # fmt: skip
