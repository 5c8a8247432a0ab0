"""Fill the tables of docs/rag.md from bench/results: python bench/rag_page.py."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

from common import RESULTS, put, table

PAGE = Path(__file__).parents[1] / "docs" / "rag.md"


def read(name: str) -> dict[str, Any]:
    """A result by its bench's name."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def prefix() -> str:
    """A context read from its file against one computed."""
    found = read("rag_prefix")
    head = ["model", "KV type", "tokens", "file", "over cache", "load", "first token, computed",
            "first token, from file", "sooner"]  # fmt: skip
    lines = [
        [row["model"].removesuffix(".gguf"), row["kv"], f"{row['tokens']:,}",
         f"{row['file_bytes'] / 2**20:.1f} MiB", f"{100 * (row['file_over_cache'] - 1):+.1f} %",
         f"{row['load_s']:.2f} s", f"{row['first_token_whole_s']:.1f} s",
         f"{median(row['first_token_read_s']):.2f} s", f"{row['times_sooner']:.0f}x"]
        for row in found["rows"]
    ]  # fmt: skip
    where = (
        f"{found['hardware']['cpu']}, {found['hardware']['cores']} cores; `bench/rag_prefix.py`."
    )
    return table(head, lines) + f"\n\n{where}"


def retrieval() -> str:
    """Recall by kind of question, and how long indexing and searching take."""
    found = read("rag_retrieval")
    head = ["questions", "n", "retrieval", "recall@1", "recall@5", "recall@10", "MRR@10"]
    lines = []
    for name in ("generated, seed 4", "written, even"):
        kind = found["recall"][name]
        for mode in ("hybrid", "dense", "lexical"):
            at = kind[mode]
            numbers = (at[f"recall_{k}"] for k in (1, 5, 10))
            lines.append([name, str(kind["n"]), mode, *(f"{x:.3f}" for x in numbers),
                          f"{at['mrr_10']:.3f}"])  # fmt: skip
    speed, search = found["indexing_without_embedding"], found["search_ms"]
    told = (
        f"Indexing without embedding: {speed['passages_per_second']:,.0f} passages a second; "
        f"embedding: {found['embedding']['passages_per_second']:.0f}. A hybrid search: "
        f"{search['hybrid']['wall_median']:.0f} ms, p95 {search['hybrid']['wall_p95']:.0f}; "
        f"{found['hardware']['cpu']}, {found['hardware']['cores']} cores."
    )
    return table(head, lines) + f"\n\n{told}"


def answers() -> str:
    """What became of the answers at each KV setting."""
    found = read("rag_answers")
    head = ["model", "KV type", "answered rightly", "lost", "gained", "p", "answer NLL, nats"]
    lines = []
    for name, model in found["models"].items():
        for row in model["rows"]:
            change = row["answer_nll"]
            paired = row["role"] != "reference"
            lines.append([
                name, row["setting"], share(row["choice"]),
                *((str(row["lost"]), str(row["gained"])) if paired else ("–", "–")),
                f"{row['p']:.2g}" if row["p"] is not None else "–",
                "–" if change is None else interval(change),
            ])  # fmt: skip
    made = found["questions"]
    told = (
        f"{made['asked']} questions about the documents below, over the {found['passages']} "
        f"passages that the hybrid finds (left out: {made['unfound']} whose source was not among "
        "them). One of four by chance. `bench/rag_answers.py`."
    )
    return table(head, lines) + f"\n\n{told}"


def share(estimate: dict[str, Any]) -> str:
    """A share with its interval."""
    ends = [estimate["low"], estimate["high"]]
    return f"{estimate['value']:.0%}" + (
        f" [{ends[0]:.0%}, {ends[1]:.0%}]" if None not in ends else ""
    )


def interval(estimate: dict[str, Any]) -> str:
    """A difference with its interval."""
    ends = [estimate["low"], estimate["high"]]
    text = f"{estimate['value']:+.3f}"
    return text + (f" [{ends[0]:+.3f}, {ends[1]:+.3f}]" if None not in ends else "")


def main() -> None:
    """Write every table."""
    put(PAGE, "prefix", prefix())
    put(PAGE, "answers", answers())
    put(PAGE, "retrieval", retrieval())


if __name__ == "__main__":
    main()
