"""What nybble needs to know of a model before it loads it.

Source of the keys and of their defaults: llama.cpp, `llama_model_base::load_hparams` in
`src/llama-model.cpp` and the files of `src/models/`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from nybble.models.file_kinds import show
from nybble.models.gguf_header import GGUFHeader, TensorInfo
from nybble.models.gguf_keys import Keys
from nybble.models.gguf_kinds import refuse
from nybble.models.gguf_layers import head_dims, vocabulary
from nybble.models.gguf_shards import read_shards
from nybble.models.gguf_types import FILE_TYPES

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS

_QAT = re.compile(r"(?i)(?<![a-z])qat(?![a-z])")


@dataclass(frozen=True)
class ModelSummary:
    """What one GGUF model says about itself.

    `n_layers` counts every block of the file, next-token-prediction blocks included. `head_dim_k`,
    `head_dim_v` (elements), `n_heads` and `n_kv_heads` have one entry per layer; 0 heads is a layer
    without attention. `context_length` is the trained one and `sliding_window` is as the file says,
    both in tokens. `bos_token_id`, `eos_token_id` and `add_bos` are None when the file leaves them
    to the engine, as is an id outside the vocabulary. `weight_types` counts the tensors of each
    type. `n_params` (elements) and `size_bytes` are sums over all files of a split model.
    `quantized_by_qat` is a hint: a general.* key or text has the word "qat". `tokenizer_hash` is
    equal for two models with the same vocabulary.

    Not resolved here: which layers slide and whether the engine uses the window (it ignores that of
    phi3, and has built-in windows for gemma2 and llama4); layers that share or lack a cache without
    saying so in head_count_kv (gemma3n, gemma4, hybrids with an attention interval); MLA, where no
    V is stored; caches of indexers and recurrent states.
    """

    path: Path
    name: str | None
    architecture: str
    n_layers: int
    n_vocab: int
    context_length: int
    head_dim_k: tuple[int, ...]
    head_dim_v: tuple[int, ...]
    n_heads: tuple[int, ...]
    n_kv_heads: tuple[int, ...]
    sliding_window: int | None
    chat_template: str | None
    bos_token_id: int | None
    eos_token_id: int | None
    add_bos: bool | None
    weight_types: Mapping[str, int]
    n_params: int
    file_type: str | None
    size_bytes: int
    quantized_by_qat: bool
    tokenizer_hash: str | None

    @property
    def is_instruct(self) -> bool:
        """Whether the model carries a chat template."""
        return self.chat_template is not None


def summarise(path: Path) -> ModelSummary:
    """Read the header of the model `path`, and those of its other files when it is split.

    Raises:
        ModelFileError: a file is missing or damaged (see `read_header`), a required key is absent
            or wrong, or the model keeps no KV cache that could be measured (an encoder, an
            embedding model, a projector, an adapter, a vocabulary, a recurrent model).
    """
    shards = read_shards(path)
    keys = Keys(path, shards[0].metadata)
    arch = keys.text("general.architecture")
    if arch is None:
        raise keys.missing("general.architecture")
    tensors = [t for shard in shards for t in shard.tensors]
    refuse(keys, arch, tensors)
    return _summary(keys, arch, shards, tensors)


def _summary(
    keys: Keys, arch: str, shards: list[GGUFHeader], tensors: list[TensorInfo]
) -> ModelSummary:
    n_layers = keys.required(f"{arch}.block_count", most=MAX_LAYERS)
    heads = keys.per_layer(f"{arch}.attention.head_count", n_layers)
    if heads is None:
        raise keys.missing(f"{arch}.attention.head_count")
    kv_heads = keys.per_layer(f"{arch}.attention.head_count_kv", n_layers) or heads
    if not any(kv_heads):
        raise keys.refused(f"{show(arch)} without attention heads: it keeps no KV cache")
    n_vocab = vocabulary(keys, arch)
    general = [(k, v) for k, v in keys.values.items() if k.startswith("general.")]
    ids = [keys.integer(f"tokenizer.ggml.{kind}_token_id") for kind in ("bos", "eos")]
    bos, eos = (i if i is not None and i < n_vocab else None for i in ids)
    file_type = keys.integer("general.file_type")
    known_type = None if file_type is None else FILE_TYPES.get(file_type & ~1024)
    return ModelSummary(
        path=keys.path,
        name=keys.text("general.name"),
        architecture=arch,
        n_layers=n_layers,
        n_vocab=n_vocab,
        context_length=keys.required(f"{arch}.context_length"),
        head_dim_k=head_dims(keys, arch, "key", heads),
        head_dim_v=head_dims(keys, arch, "value", heads),
        n_heads=heads,
        n_kv_heads=kv_heads,
        sliding_window=keys.integer(f"{arch}.attention.sliding_window") or None,
        chat_template=keys.text("tokenizer.chat_template"),
        bos_token_id=bos,
        eos_token_id=eos,
        add_bos=keys.flag("tokenizer.ggml.add_bos_token"),
        weight_types=MappingProxyType(Counter(t.type_name for t in tensors)),
        n_params=sum(t.n_elements for t in tensors),
        file_type=known_type or (None if file_type is None else f"type {file_type}"),
        size_bytes=sum(shard.file_size for shard in shards),
        quantized_by_qat=any(_QAT.search(f"{k} {v}") for k, v in general),
        tokenizer_hash=shards[0].tokenizer_hash(),
    )
