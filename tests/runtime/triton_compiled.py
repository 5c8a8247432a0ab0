"""Compile the Triton kernels for chips that are not here, and count what comes out."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nybble.formats.nyb4 import group_size
from nybble.formats.registry import kv_type
from nybble.runtime.layout import layout
from nybble.runtime.triton.decode import join_kernel, segment_kernel
from nybble.runtime.triton.latent_kernel import latent_kernel
from nybble.runtime.triton.quantize_kernel import append_kernel
from nybble.runtime.triton.tune import Case, launch

_TYPES = {
    "mask": "*u8", "widths": "*u8", "spans": "*i32", "k_table": "*i64", "v_table": "*i64",
    "table": "*i64", "softcap": "fp32",
}  # fmt: skip
_FLOATS = (
    "q bias added m_out l_out acc_out turn centre place_turns base_cos base_sin x m_parts "
    "l_parts acc_parts"
)


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a kernel.

    Attributes:
        registers: of a thread.
        stack: bytes a thread spills.
        shared: bytes of shared memory.
        loop: instructions of the longest loop, by name; empty for targets but CUDA.
    """

    registers: int
    stack: int
    shared: int
    loop: Counter[str]


def _side(name: str, which: str, dim: int) -> dict[str, Any]:
    kind = kv_type(name).of_side(which)
    of = layout(kind, which, dim)
    group = 1 if name in ("f16", "bf16") else group_size(dim, which) if name == "nyb4" else 32
    return {
        which: name, f"D{which}": dim, f"CODE_{which}": len(of.codes), f"ROW_{which}": of.row_bytes,
        f"GROUP_{which}": group, f"PAD_{which}": triton.next_power_of_2(dim // group),
    }  # fmt: skip


def segment(k: str, v: str, k_dim: int, v_dim: int, target: tuple[str, Any] = ("cuda", 90),
            half: int = 8, every: bool = False) -> Compiled:  # fmt: skip
    """The decode kernel; with `every` switch on."""
    how = launch(Case((9, 0), max(k_dim, v_dim), 4))
    fixed = {**_side(k, "K", k_dim), **_side(v, "V", v_dim), "HALF": half, "TILE": how.tile}
    return _compiled(segment_kernel, {**fixed, **_switches(every)}, how.warps, target)


def latent(v: str, dim: int, pairs: int, mixed: bool, every: bool = False,
           target: tuple[str, Any] = ("cuda", 90)) -> Compiled:  # fmt: skip
    """The latent kernel."""
    how = launch(Case((9, 0), dim, 4, "latent"))
    fixed = {**_side(v, "V", dim), "HALF": 8, "TILE": how.tile, "PAIRS": pairs, "MIXED": mixed}
    fixed |= {"WIDTH": 64 if mixed else 32, "HAS_CENTRE": every and not mixed}
    return _compiled(latent_kernel, {**fixed, **_switches(every)}, how.warps, target)


def joining(dim: int) -> Compiled:
    """The kernel that joins parts."""
    return _compiled(join_kernel, {"DV": dim, "PAD": triton.next_power_of_2(dim)}, 4)


def appending(name: str, dim: int) -> Compiled:
    """The quantizing kernel."""
    of = layout(kv_type(name), "V", dim)
    blocks = dim // 32
    fixed = {"KIND": name, "DIM": dim, "CODE": len(of.codes), "BLOCKS": blocks}
    fixed["PAD"] = triton.next_power_of_2(blocks)
    return _compiled(append_kernel, fixed, 1, fuse=False)


def _switches(every: bool) -> dict[str, bool]:
    return dict.fromkeys(("HAS_BIAS", "HAS_MASK", "HAS_ADDED", "HAS_CAP"), every)


def _compiled(
    kernel: Any, fixed: dict[str, Any], warps: int, target: tuple[str, Any] = ("cuda", 90),
    fuse: bool = True,
) -> Compiled:  # fmt: skip
    known = {**_TYPES, **dict.fromkeys(_FLOATS.split(), "*fp32")}
    names = kernel.arg_names
    signature = {n: "constexpr" if n in fixed else known.get(n, "i32") for n in names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, n in enumerate(names) if signature[n].startswith("*")
    }  # fmt: skip
    backend, chip = target
    made = triton.compile(
        ASTSource(kernel, signature, fixed, aligned),
        target=GPUTarget(backend, chip, 32 if backend == "cuda" else 64),
        options={"num_warps": warps, "num_stages": 2, "enable_fp_fusion": fuse},
    )
    if backend != "cuda":
        return Compiled(0, 0, made.metadata.shared, Counter())
    text = _disassembled(made.asm["cubin"])
    usage = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert usage is not None
    return Compiled(int(usage[1]), int(usage[2]), made.metadata.shared, _longest_loop(text))


def _disassembled(binary: bytes) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(binary)
        command = [str(tool), "-sass", "-res-usage", str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _longest_loop(text: str) -> Counter[str]:
    lines = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][^;]*);", text)
    code = [(int(at, 16), line) for at, line in lines]
    back = [
        (int(to[1], 16), at)
        for at, line in code
        if line.startswith("BRA") and (to := re.search(r"0x([0-9a-f]+)", line)) is not None
    ]
    loops = [(to, at) for to, at in back if to < at]
    first, last = max(loops, key=lambda loop: loop[1] - loop[0], default=(0, -1))
    return Counter(line.split(".")[0].split()[0] for at, line in code if first <= at <= last)


class _Driver:
    """A chip that compiles and launches nothing."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class _Warm:
    """A kernel that binds its arguments and is compiled, instead of being launched."""

    def __init__(self, kernel: Any, seen: list[str]) -> None:
        self.kernel, self.seen = kernel, seen

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def run(*args: Any, **named: Any) -> None:
            made = self.kernel.run(*args, grid=grid, warmup=True, **named)
            self.seen.append(f"{self.kernel.__name__} {made.hash}")

        return run


def bound() -> list[str]:
    """Go through the calls of attend.py, latent.py and append.py up to the launch itself.

    Returns:
        Names and hashes of what would have been launched.
    """
    import torch
    from triton.runtime import driver
    from triton_cases import Case as Call
    from triton_cases import strand_and_rows

    from nybble.runtime.triton import append, attend
    from nybble.runtime.triton import latent as latents

    driver.set_active(_Driver())
    seen: list[str] = []
    for module, name in (
        (attend, "segment_kernel"), (attend, "join_kernel"), (latents, "latent_kernel"),
        (append, "append_kernel"),
    ):  # fmt: skip
        setattr(module, name, _Warm(getattr(module, name), seen))
    extra = ("mask", "bias", "added", "cap")
    for count in (600, 601):
        strand, rows = strand_and_rows(Call(k="f16", v="f16", extra=extra, n=2, count=count))
        attend.attend_strand(strand, rows)
    strand, rows = strand_and_rows(Call(k="", v="q8_0", v_dim=128, pairs=8, rotation=64))
    attend.attend_strand(strand, rows)
    append.write(strand.v, strand.v_pages, torch.randn(1, 2, 3, 128))
    return seen
