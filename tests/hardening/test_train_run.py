"""`harden --train` whole: tiny models trained in torch, exported, and read by llama.cpp."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import torch  # noqa: E402
from test_harden_torch import spoil  # noqa: E402
from train_bench import IDS, MEASURED, Q4, RATES, Bench, changed, check_export, plain  # noqa: E402
from trained_models import (  # noqa: E402
    kld,
    llama_cpp_logits,
    stored,
    torch_logits,
    values_of,
    write_base,
)
from transformers import AutoModelForCausalLM  # noqa: E402

from gguf_models import fill, write_tiny_gemma3  # noqa: E402
from nybble.errors import EngineError, NybbleError  # noqa: E402
from nybble.formats import parse  # noqa: E402
from nybble.hardening import harden as fold_module  # noqa: E402
from nybble.hardening import verify as verify_module  # noqa: E402
from nybble.hardening.fold import LayerFold, fold  # noqa: E402
from nybble.hardening.harden import harden  # noqa: E402
from nybble.hardening.place import hardened  # noqa: E402
from nybble.hardening.train import run as module  # noqa: E402
from nybble.hardening.train import start  # noqa: E402
from nybble.hardening.train.student import KVStudent  # noqa: E402
from nybble.models.checkpoint import resolve  # noqa: E402
from nybble.report.hardened import hardened_html  # noqa: E402
from nybble.results.hardened import Hardened  # noqa: E402
from nybble.results.records import Estimate  # noqa: E402
from nybble.scoring.request import MeasureRequest, Silent  # noqa: E402
from torch_runs import in_process, write_folder  # noqa: E402
from trainable import disturb, write_qwen3  # noqa: E402


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Keeps the logits that a student has when its training is over."""
    from pydoc_data.topics import topics

    folder = tmp_path_factory.mktemp("texts")
    names = sorted(topics)
    texts = []
    for i in range(8):
        texts.append(folder / f"{i}.txt")
        texts[-1].write_text("".join(topics[k] for k in names[5 * i :][:5])[:1500], "utf-8")
    unseen = folder / "unseen.txt"
    unseen.write_text("".join(topics[k] for k in names[45:])[:3000], "utf-8")
    made = Bench(tuple(texts), unseen)
    real = module.train

    def watched(student: KVStudent, *args: Any) -> Any:
        result = real(student, *args)
        made.logits = torch_logits(student._model, IDS)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train", watched)
        yield made


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen3(tmp_path_factory.mktemp("original") / "m.gguf")


@dataclass
class Made:
    out: Path
    found: Hardened
    student: Any
    notes: tuple[str, ...]


@pytest.fixture(scope="module")
def made(bench: Bench, qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    out = tmp_path_factory.mktemp("made") / "o.gguf"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NYBBLE_CACHE", str(tmp_path_factory.mktemp("cache")))
        found = bench.train(qwen3, out)
    return Made(out, found, bench.logits, bench.notes)


@pytest.fixture
def unverified(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is made passes, with the numbers of another."""
    passed = SimpleNamespace(**{name: getattr(made.found, name) for name in MEASURED})
    monkeypatch.setattr(module, "verify", lambda *args, **more: passed)


class TestGguf:
    def test_llama_cpp_has_the_student(self, made: Made, qwen3: Path) -> None:
        check_export(made.student, made.out, qwen3)

    def test_only_what_was_trained_changes(self, made: Made, qwen3: Path) -> None:
        names = {"attn_q_norm.weight", "attn_k_norm.weight", "attn_k.weight", "attn_v.weight"}
        assert changed(qwen3, made.out) == names
        kinds = {name: kind for name, (kind, _) in stored(made.out).items()}
        assert kinds["blk.0.attn_k.weight"] == "F16" and kinds["blk.0.attn_q.weight"] == "F32"

    def test_it_is_verified(self, made: Made) -> None:
        (gain,) = made.found.gains
        assert gain.setting == Q4 and gain.factor > 2
        assert [m.label for m in made.found.measurement.models] == ["a", "b"]
        assert made.found.ppl[1] == pytest.approx(made.found.ppl[0], rel=5e-3)

    def test_training_went_on_from_the_fold(self, made: Made) -> None:
        told = made.found.training
        assert told is not None and told.improved and told.best_step in (4, 8)
        assert (told.scope, told.settings, told.steps) == ("kv", (Q4,), 8)
        assert told.tokens == 8 * 2 * 64 and set(told.start) == {Q4, "f16"}
        assert told.best[Q4] < 0.9 * told.start[Q4] < 0.9 * made.found.gains[0].before.value
        assert abs(told.start["f16"]) < 1e-6 < told.best["f16"]
        assert [y.layer for y in made.found.layers] == [0, 1]
        assert all(y.bound >= y.gain > 2 for y in made.found.layers)

    def test_what_the_header_says(self, made: Made, qwen3: Path) -> None:
        record, found = hardened(made.out), made.found
        assert found.training is not None
        wanted = {
            "": "train", ".settings": Q4, ".scope": "kv", ".statistics": "transformers",
            ".steps": f"{found.training.best_step} of 8", ".tokens": str(found.tokens),
        }  # fmt: skip
        for key, value in wanted.items():
            assert record[f"nybble.hardened{key}"] == value
        assert len(record["nybble.hardened.text.trained"]) == 64
        source = resolve(qwen3).fingerprint(made.out.parent)
        assert record["nybble.hardened.source"] == source
        assert (found.file, found.method, found.family) == ("o.gguf", "train", "Qwen3")
        assert found.tokens == 256 - 4 * 8  # less the first 8 of each text

    def test_what_lies_in_the_folders(self, made: Made) -> None:
        run = made.out.with_name("o.gguf.train")
        inside = {p.name for p in run.iterdir()}
        assert inside == {"checkpoints", "train.csv", "held_out.csv"}
        assert list((run / "checkpoints").glob("step-0000000008.*"))
        beside = {p.name for p in made.out.parent.iterdir()}
        assert beside - {"sha256"} == {"o.gguf", "o.gguf.train"}

    def test_report(self, made: Made) -> None:
        page = hardened_html(made.found)
        assert "training of kv on 1,024 tokens" in page and "held out from it" in page


@pytest.fixture
def no_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start without a scale, so that there is much to learn."""

    def plain(*args: Any, **more: Any) -> LayerFold:
        found = fold(*args, **more)
        return replace(found, scale=np.ones_like(found.scale))

    monkeypatch.setattr(start, "fold", plain)


@pytest.mark.usefixtures("unverified", "no_fold")
class TestFamilies:
    RATES = (("scales", 0.1), ("norms", 1e-3), ("matrices", 1e-3))

    def test_gemma3(self, bench: Bench, tmp_path: Path) -> None:
        """Norms that the class holds without their one."""
        source, out = tmp_path / "m.gguf", tmp_path / "o.gguf"
        disturb(write_tiny_gemma3(source, n_layer=2, pattern=6, window=32))
        found = bench.train(source, out, lr=self.RATES)
        assert found.training is not None and found.training.improved
        check_export(bench.logits, out, source)
        norms = {"attn_q_norm.weight", "attn_k_norm.weight"}
        assert changed(source, out) == norms | {"attn_k.weight", "attn_v.weight"}

    @pytest.mark.parametrize("scope", ["scales", "kv"])
    def test_llama(self, bench: Bench, tmp_path: Path, make_tiny: Any, scope: str) -> None:
        """Rows of matrices, which the GGUF has in another order than the class."""
        source = disturb(make_tiny(tmp_path / "m.gguf", n_head=4, n_kv=2))
        out, kv = tmp_path / "o.gguf", scope == "kv"
        found = bench.train(source, out, scope=scope, lr=self.RATES[::2] if kv else self.RATES[:1])
        assert found.training is not None and found.training.improved
        names = {"attn_q.weight", "attn_k.weight"}
        assert changed(source, out) == names | ({"attn_v.weight"} if kv else set())
        if kv:
            check_export(bench.logits, out, source)
        else:  # a row's pair has one e, in the order of the file
            before, after = values_of(source), values_of(out)
            e = np.median(after["blk.0.attn_k.weight"] / before["blk.0.attn_k.weight"], axis=1)
            np.testing.assert_allclose(e[::2], e[1::2], rtol=1e-3)
            assert np.log(e).std() > 0.1
            logits = llama_cpp_logits(source, IDS), llama_cpp_logits(out, IDS)
            assert abs(kld(*logits)) < 1e-6


@pytest.mark.slow
@pytest.mark.usefixtures("unverified", "no_fold")
@pytest.mark.parametrize("lora", [0, 2])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma3"])
def test_all_weights(bench: Bench, tmp_path: Path, kind: str, lora: int) -> None:
    """Biases, norms and every matrix; whole or as low-rank updates."""
    source, out = tmp_path / "m.gguf", tmp_path / "o.gguf"
    if kind == "qwen3":
        write_qwen3(source)
    elif kind == "gemma3":
        disturb(write_tiny_gemma3(source, n_layer=2, pattern=6, window=32))
    else:
        write_base(source, kind)
    lr = ("scales", 0.1), ("low rank", 3e-3) if lora else ("matrices", 1e-4)
    found = bench.train(source, out, scope="all", lora=lora, lr=lr)
    assert found.training is not None and found.training.improved
    check_export(bench.logits, out, source)
    still = {"token_embd.weight", "output.weight", "output_norm.weight"}
    assert changed(source, out) == {plain(name) for name in stored(source)} - still


@pytest.fixture
def engine() -> Iterator[None]:
    with in_process():
        yield


@pytest.mark.usefixtures("engine")
def test_folder(bench: Bench, tmp_path: Path) -> None:
    source = spoil(write_folder(tmp_path / "m", "llama"))
    files = {p.name: p.read_bytes() for p in source.iterdir()}
    found = bench.train(source, tmp_path / "o", lr=RATES[:1], steps=2, eval_every=1)
    assert found.gains[0].factor > 2 and found.training is not None
    assert {p.name for p in (tmp_path / "o").iterdir()} == set(files)
    assert {p.name: p.read_bytes() for p in source.iterdir()} == files
    record = hardened(tmp_path / "o")
    assert record["nybble.hardened"] == "train" and record["nybble.hardened.scope"] == "kv"
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / name).eval() for name in "mo"]
    before, after = (dict(m.named_parameters()) for m in models)
    moved = {n.split("self_attn.")[-1] for n in before if not torch.equal(before[n], after[n])}
    assert {"q_proj.weight", "k_proj.weight"} <= moved
    assert moved <= {"q_proj.weight", "k_proj.weight", "v_proj.weight"}
    theirs = torch_logits(models[1], IDS)
    assert abs(kld(bench.logits, theirs)) < 1e-6
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "o", "o.train"]


class Stop(Exception):
    pass


class Killed(Silent):
    """Ends a training after some steps."""

    def __init__(self, after: int) -> None:
        self.left, self.training = after, False

    def begin(self, text: str, total: float) -> None:
        self.training = text.startswith("Training")

    def advance(self, done: float) -> None:
        self.left -= self.training
        if self.left < 0:
            raise Stop


class TestAgain:
    @pytest.mark.usefixtures("unverified")
    def test_after_a_kill(self, bench: Bench, qwen3: Path, made: Made, tmp_path: Path) -> None:
        """To the byte what a run gives that nothing stopped."""
        out = tmp_path / "o.gguf"
        with pytest.raises(Stop):
            bench.train(qwen3, out, Killed(5))
        assert [p.name for p in tmp_path.iterdir()] == ["o.gguf.train"]
        found = bench.train(qwen3, out)
        assert "going on from step 5" in bench.notes
        assert out.read_bytes() == made.out.read_bytes()
        assert found.training is not None and made.found.training is not None
        assert found.training.best == made.found.training.best

    def test_another_model(self, bench: Bench, qwen3: Path, made: Made, tmp_path: Path) -> None:
        run = made.out.with_name("o.gguf.train")
        before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
        other = write_qwen3(tmp_path / "m.gguf", seed=1)
        with pytest.raises(NybbleError, match="cannot resume with another value of model") as error:
            bench.train(other, tmp_path / "o.gguf", out=run)
        assert "--run" in str(error.value.hint)
        assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
        assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before

    def test_another_calibration(self, bench: Bench, qwen3: Path, made: Made) -> None:
        run = made.out.with_name("o.gguf.train")
        with pytest.raises(NybbleError, match="cannot resume with another value of text"):
            bench.train(qwen3, made.out.with_name("p.gguf"), out=run, asked={"tokens": 300})


class TestNoGain:
    @pytest.mark.usefixtures("unverified", "engine")
    def test_the_fold_alone_is_kept(
        self, bench: Bench, qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lr = (("scales", 1.0), ("norms", 1.0), ("matrices", 1.0))
        found = bench.train(qwen3, tmp_path / "o.gguf", lr=lr, steps=2, eval_every=1)
        assert any("the fold alone is kept" in note for note in bench.notes)
        assert found.training is not None and not found.training.improved
        assert hardened(tmp_path / "o.gguf")["nybble.hardened.steps"] == "0 of 2"
        # As if it had been folded without a training.
        monkeypatch.setattr(fold_module, "verify", lambda *args: module.verify())
        harden(bench.request(qwen3, tmp_path / "fold.gguf", statistics="transformers"))
        names = {"attn_q_norm.weight", "attn_k_norm.weight"}
        assert changed(qwen3, tmp_path / "o.gguf") == names
        ours, fold = (values_of(tmp_path / name) for name in ("o.gguf", "fold.gguf"))
        for name, values in fold.items():
            np.testing.assert_allclose(ours[name], values, rtol=1e-4, atol=0, err_msg=name)
        logits = [llama_cpp_logits(p, IDS) for p in (qwen3, tmp_path / "o.gguf")]
        assert abs(kld(*logits)) < 1e-6


class TestTax:
    def test_more_than_is_allowed(
        self, bench: Bench, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Better with a 4-bit cache, worse without; the checkpoints stay for another try."""
        source, out = write_qwen3(tmp_path / "m.gguf", head=1.0), tmp_path / "o.gguf"
        lr = (("scales", 3e-3), ("norms", 1e-3), ("matrices", 1e-2))
        # Half a percent is more than a random model's perplexity moves by in eight steps.
        assert verify_module.MOST_TAX == 0.005
        monkeypatch.setattr(verify_module, "MOST_TAX", 0.0004)
        with pytest.raises(NybbleError, match="made the model itself worse") as error:
            bench.train(source, out, lr=lr)
        before, after = (float(n) for n in re.findall(r"\d+\.\d+", str(error.value.seen)))
        assert after > 1.0004 * before and error.value.allowed == "up to 0.0% more"
        assert "--lr" in str(error.value.hint)
        assert {p.name for p in tmp_path.iterdir()} == {"m.gguf", "o.gguf.train"}

        passed = SimpleNamespace(**{name: getattr(made.found, name) for name in MEASURED})
        monkeypatch.setattr(module, "verify", lambda *args, **more: passed)
        found = bench.train(source, out, lr=lr)
        assert found.training is not None and found.training.improved and out.is_file()
        assert "going on from step 8" in bench.notes

    def test_no_setting_may_be_worse(
        self, bench: Bench, qwen3: Path, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The verdict of verification counts, whatever the training says of itself."""
        gain = replace(made.found.gains[0], after=Estimate(99.0))
        fields = {name: getattr(made.found, name) for name in MEASURED}
        worse = verify_module.Verification(**{**fields, "gains": (gain,)})
        monkeypatch.setattr(verify_module, "measure", lambda *args: SimpleNamespace(measurement=0))
        monkeypatch.setattr(verify_module, "summary", lambda found: worse)
        with pytest.raises(NybbleError, match="training does not help this model") as error:
            bench.train(qwen3, tmp_path / "o.gguf", steps=1, eval_every=1)
        assert str(error.value.hint).startswith("--steps")
        assert [p.name for p in tmp_path.iterdir()] == ["o.gguf.train"]


@pytest.mark.usefixtures("unverified")
class TestSettings:
    def test_weights_as_stored(self, bench: Bench, qwen3: Path, tmp_path: Path) -> None:
        pytest.importorskip("torchao")
        out = tmp_path / "o.gguf"
        bench.train(qwen3, out, scope="all", stored="q4_0", steps=3, eval_every=1)
        matrices = {f"attn_{m}.weight" for m in ("q", "k", "v", "output")}
        matrices |= {f"ffn_{m}.weight" for m in ("gate", "up", "down")}
        for name, (kind, _) in stored(out).items():
            assert (kind == "Q4_0") == (plain(name) in matrices), name
        assert gguf.GGUFReader(out).fields["general.file_type"].contents() == 2
        check_export(bench.logits, out, qwen3, most=1e-4)  # it rounds activations to q8_0 too
        exact = torch_logits(module.loaded(resolve(out))[0], IDS)
        assert abs(kld(bench.logits, exact)) < 1e-9

    def test_one_of_them_unquantized(self, bench: Bench, qwen3: Path, tmp_path: Path) -> None:
        """A training may draw f16 too, which no verification asks to get better."""
        settings = (parse("f16/f16"), parse("q4_0/q4_0"))
        found = bench.train(qwen3, tmp_path / "o.gguf", asked={"settings": settings})
        assert found.training is not None
        assert found.training.settings == ("f16/f16", Q4)
        assert set(found.training.best) == {"f16", Q4}
        assert hardened(tmp_path / "o.gguf")["nybble.hardened.settings"] == f"f16/f16, {Q4}"
        drawn = (tmp_path / "o.gguf.train" / "train.csv").read_text("utf-8")
        assert ",f16\n" in drawn.replace("\r", "") and Q4 in drawn


@pytest.fixture
def refused(bench: Bench, qwen3: Path, tmp_path: Path) -> Callable[..., NybbleError]:
    """A run that fails and leaves nothing but its folder of checkpoints."""

    def run(
        words: str, *, model: Path = qwen3, kind: Any = NybbleError, **more: Any
    ) -> NybbleError:
        before = {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
        with pytest.raises(kind, match=words) as error:
            bench.train(model, more.pop("out_path", tmp_path / "o.gguf"), **more)
        assert {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before
        found: NybbleError = error.value
        return found

    return run


Refused = Callable[..., NybbleError]


class TestRefused:
    def test_too_little_text(self, refused: Refused, tmp_path: Path) -> None:
        error = refused("too little text to train on", context=1024, held_out=8)
        assert "--text" in str(error.hint) and "--context" in str(error.hint)
        (short := tmp_path / "short.txt").write_text("A few words.")
        refused("too little text", asked={"text": (short,)})

    def test_texts_longer_than_the_model_reads(self, refused: Refused) -> None:
        assert refused("not made for texts this long", context=8193).allowed == "up to 8,192"

    def test_weights_that_are_no_numbers(self, refused: Refused, tmp_path: Path) -> None:
        source = fill(write_qwen3(tmp_path / "m.gguf"), r"blk\.0\.attn_k\.weight", np.nan)
        refused("not finite", model=source, kind=EngineError)

    def test_values_that_are_no_numbers(self, refused: Refused, tmp_path: Path) -> None:
        """Of the last layer: no key or query sees them."""
        source = fill(write_qwen3(tmp_path / "m.gguf"), r"blk\.1\.attn_v\.weight", np.nan)
        refused("not finite", model=source)

    def test_statistics_of_another_engine(self, refused: Refused) -> None:
        error = refused("in transformers", asked={"statistics": "llama.cpp"})
        assert error.seen == "--statistics llama.cpp"

    def test_weights_as_stored_of_a_folder(self, refused: Refused, tmp_path: Path) -> None:
        source = write_folder(tmp_path / "m", "llama")
        error = refused("only a GGUF", model=source, scope="all", stored="q4_0")
        assert "convert_hf_to_gguf" in str(error.hint)

    def test_hardened_already(
        self, refused: Refused, made: Made, bench: Bench, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(module, "texts", None)  # no work is done before
            assert "--again" in str(refused("hardened already", model=made.out).hint)
        kept = {}

        def keep(request: MeasureRequest, *args: Any, **more: Any) -> None:
            assert request.against is not None
            kept.update(hardened(request.against))
            raise Stop

        monkeypatch.setattr(module, "verify", keep)
        refused("^$", model=made.out, kind=Stop, steps=1, asked={"again": True})
        assert hardened(made.out).items() < kept.items()
        assert kept["nybble.hardened.2"] == "train" and "of 1" in kept["nybble.hardened.2.steps"]

    @pytest.mark.parametrize("name", ["there.gguf", "m.gguf"])
    def test_an_output_that_is_there(
        self, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        source = write_qwen3(tmp_path / "m.gguf")
        (tmp_path / "there.gguf").write_bytes(b"mine")
        monkeypatch.setattr(module, "texts", None)
        words = "the output is the input" if name == "m.gguf" else "the output exists"
        refused(words, model=source, out_path=tmp_path / name)
        assert not (tmp_path / f"{name}.train").exists()

    def test_an_output_that_came_meanwhile(
        self, refused: Refused, bench: Bench, qwen3: Path, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        out, real = tmp_path / "o.gguf", module.record

        def record(*args: Any) -> Any:
            out.write_bytes(b"mine")
            return real(*args)

        monkeypatch.setattr(module, "record", record)
        with pytest.raises(NybbleError, match="the output exists"):
            bench.train(qwen3, out, steps=1)
        assert out.read_bytes() == b"mine"
        assert list((tmp_path / "o.gguf.train").glob("checkpoints/step-*.json"))


def test_threads_are_those_asked_for(
    bench: Bench, qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, seen = torch.get_num_threads(), []

    def observe(*args: Any) -> None:
        seen.append(torch.get_num_threads())
        raise Stop

    monkeypatch.setattr(start, "observe", observe)
    with pytest.raises(Stop):
        bench.train(qwen3, tmp_path / "o.gguf", threads=before + 1)
    assert seen == [before + 1] and torch.get_num_threads() == before
