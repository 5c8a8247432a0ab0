"""The main job through the transformers engine, on tiny folders and on a GGUF."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_runs import CONTEXT, DOCUMENTS, SCORED, cells, comparable, kld, request, row  # noqa: E402

from nybble.errors import EngineError, NybbleError  # noqa: E402
from nybble.results.records import from_json  # noqa: E402
from nybble.results.store import RunStore  # noqa: E402
from nybble.scoring import torch_backend, torch_worker  # noqa: E402
from nybble.scoring.calibrate import calibrate  # noqa: E402
from nybble.scoring.compare import ROW  # noqa: E402
from nybble.scoring.measure import Result, measure  # noqa: E402
from torch_runs import in_process, scored, write_folder  # noqa: E402

SETTINGS = ("q8_0", "q4_0", "q4_0-norot", "nyb4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of two layers, two KV heads of 64."""
    return write_folder(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gemma3 of three layers, sliding, full, sliding by 8; two KV heads of 32."""
    return write_folder(tmp_path_factory.mktemp("models") / "tiny-gemma", "gemma3")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def asked(cache: Path) -> Iterator[list[dict[str, Any]]]:
    """Runs without a process; what the child was asked."""
    with in_process(cache) as found:
        yield found


@pytest.fixture(scope="module")
def plain(
    folder: Path, text: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Result:
    """One plain run on the folder that several tests look at."""
    wanted = request(folder, text, tmp_path_factory.mktemp("run"), *SETTINGS, memory_at=(32, 4096))
    with in_process(cache):
        return measure(wanted)


@pytest.fixture
def again(plain: Result, tmp_path: Path) -> Path:
    """A copy of that run's folder to go on with."""
    return shutil.copytree(plain.folder, tmp_path / "again")


class TestFolder:
    def test_rows(self, plain: Result) -> None:
        assert [(r.setting, r.role, r.status) for r in plain.measurement.rows] == [
            ("q8_0/q8_0", "candidate", "done"), ("q4_0/q4_0", "candidate", "done"),
            ("q4_0/q4_0-norot", "candidate", "done"), ("nyb4/nyb4", "candidate", "done"),
            ("bf16/bf16", "floor", "done"), ("f16/f16", "identity", "done"),
        ]  # fmt: skip
        assert all(r.simulated and r.part is None for r in plain.measurement.rows)

    def test_identity_is_zero(self, plain: Result) -> None:
        identity = row(plain, "f16", "identity")
        assert identity.metrics["max_kld"].value == 0
        assert identity.metrics["same_top"].value == 1
        assert identity.metrics["ppl"].value == identity.metrics["ppl_ref"].value
        assert (identity.n_documents, identity.n_tokens) == (1, SCORED)

    def test_floor_is_below_and_larger_types_score_better(self, plain: Result) -> None:
        floor, large = kld(row(plain, "bf16", "floor")), kld(row(plain, "q8_0"))
        assert 0 < floor < 0.5 * large < large < 0.2 * kld(row(plain, "q4_0"))
        assert kld(row(plain, "nyb4")) < kld(row(plain, "q4_0"))

    def test_every_token_is_counted_once(self, plain: Result) -> None:
        for found in plain.measurement.rows:
            if found.role == "candidate":
                assert (found.n_documents, found.n_tokens) == (DOCUMENTS, DOCUMENTS * SCORED)
                assert found.by_position[0].name.startswith("64-")
                assert found.by_position[-1].name.endswith("-126")
                assert found.verdict is not None
        assert len(cells(plain.folder)) == len(SETTINGS) * DOCUMENTS + DOCUMENTS // 2 + 1

    def test_bytes_of_q4_0(self, plain: Result) -> None:
        """Blocks of 32 take 18 bytes: 36 a head, K and V, two heads, two layers."""
        token = 36 * 2 * 2 * 2
        found = row(plain, "q4_0")
        assert (found.bits, found.bytes_per_token) == (4.5, token)
        assert found.cache_bytes == CONTEXT * token
        assert found.cache_bytes_at == {
            str(n): n * token for n in (32, CONTEXT, 2048, 4096)  # 2,048: what it is trained for
        }  # fmt: skip
        assert (found.rotation_k, found.rotation_v) == (64, 64)
        off = row(plain, "q4_0-norot")
        assert (off.rotation_k, off.rotation_v) == (0, 0)
        assert off.cache_bytes == found.cache_bytes and kld(off) != kld(found)

    def test_bytes_of_nyb4(self, plain: Result) -> None:
        """Keys: 4 groups of 16 codes of 4 bits in the mean, and 4 scales; values: 2 of 32, and 2.

        Four tokens stay in f16.
        """
        token = (32 + 4 + 32 + 2) * 2 * 2
        found = row(plain, "nyb4")
        assert found.bytes_per_token == token
        protected = 4 * 2 * 64 * 2 * 2 * 2
        assert found.cache_bytes == (CONTEXT - 4) * token + protected
        # Bits are those at the row's own context, whatever else is asked for.
        assert found.bits == found.cache_bytes * 8 / (CONTEXT * 2 * 2 * 2 * 64)
        assert found.cache_bytes_at["32"] == 28 * token + protected

    def test_what_the_record_says(self, plain: Result, folder: Path) -> None:
        found = plain.measurement
        (model,) = found.models
        assert (model.name, model.file, model.architecture) == ("tiny-llama", "tiny-llama", "llama")
        assert (model.shipped_weights, model.scored_weights) == ("float32", "f32 in torch on cpu")
        assert (model.context_length, model.sliding_window) == (2048, None)
        assert model.framing == "raw text (base model: it has no chat template)"
        assert (found.protocol["engine"], found.protocol["simulated"]) == ("transformers", True)
        assert {"torch", "transformers", "nybble"} <= set(found.versions)
        assert found.hardware["engine_features"] and found.timing["decode_s"] > 0
        assert found.warnings == []
        stored = (plain.folder / "summary.json").read_text(encoding="utf-8")
        assert from_json(stored) == found

    def test_template_and_tokens(
        self, folder: Path, text: Path, tmp_path: Path, asked: list[dict[str, Any]]
    ) -> None:
        framed = tmp_path / "framed"
        shutil.copytree(folder, framed)
        settings = framed / "tokenizer_config.json"
        sign = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}{% endfor %}"
        (framed / "chat_template.jinja").write_text(sign)
        assert settings.is_file()
        result = measure(request(framed, text, tmp_path / "a", "q4_0", documents=1))
        assert result.measurement.models[0].framing.startswith("chat template (instruct model")
        raw = measure(request(framed, text, tmp_path / "b", "q4_0", documents=1, framing="raw"))
        hashes = {r.measurement.protocol["text_sha256"] for r in (result, raw)}
        assert len(hashes) == 2


class TestGoingOn:
    def test_again_scores_nothing_and_gives_the_same(
        self, plain: Result, again: Path, folder: Path, text: Path, asked: list[dict[str, Any]]
    ) -> None:
        before = cells(again)
        result = measure(request(folder, text, again, *SETTINGS, memory_at=(32, 4096)))
        assert cells(again) == before
        assert scored(asked) == 0 and "calibrate" not in {h["op"] for h in asked}
        assert comparable(result.measurement) == comparable(plain.measurement)

    def test_a_setting_more(
        self, plain: Result, again: Path, folder: Path, text: Path, asked: list[dict[str, Any]]
    ) -> None:
        before = cells(again)
        result = measure(request(folder, text, again, *SETTINGS, "exl3_4", device="cpu"))
        after = cells(again)
        assert {k: after[k] for k in before} == before
        assert len(after) == len(before) + DOCUMENTS
        assert row(result, "q4_0").metrics == row(plain, "q4_0").metrics
        (lanes,) = [h["lanes"] for h in asked if h["op"] == "lanes"]
        assert lanes == [[0, "f16/f16"], [0, "exl3_4/exl3_4"]]

    def test_changed_code_of_codecs(
        self, again: Path, folder: Path, text: Path, asked: list[dict[str, Any]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        before = cells(again)
        monkeypatch.setattr(torch_backend, "_code_hash", lambda: "mended")
        measure(request(folder, text, again, "q4_0", documents=1))
        after = cells(again)
        assert {k: after[k] for k in before} == before and len(after) == len(before) + 3

    def test_another_calibration(
        self, again: Path, folder: Path, text: Path, tmp_path: Path, asked: list[dict[str, Any]]
    ) -> None:
        """Only settings that use it are scored anew."""
        before = cells(again)
        found = calibrate(folder, text=[text], out=tmp_path / "mine.safetensors")
        measure(request(folder, text, again, "q4_0", "nyb4", documents=1, calibration=found.path))
        (new,) = set(cells(again)) - set(before)
        assert new.startswith("c128-nyb4-nyb4-")

    def test_code_hash_covers_codecs_and_engine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch_backend._code_hash.cache_clear()
        whole = torch_backend._code_hash()
        for package in ("formats_package", "engine_package"):
            with monkeypatch.context() as patch:
                patch.setattr(getattr(torch_backend, package), "__path__", [os.devnull])
                torch_backend._code_hash.cache_clear()
                assert torch_backend._code_hash() != whole
        torch_backend._code_hash.cache_clear()


@pytest.fixture(scope="module")
def simulated(
    tiny_model: Path, text: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Result:
    """llama.cpp's run `base`, simulated."""
    out = tmp_path_factory.mktemp("run")
    with in_process(cache):
        return measure(request(tiny_model, text, out, engine="transformers"))


class TestGguf:
    def test_same_as_llama_cpp(self, simulated: Result, base: Result) -> None:
        """The simulation's whole point: other engine, same model, same tokens, same numbers."""
        own, real = simulated.measurement, base.measurement
        assert own.protocol["text_sha256"] == real.protocol["text_sha256"]
        assert own.models[0].sha256 == real.models[0].sha256
        for found in own.rows:
            other = row(base, found.setting, found.role)
            assert found.simulated and not other.simulated
            assert found.bits == other.bits
            assert found.bytes_per_token == other.bytes_per_token
            assert (found.rotation_k, found.rotation_v) == (other.rotation_k, other.rotation_v)
            ppl, other_ppl = (r.metrics["ppl_ref"].value for r in (found, other))
            assert ppl == pytest.approx(other_ppl, rel=1e-3)
            if found.role == "candidate":
                assert kld(found) == pytest.approx(kld(other), rel=0.02), found.setting

    def test_identity_and_record(self, simulated: Result, tiny_model: Path) -> None:
        assert row(simulated, "f16", "identity").metrics["max_kld"].value == 0
        (model,) = simulated.measurement.models
        assert (model.name, model.file) == ("tiny", tiny_model.name)
        assert model.scored_weights == "f32 in torch on cpu"


WINDOWED = ("exl3_4", "exl3_4+chunk32", "exl3_4+recent16", "exl3_4+first4")


@pytest.fixture(scope="module")
def windowed(
    folder: Path, text: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Result]:
    """By --via, in one run folder."""
    out = tmp_path_factory.mktemp("run")
    with in_process(cache):
        return {
            via: measure(request(folder, text, out, *WINDOWED, documents=2, via=via))
            for via in ("prefill", "decode")
        }


class TestWindows:
    def test_what_is_read_raw_costs_nothing(self, windowed: dict[str, Result]) -> None:
        prefill, decode = (
            [kld(row(windowed[via], s)) for s in WINDOWED] for via in ("prefill", "decode")
        )
        stored, chunk, recent, first = prefill
        assert chunk < 0.95 * stored and recent < 0.9 * stored and first != stored
        # A chunk of one token is stored before it is read; the other rules do not change.
        assert decode == [stored, stored, recent, first]
        for result in windowed.values():
            assert row(result, "f16", "identity").metrics["max_kld"].value == 0
        assert len(cells(windowed["decode"].folder)) == 2 * (4 * 2 + 1 + 1)

    def test_bytes(self, windowed: dict[str, Result]) -> None:
        stored, chunk, recent, first = (row(windowed["prefill"], s) for s in WINDOWED)
        raw = 2 * 64 * 2 * 2 * 2 - 288  # what a token in f16 takes more
        assert chunk.cache_bytes == stored.cache_bytes
        assert recent.cache_bytes == stored.cache_bytes + 16 * raw
        assert first.cache_bytes == stored.cache_bytes + 4 * raw
        assert {r.bytes_per_token for r in (stored, chunk, recent, first)} == {288}


class TestSliding:
    def test_bytes_and_warning(
        self, gemma: Path, text: Path, tmp_path: Path, asked: list[dict[str, Any]]
    ) -> None:
        result = measure(request(gemma, text, tmp_path, "q4_0", documents=2))
        found = row(result, "q4_0")
        token = 18 * 2 * 2  # of the one full layer
        assert found.bytes_per_token == token
        assert found.cache_bytes == token * (CONTEXT + 8 + 8)
        assert found.bits == 4.5
        assert result.measurement.models[0].sliding_window == 8
        assert row(result, "f16", "identity").metrics["max_kld"].value == 0
        assert not [w for w in result.measurement.warnings if "sliding" in w]

    def test_a_context_within_the_window(
        self, text: Path, tmp_path: Path, asked: list[dict[str, Any]]
    ) -> None:
        wide = write_folder(tmp_path / "wide", "gemma3", sliding_window=256)
        result = measure(request(wide, text, tmp_path / "run", "q4_0", documents=2))
        (warning,) = [w for w in result.measurement.warnings if "sliding" in w]
        assert warning.startswith("context 128 is within the sliding window of 256 tokens")
        found = row(result, "q4_0")
        assert found.bytes_per_token == 72 and found.cache_bytes == 3 * 72 * CONTEXT


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Same vocabulary, other weights."""
    return write_folder(tmp_path_factory.mktemp("models") / "twin", seed=1)


class TestTwoModels:
    def test_rows_of_both(
        self, plain: Result, folder: Path, twin: Path, text: Path, tmp_path: Path,
        asked: list[dict[str, Any]],
    ) -> None:  # fmt: skip
        wanted = request(folder, text, tmp_path, "q4_0", "nyb4", documents=2, against=twin)
        result = measure(wanted)
        found = result.measurement
        assert [m.name for m in found.models] == ["tiny-llama", "twin"]
        assert [(r.setting, r.role, r.model, r.reference) for r in found.rows] == [
            ("q4_0/q4_0", "candidate", "a", "a"), ("nyb4/nyb4", "candidate", "a", "a"),
            ("q4_0/q4_0", "candidate", "b", "b"), ("nyb4/nyb4", "candidate", "b", "b"),
            ("bf16/bf16", "floor", "a", "a"), ("f16/f16", "identity", "a", "a"),
            ("bf16/bf16", "floor", "b", "b"), ("f16/f16", "identity", "b", "b"),
            ("f16/f16", "cross", "a", "b"),
            ("q4_0/q4_0", "candidate", "a", "b"), ("nyb4/nyb4", "candidate", "a", "b"),
            ("f16/f16", "cross", "b", "a"),
            ("q4_0/q4_0", "candidate", "b", "a"), ("nyb4/nyb4", "candidate", "b", "a"),
        ]  # fmt: skip
        for label in "ab":
            assert row(result, "f16", "identity", model=label).metrics["max_kld"].value == 0
            own = row(result, "q4_0", model=label, reference=label)
            cross = row(result, "f16", "cross", model=label)
            assert kld(own) < 0.2 * kld(cross)
            assert own.verdict is not None and cross.verdict is None
        # Each has a calibration of its own, and own numbers do not depend on who else was there.
        assert (twin / "nybble-calibration.safetensors").is_file()
        shared = set(cells(result.folder)) & set(cells(plain.folder))
        assert len(shared) == 2 * 2 + 1 + 1  # both settings, floor and identity of model a
        here, there = (RunStore(r.folder) for r in (result, plain))
        for name in (n.removesuffix(".parquet") for n in shared):
            one, other = here.read_cell(name, ROW), there.read_cell(name, ROW)
            assert one is not None and other is not None and one.tobytes() == other.tobytes()

    def test_a_named_calibration_is_the_first_models(
        self, folder: Path, twin: Path, text: Path, tmp_path: Path, asked: list[dict[str, Any]]
    ) -> None:
        mine = calibrate(folder, text=[text], out=tmp_path / "mine.safetensors").path
        asked.clear()
        out = tmp_path / "run"
        result = measure(
            request(folder, text, out, "nyb4", documents=1, against=twin, calibration=mine)
        )
        assert result.failed == []
        used = [h["path"] for h in asked if h["op"] == "calibration"]
        assert used == [str(mine), str(twin / "nybble-calibration.safetensors")]

    def test_other_vocabulary(
        self, folder: Path, twin: Path, text: Path, tmp_path: Path, asked: list[dict[str, Any]]
    ) -> None:
        other = Path(shutil.copytree(twin, tmp_path / "other"))
        tokens = other / "tokenizer.json"
        tokens.write_text(tokens.read_text().replace('"</s>"', '"<end>"'))
        with pytest.raises(NybbleError, match="different vocabularies") as caught:
            measure(request(folder, text, tmp_path / "run", against=other))
        assert caught.value.seen == "tiny-llama and other"
        assert asked == [] and not (tmp_path / "run").exists()

    def test_a_gguf_and_a_folder(
        self, folder: Path, tiny_model: Path, text: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(NybbleError, match="different vocabularies") as caught:
            measure(request(folder, text, tmp_path / "run", against=tiny_model))
        assert "two GGUFs or two folders" in str(caught.value.allowed)

    def test_one_tokenizer_but_padded_logits(
        self, folder: Path, text: Path, tmp_path: Path, asked: list[dict[str, Any]]
    ) -> None:
        padded = write_folder(tmp_path / "padded", vocab_size=320)
        with pytest.raises(EngineError, match="logits of the two models") as caught:
            measure(request(folder, text, tmp_path / "run", "q4_0", against=padded))
        assert caught.value.seen == "260 and 320"


CRASH = """
import os, sys
from nybble.engines.worker import serve
from nybble.scoring.torch_worker import TorchWorker

stores = TorchWorker._stores

def spoiled(self, loaded, setting, decode):
    if str(setting) == "q4_0/q4_0":
        print("RuntimeError: the codec broke", file=sys.stderr, flush=True)
        os.abort()
    return stores(self, loaded, setting, decode)

TorchWorker._stores = spoiled
serve(TorchWorker)
"""


class TestMisbehaviour:
    def check_only_q4_0_failed(self, result: Result, *reasons: str) -> None:
        (failed,) = result.failed
        assert (failed.setting, failed.role) == ("q4_0/q4_0", "candidate")
        for reason in reasons:
            assert reason in str(failed.error)
        assert failed.metrics == {} and failed.cache_bytes > 0
        assert kld(row(result, "q8_0")) > 0
        assert row(result, "f16", "identity").metrics["max_kld"].value == 0

    @pytest.mark.timeout(120)
    def test_a_child_that_aborts_in_one_lane(
        self, tiny_model: Path, text: Path, tmp_path: Path, cache: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """With real processes: one that dies, and one that does the rest."""
        (tmp_path / "crashing.py").write_text(CRASH)
        path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        monkeypatch.setenv("PYTHONPATH", path)
        monkeypatch.setenv("NYBBLE_CACHE", str(cache))
        monkeypatch.setattr(torch_backend, "TORCH_WORKER", "crashing")
        wanted = request(tiny_model, text, tmp_path / "run", "q8_0", "q4_0", documents=1, threads=1,
                         engine="transformers")  # fmt: skip
        self.check_only_q4_0_failed(measure(wanted), "SIGABRT", "the codec broke")

    def test_a_lane_that_is_refused(
        self, plain: Result, folder: Path, text: Path, tmp_path: Path,
        asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """Only alone does an error name its lane; the others lose nothing by it."""
        hidden = torch_worker.TorchModel.hidden

        def spoiled(self: Any, tokens: Any, lanes: Any) -> Any:
            kinds = {k.codecs[0][1].kind.name for stores in lanes.stores for k, _ in stores}
            if "q4_0" in kinds:
                raise EngineError("out of memory", seen="a lane too many")
            return hidden(self, tokens, lanes)

        monkeypatch.setattr(torch_worker.TorchModel, "hidden", spoiled)
        result = measure(request(folder, text, tmp_path, "q8_0", "q4_0", documents=2))
        self.check_only_q4_0_failed(result, "out of memory", "a lane too many")
        assert set(cells(tmp_path)) < set(cells(plain.folder))
        assert [h["one_by_one"] for h in asked if h["op"] == "score"][:2] == [False, True]

    def test_a_comparison_that_fails_names_its_lane(
        self, folder: Path, text: Path, tmp_path: Path, asked: list[dict[str, Any]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        logits = torch_worker.TorchWorker._logits

        def spoiled(self: Any, lane: int, *args: Any) -> Any:
            if self._lanes[lane][1][0][0].codecs[0][1].kind.name == "q4_0":
                raise EngineError("out of memory")
            return logits(self, lane, *args)

        monkeypatch.setattr(torch_worker.TorchWorker, "_logits", spoiled)
        result = measure(request(folder, text, tmp_path, "q4_0", "q8_0", documents=1))
        self.check_only_q4_0_failed(result, "out of memory")

    def test_the_reference_fails(
        self, folder: Path, text: Path, tmp_path: Path, asked: list[dict[str, Any]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        def spoiled(self: Any, tokens: Any, lanes: Any) -> Any:
            raise EngineError("out of memory")

        monkeypatch.setattr(torch_worker.TorchModel, "hidden", spoiled)
        with pytest.raises(EngineError, match="out of memory"):
            measure(request(folder, text, tmp_path, "q4_0"))

    def test_a_setting_that_changes_nothing(
        self, folder: Path, text: Path, tmp_path: Path, asked: list[dict[str, Any]]
    ) -> None:
        """All layers skipped: that is no measurement, and says so."""
        result = measure(request(folder, text, tmp_path, "q8_0", "q4_0+skip0.1", documents=1))
        (failed,) = result.failed
        assert failed.setting == "q4_0/q4_0+skip0.1"
        assert "the quantized cache was not read" in str(failed.error)

    @pytest.mark.parametrize(
        ("setting", "what", "seen"),
        [
            ("q4_0+at1h2:q8_0/q8_0", "layer 1 has no such KV head", "head 2"),
            ("q4_0+skip2", "the model has no such layer", "layer 2"),
            ("q4_0+at-3:q8_0/q8_0", "the model has no such layer", "layer -3"),
        ],
    )
    def test_parts_the_model_does_not_have(  # before hours of other settings
        self, folder: Path, text: Path, tmp_path: Path, asked: list[dict[str, Any]],
        setting: str, what: str, seen: str,
    ) -> None:  # fmt: skip
        with pytest.raises(NybbleError, match=what) as caught:
            measure(request(folder, text, tmp_path / "run", "q8_0", setting))
        assert seen in str(caught.value.seen) and scored(asked) == 0
        assert not (tmp_path / "run").exists()
