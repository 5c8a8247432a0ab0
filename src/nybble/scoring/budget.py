"""Spread a budget of bits over layers and sides: a proposal by greedy marginal gain.

How much a layer's K or V matters is measured: it alone is stored in a probe type, the mean KLD is
taken on the first documents. How much of that another type would cost follows from its squared
error on that very layer's keys or values, since KLD is quadratic in small errors:

    cost(layer, side, type) = KLD(layer, side, probe) * error(type) / error(probe)

Everything starts at the smallest type; the upgrade with the largest gain per byte is taken as
long as the bytes allow. Bytes are those of the whole cache at the longest context measured; a
sliding layer holds one window. The proposal is then measured as a whole, beside a uniform setting.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from nybble.errors import NybbleError
from nybble.formats import KVSetting, kv_type, make, parse, unique
from nybble.formats.around import At
from nybble.results.store import RunStore
from nybble.scoring.cells import lanes_of, part_series
from nybble.scoring.request import DEFAULT_SETTINGS, MeasureRequest, Progress

if TYPE_CHECKING:
    from nybble.scoring.backend import Parts
    from nybble.scoring.prepare import PreparedModel
    from nybble.scoring.text import Text

LADDER = tuple(f"exl3_{bits}" for bits in (2, 3, 4, 5, 6, 8))
_PROBES = 2  # documents that sensitivities are taken on

Site = tuple[int, str]  # layer and side


@dataclass(frozen=True)
class Rung:
    """One type at one site: what it takes and what it costs."""

    name: str
    bytes: float
    cost: float


def greedy(sites: Mapping[Site, Sequence[Rung]], budget: float) -> dict[Site, str]:
    """Types by site whose bytes sum to at most `budget`.

    Args:
        sites: rungs of each site, smallest first.
        budget: bytes.

    Raises:
        NybbleError: not even the smallest types fit.
    """
    at = dict.fromkeys(sites, 0)
    left = budget - sum(rungs[0].bytes for rungs in sites.values())
    if left < -1e-9:
        raise NybbleError(
            "the budget is below the smallest type", seen=f"{budget:,.0f} bytes",
            allowed=f"{budget - left:,.0f} or more", hint="a larger --budget, or smaller types",
        )  # fmt: skip
    while True:
        best: tuple[float, Site, int] | None = None
        for site, rungs in sites.items():
            here = rungs[at[site]]
            # Looking past the next rung lets a weak one be jumped over.
            for i in range(at[site] + 1, len(rungs)):
                more = rungs[i].bytes - here.bytes
                less = here.cost - rungs[i].cost
                if more > left + 1e-9 or less <= 0:
                    continue
                gain = less / more if more > 0 else math.inf
                if best is None or gain > best[0]:
                    best = (gain, site, i)
        if best is None:
            return {site: rungs[at[site]].name for site, rungs in sites.items()}
        _, site, i = best
        left -= sites[site][i].bytes - sites[site][at[site]].bytes
        at[site] = i


def as_setting(types: Mapping[Site, str]) -> KVSetting:
    """Write types by site as one setting: the most frequent pair, and what differs."""
    layers = sorted({layer for layer, _ in types})
    pairs = {layer: (types[layer, "K"], types[layer, "V"]) for layer in layers}
    base = Counter(pairs.values()).most_common(1)[0][0]
    others: dict[tuple[str, str], list[int]] = {}
    for layer, pair in pairs.items():
        if pair != base:
            others.setdefault(pair, []).append(layer)
    at = tuple(At(tuple(where), k, v) for (k, v), where in sorted(others.items()))
    plain = make(*base)
    return replace(plain, around=replace(plain.around, at=at))


def with_budget(
    request: MeasureRequest,
    backend: Parts,
    models: Sequence[PreparedModel],
    text: Text,
    progress: Progress,
) -> MeasureRequest:
    """The request with the proposal and the uniform setting of equal bytes as its settings.

    Raises:
        NybbleError: types that cannot make a ladder, or too small a budget.
    """
    assert request.budget is not None
    names = _ladder(request)
    # Tokens that each layer holds, in the order of backend.layers.
    longest = max(text.chunks)
    cells = [min(longest, layer["window"] or longest) for layer in backend.layers["a"]]
    sizes = {name: _bits(name, backend, cells) for name in names}
    ladder = sorted(names, key=sizes.__getitem__)
    fits = [name for name in ladder if sizes[name] <= request.budget + 1e-9]
    fitting = [name for name in fits if kv_type(name).quantized]
    if not fitting:
        raise NybbleError(
            "the budget is below the smallest type", seen=f"--budget {request.budget:g}",
            allowed=f"{sizes[ladder[0]]:g} bits or more with {', '.join(ladder)}",
        )  # fmt: skip
    probe = fitting[-1]
    context = min(text.chunks)
    progress.stage(f"how much each layer matters, with {probe}")
    costs = _sensitivities(request, backend, models, text, probe, progress)
    chunk = text.chunks[context][0]
    reply = backend.start(models, progress).request(
        {"op": "errors", "model": 0, "settings": ladder},
        np.ascontiguousarray(chunk.tokens, dtype=np.int32).tobytes(),
    )
    errors = dict(zip(ladder, reply.header["errors"], strict=True))
    sites: dict[Site, list[Rung]] = {}
    total = 0.0
    for i, layer in enumerate(backend.layers["a"]):
        for j, side in enumerate("KV"):
            stored = cells[i] * layer["heads"] * layer["k_dim" if side == "K" else "v_dim"]
            total += stored
            scale = costs[layer["index"], side] / max(errors[probe][i][j], 1e-30)
            rungs = [
                Rung(name, stored * _side_bits(name, layer, side) / 8, scale * errors[name][i][j])
                for name in ladder
            ]
            sites[layer["index"], side] = sorted(rungs, key=lambda rung: rung.bytes)
    proposal = as_setting(greedy(sites, request.budget * total / 8))
    progress.note(f"proposed for {request.budget:g} bits: {proposal}")
    uniform = make(probe, probe)
    if sizes[probe] < request.budget - 0.01:
        progress.note(
            f"no uniform type has {request.budget:g} bits; compared with {uniform} at "
            f"{sizes[probe]:g}"
        )
    return replace(request, settings=tuple(unique([proposal, uniform])), budget=None)


def _ladder(request: MeasureRequest) -> list[str]:
    """Types to choose from: those of --kv, or ExLlamaV3's."""
    given = request.settings
    if tuple(map(str, given)) == DEFAULT_SETTINGS:
        return list(LADDER)
    ladder = list(dict.fromkeys(n for s in given for n in (s.k, s.v)))
    bad = [n for n in ladder if kv_type(n).sides != "KV" or kv_type(n).calibrated]
    if len(ladder) < 2 or bad or not any(kv_type(n).quantized for n in ladder):
        raise NybbleError(
            "a budget is spread over two or more types that store K and V alike",
            seen=", ".join(bad or ladder),
            allowed=f"for example --kv {','.join(LADDER)}",
        )
    return ladder


def _side_bits(name: str, layer: Mapping[str, int], side: str) -> float:
    return kv_type(name).bits_at(layer["k_dim" if side == "K" else "v_dim"])


def _bits(name: str, backend: Parts, cells: Sequence[int]) -> float:
    """Bits an element of a type over the whole cache of this model."""
    bits = elements = 0.0
    for layer, n in zip(backend.layers["a"], cells, strict=True):
        for side in "KV":
            stored = n * layer["heads"] * layer["k_dim" if side == "K" else "v_dim"]
            elements += stored
            bits += stored * _side_bits(name, layer, side)
    return bits / elements


def _sensitivities(
    request: MeasureRequest,
    backend: Parts,
    models: Sequence[PreparedModel],
    text: Text,
    probe: str,
    progress: Progress,
) -> dict[Site, float]:
    """Mean KLD of each site alone in the probe type."""
    from nybble.scoring.job import default_folder  # job.py imports this module
    from nybble.scoring.run import CellRunner

    context = min(text.chunks)
    chunks = text.chunks[context][:_PROBES]
    series = part_series(parse(probe), backend.layers["a"], "layer")
    costs: dict[Site, float] = {}
    with RunStore(request.out or default_folder(backend, models, request)) as store:
        runner = CellRunner(models, request, store, progress, backend)
        todo = runner.missing(series, chunks)
        work = sum(len(lanes_of(wanted)) for wanted in todo) * (context - 1)
        if work:
            progress.begin(f"each layer alone in {probe}", work)
            runner.run(todo, chunks)
        for s in series:
            assert s.part is not None
            rows = [runner.rows(s, chunk) for chunk in chunks]
            values = [float(np.nanmean(r["kld"])) for r in rows if r is not None and len(r)]
            if not values:
                why = runner.outcome.failed.get((s, context), "its cell is damaged")
                raise NybbleError(
                    "a layer could not be measured, so no budget can be spread",
                    seen=f"{s.lane.setting}: {why}", hint="--fresh",
                )  # fmt: skip
            costs[s.part.layer, s.part.side] = float(np.mean(values))
    return costs
