"""Folded with scales far from one, every family computes what it did; with wrong ties none does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers")

from foldable import FOLDERS, GGUFS, plan, random_energies, write_gguf, write_hf  # noqa: E402

from nybble.engines.llamacpp.model import Model  # noqa: E402
from nybble.formats import parse  # noqa: E402
from nybble.formats.energies import Energies, LayerEnergies  # noqa: E402
from nybble.hardening.folder_edit import check_folder, scale_folder  # noqa: E402
from nybble.hardening.gguf_edit import check_gguf, scale_gguf  # noqa: E402
from nybble.hardening.scales import Planned  # noqa: E402
from nybble.hardening.sites import Site, find_sites  # noqa: E402
from nybble.models.checkpoint import resolve  # noqa: E402

F64 = np.ndarray[Any, np.dtype[np.float64]]
IDS = np.random.default_rng(1).integers(4, 120, 48).tolist()
RECORD = {"nybble.hardened": "fold"}


def difference(a: F64, b: F64) -> float:
    """Largest difference, relative to the largest logit."""
    return float(np.abs(a - b).max() / np.abs(b).max())


def torch_logits(folder: Path) -> F64:
    model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        out: F64 = model.eval()(torch.tensor([IDS])).logits[0].double().numpy()
    return out


def llama_cpp_logits(path: Path) -> F64:
    setting = parse("f32/f32")
    with (
        closing(Model(path)) as model,
        closing(model.context(setting, 256, rows=len(IDS), threads=1)) as lane,
    ):
        out: F64 = lane.score(IDS, 0).astype(np.float64)
    return out


def logits(path: Path) -> F64:
    return llama_cpp_logits(path) if path.suffix == ".gguf" else torch_logits(path)


def edit(source: Path, target: Path, planned: Planned) -> None:
    gguf = source.suffix == ".gguf"
    scale, check = (scale_gguf, check_gguf) if gguf else (scale_folder, check_folder)
    scale(source, target, planned.scales, RECORD, lambda _: None)
    check(source, target, planned.scales, RECORD)


def untied(sites: Sequence[Site]) -> list[Site]:
    return [dataclasses.replace(s, ties=np.arange(len(s.ties))) for s in sites]


def other_order(sites: Sequence[Site]) -> list[Site]:
    """Ties of RoPE's other order of pairs."""
    found = []
    for site in sites:
        half = len(site.ties) // 2
        beside = np.repeat(np.arange(half), 2)
        apart = np.tile(np.arange(half), 2)
        ties = apart if (site.ties == beside).all() else beside
        found.append(dataclasses.replace(site, ties=ties))
    return found


def check_kind(source: Path, folder: Path) -> None:
    """Far scales change nothing; the same with wrong ties changes much."""
    gguf = source.suffix == ".gguf"
    family, sites = find_sites(resolve(source))
    before = logits(source)
    suffix = ".gguf" if gguf else ""
    planned = plan(family, sites, gguf=gguf)
    for layer in planned.folds.values():
        assert layer.scale.max() / layer.scale.min() > 2
    edit(source, folder / f"folded{suffix}", planned)
    off = difference(logits(folder / f"folded{suffix}"), before)
    # llama.cpp's attention over a float32 cache rounds to 16 bits on its way.
    assert off < (1e-2 if gguf else 1e-4)
    for i, wrong in enumerate((untied(sites), other_order(sites))):
        target = folder / f"wrong{i}{suffix}"
        edit(source, target, plan(family, wrong, gguf=gguf))
        assert difference(logits(target), before) > max(10 * off, 3e-3)


@pytest.mark.parametrize("kind", FOLDERS)
def test_folder(kind: str, tmp_path: Path) -> None:
    check_kind(write_hf(tmp_path / "m", kind), tmp_path)


@pytest.mark.parametrize("kind", GGUFS)
def test_gguf(kind: str, tmp_path: Path) -> None:
    check_kind(write_gguf(tmp_path / "m.gguf", kind), tmp_path)


@pytest.mark.parametrize("gguf", [False, True])
def test_shared_layers_need_their_owner(gguf: bool, tmp_path: Path) -> None:
    """Queries of layers 3 and 4 times the e of layer 1; that of layer 0 would be wrong."""
    kind = "gemma4" if gguf else "gemma4-shared"
    source = (write_gguf if gguf else write_hf)(tmp_path / ("m.gguf" if gguf else "m"), kind)
    family, sites = find_sites(resolve(source))
    wrong = [dataclasses.replace(s, owner=0) if s.owner == 1 and not s.keys else s for s in sites]
    assert wrong != sites
    target = tmp_path / ("wrong.gguf" if gguf else "wrong")
    edit(source, target, plan(family, wrong, gguf=gguf))
    assert difference(logits(target), logits(source)) > 1e-2


def test_biases_are_part_of_it(tmp_path: Path) -> None:
    source = write_hf(tmp_path / "m", "qwen2")
    family, sites = find_sites(resolve(source))
    planned = plan(family, sites, gguf=False)
    without = [s for s in planned.scales if not s.tensor.endswith(".bias")]
    assert len(without) == len(planned.scales) // 2
    edit(source, tmp_path / "t", dataclasses.replace(planned, scales=without))
    assert difference(logits(tmp_path / "t"), logits(source)) > 1e-3


class TestOrderOfChannels:
    """A llama's GGUF and folder hold the channels of a head in different orders."""

    def test_statistics_of_either_engine_give_one_scale(self, tmp_path: Path) -> None:
        family, sites = find_sites(resolve(write_hf(tmp_path / "m", "llama")))
        apart = random_energies(sites, False)
        dim = len(sites[0].ties)
        order = [i for j in range(dim // 2) for i in (j, j + dim // 2)]  # as the GGUF has them
        layers = {
            i: LayerEnergies(x.keys[:, order], x.queries[:, order]) for i, x in apart.layers.items()
        }
        beside = Energies(layers, True, apart.tokens, "", "llama.cpp")
        one, two = (plan(family, sites, gguf=False, energies=e) for e in (apart, beside))
        for a, b in zip(one.scales, two.scales, strict=True):
            assert a.tensor == b.tensor
            np.testing.assert_allclose(a.factors, b.factors, rtol=1e-12)

        beside_ties = np.repeat(np.arange(dim // 2), 2)
        stored = [dataclasses.replace(s, ties=beside_ties) for s in sites]
        for energies in (apart, beside):
            found = plan(family, stored, gguf=True, energies=energies)
            for i, layer in found.folds.items():
                np.testing.assert_allclose(layer.scale, one.folds[i].scale[:, order], rtol=1e-12)
