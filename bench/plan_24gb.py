"""The question of the news: which context does Gemma 4 31B QAT hold on a card of 24 GB?

    python bench/plan_24gb.py

Writes the command's own output into README.md, tables into docs/plan.md, the picture, and
bench/results/plan_24gb.json. Nothing is measured: sizes follow from published shapes, and
bench/plan_llamacpp.py holds them against llama.cpp's own account.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import put, save, table
from nybble import CardChoice, CostRequest, PlanRequest, cost, plan
from nybble.planning.cost import LoadProfile
from nybble.report.cost_table import cells
from nybble.report.plan_plots import save_cost, save_memory
from nybble.report.plan_table import gib, largest, rows, short
from nybble.results.plans import Plan

ROOT = Path(__file__).parents[1]
MODEL, CARD = "gemma-4-31b-qat", "rtx-4090"
LATENT = "q4_0/q4_0+latent"
COMMAND = ("plan", MODEL, "--gpu", CARD)
MODELS = {  # and which published file
    "gemma-4-12b-qat": "q4_0", "gemma-4-26b-a4b-qat": "q4_0", "gemma-4-31b-qat": "q4_0",
    "gemma-3-27b-qat": "q4_0", "qwen3-14b": "q4_k_m", "qwen3-30b-a3b": "q4_k_m",
    "qwen3-32b": "q4_k_m", "qwen3.6-35b-a3b": "q4_k_m", "gpt-oss-20b": "mxfp4",
    "llama-3.1-8b": "q4_k_m",
}  # fmt: skip
CARDS = ("rtx-3060", "rtx-5080", "rtx-3090", "rtx-4090", "rtx-5090", "2xrtx-3090", "l40s")
KV = ("f16/f16", "q8_0/q8_0", "q8_0/q4_0", "q4_0/q4_0")
LOAD = LoadProfile(tokens_in=30_000, tokens_out=700, users=2, requests_per_hour=40,
                   hours_per_day=10, cached=0.5)  # fmt: skip
WAYS = ("rtx-4090:q4_0", "rtx-4090:q8_0/q4_0", "rtx-5090:q8_0", "2xrtx-4090:f16", "h100-sxm:f16")


def llamacpp(model: str, card: str, file: str | None = None) -> Plan:
    """A plan with every KV type that llama.cpp lists."""
    asked = PlanRequest(model, file, CardChoice(card), engines=("llama.cpp",), curve=True)
    return plan(asked)


def shown() -> str:
    """What a terminal of 112 columns shows."""
    run = subprocess.run(
        [sys.executable, "-m", "nybble", *COMMAND], capture_output=True, text=True, check=True,
        env={**os.environ, "COLUMNS": "112"}, cwd=tempfile.gettempdir(),
    )  # fmt: skip
    lines = [line.rstrip() for line in run.stdout.rstrip().splitlines()]
    return "\n".join(["```", f"$ nybble {' '.join(COMMAND)}", *lines, "```"])


def by_card() -> tuple[str, dict[str, Any]]:
    """Largest contexts of Gemma 4 31B QAT, a line for each card."""
    kept, lines = {}, []
    for card in CARDS:
        fits = {f.setting: f for f in llamacpp(MODEL, card).fits}
        kept[card] = {kv: fits[kv].largest_context for kv in KV}
        lines.append([card, *(largest(fits[kv]) for kv in KV)])
    return table(["card", *KV], lines), kept


def by_model() -> tuple[str, dict[str, Any]]:
    """Largest contexts on 24 GB, a line for each model."""
    kept, lines = {}, []
    for model, file in MODELS.items():
        made = llamacpp(model, CARD, file)
        fits = {f.setting: f for f in made.fits if not f.refused}
        weights = f"{file.upper()}, {gib(made.weights_bytes)} GiB"
        kept[model] = {"weights": made.weights_bytes,
                       **{kv: fits[kv].largest_context for kv in KV}}  # fmt: skip
        lines.append([model, weights, *(largest(fits[kv]) for kv in KV)])
    return table(["model", "weights", *KV], lines), kept


def by_engine() -> tuple[str, dict[str, Any]]:
    """Every engine's own KV types for Gemma 4 31B QAT on 24 GB, the same weights in all."""
    kept: dict[str, Any] = {}
    lines = []
    for fit in plan(PlanRequest(MODEL, cards=CardChoice(CARD))).fits:
        if not fit.refused:
            kept.setdefault(fit.engine, {})[fit.setting] = fit.largest_context
            lines.append([fit.engine, short(fit.setting), f"{fit.bits:.3g}",
                          f"{fit.bytes_per_token:,.0f}", largest(fit)])  # fmt: skip
    return table(["engine", "KV type", "bits", "bytes/token", "largest context"], lines), kept


def whole_context() -> tuple[str, str, dict[str, Any]]:
    """The runtime at the model's own longest context: a table, and a sentence for the README.

    Weights are what differs most between checkpoints of 4 bits, so what is left for larger ones
    is told too.
    """
    made = plan(PlanRequest(MODEL, cards=CardChoice(CARD), engines=("nybble",)))
    longest, room, weights = made.context_length, made.budget or 0, made.weights_bytes
    kept: dict[str, dict[str, Any]] = {}
    lines = []
    for fit in made.fits:
        needs = fit.memory[longest]
        most = weights + room - needs
        kept[fit.setting] = {"largest": fit.largest_context, "bytes": needs, "weights": most}
        lines.append([fit.setting, f"{fit.bytes_per_token:,.0f}", largest(fit), gib(needs),
                      gib(most) if needs <= room else "-"])  # fmt: skip
    head = ["KV type", "bytes/token", "largest context", f"GiB at {longest:,}",
            "with weights of up to"]  # fmt: skip
    best = kept[LATENT]
    said = (
        f"In nybble's own runtime the whole {longest:,} tokens fit: `{LATENT}` keeps one latent "
        f"where K is a function of V, {gib(best['bytes'])} GiB in all, and leaves room for "
        f"weights of up to {gib(best['weights'])} GiB."
        if best["largest"] == longest
        else f"In nybble's own runtime `{LATENT}` holds {best['largest']:,} tokens."
    )
    return table(head, lines), said, kept


def main() -> None:
    """Remake everything."""
    put(ROOT / "README.md", "plan", shown())
    made = llamacpp(MODEL, CARD)
    save_memory(made, ROOT / "docs" / "img" / "plan.svg")
    result: dict[str, Any] = {}
    for name, make in (("cards", by_card), ("models", by_model), ("engines", by_engine)):
        text, result[name] = make()
        put(ROOT / "docs" / "plan.md", name, text)
    text, said, result["runtime"] = whole_context()
    put(ROOT / "docs" / "plan.md", "runtime", text)
    put(ROOT / "README.md", "latent", said)
    costs = cost(CostRequest(MODEL, WAYS, LOAD, apis=("gemma-4-31b",), curve=True))
    header = ["option", "how", "sequences", "cards", "busy", "USD/month", "USD per M answer tokens"]
    lines = [cells(r)[: len(header)] for r in costs.costs if not r.refused]
    put(ROOT / "docs" / "plan.md", "costs", table(header, lines))
    save_cost(costs, ROOT / "docs" / "img" / "cost.svg")
    result["costs"] = {f"{r.name}, {r.how}": r.month for r in costs.costs}
    header, lines = rows(made, "llama.cpp")
    result["gemma-4-31b-qat on rtx-4090"] = [
        dict(zip([h.replace("\n", " ") for h in header], line, strict=True)) for line in lines
    ]
    print(save("plan_24gb", result))


if __name__ == "__main__":
    main()
