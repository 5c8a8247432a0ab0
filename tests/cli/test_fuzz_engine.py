"""Damaged model files, up to the engine: an error or a result, never a crash or a hang.

The header check is ours and must be quick; what passes it reaches llama.cpp, which may abort,
but only in the child process.
"""

from __future__ import annotations

import random
import re
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nybble import MeasureRequest, NybbleError, Result, measure, parse_setting, plan_cells
from nybble.models.gguf_header import read_header
from nybble.models.summary import summarise

FILES = 500
FULL_RUNS = 25
HEADER_SECONDS = 5.0
_EDGES = (0, 1, 2, 31, 33, 255, 1 << 15, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1,
          (1 << 64) - 1)  # fmt: skip
_NAME = re.compile(rb"(?:general|llama|tokenizer)\.[a-z0-9_.]+|blk\.\d\.[a-z_.]+|output[a-z_.]*")

Edit = Callable[[random.Random, bytearray, int], None]


def flip_bits(rng: random.Random, data: bytearray, header: int) -> None:
    for _ in range(rng.choice((1, 1, 2, 8))):
        data[rng.randrange(4, header)] ^= 1 << rng.randrange(8)


def overwrite(rng: random.Random, data: bytearray, header: int) -> None:
    at, n = rng.randrange(4, header), rng.randrange(1, 16)
    data[at : at + n] = rng.choice((bytes(n), b"\xff" * n, rng.randbytes(n)))


def insert(rng: random.Random, data: bytearray, header: int) -> None:
    at = rng.randrange(4, header)
    data[at:at] = rng.randbytes(rng.randrange(1, 40))


def remove(rng: random.Random, data: bytearray, header: int) -> None:
    at = rng.randrange(4, header)
    del data[at : at + rng.randrange(1, 40)]


def cut(rng: random.Random, data: bytearray, header: int) -> None:
    del data[rng.choice((rng.randrange(4, header), rng.randrange(header, len(data)))) :]


def count(rng: random.Random, data: bytearray, header: int) -> None:
    """The tensor count, the key count, or any length in the header."""
    at = rng.choice((8, 16, rng.randrange(24, header)))
    data[at : at + 8] = struct.pack("<Q", rng.choice(_EDGES))


def after_name(rng: random.Random, data: bytearray, header: int) -> None:
    """What follows a name: a value and its type; a tensor's shape, type and offset."""
    name = rng.choice(list(_NAME.finditer(data[:header])))
    at = name.end() + rng.choice((0, 4, 4, 4, 8, 12, 16, 20, 24))
    size, code = rng.choice(((4, "<I"), (4, "<I"), (8, "<Q")))
    data[at : at + size] = struct.pack(code, rng.choice(_EDGES) & ((1 << 8 * size) - 1))


def rename(rng: random.Random, data: bytearray, header: int) -> None:
    """A key or a tensor goes missing, or another one takes its name."""
    one, two = rng.choices(list(_NAME.finditer(data[:header])), k=2)
    text = two.group()[: len(one.group())].ljust(len(one.group()), b"_")
    data[one.start() : one.end()] = text


def weights(rng: random.Random, data: bytearray, header: int) -> None:
    """Numbers that are not finite, or absurd."""
    for _ in range(rng.choice((1, 100))):
        at = header + rng.randrange(0, len(data) - header - 4) // 4 * 4
        data[at : at + 4] = struct.pack("<f", rng.choice((float("nan"), float("inf"), 1e38)))


EDITS: tuple[Edit, ...] = (flip_bits, flip_bits, overwrite, insert, remove, cut, count, count,
                           after_name, after_name, after_name, rename, weights)  # fmt: skip


def damaged(seed: int, whole: bytes, header: int) -> bytes:
    """The file `whole` with one to three damages, the same for the same seed."""
    rng = random.Random(seed)
    data = bytearray(whole)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if len(data) > header:
            rng.choice(EDITS)(rng, data, header)
    return bytes(data)


@pytest.fixture(scope="module")
def original(tiny_model: Path) -> tuple[bytes, int]:
    """A whole model's bytes, and how many of them are its header."""
    return tiny_model.read_bytes(), read_header(tiny_model).data_offset


@pytest.fixture(scope="module")
def passing(original: tuple[bytes, int], tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """Read the header of every damaged file; the seeds of those that are not refused."""
    path = tmp_path_factory.mktemp("fuzz") / "damaged.gguf"
    found = []
    for seed in range(FILES):
        path.write_bytes(damaged(seed, *original))
        begin = time.perf_counter()
        try:
            summarise(path)
        except NybbleError as error:
            assert error.what and (error.seen or error.allowed or error.hint), seed
        else:
            found.append(seed)
        took = time.perf_counter() - begin
        assert took < HEADER_SECONDS, f"seed {seed} took {took:.1f} s"
    return found


def run(seed: int, original: tuple[bytes, int], folder: Path) -> str:
    """Plan and measure one damaged file; what came of it."""
    path = folder / f"damaged-{seed}.gguf"
    path.write_bytes(damaged(seed, *original))
    request = MeasureRequest(
        model=path,
        settings=(parse_setting("q8_0/q4_0"),),
        contexts=(64,),
        categories=("prose",),
        documents=1,
        timeout=20,
        threads=1,
        out=folder / "out",
        fresh=True,
    )
    begin = time.perf_counter()
    try:
        if seed % 5 == 0:  # what measure does first, too
            assert plan_cells(request)
        result = measure(request)
        assert isinstance(result, Result) and result.measurement.rows
        return "failed rows" if result.failed else "result"
    except NybbleError as error:
        assert str(error)
        return type(error).__name__
    finally:
        path.unlink()
        took = time.perf_counter() - begin
        assert took < 60, f"seed {seed} took {took:.0f} s"


def test_headers(passing: list[int]) -> None:
    """Most damage is found; enough passes to be worth running below."""
    assert FULL_RUNS <= len(passing) < FILES / 2


@pytest.mark.timeout(240)
def test_some_in_the_engine(
    passing: list[int], original: tuple[bytes, int], tmp_path: Path
) -> None:
    step = max(1, len(passing) // FULL_RUNS)
    outcomes = {seed: run(seed, original, tmp_path) for seed in passing[::step][:FULL_RUNS]}
    assert "result" in outcomes.values(), outcomes


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_in_the_engine(passing: list[int], original: tuple[bytes, int], tmp_path: Path) -> None:
    outcomes = {seed: run(seed, original, tmp_path) for seed in passing}
    assert {"result", "EngineError"} <= set(outcomes.values()), outcomes
