"""One tiny model of every family that the fold knows, as folder and as GGUF.

Import this after pytest.importorskip("torch").
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from trained_models import torch_model, write_base

from gguf_models import write_tiny_gemma3, write_tiny_gemma4, write_tiny_qwen3
from nybble.formats.energies import Energies, LayerEnergies
from nybble.hardening.families import Family
from nybble.hardening.scales import Planned, plan_scales
from nybble.hardening.sites import Site
from torch_runs import write_folder

FOLDERS = ("llama", "llama-bias", "mistral", "qwen2", "qwen3", "qwen3moe", "gemma3", "gemma4",
           "gemma4-shared")  # fmt: skip
GGUFS = ("llama", "mistral3", "qwen2", "qwen3", "qwen3moe", "gemma3", "gemma4", "gemma4-alike")


def write_hf(path: Path, kind: str) -> Path:
    """A folder that transformers loads, with a tokenizer of bytes."""
    if kind == "llama-bias":
        return write_folder(path, "llama", attention_bias=True)
    if not kind.startswith("qwen2") and kind != "qwen3moe":
        return write_folder(path, kind)
    write_folder(path, "llama")  # for its tokenizer
    torch_model(kind).save_pretrained(path)
    return path


def write_gguf(path: Path, kind: str) -> Path:
    """A GGUF that llama.cpp loads; heads of one size in all layers of "gemma4-alike"."""
    if kind.startswith("gemma4"):
        return write_tiny_gemma4(path, sliding_dim=64 if kind == "gemma4-alike" else 32)
    if kind in ("gemma3", "qwen3"):
        return (write_tiny_gemma3 if kind == "gemma3" else write_tiny_qwen3)(path)
    return write_base(path, kind)


def random_energies(sites: Sequence[Site], interleaved: bool, seed: int = 0) -> Energies:
    """Energies far from even, in every head's own way."""
    rng = np.random.default_rng(seed)
    layers = {}
    for site in sites:
        keys, queries = np.exp(2 * rng.standard_normal((2, site.kv_heads, len(site.ties))))
        if site.keys:
            layers[site.layer] = LayerEnergies(keys, queries)
    return Energies(layers, interleaved, 1000, "", "transformers")


def plan(family: Family, sites: Sequence[Site], *, gguf: bool, **changes: Any) -> Planned:
    """What `nybble harden` would do with such energies."""
    interleaved = gguf and family.interleaved
    energies = changes.pop("energies", None) or random_energies(sites, interleaved)
    offset = 0.0 if gguf else family.offset
    return plan_scales(
        energies, family, sites, **{"interleaved": interleaved, "offset": offset, **changes}
    )
