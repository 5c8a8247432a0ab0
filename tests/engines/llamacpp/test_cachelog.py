"""Reading the cache in effect out of llama.cpp's log; lines recorded from the pinned version."""

from __future__ import annotations

import pytest

from nybble.engines.llamacpp.cachelog import AppliedCache, SubCache, parse_cache_log
from nybble.errors import EngineError
from nybble.formats import parse

# A llama of 2 layers, head size 64, --cache-type-k q4_0 --cache-type-v q8_0.
PLAIN = """\
llama_context: n_ctx                 = 512
llama_context:        CPU  output buffer size =     0.00 MiB
llama_kv_cache:        CPU KV buffer size =     0.10 MiB
llama_kv_cache: size =    0.10 MiB (   512 cells,   2 layers,  1/1 seqs), K (q4_0):    0.04 MiB, V (q8_0):    0.07 MiB
llama_kv_cache: n_rot_k = 64, n_embd_head_k_all = 64
llama_kv_cache: n_rot_v = 64, n_embd_head_k_all = 64
sched_reserve: reserving ...
sched_reserve:        CPU compute buffer size =    23.81 MiB
"""  # noqa: E501

# The same with LLAMA_ATTN_ROT_DISABLE=1.
UNROTATED = """\
llama_kv_cache: attention rotation force disabled (LLAMA_ATTN_ROT_DISABLE)
llama_kv_cache:        CPU KV buffer size =     0.10 MiB
llama_kv_cache: size =    0.10 MiB (   512 cells,   2 layers,  1/1 seqs), K (q4_0):    0.04 MiB, V (q8_0):    0.07 MiB
llama_kv_cache: n_rot_k = 0, n_embd_head_k_all = 64
llama_kv_cache: n_rot_v = 0, n_embd_head_k_all = 64
"""  # noqa: E501

# Gemma 3 270M, head size 256, q8_0/q4_0 at 4,096 tokens.
SLIDING = """\
llama_kv_cache_iswa: creating non-SWA KV cache, size = 4096 cells
llama_kv_cache:        CPU KV buffer size =     0.00 MiB
llama_kv_cache: size =    4.88 MiB (  4096 cells,   3 layers,  1/1 seqs), K (q8_0):    3.19 MiB, V (q4_0):    1.69 MiB
llama_kv_cache: n_rot_k = 256, n_embd_head_k_all = 256
llama_kv_cache: n_rot_v = 64, n_embd_head_k_all = 256
llama_kv_cache_iswa: creating     SWA KV cache, size = 1024 cells
llama_kv_cache:        CPU KV buffer size =     0.00 MiB
llama_kv_cache: size =    6.09 MiB (  1024 cells,  15 layers,  1/1 seqs), K (q8_0):    3.98 MiB, V (q4_0):    2.11 MiB
llama_kv_cache: n_rot_k = 256, n_embd_head_k_all = 256
llama_kv_cache: n_rot_v = 64, n_embd_head_k_all = 256
"""  # noqa: E501

# With swa_full, as the size probe asks for it.
FULL = """\
llama_kv_cache_iswa: using full-size SWA cache (ref: https://github.com/ggml-org/llama.cpp/pull/13194#issuecomment-2868343055)
llama_kv_cache_iswa: creating non-SWA KV cache, size = 32768 cells
llama_kv_cache: size =   16.00 MiB ( 32768 cells,   2 layers,  1/1 seqs), K (f16):    8.00 MiB, V (f16):    8.00 MiB
llama_kv_cache: n_rot_k = 0, n_embd_head_k_all = 64
llama_kv_cache: n_rot_v = 0, n_embd_head_k_all = 64
llama_kv_cache_iswa: creating     SWA KV cache, size = 32768 cells
llama_kv_cache: size =   16.00 MiB ( 32768 cells,   2 layers,  1/1 seqs), K (f16):    8.00 MiB, V (f16):    8.00 MiB
llama_kv_cache: n_rot_k = 0, n_embd_head_k_all = 64
llama_kv_cache: n_rot_v = 0, n_embd_head_k_all = 64
"""  # noqa: E501


def test_plain() -> None:
    assert parse_cache_log(PLAIN) == AppliedCache(
        (SubCache("global", 512, 2, "q4_0", "q8_0", 0.04, 0.07),), 64, 64
    )


def test_unrotated() -> None:
    found = parse_cache_log(UNROTATED)
    assert (found.rotation_k, found.rotation_v) == (0, 0)
    assert found.subcaches == parse_cache_log(PLAIN).subcaches


def test_sliding() -> None:
    assert parse_cache_log(SLIDING) == AppliedCache(
        (
            SubCache("global", 4096, 3, "q8_0", "q4_0", 3.19, 1.69),
            SubCache("sliding", 1024, 15, "q8_0", "q4_0", 3.98, 2.11),
        ),
        256,
        64,
    )


def test_full_size_sliding() -> None:
    subs = parse_cache_log(FULL).subcaches
    assert [(s.kind, s.cells, s.k_mib) for s in subs] == [
        ("global", 32768, 8.0), ("sliding", 32768, 8.0),
    ]  # fmt: skip


def test_a_side_rotated_in_one_allocation_only_counts() -> None:
    log = SLIDING.replace("n_rot_v = 64", "n_rot_v = 0", 1)
    assert parse_cache_log(log).rotation_v == 64


@pytest.mark.parametrize(
    ("log", "setting"),
    [(PLAIN, "q4_0/q8_0"), (UNROTATED, "q4_0/q8_0-norot"), (SLIDING, "q8_0/q4_0"), (FULL, "f16")],
)
def test_as_asked(log: str, setting: str) -> None:
    parse_cache_log(log).verify(parse(setting))


def test_rotation_is_the_engines_choice_when_left_on() -> None:
    """Head sizes that are no multiple of 64 are not rotated."""
    parse_cache_log(UNROTATED).verify(parse("q4_0/q8_0"))


@pytest.mark.parametrize(
    ("log", "setting", "what", "seen"),
    [
        (PLAIN, "q8_0/q4_0", "did not apply", "q4_0/q8_0 in the global layers"),
        (PLAIN, "q4_0/q4_0", "did not apply", "q4_0/q8_0 in the global layers"),
        (PLAIN, "f16", "did not apply", "q4_0/q8_0 in the global layers"),
        (PLAIN, "q4_0/q8_0-norot", "rotates although rotation was switched off", "rotation 64/64"),
        (SLIDING, "q8_0/q4_0-norot", "rotates although", "rotation 256/64"),
        ("", "q8_0", "does not show a KV cache", "q8_0/q8_0"),
        ("llama_memory_recurrent: size = 1.00 MiB", "f16", "does not show a KV cache", "f16/f16"),
    ],
)
def test_mismatch(log: str, setting: str, what: str, seen: str) -> None:
    with pytest.raises(EngineError, match=what) as caught:
        parse_cache_log(log).verify(parse(setting))
    assert caught.value.seen == seen


def test_one_wrong_allocation_is_enough() -> None:
    log = SLIDING.replace("V (q4_0):    2.11", "V (f16):    7.50")
    with pytest.raises(EngineError) as caught:
        parse_cache_log(log).verify(parse("q8_0/q4_0"))
    assert caught.value.seen == "q8_0/f16 in the sliding layers"
    assert caught.value.allowed == "q8_0/q4_0"
