"""A KVStudent over a tiny model of each family, its text and its request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from trained_models import DIM, HEADS, KV_HEADS, LAYERS, VOCAB, torch_model

from nybble.engines.transformers.attention import NAME
from nybble.hardening import families
from nybble.hardening.fold import halves
from nybble.hardening.sites import Site
from nybble.hardening.train.data import TokenPool
from nybble.hardening.train.request import TrainRequest
from nybble.hardening.train.student import KVStudent

CONTEXT = 64
_FAMILY = {"gemma3": "gemma3_text", "qwen3moe": "qwen3_moe"}


def model(family: str) -> Any:
    """One pair of channels is large in the keys and small in the queries: a scale can mend that."""
    made = torch_model(family, attn_implementation=NAME).requires_grad_(False)
    added = 1.0 if family == "gemma3" else 0.0
    for name, values in made.named_parameters():
        for site in sites(family):
            if name in site.keys + site.queries:
                factor = torch.ones(DIM)
                factor[[0, DIM // 2]] = 8.0 if name in site.keys else 1 / 8
                factor = factor.repeat(len(values) // DIM).reshape(-1, *[1] * (values.ndim - 1))
                values.copy_((values + added) * factor - added)
    return made


def sites(family: str) -> list[Site]:
    """As `find_sites` names them, written down by hand."""
    parts: tuple[str, ...] = ("proj.weight", "proj.bias") if family == "qwen2" else ("proj.weight",)
    if family in ("gemma3", "qwen3", "qwen3moe"):
        parts = ("norm.weight",)
    return [
        Site(i, i, HEADS, KV_HEADS, halves(DIM, DIM),
             *(tuple(f"model.layers.{i}.self_attn.{m}_{part}" for part in parts) for m in "qk"))
        for i in range(LAYERS)
    ]  # fmt: skip


def request(out: Path, **changes: Any) -> TrainRequest:
    base: dict[str, Any] = {
        "out": out, "scope": "kv", "context": CONTEXT, "steps": 3, "batch": 2, "positions": 16,
        "eval_every": 1, "patience": None, "threads": 1, "device": "cpu", "lr": (("scales", 0.1),),
    }  # fmt: skip
    return TrainRequest(**{**base, **changes})


def student(family: str, asked: TrainRequest) -> KVStudent:
    name = _FAMILY.get(family, family)
    return KVStudent(model(family), families.FOLDER[name], sites(family), asked)


def pool(chunks: int = 24, held_out: int = 3) -> TokenPool:
    ids = np.random.default_rng(0).integers(0, VOCAB, (chunks, CONTEXT), dtype=np.int32)
    return TokenPool.split(ids, [f"d{i // 2}" for i in range(chunks)], held_out, 0)


def held_out_ids() -> torch.Tensor:
    return torch.from_numpy(pool().held_out.astype(np.int64))
