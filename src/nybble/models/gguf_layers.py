"""Head sizes, sliding layers and vocabulary of a GGUF, as llama.cpp resolves them.

Source: `llama_model_base::load_hparams` and `load_swa_pattern` in llama.cpp's
`src/llama-model.cpp`, `set_swa_pattern` in `src/llama-hparams.cpp`.
"""

from __future__ import annotations

from types import MappingProxyType

from nybble.models.gguf_keys import Keys

# Every nth layer attends to everything (first: the layers 0, n, ...; else n-1, 2n-1, ...) when the
# file has no sliding_window_pattern. Source: the load_swa_pattern calls of llama.cpp's src/models.
_PATTERNS = MappingProxyType({
    "gemma2": 2, "gpt-oss": 2, "gemma3": 6, "gemma3n": 5, "plamo3": 8, "afmoe": 4, "cohere2": 4,
    "exaone4": 4, "exaone-moe": 4, "llama4": 4, "mellum": 4, "olmo2": 4, "muse-glimmer": 4,
    "laguna": 4, "cohere2moe": 4, "smallthinker": 4,
})  # fmt: skip
_DENSE_FIRST = ("laguna", "cohere2moe", "smallthinker")


def vocabulary(keys: Keys, arch: str) -> int:
    """Return the number of tokens.

    Raises:
        ModelFileError: the file names none.
    """
    tokens = keys.values.get("tokenizer.ggml.tokens")
    count = getattr(tokens, "count", None)
    n_vocab = len(tokens) if isinstance(tokens, tuple) else count
    n_vocab = n_vocab if isinstance(n_vocab, int) else keys.integer(f"{arch}.vocab_size")
    if not n_vocab:
        raise keys.missing("tokenizer.ggml.tokens")
    return n_vocab


def head_dims(keys: Keys, arch: str, kind: str, heads: tuple[int, ...]) -> tuple[int, ...]:
    """Return the head size of each layer (elements); `kind` is key or value.

    Raises:
        ModelFileError: a key is absent or wrong.
    """
    prefix = f"{arch}.attention"
    full = keys.per_layer(f"{prefix}.{kind}_length", len(heads))
    if full is None:
        # As llama.cpp: the heads of layer 0 decide for all layers.
        size = keys.required(f"{arch}.embedding_length") // heads[0] if heads[0] else 0
        full = (size,) * len(heads)
    sliding = keys.per_layer(f"{prefix}.{kind}_length_swa", len(heads))
    if sliding is not None and sliding != full:
        slides = sliding_layers(keys, arch, len(heads))
        full = tuple(s if yes else f for f, s, yes in zip(full, sliding, slides, strict=True))
    if not any(full):
        raise keys.missing(f"{prefix}.{kind}_length")
    return full


def sliding_layers(keys: Keys, arch: str, n_layers: int) -> tuple[bool, ...]:
    """Return which layers the pattern of the file, or of its architecture, makes sliding.

    Raises:
        ModelFileError: neither has a pattern.
    """
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
