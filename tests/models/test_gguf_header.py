from __future__ import annotations

import hashlib
import os
import random
import struct
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGUFEndian, GGUFReader, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from nybble.errors import ModelFileError
from nybble.models import gguf_header
from nybble.models.gguf_header import ArraySummary, GGUFHeader, read_header
from nybble.models.gguf_types import TENSOR_TYPES

U8, U32, STRING, ARRAY = 0, 4, 8, 9


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def kv(key: str | bytes, type_id: int, payload: bytes) -> bytes:
    return text(key) + struct.pack("<I", type_id) + payload


def array(item: int, count: int, payload: bytes = b"") -> bytes:
    return struct.pack("<IQ", item, count) + payload


def tensor(name: str = "t", shape: tuple[int, ...] = (8,), type_id: int = 0, offset: int = 0,
           n_dims: int | None = None) -> bytes:  # fmt: skip
    dims = struct.pack(f"<I{len(shape)}Q", len(shape) if n_dims is None else n_dims, *shape)
    return text(name) + dims + struct.pack("<IQ", type_id, offset)


def build(
    keys: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    *,
    version: int = 3,
    n_keys: int | None = None,
    n_tensors: int | None = None,
    data: int = 64,
) -> bytes:
    head = struct.pack(
        "<IQQ",
        version,
        len(tensors) if n_tensors is None else n_tensors,
        len(keys) if n_keys is None else n_keys,
    )
    raw = b"GGUF" + head + b"".join(keys) + b"".join(tensors)
    return raw + bytes(-len(raw) % 32) + bytes(data)


@pytest.fixture
def refused(tmp_path: Path) -> Callable[[bytes], ModelFileError]:
    def check(raw: bytes) -> ModelFileError:
        path = tmp_path / "bad.gguf"
        path.write_bytes(raw)
        with pytest.raises(ModelFileError) as caught:
            read_header(path)
        assert caught.value.hint
        assert caught.value.allowed or caught.value.seen
        return caught.value

    return check


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], GGUFHeader]:
    def check(raw: bytes) -> GGUFHeader:
        path = tmp_path / "good.gguf"
        path.write_bytes(raw)
        return read_header(path)

    return check


def assert_same_as_gguf(path: Path) -> None:
    ours, theirs = read_header(path), GGUFReader(path)
    fields = {k: f for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for key, field in fields.items():
        value: Any = ours.metadata[key]
        if isinstance(value, ArraySummary) and value.type != "text":
            # parts: the key's length, key, type, the entry type, the count, then the entries.
            raw = b"".join(part.tobytes() for part in field.parts[5:])
            assert value.sha256 == hashlib.sha256(raw).hexdigest(), key
            assert value.count == len(field.data)
            assert value.type == field.types[-1].name.lower()
        else:
            expected = field.contents()
            assert value == (tuple(expected) if isinstance(expected, list) else expected), key
            assert type(value) is (tuple if isinstance(expected, list) else type(expected)), key
    assert [
        (t.name, t.shape, t.type_name, t.n_bytes, t.n_elements, ours.data_offset + t.offset)
        for t in ours.tensors
    ] == [
        (t.name, tuple(t.shape.tolist()), t.tensor_type.name, t.n_bytes, t.n_elements,
         t.data_offset) for t in theirs.tensors
    ]  # fmt: skip
    assert (ours.alignment, ours.data_offset) == (theirs.alignment, theirs.data_offset)
    assert ours.file_size == path.stat().st_size


def test_tensor_types_equal_those_of_gguf() -> None:
    theirs = {int(t): (t.name, *sizes) for t, sizes in GGML_QUANT_SIZES.items()}
    newer = {42: ("Q2_0", 64, 18)}  # block_q2_0 in ggml-common.h: a half and 64 numbers of 2 bits
    assert {**theirs, **newer} == dict(TENSOR_TYPES)


def test_same_as_gguf_reader(write_gguf: Callable[..., Path]) -> None:
    long = {
        "x.numbers": list(range(2000)),
        "x.floats": [0.5] * 1025,
        "x.strings": ["é" * (i % 7) for i in range(1500)],
        "x.kept": list(range(1024)),
        "x.text": "t" * 5000,
        "x.flags": [True, False],
    }
    assert_same_as_gguf(write_gguf(long))
    assert_same_as_gguf(write_gguf({"general.alignment": 128}, name="aligned.gguf"))
    assert_same_as_gguf(write_gguf(name="vocab.gguf", tensors=()))


def test_every_scalar_type(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "s.gguf", "llama")
    writer.add_uint8("a", 255)
    writer.add_int8("b", -128)
    writer.add_uint16("c", 65535)
    writer.add_int16("d", -32768)
    writer.add_int32("e", -(2**31))
    writer.add_uint64("f", 2**64 - 1)
    writer.add_int64("g", -(2**63))
    writer.add_float64("h", 1e300)
    writer.add_float32("i", 0.1)
    writer.add_tensor("q", np.zeros((2, 34), dtype=np.uint8), raw_dtype=8)  # type: ignore[arg-type]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert_same_as_gguf(tmp_path / "s.gguf")


def test_same_as_gguf_reader_on_the_demo_model(demo_gguf: Path) -> None:
    assert_same_as_gguf(demo_gguf)


def test_a_header_of_a_31b_model_is_fast_and_small(tmp_path: Path) -> None:
    n, merges = 262_144, 514_906
    keys = [
        kv("tokenizer.ggml.tokens", ARRAY, array(STRING, n, text("token") * n)),
        kv("tokenizer.ggml.scores", ARRAY, array(6, n, bytes(4 * n))),
        kv("tokenizer.ggml.token_type", ARRAY, array(5, n, bytes(4 * n))),
        kv("tokenizer.ggml.merges", ARRAY, array(STRING, merges, text("to ken") * merges)),
    ]
    tensors = [tensor(f"blk.{i}.weight", (8,), 0, 32 * i) for i in range(832)]
    path = tmp_path / "large.gguf"
    path.write_bytes(build(keys, tensors, data=32 * 832))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        header = read_header(path)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.3
    assert header.metadata["tokenizer.ggml.tokens"] == ArraySummary(
        "string", n, hashlib.sha256(text("token") * n).hexdigest()
    )
    tracemalloc.start()
    read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_missing_folder_pipe_unreadable(tmp_path: Path, write_gguf: Callable[..., Path]) -> None:
    good = write_gguf()
    with pytest.raises(ModelFileError, match="no such model file") as caught:
        read_header(tmp_path / "tinny.gguf")
    assert str(good) in str(caught.value.hint)
    with pytest.raises(ModelFileError, match="no such model file"):
        read_header(tmp_path / "none" / "tiny.gguf")
    with pytest.raises(ModelFileError, match="folder") as caught:
        read_header(tmp_path)
    assert str(good) in str(caught.value.hint)
    with pytest.raises(ModelFileError, match="Cannot read"):
        read_header(good / "below")
    with pytest.raises(ModelFileError, match="null byte"):
        read_header(Path("a\0b"))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.gguf")
        with pytest.raises(ModelFileError, match="pipe"):
            read_header(tmp_path / "pipe.gguf")


def test_unreadable(write_gguf: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = write_gguf()
    monkeypatch.setattr(Path, "open", deny)
    with pytest.raises(ModelFileError, match="Permission denied"):
        read_header(path)


@pytest.mark.parametrize(
    ("start", "seen"),
    [
        (b"PK\x03\x04rest", "nybble reads only GGUF and safetensors"),
        (b"\x80\x02}q\x00", "PyTorch pickle"),
        (struct.pack("<Q", 40) + b'{"__metadata__":{}}', "safetensors"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"\n<HTML>", "HTML"),
        (b"<?xml version='1.0'?><Error>", "XML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
        (b"tjgg\x03\0\0\0", "legacy ggml"),
        (b"lmgg\x03\0\0\0", "legacy ggml"),
        (b"FUGG\x03\0\0\0", "big-endian"),
        (b'{"architectures": []}', "JSON"),
        (b"\x1f\x8b\x08", "compressed"),
        (b"\x28\xb5\x2f\xfd", "compressed"),
        (bytes(100), "unfinished download"),
        (b"something else", "b'somethin'"),
    ],
)
def test_names_the_kind_of_another_file(
    refused: Callable[[bytes], ModelFileError], start: bytes, seen: str
) -> None:
    error = refused(start)
    assert seen in str(error.seen)
    assert "at byte 0" in error.what


@pytest.mark.parametrize("size", [0, 1, 3, 4, 8, 23])
def test_too_short(refused: Callable[[bytes], ModelFileError], size: int) -> None:
    assert "24 bytes" in str(refused(build()[:size]).allowed)


def test_versions(refused: Callable[[bytes], ModelFileError], tmp_path: Path,
                  read: Callable[[bytes], GGUFHeader]) -> None:  # fmt: skip
    assert read(build(version=2)).version == 2
    assert "version 1" in str(refused(build(version=1)))
    assert "unknown version" in str(refused(build(version=4)))
    assert "unknown version" in str(refused(build(version=0)))
    writer = GGUFWriter(tmp_path / "big.gguf", "llama", endianess=GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "big endian" in str(refused((tmp_path / "big.gguf").read_bytes()))


LONG = b"x" * 100
HUGE = 2**64 - 1


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (build(n_keys=HUGE), "too many keys"),
        (build(n_tensors=HUGE), "too many tensors"),
        (build(n_tensors=70_000, data=10_000_000), "too many tensors"),
        (build(n_keys=4, data=64), "wrong length"),
        (build([kv("k", U32, b"1234")], n_keys=2, data=0)[:44], "too many keys"),
        (build([struct.pack("<Q", HUGE) + LONG]), "wrong length"),
        (build([struct.pack("<Q", 60_000) + LONG]), "the file ends inside"),
        (build([kv("", U32, b"1234")]), "wrong length"),
        (build([kv(b"\xff\xfe", U32, b"1234")]), "not UTF-8"),
        (build([kv("k", U32, b"1234")] * 2), "a key stands twice"),
        (build([kv("k", 13, b"1234")]), "unknown value type"),
        (build([kv("k", STRING, struct.pack("<Q", HUGE))]), "the file ends inside"),
        (build([kv("k", ARRAY, array(U8, HUGE))]), "the file ends inside"),
        (build([kv("k", ARRAY, array(U8, 500))]), "the file ends inside"),
        (build([kv("k", ARRAY, array(STRING, HUGE))]), "the file ends inside"),
        (build([kv("k", ARRAY, array(STRING, 2000, b"\xff" * 16_000))]), "the file ends inside"),
        (build([kv("k", ARRAY, array(STRING, 2000, text("a") * 1990))], data=0), "file ends"),
        (build([kv("k", ARRAY, array(77, 1))]), "unknown entry type"),
        (build([kv("k", ARRAY, array(ARRAY, 1) * 5)]), "too deep"),
        (build([kv("k", ARRAY, array(ARRAY, 100_000))]), "too many arrays"),
        (build([kv("general.alignment", U32, struct.pack("<I", 0))]), "alignment"),
        (build([kv("general.alignment", U32, struct.pack("<I", 24))]), "alignment"),
        (build([kv("general.alignment", U32, struct.pack("<I", 1 << 30))]), "alignment"),
        (build([kv("general.alignment", STRING, text("32"))]), "alignment"),
        (build([kv("split.count", STRING, text("2"))]), "split.count"),
        (build([kv("split.count", 5, struct.pack("<i", -2))]), "split.count"),
        (build(tensors=[tensor("n" * 65)]), "wrong length"),
        (build(tensors=[tensor(), tensor(offset=32)]), "stands twice"),
        (build(tensors=[tensor(shape=(1,) * 5)]), "too many dimensions"),
        (build(tensors=[tensor(n_dims=2**32 - 1)]), "too many dimensions"),
        (build(tensors=[tensor(shape=(8, 0))]), "impossible shape"),
        (build(tensors=[tensor(shape=(2**32, 2**32))]), "impossible shape"),
        (build(tensors=[tensor(type_id=4)]), "unknown or removed type"),
        (build(tensors=[tensor(type_id=999)]), "unknown or removed type"),
        (build(tensors=[tensor(shape=(33,), type_id=8)]), "no whole Q8_0 blocks"),
        (build(tensors=[tensor(offset=8)]), "not aligned"),
        (build(tensors=[tensor(), tensor("u")]), "overlaps"),
        (build(tensors=[tensor("u", (9,), offset=0), tensor(offset=32)]), "overlaps"),
        (build(tensors=[tensor(offset=2**63)]), "cut short"),
        (build(tensors=[tensor(shape=(17,))]), "4 bytes short"),
        (build(tensors=[tensor()], n_tensors=3), "wrong length"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damage_is_named(
    refused: Callable[[bytes], ModelFileError], raw: bytes, message: str
) -> None:
    error = refused(raw)
    assert message in str(error)
    assert "at byte" in error.what


def test_accepts_what_llama_cpp_accepts(read: Callable[[bytes], GGUFHeader]) -> None:
    nested = array(ARRAY, 2, array(U8, 2, b"\1\2") + array(STRING, 1, text("x")))
    header = read(
        build(
            [
                kv("n", ARRAY, nested),
                kv("empty", ARRAY, array(U8, 0)),
                kv("bad text", STRING, text(b"a\xff")),
                kv("true", 7, b"\x02"),
                kv("long text", STRING, text(b"a" * ((1 << 20) + 1))),
            ],
            [tensor("scalar", ()), tensor("q2", (64,), 42, 32)],
        )
    )
    values = header.metadata
    assert values["n"] == ((1, 2), ("x",))
    assert values["empty"] == ()
    assert values["bad text"] == "a\ufffd"
    assert values["true"] is True
    assert isinstance(values["long text"], ArraySummary)
    assert (values["long text"].type, values["long text"].count) == ("text", (1 << 20) + 1)
    assert [t.n_bytes for t in header.tensors] == [4, 18]
    assert header.split_count == 1
    with pytest.raises(TypeError):
        values["new"] = 1  # type: ignore[index]


def test_no_escape_sequences_in_errors(refused: Callable[[bytes], ModelFileError]) -> None:
    assert "\x1b" not in str(refused(build([kv("\x1b[31m", 99, b"1234")])))


def test_a_header_may_not_hold_too_much(
    refused: Callable[[bytes], ModelFileError], monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [kv(f"k{i}", ARRAY, array(U8, 1024, bytes(1024))) for i in range(30)]
    monkeypatch.setattr(gguf_header, "MAX_KEPT_BYTES", 1 << 20)
    assert "holds too much" in str(refused(build(many)))
    monkeypatch.setattr(gguf_header, "MAX_HEADER_BYTES", 1 << 12)
    assert "the header is too large" in str(refused(build(many)))
    strings = [kv("k", ARRAY, array(STRING, 2000, text("") * 2000))]
    assert "the header is too large" in str(refused(build(strings)))


def test_tokenizer_hash(write_gguf: Callable[..., Path]) -> None:
    same = read_header(write_gguf()).tokenizer_hash()
    assert (
        same == read_header(write_gguf({"general.name": "Other"}, name="b.gguf")).tokenizer_hash()
    )
    for key, value in {
        "tokenizer.ggml.tokens": ["<s>", "</s>", "c", "e"],
        "tokenizer.ggml.scores": [0.0, -1.0, -2.0, -4.0],
        "tokenizer.ggml.token_type": [3, 3, 1, 4],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
    }.items():
        assert read_header(write_gguf({key: value}, name="c.gguf")).tokenizer_hash() != same, key
    nothing = write_gguf({"tokenizer.ggml.tokens": None}, name="d.gguf")
    assert read_header(nothing).tokenizer_hash() is None


def mutate(rng: random.Random, raw: bytes) -> bytes:
    data = bytearray(raw)
    # Most of the time near the start, where the counts are.
    at = rng.randrange(min(rng.choice([32, 300, len(data)]), len(data)))
    kind = rng.randrange(5)
    if kind == 0:
        for _ in range(rng.choice([1, 1, 5])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[rng.choice([at, rng.randrange(len(data))]) :]
    elif kind == 2:
        data[at:at] = rng.randbytes(rng.choice([1, 4, 8, 100]))
    elif kind == 3:
        big = rng.choice([0, 1, 1000, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1])
        data[at : at + 8] = struct.pack("<Q", big)
    else:
        del data[at : at + rng.choice([1, 4, 8])]
    return bytes(data)


def outcome(path: Path, raw: bytes) -> GGUFHeader | ModelFileError:
    path.write_bytes(raw)
    start = time.perf_counter()
    try:
        result: GGUFHeader | ModelFileError = read_header(path)
    except ModelFileError as e:
        result = e
    assert time.perf_counter() - start < 2
    return result


def fuzz(path: Path, raw: bytes, runs: int) -> dict[type, int]:
    rng = random.Random(20261)
    counts = {GGUFHeader: 0, ModelFileError: 0}
    tracemalloc.start()
    try:
        for _ in range(runs):
            damaged = mutate(rng, raw)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            counts[type(outcome(path, damaged))] += 1
            assert tracemalloc.get_traced_memory()[1] - before < 64 << 20
    finally:
        tracemalloc.stop()
    return counts


def test_fuzz_tiny(tmp_path: Path, tiny_bytes: bytes) -> None:
    counts = fuzz(tmp_path / "fuzz.gguf", tiny_bytes, 500)
    # A fuzzer that only ever hits one outcome tests little.
    assert min(counts.values()) > 20


def test_fuzz_the_start_of_the_demo_model(tmp_path: Path, demo_gguf: Path) -> None:
    with demo_gguf.open("rb") as file:
        raw = file.read(4 << 20)
    assert isinstance(outcome(tmp_path / "fuzz.gguf", raw), ModelFileError)
    assert fuzz(tmp_path / "fuzz.gguf", raw, 100)[ModelFileError] == 100


@settings(deadline=None, max_examples=200, derandomize=True)
@given(
    start=st.sampled_from([b"", struct.pack("<I", 3), struct.pack("<IQQ", 3, 1, 2)]),
    rest=st.binary(max_size=600),
    pieces=st.lists(
        st.sampled_from([kv("k", U32, b"\1\0\0\0"), kv("s", STRING, text("v")), tensor(),
                         kv("a", ARRAY, array(U8, 3, b"abc")), array(ARRAY, 2), bytes(8)]),
        max_size=6,
    ),
)  # fmt: skip
def test_any_bytes_after_the_magic(
    tmp_path_factory: pytest.TempPathFactory, start: bytes, rest: bytes, pieces: list[bytes]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    outcome(path, b"GGUF" + start + b"".join(pieces) + rest)
