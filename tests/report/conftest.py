"""Synthetic measurements: realistic numbers, hostile names."""

from __future__ import annotations

import pytest

from nybble.results.records import (
    Estimate,
    Measurement,
    ModelRecord,
    Row,
    Slice,
    Verdict,
)

SCRIPT = "</script><script>alert(1)</script>"
IMAGE = '"><img src=x onerror=alert(1)>'
MODEL = f"Gemma 3 1B IT {SCRIPT}"
ERROR = f"head size 72 is no multiple of 32 {IMAGE} \x1b[31m\nsecond line"
CATEGORIES = {"code": 0.5, "chat": 0.8, "tools": 0.7, "prose": 1.3, "scripts": 1.9, "long": 1.1}
BITS = {"f16": 16.0, "bf16": 16.0, "q8_0": 8.5, "q5_1": 6.0, "q4_0": 4.5}
THRESHOLDS = {
    "mean_kld": {"safe": 0.01, "broken": 0.1},
    "flips": {"safe": 0.005, "broken": 0.05},
}
DRIFT = {
    "q8_0/q8_0": 0.00091,
    "q8_0/q4_0": 0.0087,
    "f16/q4_0": 0.0083,
    "q4_0/f16": 0.031,
    "q4_0/q4_0": 0.043,
}


def estimate(value: float, spread: float = 0.18, intervals: bool = True) -> Estimate:
    """An estimate with a lopsided interval."""
    if not intervals or value == 0:
        return Estimate(value)
    return Estimate(value, value * (1 - spread), value * (1 + 1.4 * spread))


def metrics(kld: float, intervals: bool = True) -> dict[str, Estimate]:
    """All metrics of a row, from its mean KLD."""

    def at(value: float) -> Estimate:
        return estimate(value, intervals=intervals)

    same = 1 - min(0.6, 0.35 * kld**0.5)
    exact = kld == 0
    return {
        "mean_kld": at(kld),
        "median_kld": at(kld * 0.11),
        "p99_kld": at(kld * 14),
        "p999_kld": at(kld * 61),
        "max_kld": Estimate(kld * 240),
        "same_top": Estimate(same, max(0.0, same - 0.004), min(1.0, same + 0.004))
        if intervals and not exact
        else Estimate(same),
        "flips": at(0.0 if exact else 0.12 * kld**0.75),
        "nll_diff": at(kld * 0.4),
        "ppl_ratio": Estimate(1 + kld * 0.41),
        "ppl_ref": Estimate(9.81),
        "ppl": Estimate(9.81 * (1 + kld * 0.41)),
        "rms_dp": at(0.0 if exact else 0.09 * kld**0.5),
    }


def part(name: str, kld: float, documents: int, tokens: int, intervals: bool) -> Slice:
    """A slice with the three metrics slices have."""
    found = metrics(kld, intervals)
    kept = {k: found[k] for k in ("mean_kld", "same_top", "flips")}
    return Slice(name, documents, tokens, kept)


def positions(context: int, kld: float, documents: int, intervals: bool) -> list[Slice]:
    """Eight stretches; drift grows slowly along the context, with a dip."""
    step = (context - 512) // 8
    found = []
    for i in range(8):
        first = 512 + i * step
        scale = (0.7 + 0.09 * i) * (0.85 if i == 3 else 1.0)
        found.append(part(f"{first}-{first + step - 1}", kld * scale, documents, step, intervals))
    return found


def row(
    setting: str,
    kld: float,
    *,
    role: str = "candidate",
    context: int = 4096,
    model: str = "a",
    reference: str = "a",
    documents: int = 24,
) -> Row:
    """One finished row."""
    k, _, v = setting.removesuffix("-norot").partition("/")
    bits = (BITS[k] + BITS[v]) / 2
    intervals = documents >= 5
    label = "safe" if kld <= 0.01 else "degraded" if kld <= 0.1 else "broken"
    if 0.008 < kld < 0.0105:
        label = "unresolved"
    judged = role == "candidate" and model == reference
    return Row(
        setting=setting,
        role=role,
        context=context,
        k_type=k,
        v_type=v,
        model=model,
        reference=reference,
        rotation_k=64 if k.startswith("q") else 0,
        rotation_v=64 if v.startswith("q") else 0,
        bits=bits,
        bytes_per_token=26 * 2 * 256 * bits / 8,
        cache_bytes=int(26 * 2 * 256 * bits / 8 * context),
        n_documents=documents,
        n_tokens=documents * (context - 512),
        metrics=metrics(kld, intervals),
        by_category=[
            part(n, kld * f, max(1, documents // 6), 14336, intervals)
            for n, f in CATEGORIES.items()
        ],
        by_position=positions(context, kld, documents, intervals),
        verdict=Verdict(label, f"mean KLD {kld:g} against 0.01 and 0.1") if judged else None,
    )


def model(label: str = "a", name: str = MODEL) -> ModelRecord:
    """A model record."""
    return ModelRecord(
        label=label,
        name=name,
        file=f"gemma-3-1b-it-{IMAGE}.gguf",
        sha256="9f" * 32,
        architecture="gemma3",
        size_bytes=806_058_240,
        shipped_weights="Q4_K",
        scored_weights="f16 copy",
        context_length=32768,
        sliding_window=512,
        framing="chat template: the file carries one and the model is instruction tuned",
    )


def measurement(rows: list[Row], models: list[ModelRecord] | None = None) -> Measurement:
    """A measurement around these rows."""
    return Measurement(
        models=models or [model()],
        rows=rows,
        recommendation="Use q8_0/q8_0: half the cache of f16, drift 11 times below the safe limit.",
        warnings=["q8_0/q4_0 is unresolved: its interval spans 0.01. Add documents.", IMAGE],
        command=f"nybble measure 'gemma-3-1b-it-{IMAGE}.gguf' --kv q8_0/q8_0,q8_0/q4_0 --seed 0",
        created="2026-11-12T09:30:00Z",
        protocol={
            "engine": "llama.cpp",
            "via": "prefill",
            "score_from": 0.125,
            "contexts": sorted({r.context for r in rows}),
            "seed": 0,
            "bootstrap_draws": 10_000,
            "thresholds": THRESHOLDS,
            "text": [
                {
                    "category": "code",
                    "title": "Python code",
                    "licence": "PSF-2.0",
                    "source": "standard library modules of the running Python",
                    "chunks": {"4096": 8},
                },
                {
                    "category": "chat",
                    "title": "multi-turn chat",
                    "licence": "MIT",
                    "source": "written for nybble",
                    "chunks": {"4096": 8},
                },
                {
                    "category": "mine",
                    "title": "your text",
                    "licence": "yours",
                    "source": f"notes {SCRIPT}.txt",
                    "chunks": {"4096": 8},
                },
            ],  # fmt: skip
            "text_sha256": "ab" * 32,
        },
        versions={"nybble": "0.1.0", "llama.cpp": "b9637", "xllamacpp": "2.3.1", "Python": "3.11"},
        hardware={
            "cpu": "AMD EPYC 7763",
            "cores": 2,
            "memory_gib": 15.4,
            "threads": 2,
            "engine_features": "AVX2 FMA",
        },
        timing={"decode_s": 812.4, "compare_s": 23.9, "compare_share": 0.0286},
    )


def references(context: int, which: str = "a", documents: int = 24) -> list[Row]:
    """Noise floor and identity."""
    common = {"context": context, "model": which, "reference": which, "documents": documents}
    return [
        row("bf16/bf16", 4.4e-05, role="floor", **common),
        row("f16/f16", 0.0, role="identity", **common),
    ]


@pytest.fixture
def one() -> Measurement:
    """Five settings, one failed row, floor and identity."""
    rows = [row(s, k) for s, k in DRIFT.items()]
    failed = Row("q5_1/q5_1", "candidate", 4096, "q5_1", "q5_1", status="failed", error=ERROR)
    return measurement([*rows, failed, *references(4096)])


@pytest.fixture
def two_models() -> Measurement:
    """An instruct model and its hardened copy, each against both 16-bit caches."""
    rows = []
    for label, other, shrink in (("a", "b", 1.0), ("b", "a", 0.22)):
        for setting in ("q8_0/q8_0", "q8_0/q4_0", "q4_0/q4_0"):
            own = DRIFT[setting] * shrink
            rows.append(row(setting, own, model=label, reference=label))
            rows.append(row(setting, own + 0.012, model=label, reference=other))
        rows += references(4096, label)
        rows.append(row("f16/f16", 0.012, role="cross", model=label, reference=other))
    return measurement(rows, [model(), model("b", f"Gemma 3 1B hardened {IMAGE}")])


@pytest.fixture
def two_contexts() -> Measurement:
    """Three settings at two contexts."""
    rows = []
    for context, grow in ((4096, 1.0), (16384, 1.7)):
        for setting in ("q8_0/q8_0", "q8_0/q4_0", "q4_0/q4_0"):
            rows.append(row(setting, DRIFT[setting] * grow, context=context))
        rows += references(context)
    return measurement(rows, [model(name="Gemma 3 1B IT")])


@pytest.fixture
def few() -> Measurement:
    """Three documents, so no interval anywhere."""
    rows = [row(s, k, documents=3) for s, k in DRIFT.items()]
    return measurement([*rows, *references(4096, documents=3)], [model(name="tiny")])
