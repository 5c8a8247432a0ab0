"""What must not enter a cache: another model's shapes, too many tokens, numbers that are none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nybble.errors import NybbleError

if TYPE_CHECKING:
    from nybble.runtime.layer import PackedLayer


class Guard:
    """The checks of one cache.

    On a CPU every key and value is looked at before it is stored. On a GPU that would stop the
    stream at every layer, so a flag is kept there and read before the next token.
    """

    def __init__(self) -> None:
        self._flags: dict[tuple[int, str], torch.Tensor] = {}

    def admit(self, layer: PackedLayer, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Refuse what must not be stored.

        Args:
            layer: that is to store them.
            keys: [B, heads, n, D].
            values: [B, heads, n, D_v].

        Raises:
            NybbleError: see the module; names the layer.
        """
        plan, n = layer.plan, keys.shape[2]
        seen = (keys.shape[1], keys.shape[-1], values.shape[-1])
        if seen != layer.shape or keys.device != layer.device or keys.dtype != layer.dtype:
            raise NybbleError(
                f"layer {plan.index} of this cache belongs to another model",
                seen=f"{seen[0]} KV heads of {seen[1]}/{seen[2]}, {keys.dtype}, {keys.device}",
                allowed=f"{layer.shape[0]} KV heads of {layer.shape[1]}/{layer.shape[2]}, "
                f"{layer.dtype}, {layer.device}",
                hint="a nybble.Cache for each model",
            )
        if keys.shape[0] != layer.batch_size:
            raise NybbleError(
                "this cache holds another number of sequences",
                seen=f"a batch of {keys.shape[0]}",
                allowed=f"{layer.batch_size}",
                hint="cache.batch_repeat_interleave(n), or a new cache",
            )
        if plan.max_length is not None and layer.length + n > plan.max_length:
            raise NybbleError(
                "the cache is full",
                seen=f"{layer.length:,} tokens held and {n:,} more",
                allowed=f"max_length {plan.max_length:,}",
                hint="a larger max_length, or a shorter prompt or answer",
            )
        self._finite(layer, keys, values)

    def _finite(self, layer: PackedLayer, keys: torch.Tensor, values: torch.Tensor) -> None:
        index = layer.plan.index
        if keys.device.type != "cpu":
            self._late(index)
            for name, x in (("keys", keys), ("values", values)):
                self._flags[index, name] = ~x.isfinite().all()
            return
        for name, x in (("keys", keys), ("values", values)):
            if not bool(x.isfinite().all()):
                kind = "NaN" if bool(x.isnan().any()) else "Inf"
                raise NybbleError(
                    f"{kind} in the {name} of layer {index}",
                    seen=f"{int((~x.isfinite()).sum())} of {x.numel()} values, tokens from "
                    f"{layer.length} on",
                    allowed="finite numbers; nothing was stored",
                    hint="a wider dtype (bfloat16 or float32) for the model",
                )

    def _late(self, index: int) -> None:
        """Read all flags of the last pass, when its first layer comes round again."""
        if not self._flags or (index, "keys") not in self._flags:
            return
        places, flags = list(self._flags), list(self._flags.values())
        self._flags = {}
        for (layer, name), bad in zip(places, torch.stack(flags).tolist(), strict=True):
            if bad:
                raise NybbleError(
                    f"NaN or Inf in the {name} of layer {layer}",
                    seen="in the last tokens that were stored",
                    allowed="finite numbers; this cache is spoiled",
                    hint="a wider dtype (bfloat16 or float32) for the model, and a new cache",
                )
