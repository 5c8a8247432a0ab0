"""What a cache hands to attention instead of keys: the layer that holds them, in the shape of keys.

Models pass what `Cache.update` returned straight to the attention function. There are no numbers
in it, so whatever else is done with it is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from nybble.errors import NybbleError

if TYPE_CHECKING:
    from nybble.runtime.layer import PackedLayer


# No tensor: torch.compile would take one into its graph, numbers and all.
@dataclass(frozen=True)
class Packed:
    """Keys or values of a layer.

    Attributes:
        layer: that holds them.
        shape: [B, heads, tokens in reach, D].
        dtype: of the model's keys.
        device: of the model's keys.
    """

    layer: PackedLayer
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise _no_tensor(name)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Refuse every operation of torch."""
        raise _no_tensor(getattr(func, "__name__", str(func)))

    def __add__(self, other: Any) -> Any:
        raise _no_tensor("add")

    __radd__ = __mul__ = __rmul__ = __matmul__ = __getitem__ = __add__


def _no_tensor(what: str) -> NybbleError:
    return NybbleError(
        "this model computes with its cached keys before attention, which a packed cache cannot "
        "give it",
        seen=what,
        allowed="models that pass the cache's keys and values to attention as they are",
        hint="leave out nybble.attach(model): attention then reads unpacked keys",
    )
