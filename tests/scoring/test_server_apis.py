"""vLLM's and SGLang's APIs, answered by loopback fakes (server_fakes.py says from what source)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import CONTEXT, cells, kld, request, row

from nybble.engines.llamacpp.model import Model
from nybble.errors import EngineError, NybbleError
from nybble.formats import parse
from nybble.results.store import RunStore
from nybble.scoring.measure import Result, measure
from nybble.scoring.topk import TOPK_ROW
from server_fakes import Fake, FakeSGLang, FakeVLLM, Running, full_kld

FP8, TURBO, REF = "fp8_e4m3/fp8_e4m3", "turboquant_4bit_nc", "f16/f16"
Run = Callable[..., Result]


@pytest.fixture(scope="session")
def tokenize(tiny_model: Path) -> Callable[[str], list[int]]:
    model = Model(tiny_model, no_alloc=True)
    return lambda text: [int(t) for t in model.tokenize(text, special=False)]


@pytest.fixture
def run(tiny_model: Path, text: Path, tmp_path: Path, tokenize: Callable[[str], list[int]]) -> Run:
    """Measures with fakes behind the addresses."""

    def go(engine: str, fakes: dict[str, Fake | str], **changes: Any) -> Result:
        with ExitStack() as stack:
            urls = []
            for name, fake in fakes.items():
                if isinstance(fake, Fake):
                    fake.tokenize = fake.tokenize or tokenize
                url = fake if isinstance(fake, str) else stack.enter_context(Running(fake))
                urls.append((parse(name), url))
            given = {"engine": engine, "urls": tuple(urls), "documents": 2, "out": tmp_path,
                     **changes}  # fmt: skip
            out = given.pop("out")
            return measure(request(tiny_model, text, out, *map(str, fakes), **given))

    return go


def _truth(folder: Path, noise: float, kind: str, fakes: Fake) -> float:
    """Mean full-vocabulary KLD of what a fake was asked to score, from its own requests."""
    prompts = [r["prompt"] for r in fakes.requests if "prompt_logprobs" in r]
    found = [full_kld(ids, CONTEXT // 2, noise, kind) for ids in prompts]
    return float(np.concatenate(found).mean())


def test_vllm_in_one_pass(run: Run, tmp_path: Path) -> None:
    fp8 = FakeVLLM(kv="fp8_e4m3", noise=0.3)
    found = row(run("vllm", {REF: FakeVLLM(), FP8: fp8}, top_k=265), FP8)
    assert kld(found) == pytest.approx(_truth(tmp_path, 0.3, "fp8_e4m3", fp8), rel=1e-4)
    assert found.served is not None
    assert (found.served.engine, found.served.version) == ("vllm", "0.32.0")
    assert found.served.read == "one pass over the prompt" and found.served.reported == "fp8_e4m3"
    assert len(fp8.requests) == 2  # one a document
    assert not found.simulated and found.bits == 8


def test_vllm_gives_twenty_unless_told_otherwise(run: Run, tmp_path: Path) -> None:
    fp8 = FakeVLLM(kv="fp8", noise=0.3, most=20)  # vLLM's other name of the type
    result = run("vllm", {REF: FakeVLLM(most=20), FP8: fp8})
    found = row(result, FP8)
    assert found.served is not None and found.served.top_k == 20
    truth = _truth(tmp_path, 0.3, "fp8", fp8)
    assert 0.2 * truth < kld(found) <= truth
    assert any("--max-logprobs 64" in w for w in result.measurement.warnings)
    folder = RunStore(tmp_path)
    names = [n.removesuffix(".parquet") for n in cells(tmp_path) if "fp8" in n]
    for name in names:
        kept = folder.read_cell(name, TOPK_ROW)
        assert kept is not None and (kept["kld"] <= kept["kld_high"]).all()


def test_identity_of_a_server_that_batches(run: Run) -> None:
    fakes: dict[str, Fake | str] = {
        REF: FakeVLLM(jitter=0.01), FP8: FakeVLLM(kv="fp8_e4m3", noise=0.008, jitter=0.01)
    }  # fmt: skip
    result = run("vllm", fakes)
    assert row(result, "f16", "identity").metrics["mean_kld"].value > 0
    warnings = " ".join(result.measurement.warnings)
    assert "the server is not deterministic, and this is the floor" in warnings
    assert f"{FP8} at context 128 is within twice the noise floor" in warnings


def test_a_16_bit_server_more_is_the_floor(run: Run) -> None:
    fakes: dict[str, Fake | str] = {
        REF: FakeVLLM(), "bf16/bf16": FakeVLLM(kv="bfloat16", noise=0.01),
        FP8: FakeVLLM(kv="fp8_e4m3", noise=0.3),
    }  # fmt: skip
    result = run("vllm", fakes)
    floor = row(result, "bf16", "floor")
    assert 0 < kld(floor) < kld(row(result, FP8)) and floor.verdict is None


def test_turboquant_is_replayed_token_by_token(run: Run) -> None:
    turbo = FakeVLLM(kv="turboquant_4bit_nc", noise=0.3, replay=True)
    found = row(run("vllm", {REF: FakeVLLM(replay=True), TURBO: turbo}, top_k=265), TURBO)
    assert found.served is not None and "replayed" in found.served.read
    truth = [full_kld([*r["token_ids"], *r["sampling_params"]["trace_decode_token_ids"]],
                      CONTEXT // 2, 0.3, "turboquant_4bit_nc") for r in turbo.requests]  # fmt: skip
    assert kld(found) == pytest.approx(float(np.concatenate(truth).mean()), rel=1e-4)


def test_turboquant_without_replay_says_what_is_read_raw(run: Run) -> None:
    fakes: dict[str, Fake | str] = {
        REF: FakeVLLM(), TURBO: FakeVLLM(kv="turboquant_4bit_nc", noise=0.3)
    }  # fmt: skip
    result = run("vllm", fakes, documents=1)
    found = row(result, TURBO)
    assert found.served is not None and "up to 16 new tokens" in found.served.read
    assert any("--enable-trace-replay" in w for w in result.measurement.warnings)


@pytest.mark.parametrize(
    ("broken", "word"),
    [({"details": False}, "does not tell how much"), ({"block": 200}, "")],
)
def test_vllm_must_tell_that_its_cache_was_read(
    run: Run, broken: dict[str, Any], word: str
) -> None:
    turbo = FakeVLLM(kv="turboquant_4bit_nc", noise=0.3, **broken)
    result = run("vllm", {REF: FakeVLLM(replay=True), TURBO: turbo}, documents=1)
    error = row(result, TURBO).error or ""
    assert word in error if word else not error  # a large block is told, not refused


def test_sglang_is_decoded(run: Run) -> None:
    fp8 = FakeSGLang(kv="fp8_e4m3", noise=0.3)
    found = row(run("sglang", {REF: FakeSGLang(), FP8: fp8}, top_k=265, documents=1), FP8)
    assert (
        found.served is not None and "all K and V read as stored but its own" in found.served.read
    )
    longest = max((r["input_ids"] for r in fp8.requests), key=len)
    last = fp8.requests[-1]["token_ids_logprob"]
    truth = full_kld([*longest, *last], CONTEXT // 2, 0.3, "fp8_e4m3")
    assert kld(found) == pytest.approx(float(truth.mean()), rel=1e-4)
    assert found.n_tokens == len(truth) == len(fp8.requests)


def test_sglang_without_its_prefix_cache(run: Run) -> None:
    fp8 = FakeSGLang(kv="fp8_e4m3", noise=0.3, radix=False)
    result = run("sglang", {REF: FakeSGLang(), FP8: fp8}, documents=1)
    assert "did not keep its cache" in (row(result, FP8).error or "")
    assert len(fp8.requests) == 2  # found out at once


def test_the_wrong_server_behind_an_address(run: Run) -> None:
    """One port for both, one after the other: the type that is there decides which is scored."""
    auto = FakeVLLM()
    with Running(auto) as url:
        auto.tokenize = None  # 404: told, not fatal
        result = run("vllm", {REF: url, FP8: url}, documents=1)
    assert "stores another KV type" in (row(result, FP8).error or "")
    fp8 = FakeVLLM(kv="fp8_e4m3", noise=0.3)
    with Running(fp8) as url:
        result = run("vllm", {REF: url, FP8: url}, documents=1)
    assert not result.failed and kld(row(result, FP8)) > 0


def test_a_quantized_cache_that_is_not_read(run: Run) -> None:
    result = run("vllm", {REF: FakeVLLM(), FP8: FakeVLLM(kv="fp8_e4m3", noise=0)})
    assert "not one token differs" in (row(result, FP8).error or "")


def test_a_server_that_dies_keeps_its_finished_documents(run: Run, tmp_path: Path) -> None:
    fakes: dict[str, Fake | str] = {
        REF: FakeVLLM(), FP8: FakeVLLM(kv="fp8_e4m3", noise=0.3, dies_after=2)
    }  # fmt: skip
    result = run("vllm", fakes, documents=4)
    error = row(result, FP8).error or ""
    assert "connection to the server broke" in error and "run the same command again" in error
    assert len([n for n in cells(tmp_path) if "fp8" in n]) == 2
    again = FakeVLLM(kv="fp8_e4m3", noise=0.3)
    result = run("vllm", {REF: "http://127.0.0.1:9", FP8: again}, documents=4)
    assert not result.failed and len(again.requests) == 2 and row(result, FP8).n_documents == 4


def test_a_reference_that_dies_ends_the_run(run: Run) -> None:
    with pytest.raises(EngineError, match="connection to the server broke"):
        run("vllm", {REF: FakeVLLM(dies_after=1), FP8: FakeVLLM(kv="fp8_e4m3", noise=0.3)})


def test_another_version_is_not_compared(run: Run) -> None:
    fakes: dict[str, Fake | str] = {
        REF: FakeVLLM(), FP8: FakeVLLM(kv="fp8_e4m3", noise=0.3, version="0.33.0")
    }  # fmt: skip
    assert "another version" in (row(run("vllm", fakes), FP8).error or "")


def test_another_tokenizer(run: Run) -> None:
    other = FakeVLLM(tokenize=lambda text: [7] * 300)
    with pytest.raises(EngineError, match="tokenizes otherwise"):
        run("vllm", {REF: other, FP8: FakeVLLM(kv="fp8_e4m3")})


def test_a_key(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NYBBLE_API_KEY", raising=False)
    with pytest.raises(EngineError, match="wants a key") as caught:
        run("vllm", {REF: FakeVLLM(key="abc")})
    assert caught.value.hint == "export NYBBLE_API_KEY=..."
    monkeypatch.setenv("NYBBLE_API_KEY", "wrong")
    with pytest.raises(EngineError, match="wants a key") as caught:
        run("vllm", {REF: FakeVLLM(key="abc")})
    assert "is not this server's" in str(caught.value) and "wrong" not in str(caught.value)
    monkeypatch.setenv("NYBBLE_API_KEY", "abc")
    result = run("vllm", {REF: FakeVLLM(key="abc")}, documents=1)
    assert row(result, "f16", "identity").metrics["max_kld"].value == 0


def test_another_kind_of_server(run: Run) -> None:
    with pytest.raises(EngineError, match="does not know this request"):
        run("sglang", {REF: FakeVLLM()})
    with pytest.raises(EngineError, match="does not know this request"):
        run("llama.cpp", {REF: FakeVLLM()})


def test_what_the_engine_has_no_type_for(run: Run) -> None:
    with pytest.raises(NybbleError, match="vllm has no such KV setting"):
        run("vllm", {REF: FakeVLLM(), "q4_0/q4_0": FakeVLLM()})


def test_what_cannot_be_asked_of_servers(tiny_model: Path, text: Path, tmp_path: Path) -> None:
    url = ((parse("f16"), "http://127.0.0.1:9"),)
    for changes, word in (
        ({"engine": "vllm"}, "running servers"),
        ({"engine": "auto", "urls": url}, "--engine with --url"),
        ({"engine": "transformers", "urls": url}, "--engine with --url"),
        ({"engine": "vllm", "urls": url, "by": "layer"}, "cannot be asked"),
        ({"engine": "vllm", "urls": url, "against": tiny_model}, "cannot be asked"),
        ({"engine": "vllm", "urls": url * 2}, "each once"),
        ({"engine": "vllm", "urls": url, "top_k": 1}, "--top-k"),
    ):
        with pytest.raises(NybbleError, match=word):
            request(tiny_model, text, tmp_path, "f16", **changes)
