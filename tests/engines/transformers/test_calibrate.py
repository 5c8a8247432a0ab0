"""Statistics of keys, queries and values against NumPy, and the file they are kept in."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402
from tiny_torch import build, config_of, text, tiny  # noqa: E402

from nybble.engines.transformers import calibration_file  # noqa: E402
from nybble.engines.transformers.calibrate import MOST_TOKENS, SKIP, calibrate  # noqa: E402
from nybble.engines.transformers.calibration_file import load, save  # noqa: E402
from nybble.errors import EngineError, ModelFileError  # noqa: E402
from nybble.formats.calibration import SHRINK, Calibration  # noqa: E402
from nybble.models.safetensors_header import read_header  # noqa: E402

Array = np.ndarray[Any, np.dtype[np.float64]]
TEXTS = [np.array(text(n, seed), dtype=np.int32) for n, seed in ((150, 1), (90, 2), (70, 3))]
FINGERPRINT = "ab" * 32


@pytest.fixture(scope="module")
def found() -> Calibration:
    return calibrate(tiny("llama").ours, TEXTS, FINGERPRINT)


def seen(kind: str) -> dict[int, list[tuple[Array, Array, Array]]]:
    """Queries, keys and values of each text by owning layer, the first tokens left out."""
    model = tiny(kind).ours
    found: dict[int, list[tuple[Array, Array, Array]]] = {y.index: [] for y in model.layers}
    for ids in TEXTS:
        model.watch(
            ids.tolist(),
            lambda module, *qkv: found[model.owner(module)].append(
                tuple(x[0, :, SKIP:].double().numpy() for x in qkv)
            ),
        )
    return found


@pytest.mark.parametrize("kind", ["llama", "gemma3", "gemma4", "gemma4-shared"])
def test_statistics(kind: str) -> None:
    """Plain sums over all tokens, head by head."""
    found = calibrate(tiny(kind).ours, TEXTS, FINGERPRINT)
    for index, parts in seen(kind).items():
        layer = found.layers[index]
        for head in range(len(layer.mean)):
            keys = np.concatenate([k[head] for _, k, _ in parts])
            values = np.concatenate([v[head] for _, _, v in parts])
            group = parts[0][0].shape[0] // len(layer.mean)
            queries = np.concatenate(
                [q[head * group + i] for q, _, _ in parts for i in range(group)]
            )
            np.testing.assert_allclose(layer.mean[head], keys.mean(0), atol=1e-6)
            np.testing.assert_allclose(layer.value_mean[head], values.mean(0), atol=1e-6)
            size = np.sqrt(((values - values.mean(0)) ** 2).mean())
            assert float(layer.value_size[head]) == pytest.approx(size, rel=1e-5)
            # Queries of a group are summed, so their moment is of all of them a token.
            k2 = np.cov(keys.T, bias=True)
            q2 = queries.T @ queries / len(keys)
            scale = (np.diag(k2) / np.diag(q2)) ** 0.25
            np.testing.assert_allclose(layer.scale[head], scale, rtol=1e-4)
            k2, q2 = ((1 - SHRINK) * m + SHRINK * np.diag(np.diag(m)) for m in (k2, q2))
            weight = np.sort(np.linalg.eigvals(k2 @ q2).real)[::-1] ** 0.5
            np.testing.assert_allclose(layer.weight[head], weight, rtol=1e-2)
            basis = layer.basis[head].double().numpy()
            both = basis @ k2 @ basis.T
            np.testing.assert_allclose(both, np.diag(weight), atol=2e-2 * weight[0])


def test_what_it_says_of_itself(found: Calibration) -> None:
    assert (found.model, found.tokens) == (FINGERPRINT, 310)
    assert found.text == hashlib.sha256(b"".join(t.tobytes() for t in TEXTS)).hexdigest()
    assert set(found.layers) == {0, 1}


def test_no_more_than_4096_tokens() -> None:
    model, told = tiny("gemma3").ours, []
    long = [np.array(text(500, i), dtype=np.int32) for i in range(10)]
    found = calibrate(model, long, FINGERPRINT, told.append)
    assert found.tokens == MOST_TOKENS == 4096
    assert told == [500] * 8 + [96]
    cut = [*long[:8], long[8][:96]]
    assert found.text == hashlib.sha256(b"".join(t.tobytes() for t in cut)).hexdigest()


@pytest.mark.parametrize("lengths", [(), (255,), (100, 100), (SKIP,) * 40])
def test_too_little_text(lengths: tuple[int, ...]) -> None:
    texts = [np.array(text(n), dtype=np.int32) for n in lengths]
    with pytest.raises(EngineError, match="too little text to calibrate on") as caught:
        calibrate(tiny("llama").ours, texts, FINGERPRINT)
    assert caught.value.allowed == "256 or more"


def test_a_model_that_overflows() -> None:
    model = build(config_of("llama"))
    model.whole.model.layers[1].self_attn.k_proj.weight[3, 3] = float("inf")
    with pytest.raises(EngineError, match="not finite") as caught:
        calibrate(model.ours, TEXTS, FINGERPRINT)
    assert caught.value.seen == "layer 1"


class TestFile:
    LAYERS = tiny("llama").ours.layers

    @pytest.fixture
    def path(self, found: Calibration, tmp_path: Path) -> Path:
        save(found, tmp_path / "new" / "c.safetensors")
        return tmp_path / "new" / "c.safetensors"

    def refused(self, path: Path, *words: str) -> ModelFileError:
        with pytest.raises(ModelFileError) as caught:
            load(path, FINGERPRINT, self.LAYERS)
        for word in words:
            assert word in str(caught.value)
        assert caught.value.hint == "nybble calibrate MODEL --fresh"
        return caught.value

    def test_round_trip(self, found: Calibration, path: Path) -> None:
        again = load(path, FINGERPRINT, self.LAYERS)
        assert dataclasses.replace(again, layers={}) == dataclasses.replace(found, layers={})
        for index, layer in found.layers.items():
            for name, value in vars(layer).items():
                kept = getattr(again.layers[index], name)
                assert kept.dtype == torch.float32
                assert torch.equal(kept, value.half().float() if name == "basis" else value)
        assert [p.name for p in path.parent.iterdir()] == ["c.safetensors"]
        # Two layers of two heads of 64: the basis in 2 bytes, five vectors and numbers in 4.
        stored = sum(t.n_bytes for t in read_header(path).tensors)
        assert stored == 2 * 2 * (64 * 64 * 2 + (3 * 64 + 64 + 1) * 4)

    def test_another_model(self, path: Path) -> None:
        with pytest.raises(ModelFileError, match="taken of another model") as caught:
            load(path, "cd" * 32, self.LAYERS)
        assert "abababababab" in str(caught.value.seen)
        assert caught.value.allowed == "weights cdcdcdcdcdcd"

    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: b"",
            lambda data: data[:7],
            lambda data: data[: len(data) // 2],
            lambda data: data + b"x",
            lambda data: b"\0" * len(data),
            lambda data: data.replace(b'"F16"', b'"F99"', 1),
            lambda data: b"version https://git-lfs.github.com/spec/v1\n",
        ],
    )
    def test_damaged(self, path: Path, damage: Callable[[bytes], bytes]) -> None:
        path.write_bytes(damage(path.read_bytes()))
        self.refused(path, "calibration")

    def change(self, path: Path, about: dict[str, str] | None = None, **tensors: Any) -> None:
        kept = load_file(path)
        meta = {**read_header(path).metadata, **(about or {})}
        for name, change in tensors.items():
            key = f"layers.1.{name}"
            kept[key] = change(kept[key])
            if kept[key] is None:
                del kept[key]
        save_file(kept, path, {k: v for k, v in meta.items() if v})

    @pytest.mark.parametrize(("version", "shown"), [("2", "2"), ("", "missing"), ("x" * 99, "x")])
    def test_another_version(self, path: Path, version: str, shown: str) -> None:
        self.change(path, {"nybble.version": version})
        error = self.refused(path, "not a calibration this nybble reads", f"version {shown}")
        assert error.allowed == f"version {calibration_file.VERSION}"

    def test_any_safetensors_file(self, path: Path) -> None:
        save_file({"a": torch.zeros(2)}, path)
        self.refused(path, "not a calibration this nybble reads")

    @pytest.mark.parametrize(
        ("change", "shown"),
        [
            (lambda t: None, "missing"),
            (lambda t: t[:1].clone(), "(1, 64)"),
            (lambda t: t[:, :32].clone(), "(2, 32)"),
            (lambda t: t * float("nan"), "(2, 64)"),
            (lambda t: t / 0, "(2, 64)"),
        ],
    )
    def test_tensors_that_do_not_fit(
        self, path: Path, change: Callable[[Any], Any], shown: str
    ) -> None:
        self.change(path, mean=change)
        error = self.refused(path, "does not fit this model", f"layers.1.mean {shown}")
        assert error.allowed == "finite, (2, 64)"

    def test_wrong_counts_are_only_words(self, path: Path) -> None:
        self.change(path, {"nybble.tokens": "many"})
        self.refused(path, "calibration")

    def test_a_folder_that_cannot_be_written(self, found: Calibration, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ModelFileError, match="cannot write the calibration") as caught:
            save(found, tmp_path / "file" / "c.safetensors")
        assert "NYBBLE_CACHE=" in str(caught.value.hint)
