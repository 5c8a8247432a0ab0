"""Whole runs: tiny models whose keys have outsized channels, hardened and measured for real."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest

from gguf_models import fill, write_tiny_qwen3
from nybble.errors import EngineError, NybbleError
from nybble.formats import parse
from nybble.formats.energies import Energies, LayerEnergies
from nybble.hardening import harden as module
from nybble.hardening.gguf_edit import scale_gguf
from nybble.hardening.harden import HardenRequest, harden
from nybble.hardening.place import hardened
from nybble.results.hardened import Hardened
from nybble.scoring.request import MeasureRequest

DIM = 64


def outsized(seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Gains of keys, alike within RoPE's pairs; those of queries are one over them."""
    g = np.exp(1.5 * np.random.default_rng(seed).standard_normal(DIM // 2))
    return np.tile(g, 2).astype(np.float32)


def write_model(path: Path) -> Path:
    """A Qwen3 that a 4-bit cache hurts for no reason but its gains."""
    write_tiny_qwen3(path, n_layer=2)
    reader: Any = gguf.GGUFReader(path, "r+")
    for t in reader.tensors:
        if "attn_k_norm" in t.name:
            t.data[:] = outsized()
        elif "attn_q_norm" in t.name:
            t.data[:] = 1 / outsized()
    reader.data.flush()
    return path


def tensors(path: Path) -> dict[str, Any]:
    return {t.name: np.array(t.data) for t in gguf.GGUFReader(path).tensors}


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pydoc_data.topics import topics

    path = tmp_path_factory.mktemp("words") / "words.txt"
    path.write_text("".join(topics[k] for k in sorted(topics))[:9000], encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def short(words: Path) -> type[HardenRequest]:
    """A request that is verified on short chunks of one text."""

    class Short(HardenRequest):
        def measurement(self, model: Path, against: Path | None = None) -> MeasureRequest:
            whole = super().measurement(model, against)
            return replace(whole, contexts=(128,), text=(words,), documents=3, by=None)

    return Short


@pytest.fixture(scope="session")
def ask(short: type[HardenRequest]) -> Callable[..., HardenRequest]:
    """The least request, with changes."""

    def make(model: Path, out: Path, **changes: Any) -> HardenRequest:
        base = {"settings": (parse("q4_0"),), "tokens": 512, "threads": 1}
        return short(out=out, model=model, **{**base, **changes})

    return make


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("original") / "m.gguf")


@pytest.fixture
def source(model: Path, tmp_path: Path) -> Path:
    """The model, alone in a folder."""
    return Path(shutil.copy(model, tmp_path / "m.gguf"))


Made = tuple[Path, Hardened]


@pytest.fixture(scope="module")
def made(
    model: Path, ask: Callable[..., HardenRequest], tmp_path_factory: pytest.TempPathFactory
) -> Made:
    out = tmp_path_factory.mktemp("made") / "hard.gguf"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NYBBLE_CACHE", str(tmp_path_factory.mktemp("cache")))
        request = ask(model, out, settings=(parse("q4_0"), parse("q8_0")))
        return out, harden(request)


class TestResult:
    def test_every_setting_is_better(self, made: Made) -> None:
        gains = {g.setting: g for g in made[1].gains}
        assert list(gains) == ["q4_0/q4_0", "q8_0/q8_0"]
        for gain in gains.values():
            assert gain.before.value > 2 * gain.after.value > 0
            assert gain.factor == gain.before.value / gain.after.value

    def test_it_is_the_same_model(self, made: Made, model: Path) -> None:
        found = made[1]
        assert 0 < found.drift.value <= 2 * found.floor.value
        assert found.ppl[1] == pytest.approx(found.ppl[0], rel=1e-2)
        before, after = tensors(model), tensors(made[0])
        norms = [n for n in before if "attn_q_norm" in n or "attn_k_norm" in n]
        assert len(norms) == 4
        for name, values in before.items():
            if name not in norms:
                assert after[name].tobytes() == values.tobytes(), name
        for i in range(2):
            q, k = (f"blk.{i}.attn_{side}_norm.weight" for side in "qk")
            np.testing.assert_allclose(after[q] * after[k], before[q] * before[k], rtol=1e-6)
            # What was wrong with the gains is gone: e follows k^2 / q^2 of each pair.
            assert np.log(before[k]).std() > 1 > 3 * np.log(after[k]).std()

    def test_the_formula_promised_it(self, made: Made) -> None:
        layers = made[1].layers
        assert [layer.layer for layer in layers] == [0, 1]
        assert all(layer.bound >= layer.gain > 2 for layer in layers)

    def test_record(self, made: Made, model: Path) -> None:
        out, found = made
        record = hardened(out)
        assert record["nybble.hardened"] == "fold"
        source = hashlib.sha256(model.read_bytes()).hexdigest()
        assert record["nybble.hardened.source"] == source
        assert record["nybble.hardened.statistics"] == found.statistics == "llama.cpp"
        # 512 in four texts, less the first 8 of each.
        assert record["nybble.hardened.tokens"] == str(found.tokens) == "480"
        assert (found.file, found.method, found.family) == ("hard.gguf", "fold", "Qwen3")
        assert [m.label for m in found.measurement.models] == ["a", "b"]
        assert list(out.parent.iterdir()) == [out]


class TestAgain:
    def test_a_hardened_model_is_refused(self, made: Made, ask: Any, tmp_path: Path) -> None:
        with pytest.raises(NybbleError, match="hardened already") as error:
            harden(ask(made[0], tmp_path / "o.gguf"))
        assert "--again" in str(error.value.hint)
        assert not list(tmp_path.iterdir())

    def test_unless_asked_for(self, source: Path, ask: Any, tmp_path: Path, words: Path) -> None:
        """A record without a fold, so there is something to gain; on the user's own text, and in
        place of what is there.
        """
        record = {f"nybble.hardened{k}": "before" for k in ("", ".source", ".text")}
        scale_gguf(source, tmp_path / "n.gguf", [], record, lambda _: None)
        out = tmp_path / "o.gguf"
        out.write_bytes(b"mine")
        found = harden(ask(tmp_path / "n.gguf", out, again=True, fresh=True, text=(words,)))
        assert found.gains[0].factor > 2
        both = hardened(out)
        assert record.items() <= both.items()
        assert [v for v in both.values() if v == "fold"] == ["fold"]
        assert len([k for k in both if k.endswith(".source")]) == 2
        assert sorted(p.name for p in tmp_path.iterdir()) == ["m.gguf", "n.gguf", "o.gguf"]


@pytest.fixture
def unchanged(source: Path, tmp_path: Path) -> Iterator[None]:
    """Whatever happens, only the model stands in the folder afterwards."""
    data = source.read_bytes()
    yield
    assert source.read_bytes() == data
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".txt"] == [source.name]


@pytest.mark.usefixtures("unchanged")
class TestNothingIsKept:
    def test_of_another_model(
        self, source: Path, ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Wrong ties: the file is well-formed, and another function."""
        real = module.find_sites

        def untied(checkpoint: Any) -> Any:
            family, sites = real(checkpoint)
            beside = np.repeat(np.arange(DIM // 2), 2)
            return family, [replace(s, ties=beside) for s in sites]

        monkeypatch.setattr(module, "find_sites", untied)
        with pytest.raises(NybbleError, match="is not the same model"):
            harden(ask(source, tmp_path / "o.gguf"))

    def test_of_one_that_got_worse(
        self, source: Path, ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = module.observe_llamacpp

        def swapped(*args: Any) -> Energies:
            found = real(*args)
            layers = {i: LayerEnergies(x.queries, x.keys) for i, x in found.layers.items()}
            return replace(found, layers=layers)

        monkeypatch.setattr(module, "observe_llamacpp", swapped)
        with pytest.raises(NybbleError, match="does not help this model") as error:
            harden(ask(source, tmp_path / "o.gguf"))
        assert "q4_0/q4_0" in str(error.value.seen)

    def test_where_nothing_is_uneven(
        self, source: Path, ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Queries are keys, so every channel's energies are alike: the best e is one."""
        even = fill(Path(shutil.copy(source, tmp_path / "even.txt")), r"attn_[qk]_norm", 1.0)
        reader: Any = gguf.GGUFReader(even, "r+")
        there = {t.name: t.data for t in reader.tensors}
        for i in range(2):
            keys = there[f"blk.{i}.attn_k.weight"].reshape(2, DIM, -1)
            queries = there[f"blk.{i}.attn_q.weight"]
            queries[:] = np.repeat(keys, 2, axis=0).reshape(queries.shape)
        reader.data.flush()
        monkeypatch.setattr(module, "verify", None)
        with pytest.raises(NybbleError, match="nothing to gain") as error:
            harden(ask(even, tmp_path / "o.gguf"))
        assert str(error.value.seen).startswith("1.0")

    @pytest.mark.parametrize("kind", [KeyboardInterrupt, NybbleError("mine"), MemoryError])
    def test_of_a_run_that_stops(
        self, source: Path, ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any
    ) -> None:
        def stop(request: MeasureRequest, progress: Any) -> None:
            assert request.against is not None and request.against.is_file()
            raise kind

        monkeypatch.setattr(module, "verify", stop)
        with pytest.raises(kind if isinstance(kind, type) else NybbleError):
            harden(ask(source, tmp_path / "o.gguf"))

    def test_when_a_copy_is_not_exact(
        self, source: Path, ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = module.scale_gguf

        def spoil(source: Path, target: Path, *args: Any) -> float:
            error = real(source, target, *args)
            with target.open("r+b") as file:
                file.seek(-100, 2)
                file.write(b"!")
            return error

        monkeypatch.setattr(module, "scale_gguf", spoil)
        with pytest.raises(NybbleError, match="is not the model it was made from"):
            harden(ask(source, tmp_path / "o.gguf"))

    def test_of_too_short_a_text(self, source: Path, ask: Any, tmp_path: Path) -> None:
        text = tmp_path / "short.txt"
        text.write_text("A few words.")
        with pytest.raises(NybbleError, match="too little text"):
            harden(ask(source, tmp_path / "o.gguf", text=(text,)))

    def test_without_space(
        self, source: Path, ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        monkeypatch.setattr(module, "_texts", None)  # no work is done before
        with pytest.raises(NybbleError, match="not enough disk") as error:
            harden(ask(source, tmp_path / "o.gguf"))
        assert "1,000 bytes free" in str(error.value.seen)

    @pytest.mark.parametrize(
        ("out", "message"),
        [
            ("m.gguf", "the output is the input"),
            ("./x/../m.gguf", "the output is the input"),
            ("none/o.gguf", "folder for the output is missing"),
            ("m.gguf/o.gguf", "the output is inside the input"),
        ],
    )
    def test_where_it_cannot_be(
        self, source: Path, ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str,
        message: str,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(module, "_texts", None)
        for fresh in (False, True):
            with pytest.raises(NybbleError, match=message):
                harden(ask(source, tmp_path / out, fresh=fresh))


def test_weights_that_are_no_numbers(source: Path, ask: Any, tmp_path: Path) -> None:
    fill(source, r"blk\.0\.attn_k\.weight", np.nan)
    with pytest.raises(EngineError, match="not finite"):
        harden(ask(source, tmp_path / "o.gguf"))
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_an_output_that_is_there(source: Path, ask: Any, tmp_path: Path) -> None:
    out = tmp_path / "o.gguf"
    out.write_bytes(b"mine")
    with pytest.raises(NybbleError, match="the output exists") as error:
        harden(ask(source, out))
    assert "--fresh" in str(error.value.hint) and out.read_bytes() == b"mine"


class TestRequest:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"statistics": "vllm"}, "--statistics"),
            ({"weights": "q8"}, "--weights"),
            ({"device": "tpu"}, "--device"),
            ({"tokens": 255}, "--tokens"),
            ({"tokens": 65_537}, "--tokens"),
            ({"settings": ()}, "nothing to harden for"),
            ({"settings": (parse("f16"), parse("bf16"))}, "nothing to harden for"),
        ],
    )
    def test_refused(self, changes: dict[str, Any], words: str) -> None:
        with pytest.raises(NybbleError, match=words):
            HardenRequest(out=Path("o.gguf"), **changes)
