"""Whole tiny models through the Triton kernels: strands, windows, sinks, latents, chunks."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")
pytest.importorskip("triton")

from triton_child import child


def _run(kind: str, setting: str, latent: bool) -> tuple[float, int]:
    import triton_models

    return triton_models.against_reference(kind, setting, latent)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "setting", "latent"),
    [("llama", "q4_0/q8_0+first4+recent32", False), ("gpt-oss", "f16/q4_1", False),
     ("gemma4", "f16/f16", True)],
)  # fmt: skip
def test_models_agree_with_the_reference(kind: str, setting: str, latent: bool) -> None:
    """Calls agree to 1e-6, but a later layer may round a token the other way."""
    with child(TRITON_INTERPRET="1") as run:
        difference, read = run(_run, kind, setting, latent)
    assert difference < 1e-3
    assert read > 0
