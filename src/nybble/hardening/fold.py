"""The closed-form scale: store k / e, ask with q * e.

Scores stay as they are. A rotated block type spreads its rounding noise evenly over a head's
channels, so the variance of a score's error is sum(e^2 E[q^2]) * sum(E[k^2] / e^2) up to a
constant. By Cauchy-Schwarz it is least at e_i = (E[k_i^2] / E[q_i^2])^(1/4), where it is
(sum sqrt(E[k_i^2] E[q_i^2]))^2. Channels that RoPE turns into each other must share one e, or the
scale does not commute with the rotation: their energies are summed first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nybble.formats.energies import Array, LayerEnergies

# Least energy of a channel, relative to its head's mean: one that queries hardly read would
# otherwise get an e without bound.
_FLOOR = 1e-6


@dataclass(frozen=True)
class LayerFold:
    """The scale of one layer.

    Attributes:
        scale: e, float64 [sets, D]; one set for each KV head, or one for all.
        gain: by how much the variance of a score's error falls, as the formula has it; mean over
            KV heads.
        bound: the same if no two channels had to share.
    """

    scale: Array
    gain: float
    bound: float


def fold(
    energies: LayerEnergies, ties: npt.NDArray[np.intp], *, pooled: bool, exact: bool
) -> LayerFold:
    """Fit one layer.

    Args:
        energies: of keys and queries, [kv_heads, D].
        ties: channels with the same number share one e, [D].
        pooled: one e for all heads of the layer (norms).
        exact: powers of two only, which change no bit of a float's or a block's mantissa. e^2 is
            then off by up to 2, so the product of energies is at most (2 + 1/2)^2 / 4 = 1.56
            times the best, and 1.17 times where the roundings spread evenly: (3 / (4 ln 2))^2. A
            head that this would make worse is left as it is.
    """
    keys, queries = energies.keys, energies.queries
    if pooled:
        # Heads count alike: an outsized one must not decide for all.
        keys, queries = (_relative(x).mean(0, keepdims=True) for x in (keys, queries))
    k, q = _shared(keys, ties), _shared(queries, ties)
    least_k, least_q = (_FLOOR * x.mean(-1, keepdims=True) for x in (k, q))
    # A channel that neither side uses is left as it is.
    used = (k > 0) | (q > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = (np.maximum(k, least_k) / np.maximum(q, least_q)) ** 0.25
    scale = np.where(used & np.isfinite(scale) & (scale > 0), scale, np.nan)
    # Any common factor is as good; this one keeps the keys' size, which f16 and fp8 caches like.
    with np.errstate(invalid="ignore"):  # no keys at all
        size = np.sqrt(np.nansum(k / scale**2, -1, keepdims=True) / k.sum(-1, keepdims=True))
    scale = np.where(np.isnan(scale), 1.0, scale * np.where(np.isfinite(size), size, 1.0))
    ones = np.ones_like(scale)
    if exact:
        scale = np.exp2(np.round(np.log2(scale)))
        fitted = LayerEnergies(keys, queries)
        worse = _product(fitted, scale) > _product(fitted, ones)
        scale = np.where(worse[:, None], 1.0, scale)
    before = _product(energies, ones)
    after = _product(energies, scale)
    free = np.sqrt(energies.keys * energies.queries).sum(-1) ** 2
    return LayerFold(scale, _ratio(before, after), _ratio(before, free))


def _shared(x: Array, ties: npt.NDArray[np.intp]) -> Array:
    """Sums over each set of tied channels, given back to every member."""
    sums = x @ (ties[:, None] == np.arange(int(ties.max()) + 1))
    return np.asarray(sums[:, ties], np.float64)


def _relative(x: Array) -> Array:
    total = x.mean(-1, keepdims=True)
    return np.asarray(x / np.where(total > 0, total, 1.0))


def _product(energies: LayerEnergies, scale: Array) -> Array:
    """Variance of a score's error up to a constant, by KV head."""
    product = (energies.queries * scale**2).sum(-1) * (energies.keys / scale**2).sum(-1)
    return np.asarray(product)


def _ratio(before: Array, after: Array) -> float:
    heads = after > 0
    return float(np.mean(before[heads] / after[heads])) if heads.any() else 1.0


def halves(head_dim: int, rotated: int, turning: int | None = None) -> npt.NDArray[np.intp]:
    """Ties of half-split RoPE: channel i goes with i + rotated / 2.

    Args:
        head_dim: D.
        rotated: channels that RoPE covers, from the first on.
        turning: pairs among them with a frequency other than zero; all without.
    """
    ties = np.arange(head_dim)
    pairs = rotated // 2 if turning is None else turning
    ties[rotated // 2 : rotated // 2 + pairs] = np.arange(pairs)
    return _numbered(ties)


def interleaved(head_dim: int, rotated: int) -> npt.NDArray[np.intp]:
    """Ties of RoPE over neighbours: channel 2 i goes with 2 i + 1."""
    ties = np.arange(head_dim)
    ties[1:rotated:2] = np.arange(0, rotated, 2)
    return _numbered(ties)


def _numbered(ties: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    return np.unique(ties, return_inverse=True)[1].reshape(-1)
