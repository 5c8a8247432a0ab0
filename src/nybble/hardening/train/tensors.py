"""Tensors of a checkpoint: whole, while those in training may be shards (FSDP)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from nybble.errors import NybbleError

Tensor = torch.Tensor
_ELSE = "--restart, or another --run"


def moments(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Pairs of `group/index/what` and a whole tensor; every process must run through all.

    Parameters that had no gradient yet have none.
    """
    for name, parameter in _places(optimizer):
        for what, value in optimizer.state.get(parameter, {}).items():
            yield f"{name}/{what}", whole(value)


def load_moments(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put moments back where `moments` took them.

    Raises:
        NybbleError: they belong to other parameters.
    """
    places = dict(_places(optimizer))
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, what = key.rpartition("/")
        # The count of steps is a number; the rest has the shape of what it is the moment of.
        if name not in places or value.shape not in (places[name].shape, torch.Size()):
            raise NybbleError(
                "the checkpoint's optimizer does not fit what is trained",
                seen=f"{key} {tuple(value.shape)}",
                hint=_ELSE,
            )
        # AdamW keeps the count on the CPU, and a number of its own for every parameter.
        count = what == "step"
        found.setdefault(name, {})[what] = value.clone() if count else spread(value, places[name])
    optimizer.state.clear()
    for name, state in found.items():
        optimizer.state[places[name]] = state


def whole(tensor: Tensor) -> Tensor:
    """The tensor of which a process may hold a shard; all processes call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread(tensor: Tensor, like: Tensor) -> Tensor:
    """A copy of a whole tensor, placed as another one is: its device, its shard of it."""
    tensor = tensor.to(like.device, copy=True)
    if isinstance(like, DTensor):
        return distribute_tensor(tensor, like.device_mesh, like.placements)
    return tensor


def check_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """Compare a checkpoint's tensors with those in training.

    Raises:
        NybbleError: other names, shapes or types.
    """
    for name in sorted({*ours, *theirs}):
        shapes = [
            f"{t.dtype} {tuple(t.shape)}" if t is not None else "missing"
            for t in (theirs.get(name), ours.get(name))
        ]
        if shapes[0] != shapes[1]:
            raise NybbleError(
                "the checkpoint does not fit what is trained", seen=f"{name}: {shapes[0]}",
                allowed=shapes[1], hint=_ELSE,
            )  # fmt: skip


def _places(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for group in optimizer.param_groups:
        for index, parameter in enumerate(group["params"]):
            yield f"{group['name']}/{index}", parameter
