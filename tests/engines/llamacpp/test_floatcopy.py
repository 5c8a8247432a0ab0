"""The float copy against gguf-py's own dequantization, and against a model written as floats."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize

from nybble.engines.llamacpp import floatcopy
from nybble.engines.llamacpp.floatcopy import write_float_copy
from nybble.engines.llamacpp.model import Model
from nybble.errors import EngineError, NybbleError
from nybble.formats import parse

MODEL_TYPES = ("Q8_0", "Q4_0", "Q5_0", "BF16")
Make = Callable[..., Path]


def copy(source: Path, target: Path, kind: str) -> list[float]:
    seen: list[float] = []
    write_float_copy(source, target, kind, seen.append)
    return seen


def fields(path: Path) -> dict[str, object]:
    reader = gguf.GGUFReader(path)
    return {
        name: (field.types, field.contents())
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }


def expected(tensor: gguf.ReaderTensor, kind: str) -> np.ndarray:  # type: ignore[type-arg]
    """float32 as it was, quantized as gguf-py reads it, rounded to float16 where that is asked."""
    if tensor.tensor_type in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
        return np.asarray(tensor.data)
    values = dequantize(tensor.data, tensor.tensor_type)
    return values if kind == "f32" else values.astype(np.float16)


@pytest.fixture(scope="module")
def sources(make_tiny: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {t: make_tiny(folder / f"{t}.gguf", weight_type=t) for t in (*MODEL_TYPES, "F16")}


@pytest.mark.parametrize("kind", ["f16", "f32"])
@pytest.mark.parametrize("weights", MODEL_TYPES)
class TestValues:
    def test_bit_for_bit(
        self, sources: dict[str, Path], tmp_path: Path, weights: str, kind: str
    ) -> None:
        target = tmp_path / "copy.gguf"
        copy(sources[weights], target, kind)
        before, after = gguf.GGUFReader(sources[weights]), gguf.GGUFReader(target)
        assert [t.name for t in after.tensors] == [t.name for t in before.tensors]
        changed = 0
        for a, b in zip(before.tensors, after.tensors, strict=True):
            want = expected(a, kind)
            assert b.data.dtype == want.dtype, a.name
            assert b.shape.tolist() == a.shape.tolist()
            assert b.data.tobytes() == want.tobytes(), a.name
            changed += a.tensor_type != b.tensor_type
        assert changed == 16  # all but the norms

    def test_metadata_is_kept(
        self, sources: dict[str, Path], tmp_path: Path, weights: str, kind: str
    ) -> None:
        target = tmp_path / "copy.gguf"
        copy(sources[weights], target, kind)
        before, after = fields(sources[weights]), fields(target)
        assert after.pop("general.file_type") == (
            [gguf.GGUFValueType.UINT32], {"f32": 0, "f16": 1}[kind],
        )  # fmt: skip
        before.pop("general.file_type")
        assert after == before
        assert "tokenizer.ggml.tokens" in after

    def test_logits_are_those_of_a_model_written_as_floats(
        self, sources: dict[str, Path], tmp_path: Path, weights: str, kind: str
    ) -> None:
        copied, written = tmp_path / "copy.gguf", tmp_path / "written.gguf"
        copy(sources[weights], copied, kind)
        write_as_floats(sources[weights], written, kind)
        a, b = (logits(p) for p in (copied, written))
        assert np.isfinite(a).all()
        np.testing.assert_array_equal(a, b)


def write_as_floats(source: Path, target: Path, kind: str) -> None:
    """The same model through gguf-py alone."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            sub = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, expected(tensor, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits(path: Path) -> np.ndarray:  # type: ignore[type-arg]
    with (
        closing(Model(path)) as model,
        closing(model.context(parse("f16"), 256, rows=12, threads=1)) as lane,
    ):
        return lane.score(list(range(100, 112)), 0).copy()


def test_half_floats_stay_as_they_are(sources: dict[str, Path], tmp_path: Path) -> None:
    for kind in ("f16", "f32"):
        copy(sources["F16"], tmp_path / "copy.gguf", kind)
        before = gguf.GGUFReader(sources["F16"])
        after = gguf.GGUFReader(tmp_path / "copy.gguf")
        for a, b in zip(before.tensors, after.tensors, strict=True):
            assert (a.tensor_type, a.data.tobytes()) == (b.tensor_type, b.data.tobytes())


@pytest.mark.parametrize("kind", ["f16", "f32"])
def test_pieces_give_the_same_file(
    sources: dict[str, Path], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large tensors are dequantized in pieces; here pieces of 256 elements."""
    whole, pieces = tmp_path / "whole.gguf", tmp_path / "pieces.gguf"
    copy(sources["Q8_0"], whole, kind)
    monkeypatch.setattr(floatcopy, "_CHUNK", 256)
    copy(sources["Q8_0"], pieces, kind)
    assert whole.read_bytes() == pieces.read_bytes()


def test_progress_ends_at_one(sources: dict[str, Path], tmp_path: Path) -> None:
    seen = copy(sources["Q8_0"], tmp_path / "copy.gguf", "f16")
    assert len(seen) == 21 and seen == sorted(seen)
    assert seen[0] > 0 and seen[-1] == 1.0


@pytest.mark.parametrize("kind", ["f16", "f32"])
@pytest.mark.parametrize("missing", [1, 40, 5_000, 200_000])
@pytest.mark.parametrize("weights", ["Q8_0", "F16"])
def test_truncated_source(
    sources: dict[str, Path], tmp_path: Path, weights: str, missing: int, kind: str
) -> None:
    """No reading past the end of what is there."""
    short = tmp_path / "short.gguf"
    data = sources[weights].read_bytes()
    # The last tensor is padded to the alignment of 32; cut into its data, not the padding.
    reader = gguf.GGUFReader(sources[weights])
    end = max(int(t.data_offset) + int(t.n_bytes) for t in reader.tensors)
    short.write_bytes(data[: end - missing])
    with pytest.raises(EngineError, match="ends inside a tensor|cannot read this GGUF"):
        copy(short, tmp_path / "copy.gguf", kind)


@pytest.mark.parametrize("content", [None, b"", b"nothing like a GGUF", b"GGUF\xff\xff\xff\xff"])
def test_not_a_gguf(tmp_path: Path, content: bytes | None) -> None:
    source = tmp_path / "x.gguf"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(EngineError, match="cannot read this GGUF"):
        copy(source, tmp_path / "copy.gguf", "f16")
    assert not (tmp_path / "copy.gguf").exists()


def test_a_type_without_floats(tmp_path: Path) -> None:
    source = tmp_path / "ints.gguf"
    writer = gguf.GGUFWriter(source, "llama")
    writer.add_tensor("codes", np.arange(64, dtype=np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(EngineError, match="cannot be converted") as caught:
        copy(source, tmp_path / "copy.gguf", "f16")
    assert caught.value.seen == "codes is i32"
    assert caught.value.hint == "--weights as-shipped"


def test_a_target_that_cannot_be_written(sources: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(NybbleError, match="cannot write the float copy") as caught:
        copy(sources["Q8_0"], tmp_path / "no" / "such" / "folder.gguf", "f16")
    assert "NYBBLE_CACHE" in str(caught.value.hint)


@pytest.mark.parametrize("kind", ["f16", "f32"])
@pytest.mark.parametrize("alignment", [8, 64, 256])
def test_alignments(sources: dict[str, Path], tmp_path: Path, alignment: int, kind: str) -> None:
    """The copy has the source's, so the key in its header tells the truth."""
    source, target = tmp_path / "source.gguf", tmp_path / "copy.gguf"
    realign(sources["Q5_0"], source, alignment)
    copy(source, target, kind)
    after = gguf.GGUFReader(target)
    assert after.alignment == alignment
    for a, b in zip(gguf.GGUFReader(source).tensors, after.tensors, strict=True):
        assert b.data_offset % alignment == 0
        assert b.data.tobytes() == expected(a, kind).tobytes(), a.name
    copy(sources["Q5_0"], tmp_path / "plain.gguf", kind)
    np.testing.assert_array_equal(logits(target), logits(tmp_path / "plain.gguf"))


def realign(source: Path, target: Path, alignment: int) -> None:
    """The same model with its tensors at multiples of `alignment`, through gguf-py."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_custom_alignment(alignment)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            sub = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
