"""The fold in llama.cpp: how much less a quantized cache hurts, and how far its scale carries.

    python bench/fold.py [--documents 3] [--smollm2 FILE.gguf]

Gemma 3 270M: original and folded on English prose, Python code and non-Latin scripts, with
intervals over documents. Then the scale calibrated on one kind of text only and measured on all
three. With --smollm2 (no norms on queries and keys) also what the formula and llama.cpp say of that
family, with its weights as shipped and as F16. No text that is scored is calibrated on.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

from common import save
from nybble import HardenRequest, NybbleError, harden, parse_setting
from nybble.results.hardened import Hardened
from nybble.scoring import prepare as prep
from nybble.scoring.corpora import training
from nybble.scoring.corpora.calibration import groups
from nybble.scoring.request import Silent

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


def main() -> None:
    """Run all and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=3)
    parser.add_argument("--smollm2", type=Path)
    parser.add_argument("--model", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        common = {"model": given.model, "documents": given.documents}
        result: dict[str, Any] = {"gemma-3-270m": fold(folder / "a.gguf", **common)}
        transfer = {"all kinds": result["gemma-3-270m"]["settings"][SETTINGS[0]]["by kind"]}
        for kind, path in one_kind(folder).items():
            run = fold(folder / "t.gguf", text=(path,), settings=SETTINGS[:1], **common)
            transfer[kind] = run["settings"][SETTINGS[0]]["by kind"] if "settings" in run else run
        result["transfer"] = transfer
        if given.smollm2:
            common["model"] = given.smollm2
            shipped = fold(folder / "s.gguf", **common)
            request = HardenRequest(out=folder / "f.gguf", model=given.smollm2)
            copy = prep.prepare("a", given.smollm2, request.measurement(given.smollm2), Silent())
            common["model"] = copy.scored_file
            result["SmolLM2-135M"] = {
                "as shipped": shipped,
                "F16": fold(folder / "f.gguf", **common),
            }
    print(save("fold", {"documents": given.documents, "kinds": KINDS, **result}))


if __name__ == "__main__":
    main()
