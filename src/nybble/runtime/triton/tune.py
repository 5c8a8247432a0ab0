"""How a kernel is launched on a chip: rows and tokens of a program, warps, parts of the context.

Nothing has been measured yet: no GPU was at hand when this was written, so the table of chips is
empty and every chip gets the default. `tune` measures the candidates on the GPU that is present,
flushing its L2 cache in between; what it returns can be entered here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Launch:
    """How the decode kernel is launched.

    Attributes:
        tile: tokens of one step, 16, 32 or 64; they never cross a page.
        warps: of a program.
        stages: of the loads' pipeline.
        waves: programs that each multiprocessor should get, which sets the parts.
        pages: fewest pages that a part is worth.
    """

    tile: int = 64
    warps: int = 4
    stages: int = 2
    waves: int = 4
    pages: int = 4


@dataclass(frozen=True)
class Case:
    """What a launch is chosen for.

    Attributes:
        capability: CUDA compute capability, for example (9, 0).
        dim: the larger of the key's and the value's size.
        bits: of keys, rounded.
        kernel: "latent" for the one that rebuilds keys.
    """

    capability: tuple[int, int]
    dim: int
    bits: int
    kernel: str = ""


# Measured best launches; empty, for no chip has been measured.
LAUNCHES: dict[Case, Launch] = {}


def launch(case: Case) -> Launch:
    """The table's launch, or a default that fits the registers of an NVIDIA chip."""
    if case in LAUNCHES:
        return LAUNCHES[case]
    # From compiling for sm_90 (docs/kernels-gpu.md), not from time: heads of 512 need 8 warps for
    # their registers; rebuilding keys needs half the tile, then 4 warps take fewer instructions.
    if case.kernel:
        return Launch(tile=32 if case.dim > 128 else 64)
    return Launch(warps=8 if case.dim > 256 else 4)


def smaller(how: Launch) -> Launch | None:
    """A launch that needs less shared memory, or None."""
    if how.stages > 1:
        return replace(how, stages=1)
    return replace(how, tile=how.tile // 2) if how.tile > 16 else None


def candidates() -> list[Launch]:
    """Launches worth measuring."""
    return [
        Launch(tile, warps, stages, waves)
        for tile in (16, 32, 64)
        for warps in (1, 2, 4, 8)
        for stages in (1, 2, 3)
        for waves in (2, 4, 8)
    ]


def pages_of_part(pages: int, programs: int, multiprocessors: int, how: Launch) -> int:
    """Pages that one part of the context gets.

    Enough parts that every multiprocessor has `waves` programs, but none below the pages that
    pay for joining it.

    Args:
        pages: of the segment.
        programs: of one part: batch rows times heads times row blocks.
        multiprocessors: of the chip.
        how: the launch.

    Returns:
        At least 1.
    """
    wanted = -(-multiprocessors * how.waves // max(1, programs))
    parts = max(1, min(wanted, pages // how.pages))
    return max(1, -(-pages // parts))


def multiprocessors(device: torch.device) -> int:
    """Of the chip; 1 for a CPU, where the interpreter runs one program after the other."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def capability(device: torch.device) -> tuple[int, int]:
    """CUDA's compute capability; (0, 0) for a CPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def tune(run: Callable[[Launch], object], device: torch.device) -> tuple[Launch, float]:
    """Measure every candidate on the present GPU.

    Args:
        run: calls the kernel with a launch, on data of the size that matters.
        device: a CUDA device.

    Returns:
        The fastest, and its milliseconds (median, L2 cache flushed before every run). Candidates
        that need more registers or shared memory than there is are passed over.
    """
    import triton

    best: tuple[Launch, float] | None = None
    for how in candidates():
        try:
            run(how)
            torch.cuda.synchronize(device)
            # do_bench clears a buffer larger than L2 before each run.
            time = float(triton.testing.do_bench(lambda how=how: run(how), return_mode="median"))
        except triton.runtime.errors.OutOfResources:
            continue
        if best is None or time < best[1]:
            best = (how, time)
    assert best is not None, "every candidate asked for more than the chip has"
    return best
