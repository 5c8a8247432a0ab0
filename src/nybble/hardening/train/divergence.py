"""Forward KL divergence over the full vocabulary, a few positions at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# Positions at a time: 128 MiB of float32 at a vocabulary of 262,144. Mixed precision casts the
# head's weights every time.
_ROWS = 128

Head = Callable[[torch.Tensor], torch.Tensor]


class _Divergence(torch.autograd.Function):
    """Sum of KL(teacher || student) over rows; the gradient of its logits is q - p.

    Written out because autograd would keep five tensors of logit size for each chunk.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        log_q = torch.log_softmax(logits.float(), -1)
        log_p = torch.log_softmax(teacher.float(), -1)
        p = log_p.exp()
        total = (p * (log_p - log_q)).sum()
        # bf16 logits came from bf16 matrices: their gradient needs no more.
        ctx.save_for_backward((log_q.exp_() - p).to(logits.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (difference,) = ctx.saved_tensors
        return difference * grads[0].to(difference.dtype), None


def mean_divergence(
    student: torch.Tensor, teacher: torch.Tensor, head: Head, teacher_head: Head
) -> torch.Tensor:
    """Mean KL in nats over rows; differentiable.

    Args:
        student: last hidden states [n, hidden].
        teacher: the same of the teacher.
        head: logits [rows, vocabulary] of hidden states [rows, hidden].
        teacher_head: the same of the teacher.
    """
    total = student.new_zeros((), dtype=torch.float32)
    for start in range(0, len(student), _ROWS):
        rows = slice(start, start + _ROWS)
        with torch.no_grad():
            reference = teacher_head(teacher[rows])
        part: torch.Tensor = _Divergence.apply(head(student[rows]), reference)  # type: ignore[no-untyped-call]
        total = total + part
    return total / len(student)


@torch.no_grad()
def divergences(
    student: torch.Tensor, teacher: torch.Tensor, head: Head, teacher_head: Head
) -> torch.Tensor:
    """KL in nats of every row, float32 [n]."""
    found = []
    for start in range(0, len(student), _ROWS):
        rows = slice(start, start + _ROWS)
        log_p = torch.log_softmax(teacher_head(teacher[rows]).float(), -1)
        log_q = torch.log_softmax(head(student[rows]).float(), -1)
        found.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return torch.cat(found)
