"""Servers of a model that is a folder: its tokenizer and shapes, and its weights not loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_runs import kld, request, row  # noqa: E402

from nybble.engines.transformers.tokenizer import tokenizer  # noqa: E402
from nybble.formats import parse  # noqa: E402
from nybble.models.checkpoint import resolve  # noqa: E402
from nybble.scoring.measure import measure  # noqa: E402
from server_fakes import FakeVLLM, Running  # noqa: E402
from torch_runs import in_process, write_folder  # noqa: E402

NAMES = ("f16/f16", "int4_per_token_head/int4_per_token_head")


def test_a_folder(text: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny-gemma", "gemma3")  # sliding, full, sliding by 8
    own = tokenizer(resolve(folder))

    def ids(given: str) -> list[int]:
        return [int(t) for t in own.tokenize(given, special=False)]

    fakes = [FakeVLLM(kv=kind, noise=noise, root=str(folder), tokenize=ids)
             for kind, noise in (("auto", 0.0), ("int4_per_token_head", 0.3))]  # fmt: skip
    with Running(fakes[0]) as ref, Running(fakes[1]) as int4, in_process() as asked:
        urls = tuple((parse(n), u) for n, u in zip(NAMES, (ref, int4), strict=True))
        made = request(folder, text, tmp_path / "out", *NAMES, engine="vllm", urls=urls)
        result = measure(made)
    assert {h["op"] for h in asked} == {"chunks"}  # the tokenizer alone
    found = row(result, NAMES[1])
    assert kld(found) > 0 and found.n_documents == 6
    # Heads of 32 in int4: 16 bytes of codes and a scale of 4; both sides, two heads.
    assert found.bits == pytest.approx(5) and found.bytes_per_token == 2 * 2 * 20
    assert found.cache_bytes == 2 * 2 * 20 * (128 + 2 * 8)
    assert not any("nybble took tokens from" in w for w in result.measurement.warnings)
    assert any("window" in w for w in result.measurement.warnings) is False
    assert result.measurement.models[0].scored_weights == "as served by vllm"
