"""Statistics of a model's keys and queries, and what settings derive from them.

A rotated block type spreads its rounding noise evenly over a head's channels, so the error of a
score q.k has the variance E|q|^2 E|k|^2 up to a constant. Storing T(k - mean) and reading with
T^-1 q leaves scores as they are (a constant taken from all keys of a head moves all scores of a
query alike, which softmax does not see) but changes that product. It is least where T makes both
second moments equal and diagonal: with K = E[k k'], Q = E[q q'] and the eigenvectors U, w of
K^(1/2) Q K^(1/2), that is T = diag(w)^(1/4) U' K^(-1/2); both moments become diag(w)^(1/2).
Restricted to diagonal T it is e_i = (K_ii / Q_ii)^(1/4), the fold of docs/method.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nybble.formats.lazy import torch

SHRINK = 0.1  # share of the diagonal mixed in: 4,096 tokens do not fill a 256 x 256 matrix
_FLOOR = 1e-7  # smallest eigenvalue kept, relative to the largest


@dataclass(frozen=True)
class LayerMoments:
    """Moments of one layer after RoPE; float64, for each KV head.

    Attributes:
        mean: mean key, [heads, D].
        keys: central second moment of keys, [heads, D, D].
        queries: second moment of the queries of a head's group, [heads, D, D].
        value_mean: mean value, [heads, D_v].
        value_size: root mean square of values around it, [heads].
    """

    mean: torch.Tensor
    keys: torch.Tensor
    queries: torch.Tensor
    value_mean: torch.Tensor
    value_size: torch.Tensor


@dataclass(frozen=True)
class LayerCalibration:
    """What is stored for one layer, and all that a cache needs.

    Attributes:
        mean: mean key, float32 [heads, D].
        scale: e of each channel, float32 [heads, D].
        basis: rows of T by falling weight, float32 [heads, D, D].
        weight: diag(w)^(1/2) in the same order, float32 [heads, D].
        value_mean: mean value, float32 [heads, D_v].
        value_size: root mean square of values around it, float32 [heads].
    """

    mean: torch.Tensor
    scale: torch.Tensor
    basis: torch.Tensor
    weight: torch.Tensor
    value_mean: torch.Tensor
    value_size: torch.Tensor

    @classmethod
    def fit(cls, moments: LayerMoments) -> LayerCalibration:
        """Derive scale and basis from moments."""
        keys, queries = _shrunk(moments.keys), _shrunk(moments.queries)
        k, q = _diagonal(moments.keys), _diagonal(moments.queries)
        # A channel that never moves has nothing to balance: leave it as it is.
        scale = torch.where((k > 0) & (q > 0), (k / q.clamp(min=1e-300)) ** 0.25, 1.0)
        root, inverse_root = _roots(keys)
        w, u = torch.linalg.eigh(root @ queries @ root)
        w, u = w.flip(-1), u.flip(-1)
        w = w.clamp(min=1e-300).maximum(w[..., :1] * _FLOOR)
        basis = (w**0.25)[..., None] * (u.mT @ inverse_root)
        return cls(
            moments.mean.float(), scale.float(), basis.float(), w.sqrt().float(),
            moments.value_mean.float(), moments.value_size.float(),
        )  # fmt: skip


@dataclass(frozen=True)
class Calibration:
    """Calibrations of a model, by layer that owns keys.

    Attributes:
        layers: by layer index.
        model: fingerprint of the weights.
        tokens: tokens it was taken over.
        text: SHA-256 of those tokens.
    """

    layers: Mapping[int, LayerCalibration]
    model: str = ""
    tokens: int = 0
    text: str = ""
    extra: dict[str, str] = field(default_factory=dict)


def _diagonal(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1)


def _shrunk(matrix: torch.Tensor) -> torch.Tensor:
    d = _diagonal(matrix)
    # A millionth of the mean keeps channels that never move invertible.
    d = d + d.mean(-1, keepdim=True) * 1e-6 + 1e-30
    return (1 - SHRINK) * matrix + SHRINK * torch.diag_embed(d)


def _roots(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric square root and its inverse."""
    w, u = torch.linalg.eigh(matrix)
    w = w.clamp(min=1e-300).maximum(w[..., -1:] * _FLOOR)
    return (u * w.sqrt()[..., None, :]) @ u.mT, (u * w.rsqrt()[..., None, :]) @ u.mT
