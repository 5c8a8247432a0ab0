"""nyb4: nybble's own type, the best that 4.5 bits were found to buy (docs/nyb4.md).

Keys lose their calibrated mean and are turned into the basis in which keys and queries weigh
alike (formats/calibration.py), sorted by weight and cut into groups. Error in a group costs its
weight squared, so groups of more weight get wider codes: widths of 1 to 7 bits, 4 in the mean,
fixed per head. Within a group a Hadamard rotation evens out the channels. Values are turned by
64 and all have 4 bits. The first four tokens, which every query looks at, stay in f16.

A width is stored as planes of 4, 2 and 1 bits, as its binary digits say, so a reader only ever
unpacks fields that do not straddle bytes, and takes one dot product per plane. A group's scale
is one byte: a sign and eighths of an octave.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nybble.formats.calibration import LayerCalibration
from nybble.formats.kvtype import KVType
from nybble.formats.lazy import torch
from nybble.formats.pack import blocks, pack_codes, unpack_codes
from nybble.formats.rotation import rotate, unrotate, width

FIRST = 4
WIDTHS = range(1, 8)
# Mean squared error of unit Gaussian groups of 32 at each width, with the scale searched for.
_ERROR = {1: 0.37, 2: 0.12, 3: 0.034, 4: 0.0085, 5: 0.0023, 6: 0.0006, 7: 0.00016}
_STEPS = range(-1, 15)  # eighths of an octave below the scale that reaches the extreme
_ONE = 88  # scale code of 1.0: codes 1 to 127 are 2^-10.9 to 2^4.9


def group_size(head_dim: int, side: str) -> int:
    """Channels that share a scale: 32, or 16 for the keys of small heads."""
    small = 128 if side == "K" else 32
    return 32 if head_dim >= small and head_dim % 32 == 0 else 16


def total_width(head_dim: int, side: str) -> int:
    """Sum of the widths of all groups of one head: keys of large heads get 4.25, all others 4."""
    group = group_size(head_dim, side)
    groups = head_dim // group
    return groups * 17 // 4 if side == "K" and group == 32 else groups * 4


def allot(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Widths of the groups of each head, by greedy marginal gain.

    Args:
        weight: weights of the channels in the calibrated basis, float32 [heads, head_dim].
        head_dim: size of a key.

    Returns:
        uint8 [heads, groups]; every head sums to `total_width`.
    """
    energy = blocks(weight, group_size(head_dim, "K")).square().mean(-1).tolist()
    rows = []
    for head in energy:
        widths = [1] * len(head)
        for _ in range(total_width(head_dim, "K") - len(head)):
            gains = [
                e * (_ERROR[b] - _ERROR[b + 1]) if b < max(WIDTHS) else -1.0
                for e, b in zip(head, widths, strict=True)
            ]
            widths[gains.index(max(gains))] += 1
        rows.append(widths)
    return torch.tensor(rows, dtype=torch.uint8)


@dataclass(frozen=True)
class Nyb4(KVType):
    """The codec of one side; `bind` gives it a layer's statistics.

    Attributes:
        side: which side it stores.
        centre: taken off first, float32 [heads, 1, D].
        forth: matrix into the basis, groups of unit variance, float32 [heads, D, D]; for
            values the inverse of their size, [heads, 1, 1].
        back: its inverse.
        widths: of the groups, one tuple a head.
    """

    side: str = "K"
    centre: torch.Tensor | None = None
    forth: torch.Tensor | None = None
    back: torch.Tensor | None = None
    widths: tuple[tuple[int, ...], ...] = ()

    def of_side(self, side: str) -> KVType:
        """Keys and values are stored differently."""
        return replace(self, side=side)

    def row_bytes(self, head_dim: int) -> int:
        """Codes, and one byte for each group's scale."""
        group = group_size(head_dim, self.side)
        return total_width(head_dim, self.side) * group // 8 + head_dim // group

    def bind(self, stats: LayerCalibration, side: str, device: torch.device | str) -> KVType:
        """Build mean, basis and widths in."""
        if side == "V":
            heads, dim = stats.value_mean.shape
            size = stats.value_size.clamp(min=1e-20)[:, None, None].to(device)
            widths = ((4,) * (dim // group_size(dim, "V")),) * heads
            centre = stats.value_mean[:, None].to(device)
            return replace(self, centre=centre, forth=1 / size, back=size, widths=widths)
        dim = stats.mean.shape[-1]
        group = group_size(dim, "K")
        # Rows of the basis leave variance `weight`; groups are brought to one.
        size = blocks(stats.weight, group).mean(-1).sqrt().repeat_interleave(group, -1)
        forth = stats.basis / size[..., None]
        # Head by head: with two threads torch 2.13's CPU build loses the pivots of a batch of
        # 512 x 512 (MKL: "parameter 6 was incorrect on entry to DLASWP").
        back = torch.stack([torch.linalg.inv(head) for head in forth.double()]).float()
        widths = tuple(map(tuple, allot(stats.weight, dim).tolist()))
        return replace(
            self, centre=stats.mean[:, None].to(device), forth=forth.mT.to(device),
            back=back.mT.to(device), widths=widths,
        )  # fmt: skip

    def _turn(self, x: torch.Tensor) -> torch.Tensor:
        """Into the domain that is coded; [heads, n, D] -> [heads, n, groups, group]."""
        assert self.centre is not None and self.forth is not None
        dim = x.shape[-1]
        y = x - self.centre
        y = y @ self.forth if self.side == "K" else y * self.forth
        return blocks(rotate(y, self._mixed(dim)), group_size(dim, self.side))

    def _turn_back(self, y: torch.Tensor) -> torch.Tensor:
        assert self.centre is not None and self.back is not None
        x = unrotate(y.flatten(-2), self._mixed(y.shape[-1] * y.shape[-2]))
        return (x @ self.back if self.side == "K" else x * self.back) + self.centre

    def _mixed(self, dim: int) -> int:
        if self.side == "K":
            return group_size(dim, "K")
        return width("llama", dim, "V") or group_size(dim, "V")

    def _levels(self, device: torch.device) -> torch.Tensor:
        """Levels of each head's groups, float32 [heads, 1, groups, 1]."""
        return 2.0 ** torch.tensor(self.widths, device=device)[:, None, :, None]

    def _encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes uint8 [heads, n, groups, group] and scale bytes uint8 [heads, n, groups, 1]."""
        y = self._turn(x.nan_to_num(0.0))
        levels = self._levels(y.device)
        zero = _zero(levels)
        peak = y.gather(-1, y.abs().argmax(-1, keepdim=True))
        start = torch.log2(peak.abs().clamp(min=1e-30) / zero) * 8 + _ONE
        sign = torch.where(peak > 0, -1.0, 1.0)  # the extreme goes to code 0, the widest side
        best = torch.zeros_like(y)
        scale = torch.zeros_like(peak)
        error = torch.full_like(peak, torch.inf)
        for step in _STEPS:
            code = (start - step).round().clamp(1, 127)
            d = sign * torch.exp2((code - _ONE) / 8)
            codes = (y / d + zero).round().clamp(min=0).minimum(levels - 1)
            new = ((codes - zero) * d - y).square().sum(-1, keepdim=True)
            better = new < error
            best = torch.where(better, codes, best)
            scale = torch.where(better, code + 128 * (sign < 0), scale)
            error = torch.where(better, new, error)
        nothing = peak == 0
        best = torch.where(nothing, zero.floor(), best)
        return best.to(torch.uint8), torch.where(nothing, 0.0, scale).to(torch.uint8)

    def _scaled(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        levels = self._levels(codes.device)
        e = (scale & 127).float()
        d = torch.where(scale > 127, -1.0, 1.0) * torch.exp2((e - _ONE) / 8)
        return (codes.float() - _zero(levels)) * torch.where(e > 0, d, 0.0)

    def turn_in(self, x: torch.Tensor) -> torch.Tensor:
        """Centred, in the calibrated basis, rotated."""
        return self._turn(x.nan_to_num(0.0)).flatten(-2)

    def query_in(self, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The product q . (y H back + centre) = (q back' H) . y + q . centre, H the rotation."""
        assert self.centre is not None and self.back is not None
        turned = q @ self.back.mT if self.side == "K" else q * self.back
        bias = (q * self.centre).sum(-1)
        return rotate(turned, self._mixed(q.shape[-1])), bias

    def sum_out(self, y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The sum turned back, and the centre as often as was summed."""
        assert self.centre is not None and self.back is not None
        x = unrotate(y, self._mixed(y.shape[-1]))
        return (x @ self.back if self.side == "K" else x * self.back) + self.centre * weight

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Scales of all groups, then each group's planes, widest plane first."""
        codes, scale = self._encode(x)
        rows = []
        for head, widths in enumerate(self.widths):
            parts = [scale[head, ..., 0]]
            for g, bits in enumerate(widths):
                left = bits
                for plane in _planes(bits):
                    left -= plane
                    parts.append(pack_codes(codes[head, :, g] >> left & (1 << plane) - 1, plane))
            rows.append(torch.cat(parts, -1))
        return torch.stack(rows)

    def dequantize(self, data: torch.Tensor, head_dim: int) -> torch.Tensor:
        """The inverse."""
        return self._turn_back(blocks(self.coded(data, head_dim), group_size(head_dim, self.side)))

    def coded(self, data: torch.Tensor, head_dim: int) -> torch.Tensor:
        """Codes times scales, in the calibrated and rotated basis."""
        group = group_size(head_dim, self.side)
        groups = head_dim // group
        heads = []
        for head, widths in enumerate(self.widths):
            at = groups
            parts = []
            for bits in widths:
                code = torch.zeros(*data.shape[1:-1], group, dtype=torch.uint8, device=data.device)
                for plane in _planes(bits):
                    size = group * plane // 8
                    code = code << plane | unpack_codes(data[head, :, at : at + size], plane)
                    at += size
                parts.append(code)
            heads.append(torch.stack(parts, -2))
        return self._scaled(torch.stack(heads), data[..., :groups, None]).flatten(-2)

    def roundtrip(self, x: torch.Tensor) -> torch.Tensor:
        """Without packing in between, which changes nothing (tests hold that)."""
        return self._turn_back(self._scaled(*self._encode(x.float())))


def _zero(levels: torch.Tensor) -> torch.Tensor:
    """Code of zero: the middle; between two codes where there are four or fewer."""
    return levels / 2 - torch.where(levels > 4, 0.0, 0.5)


def _planes(bits: int) -> list[int]:
    return [plane for plane in (4, 2, 1) if bits & plane]


TYPES = (
    Nyb4("nyb4", "keys: 1 to 7 bits by weight; values: 4 bits; 8-bit scales", "docs/nyb4.md",
         ("nybble",), block=16, first=FIRST, calibrated=True),
)  # fmt: skip
