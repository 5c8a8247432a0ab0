"""AVX-512 and NEON on machines without them: the same source, their names supplied by SIMDe.

Debian has it as libsimde-dev. The library is built once for each with the variant in the place of
the baseline, and answers the same questions as the real ones.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from native_cases import OFFSET, TOKENS, compare, compare_rebuilt, packed, rows_of, tokens

from nybble.formats.registry import kv_type
from nybble.runtime import native
from nybble.runtime.native_abi import KINDS
from nybble.runtime.native_attend import unpack

SOURCE = Path(__file__).parents[2] / "csrc"
SHIM = Path(__file__).with_name("simde_shim.h")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/usr/include/simde").exists() or not SOURCE.exists(),
        reason="SIMDe is not installed (apt-get install libsimde-dev)",
    ),
]


@pytest.fixture(scope="module", params=["AVX512", "NEON"])
def emulated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library whose baseline is the emulated instruction set."""
    out: Path = tmp_path_factory.mktemp("simde") / "_kernels.so"
    files = [SOURCE / name for name in ("variant.c", "attend.c", "parallel.c", "quantize.c")]
    flags = ["-std=gnu11", "-O1", "-Wall", "-Werror", "-fPIC", "-shared", "-fvisibility=hidden"]
    flags += [f"-DNYB_SIMDE_{request.param}", "-DNYB_NAME=nyb_baseline", "-include", str(SHIM)]
    subprocess.run(["cc", *flags, *map(str, files), "-o", str(out), "-lm", "-lpthread"], check=True)
    return out


@pytest.fixture(autouse=True)
def _loaded(emulated: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(native, "_find", lambda: emulated)
    monkeypatch.setattr(native, "_STATE", native._State())
    monkeypatch.setenv(native.VARIABLE, "native-baseline")
    native._opened.cache_clear()
    yield
    native._opened.cache_clear()


@pytest.mark.parametrize(
    ("name", "dim"), [(n, d) for n in KINDS for d in (64, 80, 256) if kv_type(n).fits(d)]
)
def test_every_type(name: str, dim: int) -> None:
    x = tokens("random", 2, 2, TOKENS, dim)
    k, v = packed(name, "K", x), packed(name, "V", x.flip(2))
    got = unpack(v.stored, OFFSET, TOKENS - OFFSET)
    assert (got - v.y[:, :, OFFSET:]).abs().max() <= 1e-6 * v.y.abs().max()
    for height in (1, 2, 4, 8, 11):
        q = torch.randn(2, 2, height, dim) / dim**0.5
        bias = torch.randn(2, 2, height)
        compare(rows_of(q, TOKENS - OFFSET, bias=bias, softcap=20.0), k, v)


@pytest.mark.parametrize("kind", ["outlier", "zeros", "huge", "denormal"])
@pytest.mark.parametrize("name", ["f16", "q4_0", "q5_1", "nyb4"])
def test_hard_inputs(name: str, kind: str) -> None:
    x = tokens(kind, 1, 2, TOKENS, 128)
    k, v = packed(name, "K", x), packed(name, "V", x)
    size = float(k.y.abs().amax().clamp(min=1e-30))
    compare(rows_of((torch.randn(1, 2, 4, 128) / size / 11).clamp(-1e30, 1e30), 143), k, v)


@pytest.mark.parametrize(("dim", "pairs", "rotation"), [(512, 64, 64), (256, 40, 0)])
def test_keys_rebuilt_from_values(dim: int, pairs: int, rotation: int) -> None:
    compare_rebuilt("q4_0", dim, pairs, rotation)


def test_it_is_the_emulated_one(emulated: Path) -> None:
    assert os.environ[native.VARIABLE] == "native-baseline"
    assert native._find() == emulated
