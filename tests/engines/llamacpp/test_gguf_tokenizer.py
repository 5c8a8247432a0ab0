"""A GGUF's vocabulary by llama.cpp in a child: ids, pieces, end tokens, and files it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nybble.engines.llamacpp.model import Model
from nybble.engines.llamacpp.tokenizer import GGUFTokenizer
from nybble.errors import EngineError

WORDS = "the naïve 日本 🎉 of\n\ttea </s>"


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Iterator[GGUFTokenizer]:
    made = GGUFTokenizer(tiny_model)
    yield made
    made.close()


def test_ids_are_those_of_the_model(tokenizer: GGUFTokenizer, tiny_model: Path) -> None:
    model = Model(tiny_model, no_alloc=True)
    for special in (True, False):
        assert tokenizer.tokenize(WORDS, special=special).tolist() == model.tokenize(
            WORDS, special=special
        ).tolist()  # fmt: skip
    assert tokenizer.vocabulary == model.vocabulary
    assert tokenizer.context_length == model.context_length
    model.close()


def test_pieces_put_the_text_together(tokenizer: GGUFTokenizer) -> None:
    ids = tokenizer.tokenize(WORDS, special=False)
    assert b"".join(tokenizer.pieces[i] for i in ids).decode().removeprefix(" ") == WORDS
    assert len(tokenizer.pieces) == tokenizer.vocabulary.n_tokens
    assert tokenizer.pieces[3 + 0xE6] == b"\xe6"  # a byte token is its byte


def test_control_tokens_end_and_show_nothing(tokenizer: GGUFTokenizer) -> None:
    assert tokenizer.ends == frozenset([2])
    assert tokenizer.pieces[1] == tokenizer.pieces[2] == b""


def test_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(EngineError, match="cannot load"):
        GGUFTokenizer(tmp_path / "broken.gguf")
