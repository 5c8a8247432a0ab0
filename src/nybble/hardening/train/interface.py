"""What the loop asks of a model in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

TAX = "f16"  # the KV setting that tells what training costs the model itself

Tensor = torch.Tensor


class Student(Protocol):
    """A model in training, with its frozen teacher.

    Attributes:
        groups: optimizer groups with "params", "lr" and "name".
        module: holds all of their parameters. The loop replaces it by what accelerate makes of
            it, so losses must go through a call of `self.module`: mixed precision and the
            gathering of shards are hooked in there.
    """

    groups: list[dict[str, Any]]
    module: torch.nn.Module

    def loss(self, ids: Tensor, setting: str, positions: Tensor) -> Tensor:
        """Mean forward KL of int64 ids [batch, context] at positions [m]; differentiable."""

    def held_out(self, ids: Tensor, setting: str) -> Tensor:
        """KLD of every scored token, [n, scored]; no gradient."""

    def before_sharding(self) -> None:
        """Let `module` hold all that is computed with, and nothing twice: FSDP shards it next."""

    def trained(self) -> Mapping[str, Tensor]:
        """Whole trained tensors by name; every process calls it."""

    def load_trained(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy such tensors into the parameters that the optimizer has."""
