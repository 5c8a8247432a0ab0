"""A base as cells: stored, simulated and served runs, a hardened copy, failures, hostile names."""

from __future__ import annotations

import dataclasses

from report_builders import (
    DRIFT,
    ERROR,
    IMAGE,
    MODEL,
    SCRIPT,
    forty,
    measurement,
    model,
    references,
    row,
)

from nybble.report.site.details import Details, TypeNote, key
from nybble.results.base.cell import Cell, cells_of
from nybble.results.base.external import External, Imported
from nybble.results.records import Measurement, ModelRecord, Served

HARDER = {k: v * 3 for k, v in DRIFT.items()}


def named(name: str, file: str, sha: str) -> ModelRecord:
    return dataclasses.replace(model(name=name), file=file, sha256=sha * 32)


def run(which: ModelRecord, drift: dict[str, float], *contexts: int) -> Measurement:
    rows = [row(s, k, context=c) for c in contexts for s, k in drift.items()]
    return measurement([*rows, *(r for c in contexts for r in references(c))], [which])


def served() -> Measurement:
    found = run(named("Served 7B", "served", "77"), DRIFT, 4096)
    how = Served("vllm", "0.12.0", 64, "prefill")
    rows = [dataclasses.replace(r, served=how) for r in found.rows]
    failed = dataclasses.replace(
        rows[0], setting="q5_1/q5_1", k_type="q5_1", v_type="q5_1", bits=6.0, status="failed",
        error=ERROR, metrics={}, verdict=None,
    )  # fmt: skip
    return dataclasses.replace(found, rows=[*rows, failed])


def against() -> Measurement:
    """A hardened copy against the original's 16-bit cache."""
    rows = [row("q4_0/q4_0", 0.5, model="b", reference="a")]
    models = [named("Gemma", "gemma.gguf", "11"), named("Gemma", "gemma-hard.gguf", "22")]
    return measurement(rows, [models[0], dataclasses.replace(models[1], label="b")])


RUNS = {
    "gemma": run(named("Gemma", "gemma.gguf", "11"), HARDER, 1024, 4096),
    "hardened": run(named("Gemma", "gemma-hard.gguf", "22"), DRIFT, 1024, 4096),
    "hostile": run(named(MODEL, f"{IMAGE}.gguf", "33"), DRIFT, 4096),
    "stored": run(model(name="Gemma 3 270M"), DRIFT, 4096),
    "simulated": forty(),
    "served": served(),
    "against": against(),
}


def cells(*names: str) -> list[Cell]:
    """Of these runs; of all without a name."""
    return [c for name in names or RUNS for c in cells_of(RUNS[name], f"runs/{name}")]


def details() -> Details:
    slices = {
        key(cell): row.by_category
        for name, m in RUNS.items()
        for cell, row in zip(cells_of(m, f"runs/{name}"), m.rows, strict=True)
        if cell.own and cell.role == "candidate"
    }
    framing = {("runs/gemma", "11" * 32): f"chat template {IMAGE}"}
    types = {"q4_0": TypeNote(4.5, "blocks of 32 with one f16 scale", "ggml", ("llama.cpp",))}
    return Details(slices, framing, types)


IMPORTED = [
    Imported("llama-perplexity", "b9000", f"log {SCRIPT}.txt", "aa" * 32,
             [External("Gemma", "q8_0/q8_0", "mean_kld", 0.00123, 0.0001, "wiki", 512, 100, False,
                       f"page 3 {IMAGE}")], "2026-11-01"),
    Imported("lm-eval", "0.4.13", "results.json", "bb" * 32,
             [External("Gemma", "", "acc_norm", 0.5125, None, "hellaswag", None, None, True)],
             "2026-11-01"),
]  # fmt: skip
