"""Tiny random models written as GGUF, and a cache folder of the tests' own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
import pytest

# A busy machine is no failure of the code.
hypothesis.settings.register_profile("noisy", deadline=None)
hypothesis.settings.load_profile("noisy")

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}\n{% endfor %}"
)


def write_tiny_model(
    path: Path,
    *,
    head_dim: int = 64,
    n_head: int = 2,
    n_kv: int = 1,
    n_layer: int = 2,
    context_length: int = 4096,
    template: str | None = None,
    seed: int = 0,
    weight_type: str = "F32",
    name: str = "tiny",
) -> Path:
    """Write a random llama-architecture model with a byte vocabulary; loads in llama.cpp.

    Weights are large enough for attention to matter, so a quantized cache shows.
    """
    import gguf
    from gguf.quants import quantize

    rng = np.random.default_rng(seed)
    embd, ff = head_dim * n_head, 64
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    tokens += ["\u2581the", "\u2581of", "\u2581", "e", "t", "a"]
    n_vocab = len(tokens)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_context_length(context_length)
    writer.add_embedding_length(embd)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(ff)
    writer.add_head_count(n_head)
    writer.add_head_count_kv(n_kv)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(0)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(n_vocab)])
    kinds = [2, 3, 3] + [6] * 256 + [1] * (n_vocab - 259)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    if template is not None:
        writer.add_chat_template(template)

    def add(key: str, *shape: int, scale: float) -> None:
        data = (rng.standard_normal(shape) * scale).astype(np.float32)
        kind = gguf.GGMLQuantizationType[weight_type]
        if len(shape) == 2 and weight_type != "F32":
            writer.add_tensor(key, quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(key, data)

    add("token_embd.weight", n_vocab, embd, scale=1.0)
    writer.add_tensor("output_norm.weight", np.ones(embd, np.float32))
    add("output.weight", n_vocab, embd, scale=0.3)
    for i in range(n_layer):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{norm}.weight", np.ones(embd, np.float32))
        add(f"blk.{i}.attn_q.weight", n_head * head_dim, embd, scale=0.2)
        add(f"blk.{i}.attn_k.weight", n_kv * head_dim, embd, scale=0.2)
        add(f"blk.{i}.attn_v.weight", n_kv * head_dim, embd, scale=0.2)
        add(f"blk.{i}.attn_output.weight", embd, n_head * head_dim, scale=0.2)
        add(f"blk.{i}.ffn_gate.weight", ff, embd, scale=0.1)
        add(f"blk.{i}.ffn_up.weight", ff, embd, scale=0.1)
        add(f"blk.{i}.ffn_down.weight", embd, ff, scale=0.1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def make_tiny() -> Callable[..., Path]:
    """`write_tiny_model`, for tests that need other shapes."""
    return write_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model: no chat template, F32 weights, head size 64."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny_instruct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a chat template."""
    path = tmp_path_factory.mktemp("models") / "tiny-instruct.gguf"
    return write_tiny_model(path, template=TEMPLATE, name="tiny instruct")


@pytest.fixture(scope="session")
def tiny_q8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with quantized weights, for the float copy."""
    path = tmp_path_factory.mktemp("models") / "tiny-q8.gguf"
    return write_tiny_model(path, weight_type="Q8_0", name="tiny q8")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes to the user's cache; the demo model's copy is shared within a session.

    Nor does the width of a table depend on who runs the tests: pytest's workers set COLUMNS.
    """
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("NYBBLE_CACHE", str(_session_cache(tmp_path_factory)))


_CACHE: list[Path] = []


def _session_cache(factory: pytest.TempPathFactory) -> Path:
    if not _CACHE:
        _CACHE.append(factory.mktemp("cache"))
    return _CACHE[0]


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    """A text file of a few thousand byte tokens, from the running Python's own documentation."""
    from pydoc_data.topics import topics

    path = tmp_path / "prose.txt"
    path.write_text("".join(topics[k] for k in sorted(topics))[:6000], encoding="utf-8")
    return path
