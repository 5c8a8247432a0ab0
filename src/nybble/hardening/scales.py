"""From energies to the changes of tensors: fit every layer, name what is multiplied by what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nybble.errors import EngineError
from nybble.formats.energies import Array, Energies, LayerEnergies
from nybble.hardening.families import Family
from nybble.hardening.fold import LayerFold, fold
from nybble.hardening.scale import Scale
from nybble.hardening.sites import Site


@dataclass(frozen=True)
class Planned:
    """What the fold does to a file.

    Attributes:
        scales: changes of tensors.
        folds: the fit of every layer that owns keys, by its index.
    """

    scales: list[Scale]
    folds: dict[int, LayerFold]


def plan_scales(
    energies: Energies, family: Family, sites: Sequence[Site], *, interleaved: bool, offset: float
) -> Planned:
    """Fit every layer and spread its scale over the tensors of the file.

    Args:
        energies: statistics of the same model, from either engine.
        family: its rule.
        sites: its layers.
        interleaved: whether the file holds RoPE's pairs side by side.
        offset: what the file's norms lack (Family.offset for a folder, 0 for a GGUF).

    Raises:
        EngineError: the statistics are of another model.
    """
    owners = {s.layer: s for s in sites if s.keys}
    if set(owners) != set(energies.layers):
        raise EngineError(
            "the statistics do not fit the model's layers",
            seen=f"layers {sorted(energies.layers)}", allowed=f"layers {sorted(owners)}",
        )  # fmt: skip
    rows = family.form == "rows"
    folds = {}
    for index, site in owners.items():
        found = energies.layers[index]
        if found.keys.shape != (site.kv_heads, len(site.ties)):
            raise EngineError(
                "the statistics do not fit the model's heads",
                seen=f"{found.keys.shape} in layer {index}",
                allowed=f"{(site.kv_heads, len(site.ties))}",
            )
        found = _in_order(found, energies.interleaved, interleaved)
        folds[index] = fold(found, site.ties, pooled=not rows, exact=site.coarse)
    scales = []
    for site in sites:
        e = folds[site.owner].scale
        scales += [Scale(name, _spread(e, site.heads, rows), offset) for name in site.queries]
        scales += [Scale(name, _spread(1 / e, site.kv_heads, rows), offset) for name in site.keys]
    return Planned(scales, folds)


def _spread(e: Array, heads: int, rows: bool) -> Array:
    """One factor for each row of a projection, or for each channel of a norm."""
    return np.repeat(e, heads // len(e), axis=0).reshape(-1) if rows else e.reshape(-1)


def _in_order(energies: LayerEnergies, given: bool, wanted: bool) -> LayerEnergies:
    """Channels as the file has them; `given` and `wanted` tell whether pairs are neighbours."""
    if given == wanted:
        return energies
    dim = energies.keys.shape[-1]
    order = np.arange(dim).reshape(2, -1).T.reshape(-1)  # i, i + D/2 side by side
    if given:
        order = np.argsort(order)
    return LayerEnergies(energies.keys[:, order], energies.queries[:, order])
