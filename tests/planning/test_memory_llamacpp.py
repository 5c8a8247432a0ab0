"""llama.cpp's allocation: equal to its own account, on models of real shape without weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dry_runs import Account, Case, dry_runs
from plan_shapes import DEEPSEEK_V3, GEMMA4, LLAMA, QWEN3_NEXT, full, geometry
from sparse_gguf import MODELS, gemma4
from sparse_hybrids import HYBRIDS

from gguf_models import write_tiny_gemma3, write_tiny_gemma4, write_tiny_qwen3
from nybble.errors import NybbleError
from nybble.formats.setting import parse
from nybble.models.demo import demo_model
from nybble.models.geometry import Geometry, Weights
from nybble.models.gguf_geometry import geometry_of_gguf
from nybble.planning.memory.base import Load, Memory
from nybble.planning.memory.llamacpp import LlamaCpp
from nybble.planning.memory.llamacpp_cells import cells, rotations

GIB = 1 << 30
CASES = [
    Case(kv, context, slots, unified)
    for kv, context, (slots, unified) in itertools.product(
        ("f16/f16", "q8_0/q8_0", "q4_0/q4_0", "q8_0/q4_0"),
        (300, 1500, 20_000),  # below, around and above the windows of 128 to 4,096 tokens
        ((1, False), (4, False), (4, True)),
    )
] + [Case("q5_1/iq4_nl-norot", 1000, 3, ubatch=128), Case("bf16/f32", 4096, ubatch=2048)]
REAL: dict[str, Callable[[Path], Path]] = {
    **{name: MODELS[name] for name in (
        "gemma-4-31b", "gemma-4-26b-a4b", "gemma-4-e4b", "gemma-3-4b", "gemma-2-9b",
        "gemma-3n-e4b", "llama-3.1-8b", "qwen3-8b", "qwen3-30b-a3b", "gpt-oss-20b",
        "qwen3-next-80b", "deepseek-v2-lite",
    )},
    "gemma-4-e2b": lambda path: gemma4(path, size="E2B"),
    **HYBRIDS,
}  # fmt: skip
TINY: dict[str, Callable[[Path], Path]] = {
    "gemma3": write_tiny_gemma3, "gemma4": write_tiny_gemma4, "qwen3": write_tiny_qwen3,
}  # fmt: skip
# These make the output matrix before the embedding and so do not find it is the same tensor. Only
# a model that is read rather than mapped takes the memory twice.
MADE_TWICE = ("gemma4", "gemma3n")


def planned(model: Geometry, case: Case, **load: Any) -> Memory:
    engine, setting = LlamaCpp(unified=case.unified), parse(case.kv)
    engine.check(model, setting)
    return engine.memory(model, setting, Load(case.context, case.slots, ubatch=case.ubatch, **load))


def same(model: Geometry, case: Case, account: Account, within: float) -> None:
    """Compare one case; `within` is for the total."""
    weights = model.weights
    assert weights is not None
    twice = weights.lookup_bytes if model.architecture in MADE_TWICE else 0
    assert weights.n_bytes <= account.weights <= weights.n_bytes + twice, case
    found = planned(model, case)
    assert found.of("cache", "state") == account.memory, case
    whole = weights.n_bytes + account.memory + account.compute + account.output
    assert found.total == pytest.approx(whole, rel=within), case


@pytest.mark.parametrize("name", REAL)
def test_cache_is_exact_and_the_total_close(name: str, tmp_path: Path) -> None:
    path = REAL[name](tmp_path / f"{name}.gguf")
    model = geometry_of_gguf(path)
    # A dry run really makes states, which takes time: fewer types there.
    few = any(layer.state for layer in model.layers)
    cases = [c for c in CASES if not few or c.kv in ("f16/f16", "q8_0/q4_0")]
    for case, account in zip(cases, dry_runs(path, cases), strict=True):
        if account.refused:
            # Refused there, refused here.
            with pytest.raises(NybbleError):
                planned(model, case)
        else:
            same(model, case, account, 0.03)


@pytest.mark.parametrize("name", TINY)
def test_tiny_models(name: str, tmp_path: Path) -> None:
    path = TINY[name](tmp_path / f"{name}.gguf")
    model = geometry_of_gguf(path)
    cases = [Case(kv, context, slots, unified)
             for kv in ("f16/f16", "q8_0/q4_0", "q4_0/q4_0")
             for context in (30, 300, 3000)
             for slots, unified in ((1, False), (4, False), (4, True))]  # fmt: skip
    for case, account in zip(cases, dry_runs(path, cases), strict=True):
        assert planned(model, case).of("cache", "state") == account.memory, case


def test_demo_model_as_it_is_really_allocated(tmp_path: Path) -> None:
    path = demo_model(tmp_path)
    model = geometry_of_gguf(path)
    cases = [Case(kv, context, slots)
             for kv in ("f16/f16", "q8_0/q4_0") for context in (300, 3000)
             for slots in (1, 4)]  # fmt: skip
    dry, wet = dry_runs(path, cases), dry_runs(path, cases, allocate=True)
    for case, account, taken in zip(cases, dry, wet, strict=True):
        same(model, case, account, 0.001)
        cache = planned(model, case).of("cache")
        assert cache == taken.memory, case
        # Two lines of the log, each with two decimals.
        assert cache / 2**20 == pytest.approx(taken.kv_mib, abs=0.011), case


def test_gemma_4_by_hand() -> None:
    """The table of reference/gemma4.md, whose q8_0 and q4_0 at 32K others measured."""
    table = {("f16/f16", 8192): 1840, ("f16/f16", 131_072): 11_440, ("q8_0/q8_0", 32_768): 1997.5,
             ("q4_0/q4_0", 32_768): 1057.5, ("q4_0/q4_0", 262_144): 6097.5}  # fmt: skip
    for (kv, context), mib in table.items():
        assert planned(GEMMA4, Case(kv, context)).of("cache") == mib * 2**20
    # Four slots in one pool: the sliding layers hold four windows and a micro-batch.
    _, sliding = cells(GEMMA4, Load(8192, 4), unified=True)
    assert (sliding.each, sliding.streams) == (4608, 1)


def test_rotation_matrices() -> None:
    caches = cells(GEMMA4, Load(4096), unified=False)
    assert rotations(caches, parse("f16/f16")) == []
    assert rotations(caches, parse("q8_0/f16")) == [512, 256]
    assert rotations(caches, parse("q8_0/q4_0")) == [512, 64, 256, 64]
    assert rotations(caches, parse("q8_0/q4_0-norot")) == []
    odd = geometry("odd", [full(8, 96), full(8, 128)])
    assert rotations(cells(odd, Load(4096), unified=False), parse("q8_0/q8_0")) == []


def test_states_are_of_sequences_not_tokens() -> None:
    state = planned(QWEN3_NEXT, Case("f16/f16", 4096)).of("state")
    assert state == 36 * 4 * (3 * 8192 + 32 * 128 * 128)
    assert planned(QWEN3_NEXT, Case("q4_0/q4_0", 131_072)).of("state") == state
    assert planned(QWEN3_NEXT, Case("f16/f16", 4096, 3)).of("state") == 3 * state


GPU = {"card_bytes": 24 * GIB, "vendor": "nvidia"}


def test_cards_copy_a_layer_to_f16() -> None:
    host = planned(GEMMA4, Case("q8_0/q8_0", 131_072))
    assert not host.of("scratch")
    assert not planned(GEMMA4, Case("f16/f16", 131_072), **GPU).of("scratch")
    both = planned(GEMMA4, Case("q8_0/q8_0", 131_072), **GPU).of("scratch")
    room = 4 * 512 * 3 * 21_504
    assert both == 131_072 * 2 * 4 * 512 * 2 - room
    k_only = planned(GEMMA4, Case("q8_0/f16", 131_072), **GPU).of("scratch")
    assert k_only == 131_072 * 4 * 512 * 2 - room
    # A short cache fits in what the feed-forward block leaves.
    assert not planned(GEMMA4, Case("q8_0/q8_0", 4096), **GPU).of("scratch")
    # The latent is copied once: values are a part of it.
    latent = planned(DEEPSEEK_V3, Case("q8_0/q8_0", 131_072), **GPU).of("scratch")
    assert latent == 131_072 * 576 * 2 - 4 * 512 * 3 * 18_432
    # Metal's kernels read packed keys and values, and a CPU's do.
    apple = planned(GEMMA4, Case("q8_0/q8_0", 131_072), card_bytes=24 * GIB, vendor="apple")
    assert not apple.of("scratch")


def test_every_card_has_buffers_of_its_own() -> None:
    case = Case("f16/f16", 32_768)
    one = planned(LLAMA, case, card_bytes=24 * GIB)
    two = planned(LLAMA, case, card_bytes=24 * GIB, cards=2)
    assert one.of("cache") == two.of("cache")
    mask = 32_768 * 512 * 2
    # Four copies of a pass's inputs on each card.
    assert two.of("compute") == 2 * (one.of("compute") + 3 * mask)


@pytest.mark.parametrize(
    ("architecture", "read", "experts", "kept"),
    [("llama", 900, 0, 900), ("gemma3", 1000, 0, 1000), ("gemma3n", 700, 0, 700),
     ("qwen3moe", 300, 8, 900), ("gemma4", 300, 8, 1000)],
)  # fmt: skip
def test_tables_stay_in_the_hosts_memory(
    architecture: str, read: int, experts: int, kept: int
) -> None:
    """An untied embedding is in no card; a tied one is, as the output matrix."""
    lookup = 300 if architecture == "gemma3n" else 100
    tied = architecture in ("gemma3", "gemma4")
    weights = Weights(1000, 1000, read, read, "tensors", lookup_bytes=lookup, tied=tied)
    model = geometry(architecture, [full(8, 128)] * 4, experts_used=experts, weights=weights)
    found = planned(model, Case("f16/f16", 4096), card_bytes=GIB)
    assert found.of("weights") == kept
    assert any("host's memory" in note for note in found.notes)
    assert planned(model, Case("f16/f16", 4096)).of("weights") == 1000
    shared = planned(model, Case("f16/f16", 4096), card_bytes=GIB, unified=True)
    assert shared.of("weights") == 1000 and not shared.notes


@pytest.mark.parametrize(
    ("model", "kv", "said"),
    [
        (LLAMA, "int4_per_token_head", "does not have this KV type"),
        (LLAMA, "q4_0/q4_0+first4", "protects or skips nothing"),
        (LLAMA, "q8_0/q8_0+recent128", "protects or skips nothing"),
        (LLAMA, "q8_0/q8_0+skip0", "protects or skips nothing"),
        (DEEPSEEK_V3, "q8_0/q4_0", "both types must be one"),
        (geometry("grok", [full(8, 128)] * 2), "q8_0/q8_0", "flash attention"),
        (geometry("odd", [full(8, 80)] * 2), "q8_0/f16", "does not divide"),
    ],
)
def test_refusals(model: Geometry, kv: str, said: str) -> None:
    with pytest.raises(NybbleError, match=said):
        LlamaCpp().check(model, parse(kv))


def test_what_fits_is_not_refused() -> None:
    LlamaCpp().check(geometry("grok", [full(8, 128)] * 2), parse("q8_0/f16"))
    LlamaCpp().check(geometry("odd", [full(8, 80)] * 2), parse("bf16/f16"))
    for kv in LlamaCpp.settings:
        LlamaCpp().check(LLAMA, parse(kv))


def test_notes() -> None:
    notes = planned(GEMMA4, Case("q8_0/q4_0", 4096), **GPU).notes
    assert any("GGML_CUDA_FA_QUANTS" in note for note in notes)
    assert any("-np 1" in note for note in notes)
    assert any("iq4_nl" in n for n in planned(LLAMA, Case("iq4_nl/iq4_nl", 4096), **GPU).notes)
    assert not planned(LLAMA, Case("q8_0/q8_0", 4096, 4), **GPU).notes
    assert not planned(LLAMA, Case("iq4_nl/iq4_nl", 4096)).notes


def test_memory_only_grows() -> None:
    """The solver searches by halves."""
    for model, kv in itertools.product((LLAMA, GEMMA4, QWEN3_NEXT), ("f16/f16", "q4_0/q4_0")):
        sizes = [planned(model, Case(kv, context, slots), card_bytes=24 * GIB).total
                 for slots in (1, 2, 4) for context in range(256, 70_000, 2304)]  # fmt: skip
        for start in range(0, len(sizes), len(sizes) // 3):
            part = sizes[start : start + len(sizes) // 3]
            assert part == sorted(part)
