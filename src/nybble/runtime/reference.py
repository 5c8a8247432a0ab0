"""Attention over packed tokens in plain torch: the specification of every kernel.

Tokens are unpacked a tile at a time and used at once, so no 16-bit copy of the history is ever
made. What comes back is unnormalised, so that strands join by log-sum-exp:

    score_rt = cap(q_r . k_t + bias_r),  m_r = max_t score_rt,
    l_r = sum_t exp(score_rt - m_r),  acc_r = sum_t exp(score_rt - m_r) y_t

Sources: online softmax, Milakov and Gimelshein 2018 (arXiv 1805.02867); splitting along the
context, Flash-Decoding (Dao et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

_TILE = 512  # tokens unpacked at a time
_SCORES = 1 << 21  # scores held at a time, 8 MiB: they are made over, not copied

# Coded keys and values of tokens [a, b), float32 [B, heads, b - a, D].
Reader = Callable[[int, int], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Partial:
    """Attention over some of the tokens; float32.

    Attributes:
        m: largest score of each row, -inf where it saw nothing, [B, heads, rows].
        l: sum of exp(score - m), same shape.
        acc: sum of exp(score - m) times the value, [B, heads, rows, D_v].
    """

    m: torch.Tensor
    l: torch.Tensor  # noqa: E741 - the field's name for it
    acc: torch.Tensor


@dataclass(frozen=True)
class Rows:
    """The query rows of one call.

    Attributes:
        q: float32 [B, heads, rows, D], scaled; row g * n + i is query i of the group's head g.
        bias: added to every score of a row, [B, heads, rows], or None.
        start: first token each of the n queries sees, int64 [n] on the CPU.
        stop: the one behind the last.
        mask: bool [B, n, count], True where a query may look, or None.
        added: float32 [B, heads, rows, count] or [B, 1, rows, count] added to scores, or None.
        softcap: scores become cap * tanh(score / cap); None for none.
    """

    q: torch.Tensor
    bias: torch.Tensor | None
    start: torch.Tensor
    stop: torch.Tensor
    mask: torch.Tensor | None = None
    added: torch.Tensor | None = None
    softcap: float | None = None

    @property
    def n(self) -> int:
        """Queries of one head."""
        return len(self.start)


def attend(rows: Rows, read: Reader, v_dim: int) -> Partial:
    """Attention of all rows over the tokens that `read` gives."""
    q, n = rows.q, rows.n
    batch, heads, count, _ = q.shape
    m = q.new_full((batch, heads, count), -torch.inf)
    total = torch.zeros_like(m)
    acc = q.new_zeros(batch, heads, count, v_dim)
    first, last = int(rows.start.min()), int(rows.stop.max())
    tile = max(64, min(_TILE, _SCORES // max(1, batch * heads * count)))
    start, stop = rows.start.to(q.device)[:, None], rows.stop.to(q.device)[:, None]
    whole_from, whole_to = int(rows.start.max()), int(rows.stop.min())
    room = None if q.requires_grad else q.new_empty(batch * heads * count * min(tile, last - first))
    for a in range(first, last, tile):
        b = min(a + tile, last)
        k, v = read(a, b)
        scores = _product(q, k.mT, room)
        if rows.bias is not None:
            scores += rows.bias[..., None]
        if rows.softcap is not None:
            scores = scores.div_(rows.softcap).tanh_().mul_(rows.softcap)
        if rows.added is not None:
            scores += rows.added[..., a:b]
        by_query = scores.view(batch, heads, -1, n, b - a)
        if a < whole_from or b > whole_to:
            at = torch.arange(a, b, device=q.device)
            by_query.masked_fill_((at < start) | (at >= stop), -torch.inf)
        if rows.mask is not None:
            by_query.masked_fill_(~rows.mask[:, None, None, :, a:b], -torch.inf)
        top = torch.maximum(m, scores.amax(-1))
        base = torch.where(top == -torch.inf, 0.0, top)  # -inf minus -inf would be NaN
        p = scores.sub_(base[..., None]).exp_()
        fade = torch.exp(m - base)
        total = total * fade + p.sum(-1)
        acc = (acc * fade[..., None]).add_(p @ v)
        m = top
    return Partial(m, total, acc)


def _product(x: torch.Tensor, y: torch.Tensor, room: torch.Tensor | None) -> torch.Tensor:
    """The product x @ y, into `room` where there is one: tile after tile in one place."""
    if room is None:
        return x @ y
    batch, heads, rows, _ = x.shape
    shape = (batch * heads, rows, y.shape[-1])
    out = room[: shape[0] * shape[1] * shape[2]].view(shape)
    torch.bmm(x.flatten(0, 1), y.flatten(0, 1), out=out)
    return out.view(batch, heads, *shape[1:])


def join(parts: list[Partial], sinks: torch.Tensor | None = None) -> torch.Tensor:
    """Attention of several parts together, normalised.

    Args:
        parts: with `acc` in one common domain.
        sinks: scores without a value that join the softmax, [heads, rows] or None (gpt-oss).

    Returns:
        float32 [B, heads, rows, D_v]; zeros for a row that saw nothing.
    """
    m = torch.stack([part.m for part in parts]).amax(0)
    if sinks is not None:
        m = torch.maximum(m, sinks)
    base = torch.where(m == -torch.inf, 0.0, m)
    out = torch.zeros_like(parts[0].acc)
    total = torch.zeros_like(m) if sinks is None else torch.exp(sinks - base)
    for part in parts:
        weight = torch.exp(part.m - base)
        out = out + part.acc * weight[..., None]
        total = total + part.l * weight
    return out / torch.where(total == 0, 1.0, total)[..., None]
