"""Keys that are a function of values: K = RoPE(w * V), so V alone is stored.

In Gemma 4's global layers (attention_k_eq_v) one projection u of the hidden state gives both
V = u / rms(u) and K = RoPE_p(w * u / rms(u)), with w the key norm's weights and p the position.
Of 512 channels 128 are rotated; the others have frequency zero (modeling_gemma4.py of
transformers 5.23, `Gemma4TextAttention.forward` and `_compute_proportional_rope_parameters`).
Every token's K is compared with its V before V alone is kept, so a model that breaks the identity
is refused and not served wrong numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from nybble.errors import NybbleError

# How far a rebuilt key may be off, as a share of the largest: rounding of the model's own dtype.
_ROUNDING = {torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.05}


@dataclass
class Latent:
    """What rebuilds a layer's keys.

    Attributes:
        weight: w, float32 [D].
        frequencies: of the pairs (i, i + D/2) that rotate, float32 [pairs].
        shift: by how much each row's positions lag behind its slots (left padding), int64 [B];
            None before the first token.
    """

    weight: torch.Tensor
    frequencies: torch.Tensor
    shift: torch.Tensor | None = None

    def keys(self, values: torch.Tensor, slot: int) -> torch.Tensor:
        """Keys of tokens, from the values that are stored.

        Args:
            values: [B, heads, n, D].
            slot: place of the first of them in the sequence.

        Returns:
            float32 of the same shape.
        """
        rows = torch.arange(slot, slot + values.shape[2], device=values.device)
        shift = self.shift
        if shift is None:
            shift = torch.zeros(1, dtype=torch.long, device=values.device)
        return self._rotate(values.float() * self.weight, rows[None] - shift[:, None])

    def _rotate(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """RoPE; x [B, heads, n, D], positions [B, n]."""
        half, pairs = x.shape[-1] // 2, len(self.frequencies)
        # float32 as in the model: at position 2^18 an angle is off by 2^-6 in either.
        angle = positions[:, None, :, None].float() * self.frequencies
        cos, sin = angle.cos(), angle.sin()
        first, second = x[..., :pairs], x[..., half : half + pairs]
        out = x.clone()
        out[..., :pairs] = first * cos - second * sin
        out[..., half : half + pairs] = second * cos + first * sin
        return out

    def admit(self, keys: torch.Tensor, values: torch.Tensor, slot: int, layer: int) -> None:
        """Make sure that `values` say all that `keys` do; the first call finds the padding.

        Args:
            keys: after RoPE, [B, heads, n, D].
            values: the same shape.
            slot: place of the first of them in the sequence.
            layer: for the error.

        Raises:
            NybbleError: the keys are not RoPE(w * V) at these positions.
        """
        if self.shift is None:
            self.shift = self._padding(keys[:, :, -1], values[:, :, -1], slot + keys.shape[2] - 1)
        rebuilt = self.keys(values, slot)
        # Pad tokens in front have positions of their own, and nobody sees them.
        rows = torch.arange(slot, slot + keys.shape[2], device=keys.device)
        real = (rows[None] >= self.shift[:, None])[:, None, :, None]
        off = torch.where(real, (rebuilt - keys.float()).abs(), 0.0).amax()
        bound = keys.abs().amax().float() * _ROUNDING.get(keys.dtype, 0.05)
        if not bool(off <= bound):
            raise NybbleError(
                f"the keys of layer {layer} are not what its values make of them",
                seen=f"off by {float(off):.3g} of at most {float(bound):.3g}",
                allowed="positions that count up by one behind left padding",
                hint="a cache without latent=True",
            )

    def _padding(self, key: torch.Tensor, value: torch.Tensor, slot: int) -> torch.Tensor:
        """Slots that the last token's position lags behind, found by trying all, int64 [B]."""
        half, pairs = key.shape[-1] // 2, len(self.frequencies)
        x = value.float() * self.weight
        z = torch.complex(x[..., :pairs], x[..., half : half + pairs])
        turned = torch.complex(
            key[..., :pairs].float(), key[..., half : half + pairs].float()
        )  # [B, heads, pairs]
        phase = (turned * z.conj()).sum(1)  # |z|^2 exp(i p frequency), summed over heads
        positions = torch.arange(slot, -1, -1, device=key.device)
        angle = positions[:, None].float() * self.frequencies
        match = phase.real @ angle.cos().T + phase.imag @ angle.sin().T  # [B, slot + 1]
        return match.argmax(-1)


def find_latents(model: Any) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Layers whose keys follow from their values.

    Args:
        model: a loaded causal language model of transformers.

    Returns:
        Layer index -> (w, frequencies), float32; empty for a model without such layers.

    Raises:
        NybbleError: such a layer's RoPE is scaled, which the identity above leaves out.
    """
    found = {}
    rotary = next((m for m in model.modules() if hasattr(m, "full_attention_inv_freq")), None)
    for module in model.modules():
        if not getattr(module, "use_alternative_attention", False):
            continue
        if getattr(module, "is_kv_shared_layer", False) or rotary is None:
            continue
        scaling = getattr(rotary, "full_attention_attention_scaling", 1.0)
        if scaling != 1.0:
            raise NybbleError(
                "this model scales its RoPE, so its keys do not follow from its values",
                seen=f"attention scaling {scaling}",
                allowed="1.0",
                hint="a cache without latent=True",
            )
        weight = module.k_norm.weight.detach()
        frequencies = rotary.full_attention_inv_freq.detach()
        frequencies = frequencies[: int((frequencies != 0).sum())]
        found[int(module.layer_idx)] = (
            weight.float(), frequencies.float().to(weight.device)
        )  # fmt: skip
    return found
