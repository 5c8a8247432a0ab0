"""The fold in llama.cpp: how much less a quantized cache hurts, and how far its scale carries.

    python bench/fold.py gains --documents 8
    python bench/fold.py transfer smollm2 --smollm2 FILE.gguf

Gemma 3 270M: original and folded on English prose, Python code and non-Latin scripts, with
intervals over documents. transfer: the scale calibrated on one kind of text only and measured on
all three. smollm2: a family without norms on queries and keys, as the formula and llama.cpp see it.
No text that is scored is calibrated on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

from common import RESULTS, put, save
from nybble import HardenRequest, NybbleError, harden, parse_setting
from nybble.results.hardened import Hardened
from nybble.scoring import prepare as prep
from nybble.scoring.corpora import training
from nybble.scoring.corpora.calibration import groups
from nybble.scoring.request import Silent

ROOT = Path(__file__).parents[1]
KINDS = ("prose", "code", "scripts")
SETTINGS = ("q4_0/q4_0", "q8_0/q8_0")


class Notes(Silent):
    """Keeps what the user would be told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Keep one."""
        self.notes.append(text)


def numbers(found: Hardened) -> dict[str, Any]:
    """Mean KLD before and after with intervals, all over and by kind of text."""
    rows = {(r.setting, r.model, r.reference): r for r in found.measurement.rows
            if r.role == "candidate"}  # fmt: skip
    settings = {}
    for gain in found.gains:
        before, after = (
            {s.name: s.metrics["mean_kld"].value for s in rows[gain.setting, m, "a"].by_category}
            for m in "ab"
        )
        settings[gain.setting] = {
            "before": vars(gain.before), "after": vars(gain.after),
            "times lower": round(gain.factor, 2),
            "by kind": {k: {"before": before[k], "after": after[k],
                            "times lower": round(before[k] / after[k], 2)} for k in before},
        }  # fmt: skip
    a, b = found.ppl
    return {
        "tokens": found.tokens, "statistics": found.statistics, "settings": settings,
        "drift": vars(found.drift), "floor": vars(found.floor),
        "ppl": {"before": a, "after": b, "change %": round(100 * (b / a - 1), 4)},
        "layers": [vars(y) for y in found.layers],
    }  # fmt: skip


def fold(out: Path, **options: Any) -> dict[str, Any]:
    """Harden, timed; a refusal is a result too."""
    settings = tuple(map(parse_setting, options.pop("settings", SETTINGS)))
    notes, start = Notes(), time.monotonic()
    request = HardenRequest(out=out, settings=settings, categories=KINDS, fresh=True, **options)
    try:
        found: dict[str, Any] = numbers(harden(request, notes))
    except NybbleError as error:
        found = {"refused": f"{error.what}: {error.seen}"}
    return {**found, "notes": notes.notes, "seconds": round(time.monotonic() - start)}


def one_kind(folder: Path) -> dict[str, Path]:
    """A file of each kind of text, of documents that no category scores."""
    _, chat, _, scripts = groups()
    modules = (d for d in training.documents() if d.id.startswith("training/"))
    texts = {
        "English chat": "\n\n".join(m["content"] for d in chat for m in d.messages),
        "Python code": "\n\n".join(d.text for d in islice(modules, 3)),
        "non-Latin scripts": "\n\n".join(d.text for d in scripts),
    }
    paths = {}
    for name, text in texts.items():
        paths[name] = folder / f"{name}.txt"
        paths[name].write_text(text, encoding="utf-8")
    return paths


def gains_table(models: dict[str, dict[str, Any]]) -> str:
    """Every model and KV type: mean KLD before and after, all over and times lower by kind."""
    lines = [
        f"| model | KV type | before | after | times lower | {' | '.join(KINDS)} |",
        "|---|---|--:|--:|--:" + "|--:" * len(KINDS) + "|",
    ]
    for name, run in models.items():
        if "refused" in run:
            reason = run["refused"].partition(": ")[2]
            lines.append(f"| {name} | refused: {reason} | | | |" + " |" * len(KINDS))
            continue
        for setting, s in run["settings"].items():
            spans = [f"{e['value']:.2g} [{e['low']:.2g}, {e['high']:.2g}]"
                     for e in (s["before"], s["after"])]  # fmt: skip
            kinds = " | ".join(f"{s['by kind'][k]['times lower']:.1f}" for k in KINDS)
            cells = [name, setting, *spans, f"**{s['times lower']:.1f}**", kinds]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def transfer_table(transfer: dict[str, Any]) -> str:
    """Mean KLD after the fold, by what it was calibrated on and what it was measured on."""
    lines = [f"| calibrated on | {' | '.join(KINDS)} |", "|---" + "|--:" * len(KINDS) + "|"]
    before = next(iter(transfer.values()))
    lines.append("| not folded | " + " | ".join(f"{before[k]['before']:.3f}" for k in KINDS) + " |")
    for name, by_kind in transfer.items():
        cells = [f"{by_kind[k]['after']:.3f} ({by_kind[k]['times lower']:.1f}x)" for k in KINDS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_page(result: dict[str, Any]) -> None:
    """Remake the tables of docs/harden.md and the README."""
    gemma = result["gemma-3-270m"]
    models = {"Gemma 3 270M": gemma}
    for kind, run in result["SmolLM2-135M"].items():
        models[f"SmolLM2 135M, {kind}"] = run
    put(ROOT / "README.md", "harden", gains_table({"Gemma 3 270M": gemma}))
    page = ROOT / "docs" / "harden.md"
    put(page, "fold", gains_table(models))
    put(page, "transfer", transfer_table(result["transfer"]))


def transfer(folder: Path, common: dict[str, Any]) -> dict[str, Any]:
    """The same model folded by each kind of text alone, and by all."""
    found = {}
    for kind, path in {"all kinds": None, **one_kind(folder)}.items():
        text = () if path is None else (path,)
        run = fold(folder / "t.gguf", text=text, settings=SETTINGS[:1], **common)
        found[kind] = run["settings"][SETTINGS[0]]["by kind"]
    return found


def smollm2(folder: Path, path: Path, common: dict[str, Any]) -> dict[str, Any]:
    """A model without norms on queries and keys: its 4-bit weights, and the same as F16."""
    request = HardenRequest(out=folder / "f.gguf", model=path)
    copy = prep.prepare("a", path, request.measurement(path), Silent())
    files = {"weights in 4 bits, as shipped": path, "weights in F16": copy.scored_file}
    return {k: fold(folder / "s.gguf", **{**common, "model": f}) for k, f in files.items()}


def main() -> None:
    """Run what is asked for, keep the rest of the last result, and remake the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help="gains, transfer, smollm2, or none: pages only")
    parser.add_argument("--documents", type=int, default=3)
    parser.add_argument("--smollm2", type=Path)
    parser.add_argument("--model", type=Path)
    given = parser.parse_args()
    path = RESULTS / "fold.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        common = {"model": given.model, "documents": given.documents}
        if "gains" in given.parts:
            result["gemma-3-270m"] = fold(folder / "a.gguf", **common)
        if "transfer" in given.parts:
            result["transfer"] = transfer(folder, common)
        if "smollm2" in given.parts:
            result["SmolLM2-135M"] = smollm2(folder, given.smollm2, common)
    if given.parts:
        kept = {k: result[k] for k in ("gemma-3-270m", "transfer", "SmolLM2-135M") if k in result}
        documents = {**result.get("documents", {}), **dict.fromkeys(given.parts, given.documents)}
        print(save("fold", {"documents": documents, "kinds": KINDS, **kept}))
    write_page(result)


if __name__ == "__main__":
    main()
