from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import LlamaFileType

from nybble.errors import ModelFileError
from nybble.models.gguf_types import FILE_TYPES
from nybble.models.summary import summarise

Writer = Callable[..., Path]


def test_tiny(write_gguf: Writer) -> None:
    path = write_gguf()
    model = summarise(path)
    assert (model.path, model.name, model.architecture) == (path, "Tiny", "llama")
    assert (model.n_layers, model.n_vocab, model.context_length) == (3, 4, 128)
    # 64 / 4: no key_length in the file.
    assert model.head_dim_k == model.head_dim_v == (16, 16, 16)
    assert (model.n_heads, model.n_kv_heads) == ((4, 4, 4), (2, 2, 2))
    assert model.sliding_window is None
    assert (model.chat_template, model.is_instruct) == ("{{ messages }}", True)
    assert (model.bos_token_id, model.eos_token_id, model.add_bos) == (0, 1, True)
    assert model.weight_types == {"F32": 1, "F16": 1}
    assert model.n_params == 3 * 5 + 3 * 6
    assert (model.file_type, model.size_bytes) == ("Q4_K_M", path.stat().st_size)
    assert model.quantized_by_qat is False


def test_demo_model(demo_gguf: Path) -> None:
    model = summarise(demo_gguf)
    assert (model.architecture, model.n_layers, model.n_vocab) == ("gemma3", 18, 262_144)
    assert (model.head_dim_k, model.head_dim_v) == ((256,) * 18, (256,) * 18)
    assert (set(model.n_heads), set(model.n_kv_heads)) == ({4}, {1})
    assert (model.context_length, model.sliding_window) == (32_768, 512)
    assert (model.n_params, model.file_type) == (268_098_176, "Q4_K_M")
    assert (model.bos_token_id, model.eos_token_id, model.add_bos) == (2, 1, True)
    assert model.is_instruct is False


def test_file_types_equal_those_of_gguf() -> None:
    theirs = {int(t): t.name.split("_", 1)[1] for t in LlamaFileType if t.name != "GUESSED"}
    # Q2_0 is in llama.h, and in no gguf package up to 0.19.
    assert {**theirs, 41: "Q2_0"} == dict(FILE_TYPES)


def test_head_dims(write_gguf: Writer) -> None:
    changes: dict[str, Any] = {
        "llama.attention.key_length": 24,
        "llama.attention.value_length": [8, 8, 16],
        "llama.attention.head_count_kv": [2, 0, 1],
        "llama.attention.head_count": [4, 0, 8],
    }
    model = summarise(write_gguf(changes))
    assert (model.head_dim_k, model.head_dim_v) == ((24, 24, 24), (8, 8, 16))
    assert (model.n_heads, model.n_kv_heads) == ((4, 0, 8), (2, 0, 1))


def test_kv_heads_default_to_the_heads(write_gguf: Writer) -> None:
    assert summarise(write_gguf({"llama.attention.head_count_kv": None})).n_kv_heads == (4, 4, 4)


@pytest.mark.parametrize(
    ("arch", "changes", "expected"),
    [
        ("gemma4", {"sliding_window_pattern": [True, False, True]}, (8, 32, 8)),
        ("some-arch", {"sliding_window_pattern": 3}, (8, 8, 32)),
        ("some-arch", {"sliding_window_pattern": 0}, (8, 8, 8)),
        ("gpt-oss", {}, (8, 32, 8)),
        ("gemma3", {}, (8, 8, 8)),
        ("cohere2moe", {}, (32, 8, 8)),
    ],
)
def test_sliding_head_dims(
    write_gguf: Writer, arch: str, changes: dict[str, Any], expected: tuple[int, ...]
) -> None:
    keys = {"key_length": 32, "key_length_swa": 8, "value_length": 8, "sliding_window": 16}
    path = write_gguf({f"{arch}.attention.{k}": v for k, v in {**keys, **changes}.items()},
                      arch=arch)  # fmt: skip
    model = summarise(path)
    assert (model.head_dim_k, model.head_dim_v) == (expected, (8, 8, 8))
    assert model.sliding_window == 16


def test_next_token_blocks_never_slide(write_gguf: Writer) -> None:
    keys = {"attention.key_length": 32, "attention.key_length_swa": 8, "nextn_predict_layers": 1,
            "attention.sliding_window_pattern": 0}  # fmt: skip
    model = summarise(write_gguf({f"llama.{k}": v for k, v in keys.items()}))
    assert model.head_dim_k == (8, 8, 32)


def test_an_unknown_sliding_pattern_is_refused(write_gguf: Writer) -> None:
    path = write_gguf({"llama.attention.key_length_swa": 8})
    with pytest.raises(ModelFileError, match="sliding_window_pattern"):
        summarise(path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"general.name": "gemma-3-27b-it-qat-q4_0"}, True),
        ({"general.finetune": "QAT"}, True),
        ({"general.tags": ["text", "qat"]}, True),
        ({"general.qat.method": "x"}, True),
        ({"general.name": "Qatar news"}, False),
        ({"tokenizer.chat_template": "qat"}, False),
    ],
)
def test_qat(write_gguf: Writer, changes: dict[str, Any], expected: bool) -> None:
    assert summarise(write_gguf(changes)).quantized_by_qat is expected


def test_optional_keys(write_gguf: Writer) -> None:
    gone = ["general.name", "general.file_type", "tokenizer.chat_template",
            "tokenizer.ggml.bos_token_id", "tokenizer.ggml.add_bos_token"]  # fmt: skip
    changes: dict[str, Any] = dict.fromkeys(gone)
    model = summarise(write_gguf({**changes, "tokenizer.ggml.eos_token_id": 2**32 - 1}))
    assert (model.name, model.file_type, model.chat_template) == (None, None, None)
    assert (model.add_bos, model.bos_token_id, model.eos_token_id) == (None, None, None)
    assert model.is_instruct is False
    assert summarise(write_gguf({"general.file_type": 1024 + 7})).file_type == "Q8_0"
    assert summarise(write_gguf({"general.file_type": 999})).file_type == "type 999"


def test_vocabulary_size_without_tokens(write_gguf: Writer) -> None:
    changes = {"tokenizer.ggml.tokens": None, "llama.vocab_size": 77}
    assert summarise(write_gguf(changes)).n_vocab == 77
    long = [f"t{i}" for i in range(2000)]
    assert summarise(write_gguf({"tokenizer.ggml.tokens": long})).n_vocab == 2000


@pytest.mark.parametrize(
    "key",
    [
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
        "llama.attention.head_count",
        "tokenizer.ggml.tokens",
    ],
)
def test_a_missing_key_is_named(write_gguf: Writer, key: str) -> None:
    with pytest.raises(ModelFileError, match=f"'{key}' is missing"):
        summarise(write_gguf({key: None}))


def test_no_architecture(tmp_path: Path) -> None:
    path = tmp_path / "empty.gguf"
    path.write_bytes(b"GGUF\x03\0\0\0" + bytes(24))
    with pytest.raises(ModelFileError, match="'general.architecture' is missing"):
        summarise(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("general.name", 7),
        ("tokenizer.chat_template", ["a"]),
        ("tokenizer.ggml.add_bos_token", 1),
        ("llama.block_count", 0),
        ("llama.block_count", 2**32 - 1),
        ("llama.block_count", True),
        ("llama.context_length", "long"),
        ("llama.attention.head_count_kv", [2, 2]),
        ("llama.attention.head_count_kv", [2, 2, -1]),
        ("llama.attention.head_count_kv", [2] * 2000),
        ("llama.attention.key_length", "wide"),
        ("llama.attention.key_length", ["a", "b", "c"]),
    ],
)
def test_a_wrong_value_is_named(write_gguf: Writer, key: str, value: Any) -> None:
    with pytest.raises(ModelFileError, match="wrong value") as caught:
        summarise(write_gguf({key: value}))
    assert key in caught.value.what
    assert caught.value.allowed


@pytest.mark.parametrize(
    ("arch", "changes", "seen"),
    [
        ("clip", {}, "projector"),
        ("bert", {}, "'bert', an encoder"),
        ("nomic-bert-moe", {}, "an encoder"),
        ("t5", {}, "encoder-decoder"),
        ("gemma-embedding", {}, "embedding"),
        ("eagle3", {}, "draft"),
        ("llama", {"general.type": "mmproj"}, "'mmproj'"),
        ("llama", {"general.type": "adapter"}, "'adapter'"),
        ("llama", {"llama.attention.causal": False}, "encoder"),
        ("qwen3", {"qwen3.pooling_type": 3}, "embedding or ranking"),
        ("mamba", {"mamba.attention.head_count": 0, "mamba.attention.head_count_kv": None},
         "without attention"),
    ],
)  # fmt: skip
def test_refused_by_name(write_gguf: Writer, arch: str, changes: dict[str, Any], seen: str) -> None:
    with pytest.raises(ModelFileError, match="no KV cache") as caught:
        summarise(write_gguf(changes, arch=arch))
    assert seen in str(caught.value.seen)


def test_a_vocabulary_is_refused(write_gguf: Writer) -> None:
    with pytest.raises(ModelFileError, match="only a vocabulary"):
        summarise(write_gguf(tensors=()))


@pytest.fixture
def split(write_gguf: Writer) -> list[Path]:
    def keys(number: int) -> dict[str, Any]:
        return {"split.no": number, "split.count": 3, "split.tensors.count": 3}

    return [
        write_gguf(keys(0), name="m-00001-of-00003.gguf", tensors=("a",)),
        write_gguf(keys(1), name="m-00002-of-00003.gguf", tensors=("b",), bare=True),
        write_gguf(keys(2), name="m-00003-of-00003.gguf", tensors=("c",), bare=True),
    ]


def test_split(split: list[Path]) -> None:
    model = summarise(split[0])
    assert model.n_params == 3 * 15
    assert model.weight_types == {"F32": 3}
    assert model.size_bytes == sum(p.stat().st_size for p in split)


def test_missing_shards_are_named(split: list[Path]) -> None:
    split[1].unlink()
    with pytest.raises(ModelFileError, match="some are missing") as caught:
        summarise(split[0])
    assert split[1].name in str(caught.value.seen)
    assert split[2].name not in str(caught.value.seen)


def test_split_mistakes(split: list[Path], write_gguf: Writer) -> None:
    with pytest.raises(ModelFileError, match="not the first file") as caught:
        summarise(split[2])
    assert str(split[0]) in str(caught.value.hint)
    shutil.copy(split[1], split[2])
    with pytest.raises(ModelFileError, match="belongs to another model"):
        summarise(split[0])
    write_gguf({"split.no": 2, "split.count": 3}, name=split[2].name, tensors=(), bare=True)
    with pytest.raises(ModelFileError, match="do not hold all its tensors"):
        summarise(split[0])
    renamed = split[0].rename(split[0].with_name("renamed.gguf"))
    with pytest.raises(ModelFileError, match="renamed"):
        summarise(renamed)


def test_a_damaged_shard_is_named(split: list[Path]) -> None:
    split[1].write_bytes(split[1].read_bytes()[:40])
    with pytest.raises(ModelFileError, match="m-00002-of-00003.gguf"):
        summarise(split[0])
