"""What is trained: a ladder from scales that leave the model as it is to all of its weights.

- scales: e of every channel (tied as RoPE demands), by which queries are multiplied and keys
  divided, so the 16-bit model cannot change; where a norm has a gain for every channel, also that.
- kv: W_k and W_v too, whole or as low-rank updates.
- all: every matrix and norm of the transformer blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.utils import parametrize

from nybble.hardening.families import Family
from nybble.hardening.sites import Site
from nybble.hardening.train.tensors import whole

# Peak learning rates. A step moves every trained number by about that much, so they are
# shares of what the numbers are: 1 for a log-scale, 0.03 to 0.1 for a weight.
RATES = {"scales": 1e-2, "norms": 1e-3, "matrices": 3e-5, "experts": 1e-5, "low rank": 1e-4}
_GAIN = re.compile(r"self_attn\.[qk]_norm\.weight$")
_KV = re.compile(r"self_attn\.([qk]_norm|[kv]_proj)\.weight$")
_BLOCKS = re.compile(r"layers\.\d+\.")


class Fold(torch.nn.Module):
    """Log-scales of all layers, applied behind the projections or norms of queries and keys."""

    def __init__(self, model: torch.nn.Module, family: Family, sites: Sequence[Site]) -> None:
        super().__init__()
        self._family, self._sites = family, list(sites)
        self.names = [name for site in sites for name in (*site.queries, *site.keys)]
        self.log_scale = torch.nn.ParameterDict()
        device = next(model.parameters()).device
        for site in sites:
            if site.keys:
                sets = site.kv_heads if family.form == "rows" else 1
                size = int(site.ties.max()) + 1
                start = torch.zeros(sets, size, device=device)
                self.log_scale[str(site.layer)] = torch.nn.Parameter(start)
        for site in sites:
            self._watch(model, site, site.queries[0], +1.0)
            if site.keys:
                self._watch(model, site, site.keys[0], -1.0)

    @torch.no_grad()
    def set_scales(self, scales: Mapping[int, npt.NDArray[np.float64]]) -> None:
        """Take the scales of a fold: e, [sets, head_dim] by layer that owns keys.

        Raises:
            ValueError: another number of layers, sets or channels.
        """
        owners = {site.layer: site for site in self._sites if site.keys}
        if scales.keys() != owners.keys():
            raise ValueError(f"scales of layers {sorted(scales)}, not {sorted(owners)}")
        for layer, site in owners.items():
            log = self.log_scale[str(layer)]
            # Tied channels have one e; any of them tells it.
            first = np.unique(site.ties, return_index=True)[1]
            given = torch.from_numpy(np.log(scales[layer])[:, first])
            if given.shape != log.shape:
                raise ValueError(f"scales {tuple(given.shape)} for {tuple(log.shape)}")
            log.copy_(given)

    def _watch(self, model: torch.nn.Module, site: Site, tensor: str, sign: float) -> None:
        module = model.get_submodule(tensor.removesuffix(".weight"))

        def scaled(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            factors = (sign * self._log(site, heads)).exp()
            product: torch.Tensor = output.float() * factors
            return product.to(output.dtype)

        heads = site.heads if sign > 0 else site.kv_heads
        module.register_forward_hook(scaled)

    def _log(self, site: Site, heads: int) -> torch.Tensor:
        return self._spread(self.log_scale[str(site.owner)], site, heads)

    def _spread(self, log: torch.Tensor, site: Site, heads: int) -> torch.Tensor:
        """One number for every channel of a norm, or for every row of a projection."""
        ties = torch.as_tensor(site.ties, device=log.device)
        full = log[:, ties]
        if self._family.form == "rows":  # head by head, as rows of the projection
            full = full.repeat_interleave(heads // len(full), 0)
        return full.reshape(-1)

    @torch.no_grad()
    def folded(self, weights: dict[str, torch.Tensor]) -> None:
        """Multiply the scales into weights, in place; names as in `Site`.

        Every process calls it.
        """
        for site in self._sites:
            log = whole(self.log_scale[str(site.owner)])
            for names, sign, heads in ((site.queries, 1.0, site.heads),
                                       (site.keys, -1.0, site.kv_heads)):  # fmt: skip
                factors = (sign * self._spread(log, site, heads)).exp().double().cpu()
                for name in names:
                    old = weights[name].double().cpu()
                    shape = (-1, *[1] * (old.ndim - 1))
                    offset = self._family.offset if self._family.form == "norms" else 0.0
                    weights[name] = ((old + offset) * factors.view(shape) - offset).float()


class LowRank(torch.nn.Module):
    """W + B A: an update of rank r, nothing at its start; of fused experts, one for each."""

    def __init__(self, weight: torch.Tensor, rank: int, seed: int) -> None:
        super().__init__()
        *experts, rows, columns = weight.shape
        rank = min(rank, rows, columns)
        generator = torch.Generator().manual_seed(seed)
        a = torch.randn(*experts, rank, columns, generator=generator) / columns**0.5
        self.a = torch.nn.Parameter(a.to(weight.device))
        self.b = torch.nn.Parameter(torch.zeros(*experts, rows, rank, device=weight.device))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The updated matrix."""
        return weight + self.b @ self.a


def merged(module: torch.nn.Module, attribute: str) -> torch.Tensor:
    """A parameter of a module as it computes with it, whole; every process calls it."""
    if not parametrize.is_parametrized(module, attribute):
        return whole(getattr(module, attribute).detach())
    parts: Any = module.parametrizations
    weight = whole(parts[attribute].original.detach()).float()
    for update in parts[attribute]:
        weight = weight + whole(update.b.detach()) @ whole(update.a.detach())
    return weight


def chosen(model: torch.nn.Module, scope: str) -> dict[str, torch.nn.Parameter]:
    """Parameters of the model that a scope trains, by name; the fold's scales come on top."""
    names = {"scales": _GAIN, "kv": _KV, "all": _BLOCKS}[scope]
    # Of a multimodal model the part that reads text; its other towers have layers of such names.
    get_decoder: Any = getattr(model, "get_decoder", lambda: model)
    text = {id(p) for p in get_decoder().parameters()}
    return {n: p for n, p in model.named_parameters() if names.search(n) and id(p) in text}


def trainable(
    model: torch.nn.Module, parameters: Mapping[str, torch.nn.Parameter], lora: int, seed: int
) -> list[dict[str, Any]]:
    """Make parameters trainable, or put updates of rank `lora` on those that are matrices.

    Args:
        model: frozen as a whole.
        parameters: see `chosen`.
        lora: 0 trains matrices as they are.
        seed: of the updates' start.

    Returns:
        Optimizer groups.
    """
    kinds: dict[str, list[torch.nn.Parameter]] = {}
    for index, (name, parameter) in enumerate(parameters.items()):
        matrix = parameter.ndim > 1  # or one for each expert
        if matrix and lora:
            owner, _, attribute = name.rpartition(".")
            update = LowRank(parameter, lora, seed + index)
            parametrize.register_parametrization(model.get_submodule(owner), attribute, update)
            kinds.setdefault("low rank", []).extend(update.parameters())
        else:
            parameter.requires_grad_(True)
            kind = {1: "norms", 2: "matrices"}.get(parameter.ndim, "experts")
            kinds.setdefault(kind, []).append(parameter)
    return [group(name, found) for name, found in kinds.items()]


def group(name: str, parameters: Iterable[torch.nn.Parameter]) -> dict[str, Any]:
    """A group as torch's optimizers take it."""
    return {"name": name, "params": list(parameters), "lr": RATES[name]}
