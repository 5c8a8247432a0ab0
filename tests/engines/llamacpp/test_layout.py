"""Bytes of a cache: exact, and equal to what llama.cpp logs when it really allocates."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from nybble.engines.llamacpp.layout import CacheLayout, CacheProbe
from nybble.engines.llamacpp.model import Model
from nybble.formats import parse

CONTEXTS = (32, 256, 300, 1024, 5000)


def padded(context: int) -> int:
    """llama.cpp rounds a context up to 256 cells."""
    return -(-context // 256) * 256


def logged(model: Model, setting: str, context: int) -> tuple[float, float]:
    """MiB in the log of a real context, and how far its rounding may be off."""
    with closing(model.context(parse(setting), context, rows=1, threads=1)) as lane:
        subs = lane.applied.subcaches
        return sum(s.k_mib + s.v_mib for s in subs), 0.005001 * 2 * len(subs)


@pytest.mark.parametrize(
    ("head", "n_kv", "setting"),
    [
        (64, 1, "f16"), (64, 1, "q8_0"), (64, 2, "q4_0"), (64, 1, "q8_0/q4_0"),
        (64, 2, "q5_1/bf16"), (64, 1, "f32/iq4_nl-norot"), (96, 1, "f16"), (96, 2, "q8_0/q4_0"),
        (80, 1, "f16"), (80, 2, "f32/bf16"), (48, 2, "f16"),
    ],
)  # fmt: skip
def test_exact_bytes(
    make_tiny: Callable[..., Path], tmp_path: Path, head: int, n_kv: int, setting: str
) -> None:
    path = make_tiny(tmp_path / "m.gguf", head_dim=head, n_kv=n_kv, n_layer=3)
    wanted = parse(setting)
    elements = 3 * n_kv * head
    with closing(Model(path)) as model, closing(Model(path, no_alloc=True)) as dry:
        probe = CacheProbe(dry)
        assert probe.layout == CacheLayout((("global", elements, elements),))
        for context in CONTEXTS:
            size = probe.size(wanted, context)
            bits = elements * (wanted.k_type.bits + wanted.v_type.bits)
            assert size.total == padded(context) * bits / 8
            assert size.per_token == bits / 8
            assert size.bits == wanted.bits
            mib, rounding = logged(model, setting, context)
            assert size.total / 2**20 == pytest.approx(mib, abs=rounding)


@pytest.mark.parametrize("setting", ["f16", "q8_0", "q4_0", "q8_0/q4_0", "bf16/q5_0-norot"])
def test_sliding_layers(tiny_sliding: Path, setting: str) -> None:
    """Two global and two sliding layers of 64 elements; a window of 64 plus a batch of 512."""
    wanted = parse(setting)
    with closing(Model(tiny_sliding)) as model, closing(Model(tiny_sliding, no_alloc=True)) as dry:
        probe = CacheProbe(dry)
        assert probe.layout.elements == (("global", 128, 128), ("sliding", 128, 128))
        for context in CONTEXTS:
            cells = padded(context) + min(padded(context), padded(64 + min(512, context)))
            size = probe.size(wanted, context)
            assert size.total == cells * 128 * wanted.bits * 2 / 8
            assert size.per_token == 128 * wanted.bits * 2 / 8
            mib, rounding = logged(model, setting, context)
            assert size.total / 2**20 == pytest.approx(mib, abs=rounding)


def test_only_global_layers_grow(tiny_sliding: Path) -> None:
    with closing(Model(tiny_sliding, no_alloc=True)) as dry:
        probe = CacheProbe(dry)
        a, b = (probe.size(parse("q8_0/q4_0"), n) for n in (4096, 8192))
    assert b.total - a.total == 4096 * a.per_token


def test_nothing_is_allocated(tiny_model: Path) -> None:
    """The dry run answers for contexts whose cache would not fit into memory."""
    with closing(Model(tiny_model, no_alloc=True)) as dry:
        size = CacheProbe(dry).size(parse("f32"), 1 << 20)
    assert size.total == (1 << 20) * 2 * 64 * 2 * 4
    assert size.context == 1 << 20


def test_k_and_v_of_different_sizes() -> None:
    layout = CacheLayout((("global", 100, 50), ("sliding", 30, 20)))
    size = layout.size(parse("q8_0/q4_0"), 1000, {"global": 1024, "sliding": 256})
    assert size.total == (1024 * (100 * 8.5 + 50 * 4.5) + 256 * (30 * 8.5 + 20 * 4.5)) / 8
    assert size.per_token == (100 * 8.5 + 50 * 4.5) / 8
    assert size.bits == (130 * 8.5 + 70 * 4.5) / 200
