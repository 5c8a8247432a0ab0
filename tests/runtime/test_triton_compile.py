"""The Triton kernels compile for GPUs that are not here, and to the instructions they are meant to.

The interpreter accepts what the compiler does not, and says nothing of registers or conversions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from triton_child import child

HOPPER = 227 * 1024  # bytes of shared memory that a program can have


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    folder = tmp_path_factory.mktemp("triton")
    with child(TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(folder)) as call:

        def run(name: str, *args: Any) -> Any:
            return call(_compile, name, args)

        yield run


def _compile(name: str, args: tuple[Any, ...]) -> Any:
    import triton_compiled

    return getattr(triton_compiled, name)(*args)


def test_join_and_append_compile(compiled: Callable[..., Any]) -> None:
    assert compiled("joining", 80).stack == 0
    made = compiled("appending", "q4_0", 64)
    assert made.stack == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("k", "v", "dim"),
    [("q4_0", "q8_0", 96), ("q4_0", "q4_0", 512), ("f16", "bf16", 80), ("nyb4", "nyb4", 64)],
)  # fmt: skip
def test_decode_compiles(k: str, v: str, dim: int, compiled: Callable[..., Any]) -> None:
    made = compiled("segment", k, v, dim, dim)
    assert made.stack <= 64, "registers are spilled"
    assert made.shared <= HOPPER


@pytest.mark.slow
@pytest.mark.parametrize("name", ["q8_0", "q4_0", "nyb4"])
def test_codes_are_not_converted(name: str, compiled: Callable[..., Any]) -> None:
    """Codes become floats by and-or and subtraction: no int to float per element."""
    made = compiled("segment", name, name, 128, 128)
    elements = (128 + 128) * 64 / 128  # of a thread in one step
    assert made.loop["HMMA"] >= 16
    assert made.loop["I2F"] + made.loop["I2FP"] < elements / 8


@pytest.mark.slow
@pytest.mark.parametrize("target", [("cuda", 80), ("cuda", 89), ("cuda", 100), ("hip", "gfx942")])
def test_other_chips(target: tuple[str, Any], compiled: Callable[..., Any]) -> None:
    compiled("segment", "q4_0", "q4_0", 128, 128, target)
    if target[1] in (100, "gfx942"):
        compiled("latent", "q4_0", 128, 64, True, False, target)


@pytest.mark.slow
@pytest.mark.parametrize("half", [8, 32])
def test_every_switch_compiles(half: int, compiled: Callable[..., Any]) -> None:
    k, v = ("q4_1", "f16") if half == 8 else ("f16", "q4_1")
    compiled("segment", k, v, 128, 64, ("cuda", 90), half, True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["f16", "q4_0", "q4_1"])
def test_latent_compiles(name: str, compiled: Callable[..., Any]) -> None:
    made = compiled("latent", name, 512, 64, name[0] == "q", True)
    assert made.shared <= HOPPER


@pytest.mark.slow
def test_calls_bind_and_sizes_are_not_compiled_in(compiled: Callable[..., Any]) -> None:
    """All of a call but the launch; a longer context runs the same kernel."""
    seen = compiled("bound")
    names = [line.split()[0] for line in seen]
    # One call of a segment is that and the kernel that joins its parts.
    pair = ["segment_kernel", "join_kernel"]
    assert names == [*pair, *pair, "latent_kernel", "append_kernel"]
    assert seen[:2] == seen[2:4]
