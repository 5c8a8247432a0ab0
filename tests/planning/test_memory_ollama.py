"""Ollama's allocation: llama.cpp's, with what Ollama can be told."""

from __future__ import annotations

import pytest
from plan_shapes import GEMMA4, LLAMA, geometry

from nybble.errors import NybbleError
from nybble.formats.setting import parse
from nybble.models.geometry import Geometry
from nybble.planning.memory.base import Load
from nybble.planning.memory.llamacpp import LlamaCpp
from nybble.planning.memory.ollama import Ollama


@pytest.mark.parametrize("kv", Ollama.settings)
@pytest.mark.parametrize("sequences", [1, 4])
def test_same_cells_as_llama_cpp(kv: str, sequences: int) -> None:
    setting, load = parse(kv), Load(8192, sequences)
    Ollama().check(GEMMA4, setting)
    found = Ollama().memory(GEMMA4, setting, load)
    assert found.parts == LlamaCpp().memory(GEMMA4, setting, load).parts
    assert not any("-np" in note for note in found.notes)
    assert any("OLLAMA_NUM_PARALLEL=4" in note for note in found.notes) == (sequences == 4)


@pytest.mark.parametrize(
    ("model", "kv"),
    [(LLAMA, "q8_0/q4_0"), (LLAMA, "q5_1/q5_1"), (LLAMA, "bf16/bf16"), (LLAMA, "fp8_e4m3/fp8_e4m3"),
     (LLAMA, "q4_0/q4_0+first4"), (geometry("odd", []), "q8_0/f16")],
)  # fmt: skip
def test_refusals(model: Geometry, kv: str) -> None:
    with pytest.raises(NybbleError, match=r"ollama has one KV type for both sides") as raised:
        Ollama().check(model, parse(kv))
    assert "q8_0/q8_0" in str(raised.value.allowed)


def test_rotation_may_be_off() -> None:
    Ollama().check(LLAMA, parse("q4_0/q4_0-norot"))
