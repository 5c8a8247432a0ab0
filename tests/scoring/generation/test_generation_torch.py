"""Generation with `nybble.Cache` in transformers, for KV types that llama.cpp lacks."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from generation_runs import PROMPTS, cells, request, row  # noqa: E402

from nybble.errors import NybbleError  # noqa: E402
from nybble.formats import parse  # noqa: E402
from nybble.runtime.attention import attach  # noqa: E402
from nybble.scoring.generation import backend  # noqa: E402
from nybble.scoring.generation.generate import Generated, generate  # noqa: E402
from nybble.scoring.generation.greedy import answers  # noqa: E402
from nybble.scoring.generation.plan import plan_lanes  # noqa: E402
from nybble.scoring.generation.torch_worker import (  # noqa: E402
    TorchGenerationWorker,
    TorchLane,
)
from nybble.scoring.tasks import backend as tasks_backend  # noqa: E402
from torch_runs import InProcess, write_folder  # noqa: E402

INT4 = "int4_per_token_head/int4_per_token_head"


class Child(InProcess):
    """The generation worker in this process."""

    def __init__(self, module: str, *, timeout: float = 1800.0) -> None:
        assert module == backend.WORKERS[1]
        self._worker = TorchGenerationWorker(io.BytesIO())  # type: ignore[assignment]
        self.alive, self.where = True, {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Generated]:
    """An int4 type and q8_0 on five prompts."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NYBBLE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(tasks_backend, "EngineProcess", Child)
        out = tmp_path_factory.mktemp("packed")
        yield generate(request(folder, out, "q8_0", INT4, prompts=5))
    torch.set_num_threads(threads)


def test_the_floor_the_types_and_identity(packed: Generated) -> None:
    assert packed.run.protocol["engine"] == "nybble.Cache in transformers"
    assert packed.run.protocol["n_prompts"] == 5 and not packed.failed
    identity = row(packed, "f16", "identity")
    assert identity.first_at == [0] and identity.kld_at["1-64"].value == 0
    floor, q8, int4 = (
        row(packed, s, r).kld_at["1-64"].value
        for s, r in (("bf16", "floor"), ("q8_0", "candidate"), (INT4, "candidate"))
    )
    assert 0 < floor < int4 and 0 < q8 < int4
    assert "in torch" in packed.run.model.scored_weights


def test_a_lane_goes_on_as_the_model_alone_does(folder: Path) -> None:
    """Greedy answers from the cache are those of reading the whole text anew for every token."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompt = np.random.default_rng(0).integers(3, 260, 600).tolist()  # more than one chunk
    text = list(prompt)
    with torch.inference_mode():
        for _ in range(12):
            text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
    attach(model)
    lane = TorchLane(model, parse("f32/f32"), None)
    (answer,) = answers([lane], prompt, 12, set(), 1, lambda lane, done: None)
    assert answer.tokens == text[len(prompt) :]
    lane.clear()
    assert lane.score(prompt[:9], 0).shape == (9, 260)


def test_the_same_again_generates_nothing(
    folder: Path, packed: Generated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks_backend, "EngineProcess", Child)
    before = cells(packed.folder)
    again = generate(request(folder, packed.folder, "q8_0", INT4, prompts=5))
    assert cells(packed.folder) == before and again.run.rows == packed.run.rows
    assert len(before) == 4 * 5 + 1 < PROMPTS * 5


def test_llama_cpp_is_told_what_it_lacks(tiny_model: Path, folder: Path, tmp_path: Path) -> None:
    wanted = request(tiny_model, tmp_path / "run", INT4, engine="llama.cpp")
    with pytest.raises(NybbleError, match="llama.cpp has no such KV cache"):
        generate(wanted)
    with pytest.raises(NybbleError, match="GGUF files only"):
        generate(request(folder, tmp_path / "run", engine="llama.cpp"))
    with pytest.raises(NybbleError, match="plans runs in llama.cpp only"):
        plan_lanes(request(folder, tmp_path / "run"))
    with pytest.raises(NybbleError, match="unknown value for --engine"):
        request(folder, tmp_path / "run", engine="vllm")


@pytest.mark.slow
def test_a_gguf_in_a_process_of_its_own(tiny_instruct: Path, tmp_path: Path) -> None:
    found = generate(request(tiny_instruct, tmp_path / "run", INT4, prompts=1))
    assert row(found, INT4).kld_at["1-64"].value > 0
    assert found.run.protocol["prompts"] == [
        "head of a text, to be summed up, in the chat template"
    ]
