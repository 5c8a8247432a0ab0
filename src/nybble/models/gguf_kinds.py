"""GGUF files that are no language model with a KV cache, told by their header."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

from nybble.models.file_kinds import show
from nybble.models.gguf_keys import Keys
from nybble.models.gguf_types import TensorInfo

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
_TYPES = ("mmproj", "adapter", "vocab", "imatrix", "dataset")


def refuse(keys: Keys, arch: str, tensors: Sequence[TensorInfo]) -> None:
    """Refuse what is no causal language model.

    Raises:
        ModelFileError: an encoder, an embedding model, a projector, an adapter, a vocabulary.
    """
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
