"""What nybble needs to know of a model before it loads it.

Source of the keys and of their defaults: llama.cpp, `llama_model_base::load_hparams` in
`src/llama-model.cpp` and the files of `src/models/`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType

from nybble.errors import ModelFileError
from nybble.models.file_kinds import show
from nybble.models.gguf_header import GGUFHeader, TensorInfo, read_header
from nybble.models.gguf_keys import Keys
from nybble.models.gguf_types import FILE_TYPES

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS

_BERT = ("bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2",
         "jina-bert-v3", "eurobert")  # fmt: skip
_REFUSED = MappingProxyType({
    "clip": "a vision or audio projector (mmproj), not a language model",
    "gemma-embedding": "an embedding model", "gemma-embedding2": "an embedding model",
    "llama-embed": "an embedding model", "t5encoder": "an encoder",
    "t5": "an encoder-decoder model", "wavtokenizer-dec": "an audio decoder",
    "pockettts": "an audio model", "dream": "a diffusion model", "llada": "a diffusion model",
    "llada-moe": "a diffusion model", "rnd1": "a diffusion model", "eagle3": "a draft head",
    "dflash": "a draft head", "gemma4-assistant": "a draft head",
    **dict.fromkeys(_BERT, "an encoder, which keeps no KV cache"),
})  # fmt: skip
_QAT = re.compile(r"(?i)(?<![a-z])qat(?![a-z])")
_TYPES = ("mmproj", "adapter", "vocab", "imatrix", "dataset")

# Every nth layer attends to everything (first: the layers 0, n, ...; else n-1, 2n-1, ...) when the
# file has no sliding_window_pattern. Source: the load_swa_pattern calls of llama.cpp's src/models.
_PATTERNS = {"gemma2": 2, "gpt-oss": 2, "gemma3": 6, "gemma3n": 5, "plamo3": 8, "afmoe": 4,
             "cohere2": 4, "exaone4": 4, "exaone-moe": 4, "llama4": 4, "mellum": 4, "olmo2": 4,
             "muse-glimmer": 4, "laguna": 4, "cohere2moe": 4, "smallthinker": 4}  # fmt: skip
_DENSE_FIRST = ("laguna", "cohere2moe", "smallthinker")


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
    first = read_header(path)
    shards = [first, *_other_shards(path, first)]
    keys = Keys(path, first.metadata)
    arch = keys.text("general.architecture")
    if arch is None:
        raise keys.missing("general.architecture")
    tensors = [t for shard in shards for t in shard.tensors]
    _refuse(keys, arch, tensors)
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
    n_vocab = _vocabulary(keys, arch)
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
        head_dim_k=_head_dims(keys, arch, "key", heads),
        head_dim_v=_head_dims(keys, arch, "value", heads),
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


def _vocabulary(keys: Keys, arch: str) -> int:
    tokens = keys.values.get("tokenizer.ggml.tokens")
    count = getattr(tokens, "count", None)
    n_vocab = len(tokens) if isinstance(tokens, tuple) else count
    n_vocab = n_vocab if isinstance(n_vocab, int) else keys.integer(f"{arch}.vocab_size")
    if not n_vocab:
        raise keys.missing("tokenizer.ggml.tokens")
    return n_vocab


def _head_dims(keys: Keys, arch: str, kind: str, heads: tuple[int, ...]) -> tuple[int, ...]:
    """Head sizes per layer; `kind` is key or value."""
    prefix = f"{arch}.attention"
    full = keys.per_layer(f"{prefix}.{kind}_length", len(heads))
    if full is None:
        # As llama.cpp: the heads of layer 0 decide for all layers.
        size = keys.required(f"{arch}.embedding_length") // heads[0] if heads[0] else 0
        full = (size,) * len(heads)
    sliding = keys.per_layer(f"{prefix}.{kind}_length_swa", len(heads))
    if sliding is not None and sliding != full:
        slides = _sliding_layers(keys, arch, len(heads))
        full = tuple(s if yes else f for f, s, yes in zip(full, sliding, slides, strict=True))
    if not any(full):
        raise keys.missing(f"{prefix}.{kind}_length")
    return full


def _sliding_layers(keys: Keys, arch: str, n_layers: int) -> tuple[bool, ...]:
    key = f"{arch}.attention.sliding_window_pattern"
    value = keys.values.get(key, _PATTERNS.get(arch))
    if value is None:
        raise keys.missing(key)
    if isinstance(value, tuple):
        return tuple(map(bool, keys.per_layer(key, n_layers) or ()))
    period = value if isinstance(value, int) else keys.required(key)
    dense = 0 if arch in _DENSE_FIRST else period - 1
    # Next-token-prediction blocks, the last ones, never slide.
    trunk = n_layers - (keys.integer(f"{arch}.nextn_predict_layers") or 0)
    return tuple(il < trunk and (not period or il % period != dense) for il in range(n_layers))


def _refuse(keys: Keys, arch: str, tensors: list[TensorInfo]) -> None:
    kind = keys.text("general.type")
    if kind in _TYPES:
        raise keys.refused(f"general.type {show(kind)}, not a language model")
    if arch in _REFUSED:
        raise keys.refused(f"{show(arch)}, {_REFUSED[arch]}")
    if keys.flag(f"{arch}.attention.causal") is False:
        raise keys.refused(f"{show(arch)} without causal attention: an encoder")
    if keys.integer(f"{arch}.pooling_type"):
        raise keys.refused(f"{show(arch)} with pooled output: an embedding or ranking model")
    if not tensors:
        raise keys.refused(f"{show(arch)} without tensors: only a vocabulary")


def _other_shards(path: Path, first: GGUFHeader) -> list[GGUFHeader]:
    """Read the headers of the other files of a split model, and check that they belong to it."""
    n = first.split_count
    if n == 1:
        return []
    number = first.metadata.get("split.no", 0)
    index = number if isinstance(number, int) else 0
    ending = f"-{index + 1:05d}-of-{n:05d}.gguf"
    if not path.name.endswith(ending):
        raise ModelFileError("A file of a split model was renamed", seen=path.name,
                             allowed=f"a name that ends with {ending}",
                             hint="give the files the names they had")  # fmt: skip
    stem = path.name.removesuffix(ending)
    paths = [path.with_name(f"{stem}-{i:05d}-of-{n:05d}.gguf") for i in range(1, n + 1)]
    gone = [p.name for p in islice((p for p in paths if not p.is_file()), 5)]
    if gone:
        raise ModelFileError(f"The model is split into {n:,} files and some are missing next to "
                             f"{path}", seen=f"missing: {', '.join(gone)}", allowed=f"all {n:,}",
                             hint="download the missing files into the same folder")  # fmt: skip
    if index != 0:
        raise ModelFileError("This is not the first file of the split model", seen=path.name,
                             allowed=paths[0].name, hint=f"use {paths[0]}")  # fmt: skip
    others = []
    names = {t.name for t in first.tensors}
    for i, other in enumerate(paths[1:], start=1):
        header = read_header(other)
        here = {t.name for t in header.tensors}
        found = header.metadata.get("split.no")
        if header.split_count != n or found != i or names & here:
            raise ModelFileError(f"{other.name} belongs to another model", seen=f"split.no {found}",
                                 allowed=f"split.no {i} of {n} and its own tensors",
                                 hint="download all the files of one model again")  # fmt: skip
        names |= here
        others.append(header)
    total = first.metadata.get("split.tensors.count", len(names))
    if total != len(names):
        raise ModelFileError("The files of the split model do not hold all its tensors", seen=path,
                             allowed=f"{show(total)} tensors, not {len(names):,}",
                             hint="download all the files of one model again")  # fmt: skip
    return others
