"""Whole runs where transformers shows keys and queries, or scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from nybble.errors import NybbleError  # noqa: E402
from nybble.formats import parse  # noqa: E402
from nybble.hardening import harden as module  # noqa: E402
from nybble.hardening.harden import HardenRequest, harden  # noqa: E402
from nybble.hardening.place import hardened  # noqa: E402
from nybble.scoring.request import MeasureRequest  # noqa: E402
from torch_runs import in_process, write_folder  # noqa: E402

DIM = 64
TEXT = "".join(f"{i} squared is {i * i}, and its half is {i / 2}. " for i in range(400))


class Short(HardenRequest):
    """Verified on short chunks of one text."""

    def measurement(self, model: Path, against: Path | None = None) -> MeasureRequest:
        text = self.out.parent / "text.txt"
        text.write_text(TEXT)
        whole = super().measurement(model, against)
        return replace(whole, contexts=(128,), text=(text,), documents=3, by=None)


def ask(model: Path, out: Path, **changes: Any) -> Short:
    base: dict[str, Any] = {"settings": (parse("q4_0"),), "tokens": 512, "threads": 1}
    return Short(out=out, model=model, **{**base, **changes})


def spoil(folder: Path) -> Path:
    """Multiply keys and divide queries: the same function, hard to store in 4 bits."""
    tensors = load_file(folder / "model.safetensors")
    norms = any("k_norm" in name for name in tensors)
    for name in list(tensors):
        if not name.endswith("k_norm.weight" if norms else "k_proj.weight"):
            continue
        n = len(tensors[name]) // DIM  # KV heads; or one norm for all
        g = np.exp(1.5 * np.random.default_rng(0).standard_normal((n, DIM // 2)))
        gains = torch.from_numpy(np.tile(g, 2)).float()  # alike within pairs D/2 apart
        queries = name.replace(".k_", ".q_")
        readers = len(tensors[queries]) // DIM // n
        for side, factors in (name, gains), (queries, 1 / gains.repeat_interleave(readers, 0)):
            ones = [1] * (tensors[side].dim() - 1)
            tensors[side] = tensors[side] * factors.reshape(-1, *ones)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(autouse=True)
def asked() -> Iterator[list[dict[str, Any]]]:
    """What the engine is asked; it has no process of its own."""
    with in_process() as asked:
        yield asked


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_folder(tmp_path: Path, kind: str) -> None:
    """Rows of matrices, and norms; the result stands where it was asked for, with everything."""
    source = spoil(write_folder(tmp_path / "m", kind))
    files = {p.name: p.read_bytes() for p in source.iterdir()}
    found = harden(ask(source, tmp_path / "o"))
    assert found.statistics == "transformers" and found.measurement.rows[0].simulated
    (gain,) = found.gains
    assert gain.factor > 2
    assert found.drift.value <= max(2 * found.floor.value, 1e-6)
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == sorted(files)
    assert {p.name: p.read_bytes() for p in source.iterdir()} == files
    assert hardened(tmp_path / "o")["nybble.hardened"] == "fold"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "o", "text.txt"]
    for again in (tmp_path / "o", tmp_path / "o" / "x"):
        with pytest.raises(NybbleError, match="hardened already"):
            harden(ask(tmp_path / "o", again))


def test_a_folder_that_llama_cpp_cannot_read(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "m")
    with pytest.raises(NybbleError, match="llama.cpp reads GGUF files only") as error:
        harden(ask(source, tmp_path / "o", statistics="llama.cpp"))
    assert "--statistics transformers" in str(error.value.hint)


def test_broken_weights(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "m", "qwen3")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.self_attn.q_norm.weight"][3] = float("inf")
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(NybbleError, match="not finite") as error:
        harden(ask(source, tmp_path / "o"))
    assert error.value.seen == "layer 1"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "text.txt"]


def test_an_unknown_family_costs_nothing(tmp_path: Path, asked: list[dict[str, Any]]) -> None:
    source = write_folder(tmp_path / "m", "gemma2")
    with pytest.raises(NybbleError, match="no rule to harden"):
        harden(ask(source, tmp_path / "o"))
    assert not asked and [p.name for p in tmp_path.iterdir()] == ["m"]


def test_the_same_scale_from_either_engine(
    make_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A llama's GGUF, whose pairs are neighbours; transformers has them D/2 apart."""
    source = make_tiny(tmp_path / "m.gguf", n_head=4, n_kv=2)
    reader: Any = gguf.GGUFReader(source, "r+")
    for t in reader.tensors:
        if "attn_k." in t.name:
            g = np.exp(np.random.default_rng(1).standard_normal((len(t.data) // 2, 1)))
            t.data[:] *= np.repeat(g, 2, axis=0)
    reader.data.flush()
    made = {}
    for engine in ("llama.cpp", "transformers"):

        def keep(request: MeasureRequest, progress: Any, engine: str = engine) -> None:
            made[engine] = read(request.against)
            raise NybbleError("far enough")

        monkeypatch.setattr(module, "verify", keep)
        with pytest.raises(NybbleError, match="far enough"):
            harden(ask(source, tmp_path / "o.gguf", statistics=engine))
    before = read(source)
    for name, one in made["llama.cpp"].items():
        if "attn_k." in name or "attn_q." in name:
            e = (one / before[name]).reshape(-1, DIM // 2, 2, one.shape[1])
            np.testing.assert_allclose(e[:, :, 0], e[:, :, 1], rtol=1e-5)
            assert e.std() > 0.2
            np.testing.assert_allclose(made["transformers"][name], one, rtol=5e-3)
        else:
            np.testing.assert_array_equal(made["transformers"][name], one)


def read(path: Path | None) -> dict[str, Any]:
    return {t.name: np.array(t.data) for t in gguf.GGUFReader(path).tensors}
