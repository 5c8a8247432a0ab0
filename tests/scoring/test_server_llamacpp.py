"""Real llama.cpp servers, from the wheel, in children of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_runs import cells, kld, request, row

from nybble.errors import EngineError, NybbleError
from nybble.formats import parse
from nybble.results.records import from_json
from nybble.scoring.measure import Result, measure

_SERVE = """
import sys, xllamacpp as x
p = x.CommonParams()
p.model.path, p.n_ctx, p.n_parallel, p.cpuparams.n_threads = sys.argv[1], int(sys.argv[3]), 1, 1
p.cache_type_k = p.cache_type_v = getattr(x.ggml_type, "GGML_TYPE_" + sys.argv[2].upper())
p.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
server = x.Server(p)
print(server.listening_address, flush=True)
sys.stdin.read()
"""
_VOCABULARY = 265
Serve = Callable[..., str]


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    """Starts a server with one KV type; kills it at the end."""
    children: list[subprocess.Popen[str]] = []

    def start(model: Path, kind: str, context: int = 256) -> str:
        child = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(model), kind, str(context)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        children.append(child)
        assert child.stdout is not None
        url = child.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), "the server did not start"
        return url

    yield start
    for child in children:
        child.kill()
        child.wait()


def _asked(model: Path, text: Path, out: Path, urls: dict[str, str], **changes: object) -> Result:
    pairs = tuple((parse(s), u) for s, u in urls.items())
    given = {"engine": "llama.cpp", "urls": pairs, "documents": 2, **changes}
    return measure(request(model, text, out, *urls, **given))


@pytest.fixture(scope="module")
def urls(serve: Serve, tiny_model: Path) -> dict[str, str]:
    return {s: serve(tiny_model, s.split("/")[0]) for s in ("f16/f16", "q4_0/q4_0", "q8_0/q8_0")}


@pytest.fixture(scope="module")
def full(
    urls: dict[str, str], tiny_model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory
) -> Result:
    """Scored with as many tokens as there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NYBBLE_CACHE", str(tmp_path_factory.mktemp("cache")))
        out = tmp_path_factory.mktemp("full")
        return _asked(tiny_model, text, out, urls, top_k=_VOCABULARY)


def test_the_whole_vocabulary_equals_the_lockstep_scorer(
    full: Result, tiny_model: Path, text: Path, tmp_path: Path
) -> None:
    found = full
    plain = measure(request(tiny_model, text, tmp_path / "b", "q4_0", "q8_0", via="decode",
                            documents=2, weights="as-shipped"))  # fmt: skip
    for setting in ("q4_0", "q8_0"):
        mine, theirs = row(found, setting), row(plain, setting)
        # Batches are cut otherwise in a server, which moves float32 in the last places only.
        for metric in ("mean_kld", "p99_kld", "ppl", "ppl_ref", "rms_dp"):
            assert mine.metrics[metric].value == pytest.approx(
                theirs.metrics[metric].value, rel=2e-3, abs=2e-5
            )
        assert mine.metrics["same_top"].value == pytest.approx(
            theirs.metrics["same_top"].value, abs=0.02
        )
        assert mine.n_tokens == theirs.n_tokens and mine.bits == theirs.bits
        assert mine.served is not None and mine.served.top_k == _VOCABULARY
        assert "one new token" in mine.served.read
        assert mine.metrics["tail_mass"].value < 1e-5
    identity = row(found, "f16", "identity")
    assert identity.metrics["max_kld"].value == 0
    assert from_json((full.folder / "summary.json").read_text()).rows == found.measurement.rows


def test_fewer_tokens_bound_it_from_below(
    full: Result, urls: dict[str, str], tiny_model: Path, text: Path, tmp_path: Path
) -> None:
    all_of_them = row(full, "q4_0")
    two = {s: urls[s] for s in ("f16/f16", "q4_0/q4_0")}
    few = row(_asked(tiny_model, text, tmp_path, two, top_k=20), "q4_0")
    assert 0.3 * kld(all_of_them) < kld(few) < kld(all_of_them)
    assert few.metrics["mean_kld_high"].value >= kld(few) and few.metrics["tail_mass"].value > 0.01
    assert few.metrics["same_top"] == all_of_them.metrics["same_top"]
    assert few.metrics["ppl"].value == pytest.approx(all_of_them.metrics["ppl"].value, rel=1e-6)
    assert few.verdict is not None and few.verdict.reason.startswith("top-k")


def test_servers_one_after_the_other(
    urls: dict[str, str], tiny_model: Path, text: Path, tmp_path: Path
) -> None:
    """The same command twice, with one server up at a time: the reference is kept."""
    nobody = "http://127.0.0.1:9"
    first = {"f16/f16": urls["f16/f16"], "q4_0/q4_0": nobody}
    found = _asked(tiny_model, text, tmp_path, first)
    assert [r.setting for r in found.failed] == ["q4_0/q4_0"]
    assert "cannot be reached" in (found.failed[0].error or "")
    kept = list((tmp_path / "tops").glob("*.parquet"))
    second = _asked(tiny_model, text, tmp_path, {"f16/f16": nobody, "q4_0/q4_0": urls["q4_0/q4_0"]})
    assert not second.failed and kld(row(second, "q4_0")) > 0.01
    assert list((tmp_path / "tops").glob("*.parquet")) == kept
    # The reference need not even be named once it is kept, nor any server be up.
    before = cells(tmp_path)
    third = _asked(tiny_model, text, tmp_path, {"q4_0/q4_0": nobody})
    assert not third.failed and cells(tmp_path) == before
    assert row(third, "q4_0").metrics == row(second, "q4_0").metrics
    assert row(third, "q4_0").served == row(second, "q4_0").served


def test_without_any_reference(
    urls: dict[str, str], tiny_model: Path, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(NybbleError, match="nothing to compare with"):
        _asked(tiny_model, text, tmp_path, {"q4_0/q4_0": urls["q4_0/q4_0"]})


def test_the_reference_behind_a_candidates_address(
    urls: dict[str, str], tiny_model: Path, text: Path, tmp_path: Path
) -> None:
    wrong = {"f16/f16": urls["f16/f16"], "q4_0/q4_0": urls["f16/f16"]}
    found = _asked(tiny_model, text, tmp_path, wrong)
    assert "not one token differs" in (row(found, "q4_0").error or "")


def test_a_context_that_is_too_short(
    serve: Serve, tiny_model: Path, text: Path, tmp_path: Path
) -> None:
    # llama.cpp pads a context to 256 tokens.
    url = serve(tiny_model, "f16", 256)
    with pytest.raises(EngineError, match="context is too short"):
        _asked(tiny_model, text, tmp_path, {"f16/f16": url}, contexts=(400,))


def test_another_model_than_the_one_named(
    serve: Serve, make_tiny: Callable[..., Path], urls: dict[str, str], tiny_model: Path,
    text: Path, tmp_path: Path,
) -> None:  # fmt: skip
    other = make_tiny(tmp_path / "other.gguf", seed=5)
    answered = {"f16/f16": urls["f16/f16"], "q4_0/q4_0": serve(other, "q4_0")}
    found = _asked(tiny_model, text, tmp_path / "run", answered)
    assert "another weights" in (row(found, "q4_0").error or "")
    alone = _asked(tiny_model, text, tmp_path / "alone", {"f16/f16": serve(other, "f16")})
    assert any("other.gguf" in w for w in alone.measurement.warnings)
