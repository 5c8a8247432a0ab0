"""Muon for matrices, AdamW for everything else, as one optimizer.

The gradient of a KLD that rounding makes is mostly noise: those of two sequences agree by a
cosine of 0.2. AdamW moves every number by about its rate whatever the gradient, so noise walks the
model away from its teacher; Muon spends a step of that size on the directions of a whole matrix
(Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/). SmolLM2 after 60 sequences, 16-bit
cache: KLD of 0.003 to the teacher with Muon, 0.006 with AdamW, and no less of the quantized gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

BETAS = (0.9, 0.98)
MATRICES = "matrices"  # the group that Muon takes


class _Float32(TorchFunctionMode):
    """Lets torch's Muon orthogonalise in float32 where it asks for bfloat16.

    A CPU without AVX-512's bf16 multiplies such matrices 200 times slower than float32 ones (12 s
    for 1,024 x 640 x 2,048 on two AVX2 cores).
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.bfloat16:
            return args[0].float().clone()  # Muon scales it in place
        return func(*args, **(kwargs or {}))


class MuonAndAdamW(torch.optim.Optimizer):
    """Both over one list of groups and one state.

    Args:
        groups: with "name", "params" and "lr". A rate means the same in both: Muon's updates have
            the root mean square of AdamW's (`match_rms_adamw`).
    """

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        super().__init__(list(groups), {})
        made: dict[bool, Any] = {
            True: lambda own: torch.optim.Muon(
                own, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
            ),
            False: lambda own: torch.optim.AdamW(own, betas=BETAS, weight_decay=0.0),
        }
        self._parts = {m: make(own) for m, make in made.items() if (own := self._of(m))}

    def _of(self, matrices: bool) -> list[dict[str, Any]]:
        return [g for g in self.param_groups if (g["name"] == MATRICES) == matrices]

    def step(self, closure: Any = None) -> Any:
        """One step of each, with the gradients that are there."""
        for matrices, part in self._parts.items():
            # accelerate puts other groups and another state in place when it wraps an optimizer.
            part.param_groups, part.state = self._of(matrices), self.state
            slow = matrices and part.param_groups[0]["params"][0].device.type == "cpu"
            with _Float32() if slow else nullcontext():
                part.step()
