"""Small tensor helpers shared by the codecs: blocks, fp16 scales, extremes, casts, bit packing.

They give the same bytes on every device, so that a kernel can be compared with them anywhere:
what C or torch leaves undefined (casts that do not fit, the bits of a NaN) is fixed here.
"""

from __future__ import annotations

from nybble.formats.lazy import torch

_FLT_MAX = (2 - 2**-23) * 2.0**127  # largest float32


def blocks(x: torch.Tensor, size: int) -> torch.Tensor:
    """Cut the last axis into blocks: [..., n * size] -> [..., n, size]."""
    return x.reshape(*x.shape[:-1], x.shape[-1] // size, size)  # no -1: x may be empty


def to_f16(scale: torch.Tensor) -> torch.Tensor:
    """Bytes of fp16 scales, little endian: float32 [..., 1] -> uint8 [..., 2].

    To nearest, ties to even, overflow to infinity; a NaN becomes 0x7E00 with its sign.
    """
    half = scale.to(torch.float16).contiguous().view(torch.int16)
    nan = torch.where(scale.signbit(), 0xFE00 - 0x10000, 0x7E00).to(torch.int16)
    return torch.where(scale.isnan(), nan, half).view(torch.uint8)


def from_f16(data: torch.Tensor) -> torch.Tensor:
    """Read fp16 scales back: uint8 [..., 2] -> float32 [..., 1]."""
    # A copy starts at an even address, which a slice of somebody's buffer may not.
    return data.clone(memory_format=torch.contiguous_format).view(torch.float16).float()


def signed_absmax(x: torch.Tensor) -> torch.Tensor:
    """The value of largest magnitude with its sign, first one on ties: [..., n] -> [..., 1].

    NaN is passed over. Without anything above zero the result is +0, also for a block of -0.
    """
    size = torch.where(x.isnan(), 0.0, x.abs())
    first = size.argmax(-1, keepdim=True)
    return torch.where(size.gather(-1, first) > 0, x.gather(-1, first), 0.0)


def extremes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest and largest value, first one on ties: [..., n] -> two of [..., 1].

    C's loop from FLT_MAX down and from -FLT_MAX up: NaN is passed over, and a block that holds
    nothing smaller (larger) than the start gives the start back.
    """
    low = torch.where(x < _FLT_MAX, x, _FLT_MAX)
    high = torch.where(x > -_FLT_MAX, x, -_FLT_MAX)
    # By index, since amin may return either of two zeros and the sign of the first is stored.
    return (
        low.gather(-1, low.argmin(-1, keepdim=True)),
        high.gather(-1, high.argmax(-1, keepdim=True)),
    )


def divide(x: torch.Tensor, n: float) -> torch.Tensor:
    """The rounded quotient x / n; by a plain number CUDA's torch multiplies by a rounded 1 / n."""
    return x / x.new_full((1,), n)


def inverse(d: torch.Tensor) -> torch.Tensor:
    """1 / d, and 0 for a scale of 0; infinite for |d| <= 2^-128."""
    return torch.where(d != 0, 1 / d, 0.0)


def round_half_away(x: torch.Tensor) -> torch.Tensor:
    """C's roundf: ties away from zero, where torch.round takes the even one."""
    whole = x.trunc()
    return whole + torch.where((x - whole).abs() >= 0.5, x.sign(), 0.0)


def low_byte(x: torch.Tensor) -> torch.Tensor:
    """Cast float32 to uint8 as C on x86 does: cut the fraction off, keep the low 8 bits.

    C leaves NaN and what does not fit undefined. x86 goes through int32, where NaN and all from
    2^31 on become 0x80000000, so their low byte is 0.
    """
    fits = x.abs() < 2**31  # False for NaN
    return (torch.where(fits, x, 0.0).to(torch.int32) & 0xFF).to(torch.uint8)


def pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """Low 4 bits of codes, two a byte in ggml's order: uint8 [..., 2 n] -> [..., n].

    Byte i holds code i in its low and code n + i in its high half.
    """
    low, high = (codes & 15).chunk(2, -1)
    return low | high << 4


def unpack_nibbles(data: torch.Tensor) -> torch.Tensor:
    """The inverse of `pack_nibbles`: uint8 [..., n] -> [..., 2 n]."""
    return torch.cat([data & 15, data >> 4], -1)


def pack_codes(codes: torch.Tensor, width: int) -> torch.Tensor:
    """Code j at bits j * width and up, little endian: uint8 [..., n] -> [..., n * width / 8].

    width is 1, 2, 4 or 8, so a code never straddles bytes and words of any size read the same.
    """
    places = torch.arange(0, 8, width, dtype=torch.uint8, device=codes.device)
    return (blocks(codes, 8 // width) << places).sum(-1).to(torch.uint8)


def unpack_codes(data: torch.Tensor, width: int) -> torch.Tensor:
    """The inverse of `pack_codes`."""
    places = torch.arange(0, 8, width, dtype=torch.uint8, device=data.device)
    codes: torch.Tensor = data.unsqueeze(-1) >> places & 2**width - 1
    return codes.flatten(-2)


def pack_5_bits(codes: torch.Tensor) -> torch.Tensor:
    """5-bit codes of a block in ggml's order: uint8 [..., 32] -> [..., 20].

    The fifth bits come first: bit i of a little-endian uint32 belongs to code i.
    """
    return torch.cat([pack_codes(codes >> 4 & 1, 1), pack_nibbles(codes)], -1)


def unpack_5_bits(data: torch.Tensor) -> torch.Tensor:
    """The inverse of `pack_5_bits`: uint8 [..., 20] -> [..., 32]."""
    return unpack_nibbles(data[..., 4:]) | unpack_codes(data[..., :4], 1) << 4
