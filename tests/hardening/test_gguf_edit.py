"""Edited GGUFs as gguf-py reads them, as llama.cpp runs them, and with any byte of them changed."""

from __future__ import annotations

import resource
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from gguf.quants import dequantize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nybble.engines.llamacpp.model import Model
from nybble.errors import ModelFileError, NybbleError
from nybble.formats import parse
from nybble.hardening.gguf_edit import check_gguf, scale_gguf
from nybble.hardening.scale import Scale
from nybble.models.gguf_header import read_header

Make = Callable[..., Path]
RECORD = {"nybble.hardened": "fold", "nybble.hardened.text": "sha256 é"}
Q, K, NORM = "blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_norm.weight"


def powers(n: int, seed: int = 0) -> npt.NDArray[np.float64]:
    return 2.0 ** np.random.default_rng(seed).integers(-3, 4, n)


def scales_of(q: int = 128, k: int = 64) -> list[Scale]:
    """The rows of two matrices and of a vector, in another order than the file's."""
    gain = np.linspace(0.5, 2, 128)
    return [Scale(NORM, gain), Scale(K, powers(k, 1)), Scale(Q, powers(q, 2))]


def scale(
    source: Path, target: Path, scales: Sequence[Scale], record: Mapping[str, str] = RECORD
) -> float:
    return scale_gguf(source, target, scales, record, lambda _: None)


def tensors(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {t.name: t for t in gguf.GGUFReader(path).tensors}


def keys(path: Path) -> dict[str, object]:
    fields = gguf.GGUFReader(path).fields
    return {k: (f.types, f.contents()) for k, f in fields.items() if not k.startswith("GGUF.")}


@pytest.fixture(scope="module")
def source(make_tiny: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("edit") / "source.gguf")


@pytest.fixture(scope="module")
def edited(source: Path) -> Path:
    target = source.with_name("edited.gguf")
    scale(source, target, scales_of())
    return target


class TestCopy:
    @pytest.mark.parametrize("weights", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q8_0"])
    def test_rows_are_multiplied_and_all_else_is_the_same(
        self, make_tiny: Make, tmp_path: Path, weights: str
    ) -> None:
        source = make_tiny(tmp_path / "s.gguf", weight_type=weights)
        target = tmp_path / "t.gguf"
        error = scale(source, target, scales_of())
        # The gains; the matrices are exact, but for float16's few subnormals (under 2^-14).
        assert 0 < error <= (2.0**-11 if weights == "F16" else 2.0**-24)
        before, after = tensors(source), tensors(target)
        assert list(before) == list(after)
        factors = {s.tensor: s.factors for s in scales_of()}
        for name, old in before.items():
            new = after[name]
            assert (new.tensor_type, new.shape.tolist()) == (old.tensor_type, old.shape.tolist())
            if name not in factors:
                assert new.data.tobytes() == old.data.tobytes(), name
                continue
            x, y = dequantize(old.data, old.tensor_type), dequantize(new.data, new.tensor_type)
            f = factors[name] if x.ndim == 1 else factors[name][:, None]
            kind = np.float16 if x.ndim == 2 and weights == "F16" else np.float32
            np.testing.assert_array_equal(y, (x.astype(np.float64) * f).astype(kind), name)
        added = {k: ([gguf.GGUFValueType.STRING], v) for k, v in RECORD.items()}
        assert keys(target) == {**keys(source), **added}
        assert list(keys(target)) == [*keys(source), *RECORD]
        check_gguf(source, target, scales_of(), RECORD)

    def test_exact_edits_say_so(self, source: Path, tmp_path: Path) -> None:
        assert scale(source, tmp_path / "t.gguf", scales_of()[1:]) == 0.0

    def test_an_offset_is_added_before(self, source: Path, tmp_path: Path) -> None:
        factors = np.linspace(0.5, 2, 128)
        scale(source, tmp_path / "t.gguf", [Scale(NORM, factors, 1.0)])
        expected = ((1 + tensors(source)[NORM].data.astype(np.float64)) * factors - 1).astype("f4")
        np.testing.assert_array_equal(tensors(tmp_path / "t.gguf")[NORM].data, expected)

    def test_nothing_to_scale_or_to_record(self, source: Path, tmp_path: Path) -> None:
        scale(source, tmp_path / "t.gguf", [], {})
        assert (tmp_path / "t.gguf").read_bytes() == source.read_bytes()

    def test_llamacpp_runs_it_with_the_same_logits(self, make_tiny: Make, tmp_path: Path) -> None:
        """Queries times e, keys by e, one e for RoPE's pairs, here neighbours: exact in F32."""
        source = make_tiny(tmp_path / "s.gguf", n_kv=2)
        e = np.repeat(powers(64), 2)
        folded = [Scale(f"blk.{i}.attn_{s}.weight", f) for i in (0, 1)
                  for s, f in (("q", e), ("k", 1 / e))]  # fmt: skip
        scale(source, tmp_path / "t.gguf", folded)
        scale(source, tmp_path / "half.gguf", folded[::2])
        found = [logits(p) for p in (source, tmp_path / "t.gguf", tmp_path / "half.gguf")]
        np.testing.assert_array_equal(found[0], found[1])
        assert np.abs(found[0] - found[2]).max() > 0.1  # queries alone do change the model

    @given(st.integers(0, 200), st.sampled_from([32, 64, 4096]))
    @settings(max_examples=40)
    def test_the_data_stays_aligned(
        self, tmp_path_factory: pytest.TempPathFactory, length: int, alignment: int
    ) -> None:
        folder = tmp_path_factory.mktemp("aligned")
        source = write(folder / "s.gguf", alignment=alignment)
        record = {"nybble.hardened": "x" * length}
        scale(source, folder / "t.gguf", [Scale("v", np.full(7, 2.0))], record)
        header = read_header(folder / "t.gguf")
        assert header.data_offset % alignment == 0
        assert header.metadata["nybble.hardened"] == "x" * length
        np.testing.assert_array_equal(tensors(folder / "t.gguf")["v"].data, np.arange(7) * 2)
        np.testing.assert_array_equal(tensors(folder / "t.gguf")["w"].data, np.arange(5))
        check_gguf(source, folder / "t.gguf", [Scale("v", np.full(7, 2.0))], record)

    def test_infos_in_another_order_than_the_data(self, tmp_path: Path) -> None:
        source, target = write(tmp_path / "s.gguf"), tmp_path / "t.gguf"
        at, size = read_header(source).infos_offset, 8 + 1 + 4 + 8 + 4 + 8
        raw = source.read_bytes()
        infos = raw[at + size : at + 2 * size] + raw[at : at + size]
        source.write_bytes(raw[:at] + infos + raw[at + 2 * size :])
        assert [t.name for t in read_header(source).tensors] == ["w", "v"]
        scales = [Scale("w", np.full(5, 3.0)), Scale("v", np.full(7, 2.0))]
        scale(source, target, scales)
        assert tensors(target)["v"].data.tolist() == (np.arange(7) * 2).tolist()
        assert tensors(target)["w"].data.tolist() == (np.arange(5) * 3).tolist()
        check_gguf(source, target, scales, RECORD)

    def test_memory_does_not_grow_with_the_file(self, tmp_path: Path) -> None:
        rows, row = 8, 4 << 20
        source = write(tmp_path / "s.gguf", wide=np.ones((rows, row), np.float16))  # 64 MiB
        scales = [Scale("wide", powers(rows))]
        tracemalloc.start()
        scale(source, tmp_path / "t.gguf", scales)
        check_gguf(source, tmp_path / "t.gguf", scales, RECORD)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 48 << 20
        got = tensors(tmp_path / "t.gguf")["wide"].data
        np.testing.assert_array_equal(got, np.broadcast_to(powers(rows)[:, None], got.shape))

    def test_progress(self, source: Path, tmp_path: Path) -> None:
        seen: list[float] = []
        scale_gguf(source, tmp_path / "t.gguf", scales_of(), RECORD, seen.append)
        assert seen == sorted(seen) and seen[-1] == 1.0 and 0 < seen[0] < 1


def write(path: Path, *, alignment: int = 32, **more: npt.NDArray[np.floating]) -> Path:
    """Tensors whose sizes need padding between them and at the end."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    for name, data in {"v": np.arange(7), "w": np.arange(5), **more}.items():
        writer.add_tensor(name, np.asarray(data, np.float16 if name == "wide" else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(path: Path) -> npt.NDArray[np.float32]:
    ids = list(range(4, 44))
    with (
        closing(Model(path)) as model,
        closing(model.context(parse("f32/f32"), 256, rows=8, threads=1)) as lane,
    ):
        for _ in lane.prefill(ids[:-8], 0):
            pass
        return lane.score(ids[-8:], len(ids) - 8).copy()


class TestRefused:
    @pytest.mark.parametrize(
        ("scales", "words"),
        [
            ([Scale("blk.9.attn_q.weight", np.ones(4))], ("no such tensor", "blk.9.attn_q")),
            ([Scale(Q, np.ones(64))], ("does not fit", "128 rows", "allowed: 64")),
            ([Scale(Q, np.ones((128, 1)))], ("does not fit",)),
            ([Scale(Q, np.ones(128)), Scale(Q, np.ones(128))], ("scaled twice", Q)),
            ([Scale(Q, np.full(128, np.nan))], ("cannot be multiplied", Q, "nan")),
            ([Scale(Q, np.full(128, 1e39))], ("cannot be multiplied", Q, "1e+39")),
        ],
    )
    def test_scales(
        self, source: Path, tmp_path: Path, scales: list[Scale], words: tuple[str, ...]
    ) -> None:
        self.refused(source, tmp_path, scales, *words)

    def test_types_and_shapes(self, tmp_path: Path) -> None:
        path = tmp_path / "s.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_tensor("experts", np.zeros((2, 3, 32), np.float32))
        writer.add_tensor("counts", np.zeros((2, 32), np.int32))
        writer.add_tensor("line", np.zeros(34, np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        for name, n, word in (("experts", 2, "only vectors"), ("counts", 2, "I32"),
                              ("line", 32, "quantized vector")):  # fmt: skip
            self.refused(path, tmp_path, [Scale(name, np.ones(n))], word, name)

    def test_a_key_that_is_there(self, source: Path, edited: Path, tmp_path: Path) -> None:
        self.refused(edited, tmp_path, [], "nybble.hardened", "already")

    def test_a_split_model(self, tmp_path: Path) -> None:
        path = tmp_path / "m-00001-of-00002.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_uint16("split.count", 2)
        writer.add_tensor("v", np.zeros(4, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        error = self.refused(path, tmp_path, [], "split over several files")
        assert isinstance(error, ModelFileError) and "llama-gguf-split --merge" in str(error)

    def test_no_gguf(self, tmp_path: Path) -> None:
        (tmp_path / "s.gguf").write_bytes(b"GGUF" + bytes(8))
        self.refused(tmp_path / "s.gguf", tmp_path, [], "cut short")

    def test_a_target_that_exists_is_kept(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "t.gguf").write_text("mine")
        with pytest.raises(NybbleError, match="File exists"):
            scale(source, tmp_path / "t.gguf", [])
        assert (tmp_path / "t.gguf").read_text() == "mine"

    def test_a_file_that_may_not_grow(self, source: Path, tmp_path: Path) -> None:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            with pytest.raises(NybbleError, match="cannot write the hardened model"):
                scale(source, tmp_path / "t.gguf", [])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    @staticmethod
    def refused(source: Path, folder: Path, scales: list[Scale], *words: str) -> NybbleError:
        with pytest.raises(NybbleError) as caught:
            scale(source, folder / "refused.gguf", scales)
        for word in words:
            assert word in str(caught.value)
        return caught.value


class TestCheck:
    @given(st.data())
    @settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_byte_that_differs(self, source: Path, edited: Path, data: st.DataObject) -> None:
        raw = bytearray(edited.read_bytes())
        header = read_header(edited)
        places = st.integers(0, header.data_offset - 1) | st.integers(0, len(raw) - 1)
        at = data.draw(places, label="byte")
        raw[at] ^= data.draw(st.integers(1, 255), label="bits")
        bad = edited.with_name("bad.gguf")
        bad.write_bytes(raw)
        with pytest.raises(NybbleError):
            check_gguf(source, bad, scales_of(), RECORD)

    def test_the_tensor_is_named(self, source: Path, edited: Path) -> None:
        header = read_header(edited)
        for name in ("blk.1.ffn_down.weight", Q):
            info = next(t for t in header.tensors if t.name == name)
            raw = bytearray(edited.read_bytes())
            raw[header.data_offset + info.offset + 5] ^= 1
            self.differs(source, edited, bytes(raw), f"tensor '{name}'")

    def test_the_key_is_named(self, source: Path, edited: Path) -> None:
        raw = edited.read_bytes()
        self.differs(source, edited, raw.replace(b"sha256 ", b"sha255 "), "nybble.hardened.text")
        name = b"\x04\0\0\0\0\0\0\0tin"
        self.differs(source, edited, raw.replace(name + b"y", name + b"e"), "general.name")

    def test_a_padding_that_is_not_zero(self, source: Path, edited: Path) -> None:
        header = read_header(edited)
        raw = bytearray(edited.read_bytes())
        assert raw[header.data_offset - 1] == 0
        raw[header.data_offset - 1] = 1
        self.differs(source, edited, bytes(raw), "padding")

    def test_bytes_after_the_end(self, source: Path, edited: Path) -> None:
        self.differs(source, edited, edited.read_bytes() + b"\0", "between tensors")

    def test_a_copy_without_edit_or_record(self, source: Path, edited: Path) -> None:
        self.differs(source, edited, source.read_bytes(), "nybble.hardened")
        scale(source, edited.with_name("plain.gguf"), [])
        raw = edited.with_name("plain.gguf").read_bytes()
        self.differs(source, edited, raw, f"tensor '{NORM}'")

    @staticmethod
    def differs(source: Path, edited: Path, raw: bytes, word: str) -> None:
        bad = edited.with_name("bad.gguf")
        bad.write_bytes(raw)
        with pytest.raises(NybbleError, match="is not the model it was made from") as caught:
            check_gguf(source, bad, scales_of(), RECORD)
        assert word in str(caught.value)
