"""Headers of safetensors files: what is read, and that nothing but ModelFileError comes out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nybble.errors import ModelFileError
from nybble.models import safetensors_header
from nybble.models.safetensors_header import BITS, read_header

A = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
B = {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}


def raw(header: bytes, data: int = 0, length: int | None = None) -> bytes:
    """A file: 8 bytes of length, the header, `data` zero bytes."""
    n = len(header) if length is None else length
    return n.to_bytes(8, "little") + header + bytes(data)


def write(path: Path, entries: object, data: int) -> Path:
    path.write_bytes(raw(json.dumps(entries).encode(), data))
    return path


def refused(path: Path) -> ModelFileError:
    with pytest.raises(ModelFileError) as info:
        read_header(path)
    assert info.value.hint
    return info.value


class TestRead:
    def test_by_hand(self, tmp_path: Path) -> None:
        # The example of the format's own test: one F32 tensor of [1, 2, 3], 64 bytes of header.
        header = b'{"attn.0":{"dtype":"F32","shape":[1,2,3],"data_offsets":[0,24]}}'
        assert len(header) == 64
        path = tmp_path / "m.safetensors"
        path.write_bytes(bytes([64, 0, 0, 0, 0, 0, 0, 0]) + header + bytes(24))
        found = read_header(path)
        (tensor,) = found.tensors
        assert (tensor.name, tensor.shape, tensor.type_name) == ("attn.0", (1, 2, 3), "F32")
        assert (tensor.n_bytes, tensor.offset, tensor.n_elements) == (24, 0, 6)
        assert (found.data_offset, found.file_size) == (72, 96)

    def test_order_and_metadata(self, tmp_path: Path) -> None:
        entries = {"b": B, "__metadata__": {"format": "pt"}, "a": A}
        found = read_header(write(tmp_path / "m.safetensors", entries, 32))
        assert [t.name for t in found.tensors] == ["a", "b"]
        assert found.metadata == {"format": "pt"}

    def test_empty_tensors_and_scalars(self, tmp_path: Path) -> None:
        entries = {
            "z": {"dtype": "F32", "shape": [0, 5], "data_offsets": [4, 4]},
            "s": {"dtype": "I32", "shape": [], "data_offsets": [0, 4]},
            "y": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        }
        found = read_header(write(tmp_path / "m.safetensors", entries, 8))
        assert [t.name for t in found.tensors] == ["s", "z", "y"]

    def test_half_bytes(self, tmp_path: Path) -> None:
        entry = {"dtype": "F4", "shape": [2, 3], "data_offsets": [0, 3]}
        assert read_header(write(tmp_path / "m.safetensors", {"q": entry}, 3)).tensors

    def test_padding_and_no_tensors(self, tmp_path: Path) -> None:
        path = tmp_path / "m.safetensors"
        path.write_bytes(raw(b"{}      "))
        assert read_header(path).tensors == ()

    def test_what_the_library_writes(self, tmp_path: Path) -> None:
        numpy = pytest.importorskip("safetensors.numpy")
        import numpy as np

        arrays = {f"t{i}": np.ones((i, 2), t) for i, t in enumerate(("f2", "f4", "i8", "u1", "?"))}
        numpy.save_file(arrays, tmp_path / "m.safetensors", {"a": "b"})
        found = {t.name: t for t in read_header(tmp_path / "m.safetensors").tensors}
        assert {n: t.shape for n, t in found.items()} == {n: a.shape for n, a in arrays.items()}
        assert [found[f"t{i}"].type_name for i in range(5)] == ["F16", "F32", "I64", "U8", "BOOL"]


def entry(**changed: Any) -> dict[str, Any]:
    return {"a": {**A, **changed}, "b": B}


DEEP = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
BAD = {
    "dtype": ("unknown dtype", entry(dtype="F31")),
    "dtype no text": ("unknown dtype", entry(dtype=["F32"])),
    "shape": ("wrong shape", entry(shape=[2, -3])),
    "shape float": ("wrong shape", entry(shape=[2, 3.0])),
    "shape bool": ("wrong shape", entry(shape=[6, True])),
    "shape long": ("wrong shape", entry(shape=[1 << 62] * 1000)),
    "shape huge": ("does not fill", entry(shape=[1 << 62] * 32)),
    "shape text": ("wrong shape", entry(shape="23")),
    "range": ("does not fill", entry(shape=[2, 4])),
    "offsets three": ("data_offsets", entry(data_offsets=[0, 24, 24])),
    "offsets back": ("data_offsets", entry(data_offsets=[24, 0])),
    "offsets null": ("data_offsets", entry(data_offsets=None)),
    "past the end": ("after the end", {"a": A, "b": {**B, "data_offsets": [32, 40]}}),
    "overlap": ("overlaps", {"a": A, "b": {**B, "data_offsets": [16, 24]}}),
    "gap": ("leaves a gap", {"b": B}),
    "too long": ("too long", {"a": A}),
    "no entry": ("no description", {"a": A, "b": None}),
    "metadata": ("__metadata__", {"a": A, "b": B, "__metadata__": {"x": 1}}),
    "metadata list": ("__metadata__", {"a": A, "b": B, "__metadata__": []}),
    "list": ("not a safetensors", [A]),
}


class TestRefuse:
    @pytest.mark.parametrize("name", BAD)
    def test_bad_entries(self, tmp_path: Path, name: str) -> None:
        words, entries = BAD[name]
        assert words in str(refused(write(tmp_path / "m.safetensors", entries, 32)))

    @pytest.mark.parametrize(
        ("words", "data"),
        [
            ("not a safetensors", b""),
            ("not a safetensors", b"\x02\0\0\0\0\0\0\0"),
            ("not a safetensors", b"GGUF" + bytes(60)),
            ("not a safetensors", bytes(64)),
            ("git-lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
            ("cut short inside its header", raw(b'{"a":', length=1000)),
            ("cut short inside its header", raw(b"{", length=(1 << 64) - 1)),
            ("not JSON", raw(b'{"a":}')),
            ("not JSON", raw(b'{"\xff":1}')),
            ("not JSON", raw(b'{"a":' + b"9" * 5000 + b"}")),
            ("nests too deep", raw(DEEP)),
            ("stands twice", raw(b'{"a":1,"a":2}')),
            ("cut short", raw(json.dumps({"a": A, "b": B}).encode(), 31)),
        ],
    )
    def test_bad_bytes(self, tmp_path: Path, words: str, data: bytes) -> None:
        path = tmp_path / "m.safetensors"
        path.write_bytes(data)
        error = refused(path)
        assert words in str(error) or "after the end" in str(error)

    def test_huge_header_is_not_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(safetensors_header, "MAX_HEADER_BYTES", 100)
        path = tmp_path / "m.safetensors"
        path.write_bytes(raw(b"{" + b" " * 200 + b"}"))
        assert "too large" in str(refused(path))

    def test_no_file(self, tmp_path: Path) -> None:
        assert "is missing" in str(refused(tmp_path / "m.safetensors"))
        assert "a folder" in str(refused(tmp_path))
        os.mkfifo(tmp_path / "pipe")
        assert "a pipe" in str(refused(tmp_path / "pipe"))

    def test_hostile_names_are_escaped(self, tmp_path: Path) -> None:
        bad = {"\x1b[31m\ud800": {**A, "dtype": "\x1b[0m"}}
        text = str(refused(write(tmp_path / "m.safetensors", bad, 24)))
        assert "\x1b" not in text and "\ud800" not in text


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.sampled_from(sorted(BITS))
    | st.integers(-2, 40) | st.sampled_from([1 << 31, 1 << 63, -(1 << 64), 10**30]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["dtype", "shape", "data_offsets", "a", "__metadata__"]), inner, max_size=4
    ),
    max_leaves=12,
)  # fmt: skip
FUZZ = settings(max_examples=300, deadline=None,
                suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip


def only_model_file_errors(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        found = read_header(path)
    except ModelFileError as e:
        assert all(line.isprintable() for line in str(e).splitlines())
        return
    # What is taken covers the file exactly.
    assert found.data_offset + sum(t.n_bytes for t in found.tensors) == len(data)


class TestFuzz:
    @FUZZ
    @given(JSON, st.integers(0, 40))
    def test_any_json(self, tmp_path: Path, value: object, data: int) -> None:
        text = json.dumps(value).encode("utf-8", "surrogatepass")
        only_model_file_errors(tmp_path / "m", raw(text, data))

    @FUZZ
    @given(st.sampled_from(["dtype", "shape", "data_offsets"]), JSON)
    def test_one_wrong_field(self, tmp_path: Path, field: str, value: object) -> None:
        text = json.dumps(entry(**{field: value})).encode("utf-8", "surrogatepass")
        only_model_file_errors(tmp_path / "m", raw(text, 32))

    @FUZZ
    @given(st.lists(st.tuples(st.integers(0, 170), st.integers(0, 255)), max_size=4),
           st.integers(0, 200))  # fmt: skip
    def test_flipped_and_cut_bytes(
        self, tmp_path: Path, changes: list[tuple[int, int]], end: int
    ) -> None:
        data = bytearray(raw(json.dumps({"a": A, "b": B}).encode(), 32))
        for at, value in changes:
            data[at % len(data)] = value
        only_model_file_errors(tmp_path / "m", bytes(data[:end] if end < 190 else data))
