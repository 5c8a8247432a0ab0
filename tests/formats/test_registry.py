"""The registry of KV types."""

from __future__ import annotations

import pytest

from nybble.errors import NybbleError
from nybble.formats.registry import KV_TYPES, kv_type

# What llama.cpp's --cache-type-k takes (kv_cache_types in common/arg.cpp).
LLAMA_CPP = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")


def test_names_are_keys() -> None:
    assert all(name == kind.name == name.lower() for name, kind in KV_TYPES.items())


def test_llama_cpps_nine_types() -> None:
    ours = {name for name, kind in KV_TYPES.items() if "llama.cpp" in kind.engines}
    assert ours == set(LLAMA_CPP)
    assert {name for name, kind in KV_TYPES.items() if kind.ggml_id is not None} == ours


def test_every_type_says_where_it_comes_from() -> None:
    assert all(kind.layout and kind.source for kind in KV_TYPES.values())


def test_lookup_forgives_case_and_blanks() -> None:
    assert kv_type(" Q4_0 ") is KV_TYPES["q4_0"]


@pytest.mark.parametrize(("typed", "near"), [("q8", "q8_0"), ("Q4-0", "q4_0"), ("fp16", "f16")])
def test_unknown_names_nearest(typed: str, near: str) -> None:
    with pytest.raises(NybbleError) as caught:
        kv_type(typed)
    assert f"did you mean {near}?" in caught.value.what
    assert caught.value.seen == typed
    assert caught.value.allowed == ", ".join(KV_TYPES)
    assert caught.value.hint == "nybble formats"


def test_unknown_without_anything_near() -> None:
    with pytest.raises(NybbleError) as caught:
        kv_type("xyzzy")
    assert "did you mean" not in caught.value.what
