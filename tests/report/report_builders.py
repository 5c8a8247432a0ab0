"""Synthetic measurements: realistic numbers, hostile names."""

from __future__ import annotations

import dataclasses
import math

from nybble.results.hardened import Gain, Hardened, LayerGain
from nybble.results.records import (
    Estimate,
    Measurement,
    ModelRecord,
    Part,
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


# As `--engine transformers` names them, with bits at head size 256 and a made-up mean KLD.
SIMULATED = {
    "q8_0/q8_0": (8.5, 0.0006), "q8_0/q4_0": (6.5, 0.006), "q5_1/q5_1": (6.0, 0.022),
    "q5_0/q5_0": (5.5, 0.041), "q4_1/q4_1": (5.0, 0.088), "q4_0/q4_0": (4.5, 0.13),
    "q4_0/q4_0-norot": (4.5, 0.31), "q4_0/q4_0+mean+scale+search": (4.5, 0.052),
    "iq4_nl/iq4_nl": (4.5, 0.11), "int4_per_token_head/int4_per_token_head": (4.125, 0.17),
    "int8_per_token_head/int8_per_token_head": (8.125, 0.00071),
    "fp8_e4m3/fp8_e4m3": (8.0, 0.0052), "fp8_e5m2/fp8_e5m2": (8.0, 0.021),
    "nvfp4/nvfp4": (4.5, 0.12), "nvfp4_4over6/nvfp4_4over6": (4.5, 0.10),
    "fp4_mx_block16/fp4_mx_block16": (4.5, 0.16),
    "turboquant_k4/turboquant_v4+skip0.1.-2.-1": (6.74, 0.034),
    "fp8_e4m3/turboquant_v4+chunk512+skip0.1.-2.-1": (8.1, 0.028),
    "exl2_q4/exl2_q4": (4.5, 0.062), "exl2_q8/exl2_q4": (6.5, 0.013),
    "exl2_q8/exl2_q8": (8.5, 0.00058), "exl3_2/exl3_2": (2.5, 0.95), "exl3_3/exl3_3": (3.5, 0.16),
    "exl3_4/exl3_4": (4.5, 0.029), "exl3_5/exl3_5": (5.5, 0.0069), "exl3_6/exl3_6": (6.5, 0.0019),
    "exl3_7/exl3_7": (7.5, 0.0008), "exl3_8/exl3_8": (8.5, 0.0005),
    "exl3_3/exl3_3+at0.5-7:exl3_5/exl3_4+at3:exl3_6/exl3_3": (4.05, 0.061),
    "mlx_4/mlx_4": (4.5, 0.083), "mlx_8/mlx_8": (8.5, 0.0007),
    "lmdeploy_int4/lmdeploy_int4": (4.125, 0.14), "lmdeploy_int8/lmdeploy_int8": (8.125, 0.0009),
    "quanto_4/quanto_4": (4.5, 0.15), "quanto_2/quanto_2": (2.5, 3.9), "hqq_4/hqq_4": (4.5, 0.078),
    "hqq_8/hqq_8": (8.5, 0.00066), "kivi_k4/kivi_v4": (5.9, 0.02), "kivi_k2/kivi_v2": (4.2, 0.56),
    "nyb4/nyb4": (4.45, 0.011),
}  # fmt: skip
LONGEST = "exl3_3/exl3_3+at0.5-7:exl3_5/exl3_4+at3:exl3_6/exl3_3"


def simulated(found: Measurement) -> Measurement:
    """The same as the transformers engine would have it."""
    rows = [
        dataclasses.replace(r, simulated=True, cache_bytes_at={"8192": 2 * r.cache_bytes})
        for r in found.rows
    ]
    protocol = found.protocol | {
        "engine": "transformers",
        "simulated": True,
        "sliding_cache": "one window",
        "via": "decode",
    }
    return dataclasses.replace(
        found, rows=rows, protocol=protocol, versions=found.versions | {"transformers": "5.23.0"}
    )


def forty() -> Measurement:
    """Forty settings of every family, simulated."""
    rows = []
    for setting, (bits, kld) in SIMULATED.items():
        k, _, v = setting.partition("/")
        base = row("q4_0/q4_0", kld)
        rows.append(
            dataclasses.replace(
                base,
                setting=setting,
                k_type=k,
                v_type=v.partition("+")[0].removesuffix("-norot"),
                bits=bits,
                bytes_per_token=base.bytes_per_token * bits / 4.5 * (1.5 if "skip" in v else 1),
                cache_bytes=int(base.cache_bytes * bits / 4.5),
            )
        )
    return simulated(measurement([*rows, *references(4096)], [model(name="Gemma 3 270M")]))


def parts(
    of: str, whole: float, layers: int = 18, heads: int = 0, documents: int = 24
) -> list[Row]:
    """Parts of a setting that add up to 0.9 of the whole; early K and the last V hurt most."""
    places = [
        (n, h, side)
        for n in range(layers)
        for h in (range(heads) if heads else (None,))
        for side in "KV"
    ]
    weights = [
        (6.0 if side == "K" else 1.0)
        * (9.0 if (n, side) == (3, "K") else 4.0 if (n, side) == (layers - 1, "V") else 1.0)
        * (1.4 + math.sin(2.1 * n + (h or 0)))
        for n, h, side in places
    ]
    k, _, v = of.partition("/")
    found = []
    for (n, h, side), weight in zip(places, weights, strict=True):
        head = "" if h is None else f"h{h}"
        types = f"{k}/f16" if side == "K" else f"f16/{v}"
        base = row("f16/f16", 0.9 * whole * weight / sum(weights), role="part", documents=documents)
        found.append(
            dataclasses.replace(
                base, setting=f"f16/f16+at{n}{head}:{types}", part=Part(of, n, side, h)
            )
        )
    return found


def split_of_both(of: str = "q4_0/f16", layers: int = 18, sides: str = "K") -> Measurement:
    """The parts of a setting in an original and, four times smaller, in its hardened copy."""
    rows = []
    for label, whole in (("a", 0.043), ("b", 0.043 / 4)):
        mine = [r for r in parts(of, whole, layers, documents=1) if r.part and r.part.side in sides]
        mine += references(4096, documents=1)
        rows += [dataclasses.replace(r, model=label, reference=label) for r in mine]
    return simulated(measurement(rows, [model(), model("b")]))


def hardened_of(m: Measurement, split: Measurement | None) -> Hardened:
    """What hardening leaves behind, around a measurement of two models; hostile names."""
    rows = {(r.setting, r.role, r.model, r.reference): r for r in m.rows}
    gains = tuple(
        Gain(s, r.metrics["mean_kld"], rows[s, "candidate", "b", "a"].metrics["mean_kld"])
        for (s, role, *who), r in rows.items()
        if role == "candidate" and who == ["a", "a"]
    )
    layers = tuple(LayerGain(i, 1.1 + 0.4 * i, 1.2 + 0.6 * i) for i in range(18))
    return Hardened(
        file=f"hard {IMAGE}.gguf", method="fold", family=f"Gemma 3 {SCRIPT}",
        statistics=f"llama.cpp {IMAGE}", tokens=2048, layers=layers,
        drift=Estimate(3.8e-06), floor=estimate(4.4e-05), ppl=(9.9178, 9.9176), gains=gains,
        measurement=m, split=split,
    )  # fmt: skip
