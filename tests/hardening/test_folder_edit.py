"""Edited folders as safetensors reads them, and with any byte of them changed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nybble.errors import ModelFileError, NybbleError
from nybble.hardening.folder_edit import check_folder, scale_folder
from nybble.hardening.place import hardened
from nybble.hardening.scale import Scale
from nybble.models.folder import INDEX
from nybble.models.safetensors_header import read_header

RECORD = {"nybble.hardened": "fold", "nybble.hardened.text": "é"}
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
Q, K, NORM, BIAS = "layers.0.q.weight", "layers.0.k.weight", "layers.0.q_norm.weight", "q.bias"
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def write(folder: Path, dtype: torch.dtype, metadata: Mapping[str, str] | None = None) -> Path:
    """A model in two parts; the first holds all that is edited, the second a head."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    # Safetensors orders by size of type, then by name: vectors stand between matrices.
    first = {Q: some(8, 6), K: some(4, 6), NORM: some(6), BIAS: some(8), "z": some(3, 2, 2),
             "counts": torch.arange(4)}  # fmt: skip
    second = {"head": some(10, 6)}
    save_file(first, folder / ONE, metadata)
    save_file(second, folder / TWO, {"format": "pt"})
    size = sum(t.nbytes for t in (*first.values(), *second.values()))
    index = {"metadata": {"total_size": size, "total_parameters": 5},
             "weight_map": {**dict.fromkeys(first, ONE), **dict.fromkeys(second, TWO)}}  # fmt: skip
    (folder / INDEX).write_text(json.dumps(index))
    (folder / "config.json").write_text('{"model_type":  "llama"}')
    (folder / "tokenizer.json").write_bytes(b"{}\r\n")
    return folder


def powers(n: int) -> npt.NDArray[np.float64]:
    return 2.0 ** np.random.default_rng(n).integers(-3, 4, n)


GAIN = np.linspace(0.5, 1.9, 6)
SCALES = [Scale(NORM, GAIN, 1.0), Scale(BIAS, powers(8)), Scale(Q, powers(8)), Scale(K, powers(4))]


def scale(
    source: Path, target: Path, scales: Sequence[Scale] = SCALES, record: Mapping[str, str] = RECORD
) -> float:
    return scale_folder(source, target, scales, record, lambda _: None)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("folders")
    source = write(folder / "source", torch.bfloat16, {"format": "pt", "by": "us"})
    scale(source, folder / "edited")
    return source, folder / "edited"


class TestCopy:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_rows_are_multiplied_and_all_else_is_the_same(
        self, tmp_path: Path, dtype: torch.dtype
    ) -> None:
        source, target = write(tmp_path / "s", dtype), tmp_path / "t"
        error = scale(source, target)
        assert error < 2.0**-11
        before, after = load_file(source / ONE), load_file(target / ONE)
        assert set(before) == set(after)
        for name in ("z", "counts"):
            assert after[name].dtype == before[name].dtype
            assert torch.equal(after[name], before[name])
        for name, n in ((Q, 8), (K, 4)):
            assert after[name].dtype == dtype
            assert torch.equal(
                after[name], before[name] * torch.tensor(powers(n)).to(dtype)[:, None]
            )
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        assert after[NORM].dtype == after[BIAS].dtype == wide
        gain = (before[NORM].double() + 1) * torch.from_numpy(GAIN) - 1
        torch.testing.assert_close(after[NORM], gain.to(wide), rtol=0, atol=2.0**-24)
        assert torch.equal(after[BIAS], before[BIAS].to(wide) * torch.tensor(powers(8)).to(wide))
        check_folder(source, target, SCALES, RECORD)

    def test_one_rounding_only(self, tmp_path: Path) -> None:
        """Gains that float32 holds come out as float32 rounds their product."""
        source = write(tmp_path / "s", torch.bfloat16)
        error = scale(source, tmp_path / "t", [Scale(NORM, GAIN)])
        old = load_file(source / ONE)[NORM].double().numpy()
        new = load_file(tmp_path / "t" / ONE)[NORM].numpy()
        np.testing.assert_array_equal(new, (old * GAIN).astype(np.float32))
        assert 0 < error <= 2.0**-24

    def test_powers_of_two_are_exact(self, tmp_path: Path) -> None:
        source = write(tmp_path / "s", torch.bfloat16)
        assert scale(source, tmp_path / "t", SCALES[1:]) == 0.0

    def test_other_files_are_the_same_bytes(self, pair: tuple[Path, Path]) -> None:
        source, edited = pair
        assert sorted(p.name for p in edited.iterdir()) == sorted(p.name for p in source.iterdir())
        for name in (TWO, "config.json", "tokenizer.json"):
            assert (edited / name).read_bytes() == (source / name).read_bytes()

    def test_order_padding_and_metadata(self, pair: tuple[Path, Path]) -> None:
        source, edited = pair
        before, after = read_header(source / ONE), read_header(edited / ONE)
        assert [t.name for t in after.tensors] == [t.name for t in before.tensors]
        assert after.data_offset % 8 == 0
        assert after.file_size - after.data_offset == \
            before.file_size - before.data_offset + 2 * (6 + 8)  # fmt: skip
        raw = (source / ONE).read_bytes(), (edited / ONE).read_bytes()
        order = [
            list(json.loads(r[8 : h.data_offset]))
            for r, h in zip(raw, (before, after), strict=True)
        ]
        assert order[0] == order[1]
        assert dict(after.metadata) == {"format": "pt", "by": "us", **RECORD}
        assert hardened(edited) == RECORD and hardened(source) == {}
        with safe_open(edited / ONE, "pt") as file:
            assert file.metadata()["nybble.hardened.text"] == "é"

    def test_metadata_that_was_not_there_gets_a_format(self, tmp_path: Path) -> None:
        scale(write(tmp_path / "s", torch.float32), tmp_path / "t")
        assert dict(read_header(tmp_path / "t" / ONE).metadata) == {"format": "pt", **RECORD}

    def test_the_index_counts_the_bytes(self, pair: tuple[Path, Path]) -> None:
        source, edited = pair
        before, after = (json.loads((p / INDEX).read_text()) for p in pair)
        size = sum(t.nbytes for n in (ONE, TWO) for t in load_file(edited / n).values())
        assert after["metadata"] == {"total_size": size, "total_parameters": 5}
        assert size == before["metadata"]["total_size"] + 2 * (6 + 8)
        assert after["weight_map"] == before["weight_map"]

    def test_an_index_that_is_right_is_not_touched(self, tmp_path: Path) -> None:
        source = write(tmp_path / "s", torch.float32)
        scale(source, tmp_path / "t")
        assert (tmp_path / "t" / INDEX).read_bytes() == (source / INDEX).read_bytes()

    def test_one_file_without_index(self, tmp_path: Path) -> None:
        source = tmp_path / "s"
        source.mkdir()
        save_file({"a": torch.ones(3, 2), "b": torch.zeros(0, 2)}, source / "model.safetensors")
        scales = [Scale("a", powers(3)), Scale("b", np.ones(0))]
        scale(source, tmp_path / "t", scales)
        got = load_file(tmp_path / "t" / "model.safetensors")
        assert got["a"][:, 1].tolist() == powers(3).tolist() and got["b"].shape == (0, 2)
        check_folder(source, tmp_path / "t", scales, RECORD)

    def test_a_hub_cache(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        """Its files are links to blobs; the copy has files of its own."""
        snapshot, blobs = tmp_path / "snapshots" / "main", tmp_path / "blobs"
        snapshot.mkdir(parents=True)
        blobs.mkdir()
        for i, file in enumerate(sorted(pair[0].iterdir())):
            shutil.copy(file, blobs / str(i))
            (snapshot / file.name).symlink_to(Path("../../blobs") / str(i))
        scale(snapshot, tmp_path / "t")
        assert not any(p.is_symlink() for p in (tmp_path / "t").iterdir())
        for file in pair[1].iterdir():
            assert (tmp_path / "t" / file.name).read_bytes() == file.read_bytes()
        check_folder(snapshot, tmp_path / "t", SCALES, RECORD)

    def test_what_is_left_behind(self, tmp_path: Path) -> None:
        """Subfolders, pipes, and the same weights in forms that are not edited."""
        source = write(tmp_path / "s", torch.bfloat16)
        (source / "original").mkdir()
        os.mkfifo(source / "pipe")
        for name in ("pytorch_model.bin", "consolidated.safetensors", "m.gguf", "tf_model.h5"):
            (source / name).write_bytes(b"unedited weights")
        kept = {p.name for p in source.iterdir()} - {"original", "pipe", "pytorch_model.bin",
            "consolidated.safetensors", "m.gguf", "tf_model.h5"}  # fmt: skip
        scale(source, tmp_path / "t")
        assert {p.name for p in (tmp_path / "t").iterdir()} == kept
        check_folder(source, tmp_path / "t", SCALES, RECORD)

    def test_progress(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        seen: list[float] = []
        scale_folder(pair[0], tmp_path / "t", SCALES, RECORD, seen.append)
        assert seen == sorted(seen) and seen[-1] == 1.0 and 0 < seen[0] < 1


class TestRefused:
    @pytest.mark.parametrize(
        ("scales", "words"),
        [
            ([Scale("layers.9.q", np.ones(4))], ("no such tensor", "layers.9.q")),
            ([Scale(Q, np.ones(6))], ("does not fit", "8 rows", "allowed: 6")),
            ([Scale("z", np.ones(3))], ("only vectors", "'z'")),
            ([Scale("counts", np.ones(4))], ("cannot be scaled", "I64")),
            ([Scale(Q, np.ones(8)), Scale(Q, np.ones(8))], ("scaled twice", Q)),
            ([Scale(K, np.zeros(4))], ("cannot be multiplied", K)),
            ([Scale(Q, np.full(8, 2.0**128))], ("cannot be multiplied", Q, "BF16")),
        ],
    )
    def test_scales(
        self, pair: tuple[Path, Path], tmp_path: Path, scales: list[Scale], words: tuple[str, ...]
    ) -> None:
        with pytest.raises(NybbleError) as caught:
            scale(pair[0], tmp_path / "t", scales)
        for word in words:
            assert word in str(caught.value)

    def test_a_type_without_rule(self, tmp_path: Path) -> None:
        source = tmp_path / "s"
        source.mkdir()
        save_file({"a": torch.zeros(4).to(torch.float8_e4m3fn)}, source / "model.safetensors")
        with pytest.raises(NybbleError, match="F8_E4M3"):
            scale(source, tmp_path / "t", [Scale("a", np.ones(4))])

    def test_a_key_that_is_there(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        with pytest.raises(NybbleError, match="already"):
            scale(pair[1], tmp_path / "t")

    def test_a_link_to_nothing(self, tmp_path: Path) -> None:
        source = write(tmp_path / "s", torch.float32)
        (source / "merges.txt").symlink_to("gone")
        with pytest.raises(ModelFileError, match="merges.txt points to a file that is gone"):
            scale(source, tmp_path / "t")

    def test_a_damaged_part(self, tmp_path: Path) -> None:
        source = write(tmp_path / "s", torch.float32)
        (source / TWO).write_bytes((source / TWO).read_bytes()[:-1])
        with pytest.raises(ModelFileError, match="ends after the end"):
            scale(source, tmp_path / "t")

    def test_a_target_that_exists(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        with pytest.raises(NybbleError, match="File exists"):
            scale(pair[0], tmp_path)


class TestCheck:
    @given(st.data())
    @settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_byte_that_differs(self, pair: tuple[Path, Path], data: st.DataObject) -> None:
        source, edited = pair
        path = edited / data.draw(st.sampled_from(sorted(p.name for p in edited.iterdir())))
        raw = path.read_bytes()
        at = data.draw(st.integers(0, len(raw) - 1), label="byte")
        bits = data.draw(st.integers(1, 255), label="bits")
        changed = bytearray(raw)
        changed[at] ^= bits
        try:
            path.write_bytes(changed)
            with pytest.raises(NybbleError):
                check_folder(source, edited, SCALES, RECORD)
        finally:
            path.write_bytes(raw)
        check_folder(source, edited, SCALES, RECORD)

    def test_the_tensor_is_named(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        edited = Path(shutil.copytree(pair[1], tmp_path / "t"))
        header = read_header(edited / ONE)
        for name in ("z", NORM):
            raw = bytearray((pair[1] / ONE).read_bytes())
            raw[header.data_offset + next(t.offset for t in header.tensors if t.name == name)] ^= 1
            (edited / ONE).write_bytes(raw)
            self.differs(pair[0], edited, f"tensor '{name}' of {ONE}")

    def test_the_file_is_named(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        edited = Path(shutil.copytree(pair[1], tmp_path / "t"))
        for change, name in (("{}", "config.json"), ("{}", INDEX), ("", "more.json")):
            kept = (edited / name).read_bytes() if (edited / name).exists() else None
            (edited / name).write_text(change)
            self.differs(pair[0], edited, f"file '{name}'")
            (edited / name).unlink() if kept is None else (edited / name).write_bytes(kept)
        (edited / "tokenizer.json").unlink()
        self.differs(pair[0], edited, "file 'tokenizer.json'")

    def test_a_copy_without_edit(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        scale(pair[0], tmp_path / "t", [Scale(NORM, GAIN, 1.0), Scale(BIAS, powers(8)),
                                        Scale(Q, np.ones(8))])  # fmt: skip
        self.differs(pair[0], tmp_path / "t", f"tensor '{K}'")

    def test_a_record_that_is_not_it(self, pair: tuple[Path, Path]) -> None:
        with pytest.raises(NybbleError, match="__metadata__"):
            check_folder(*pair, SCALES, {"nybble.hardened": "train"})

    @staticmethod
    def differs(source: Path, edited: Path, word: str) -> None:
        with pytest.raises(NybbleError, match="is not the model it was made from") as caught:
            check_folder(source, edited, SCALES, RECORD)
        assert word in str(caught.value)
