"""Run folders as `nybble measure` leaves them, without a model: rows drawn, summaries computed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nybble.formats import parse
from nybble.results.records import Measurement, ModelRecord, Row, Slice, to_json
from nybble.results.store import RunStore, content_key, write_text
from nybble.scoring.compare import ROW, Rows
from nybble.scoring.statistics import Sample, ScoredChunk, metrics, slice_metrics
from nybble.scoring.verdict import judge, load_thresholds

SETTINGS = {"q8_0/q8_0": 8e-4, "q8_0/q4_0": 7e-3, "q4_0/q4_0": 0.12}
CATEGORIES = ("code", "chat", "tools", "prose", "scripts", "long")
FLOOR = 9e-5


def draw(kld: float, n: int, first: int, seed: int) -> Rows:
    """Rows with about that mean KLD; a larger one flips more tokens. 0 gives an identity's."""
    # Text and reference depend on the position alone, as for settings that share their tokens.
    text, own = np.random.default_rng(seed), np.random.default_rng([seed, int(kld * 1e9)])
    rows = np.zeros(n, dtype=ROW)
    rows["position"] = np.arange(first, first + n)
    rows["token"] = text.integers(0, 1000, n)
    rows["nll_ref"] = text.gamma(1.5, 1.2, n)
    rows["top_ref"] = np.where(text.random(n) < 0.6, rows["token"], text.integers(0, 1000, n))
    rows["margin_ref"] = text.gamma(1.0, 1.5, n)
    hard = text.gamma(0.5, 2.0, n)  # hard tokens are hard for every setting
    rows["kld"] = kld * hard * own.gamma(1.0, 1.0, n)
    noise = own.normal(0.3 * kld, (2 * rows["kld"]) ** 0.5, n)
    rows["nll"] = np.maximum(rows["nll_ref"] + noise, 0.0)
    flip = own.random(n) < np.minimum(0.5, rows["kld"] ** 0.5 * 0.3)
    rows["top"] = np.where(flip, (rows["top_ref"] + 1) % 1000, rows["top_ref"])
    rows["rank"] = np.where(rows["top"] == rows["token"], 0, own.integers(1, 40, n))
    return rows


def write_run(
    folder: Path,
    *,
    model: str = "Tiny",
    file: str = "tiny-Q4_K_M.gguf",
    settings: Mapping[str, float] = SETTINGS,
    contexts: Sequence[int] = (1024,),
    categories: Sequence[str] = CATEGORIES,
    tokens: int = 128,
    engine: str = "llama.cpp",
    simulated: bool = False,
    seed: int = 0,
    guards: bool = True,
    created: str = "2026-11-20T10:00:00+00:00",
) -> Measurement:
    """Write rows/ and summary.json; one document of each category, `tokens` scored in each.

    Args:
        folder: of the run.
        model: name of the model; its weights' hash follows from `file`.
        file: its file name.
        settings: KV setting -> mean KLD to draw.
        contexts: lengths.
        categories: of the text.
        tokens: scored in each document.
        engine: as in the protocol.
        simulated: as in the rows.
        seed: of the text; runs with one seed share their tokens.
        guards: with floor and identity rows.
        created: as in the record.
    """
    store, limits = RunStore(folder), load_thresholds()
    lanes = [(s, "candidate", k) for s, k in settings.items()]
    if guards:
        lanes += [("bf16/bf16", "floor", FLOOR), ("f16/f16", "identity", 0.0)]
    sha = hashlib.sha256(file.encode()).hexdigest()
    found: list[Row] = []
    text = hashlib.sha256()
    for context in contexts:
        for setting, role, kld in lanes:
            scored = []
            for i, category in enumerate(categories):
                if (role == "identity" and i) or (role == "floor" and i % 2):
                    continue
                rows = draw(kld, tokens, context - tokens - 1, seed * 1000 + context + i)
                if setting == lanes[0][0]:
                    text.update(rows["token"].tobytes())
                scored.append(ScoredChunk(category, f"{category}-0", rows))
                key = content_key([sha, setting, context, category, seed, role])
                store.write_cell(
                    f"c{context}-{setting.replace('/', '-')}-{key}", rows,
                    {"model": "a", "reference": "a", "role": role, "setting": setting,
                     "context": context, "category": category, "document": f"{category}-0",
                     "chunk": 0, "rotation_k": 0, "rotation_v": 0},
                )  # fmt: skip
            found.append(_row(setting, role, context, scored, simulated, limits))
    record = Measurement(
        models=[ModelRecord("a", model, file, sha, "llama", 100_000_000, "Q4_K_M", "f16 copy",
                            32_768, None, "raw text")],
        rows=found,
        recommendation="drawn, not measured",
        warnings=[],
        command=f"nybble measure {file}",
        created=created,
        protocol={"engine": engine, "via": "prefill", "score_from": 0.5, "seed": 0,
                  "contexts": list(contexts), "text_sha256": text.hexdigest(),
                  "simulated": simulated,
                  "text": [{"category": c, "licence": "CC0", "title": c} for c in categories]},
        versions={"nybble": "0.1.0", "xllamacpp": "2026.10.11549", "llama.cpp": "0.6.0-dev"},
        hardware={"cpu": "AMD EPYC", "cores": 2, "threads": 2},
        timing={},
    )  # fmt: skip
    write_text(folder / "summary.json", to_json(record))
    return record


def _row(setting, role, context, scored, simulated, limits) -> Row:  # type: ignore[no-untyped-def]
    sample, types = Sample(scored), parse(setting)
    numbers = metrics(sample)
    bits = (types.k_type.bits + types.v_type.bits) / 2
    slices = [Slice(c.category, 1, len(c.rows), slice_metrics(Sample([c]))) for c in scored]
    return Row(
        setting=setting, role=role, context=context, k_type=types.k, v_type=types.v, bits=bits,
        bytes_per_token=bits * 192, cache_bytes=int(bits * 192 * context),
        cache_bytes_at={str(context): int(bits * 192 * context)},
        n_documents=sample.n_documents, n_tokens=sample.n_tokens, metrics=numbers,
        by_category=slices, verdict=judge(numbers, limits) if role == "candidate" else None,
        simulated=simulated,
    )  # fmt: skip
