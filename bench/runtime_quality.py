"""Does nybble.Cache answer as the simulation of its setting says? The same tokens, scored twice.

    python bench/runtime_quality.py [--documents 8] [--context 640]

Once by decoding through nybble.Cache: a prefix, then every token of the text by itself, attention
reading the packed bytes. Once by decode replay, as `nybble measure --engine transformers` scores:
one pass in which K and V go through the setting's codecs. Both are compared with 16-bit K and V,
and with each other; the noise floor is bf16 against f16. llama.cpp's rounding of queries is left
out of the simulation, since this runtime does not do it.

A quantizer turns a difference of one float32 rounding into a whole step now and then, and 18 layers
make many of few. So the simulation is run a second time with its embeddings moved by one rounding:
how far it is then from itself is what two equal implementations may differ by. Writes
bench/results/runtime_quality.json and the tables of docs/runtime-numbers.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import runtime_page
from common import save
from nybble.engines.transformers.attention import NAME, Lanes
from nybble.engines.transformers.calibration_file import load as load_calibration
from nybble.engines.transformers.load import load
from nybble.engines.transformers.model import TorchModel
from nybble.environment import cache_dir, package_version
from nybble.formats.calibration import Calibration
from nybble.formats.codec import SideStore, layer_stores
from nybble.formats.setting import parse
from nybble.models.checkpoint import resolve
from nybble.runtime.attention import attach
from nybble.runtime.cache import Cache
from nybble.scoring import prepare
from nybble.scoring.calibrate import calibrate
from nybble.scoring.chunks import Chunk
from nybble.scoring.compare_torch import TorchReference
from nybble.scoring.request import MeasureRequest, Silent
from nybble.scoring.statistics import Sample, ScoredChunk, metrics, paired_difference
from nybble.scoring.text import gather, sources
from nybble.scoring.torch_backend import Transformers
from runtime_tables import quality_lines

SETTINGS = ("f16/f16", "q8_0/q8_0", "q4_0/q4_0", "nyb4/nyb4")
FLOOR = "bf16/bf16"
REFERENCE = "f16/f16"
_BLOCK = 64  # positions whose logits are held at a time
_DECODED = 128  # tokens that come one by one
_ROUNDING = 2.0**-24  # relative, of float32

States = Mapping[str, torch.Tensor]


def chunks(model: Path | None, documents: int, context: int) -> tuple[Path, str, Path, list[Chunk]]:
    """The text, tokenized as a measurement has it; the model, its fingerprint and statistics."""
    request = MeasureRequest(
        engine="transformers", categories=("prose",), documents=documents, contexts=(context,)
    )
    backend = Transformers(request)
    try:
        path = prepare.locate(model)
        prepared = backend.prepare("a", path, Silent())
        text = gather(prepared, sources(request), request, Silent(), backend)
    finally:
        backend.close()
    taken = prepare.calibration_path(prepared, cache_dir())
    return path, prepared.sha256, taken, text.chunks[context]


def simulated(
    model: TorchModel, tokens: torch.Tensor, setting: str, calibration: Calibration | None
) -> torch.Tensor:
    """Hidden states of decode replay, [documents, context, hidden]."""
    stores = [
        tuple(
            _without_queries(side)
            for side in layer_stores(
                parse(setting), layer, calibration=calibration, gguf=model.gguf_order, decode=True
            )
        )
        for layer in model.layers
    ]
    lanes: Any = Lanes([stores])
    return torch.cat([model.hidden(row.tolist(), lanes) for row in tokens])


def _without_queries(side: SideStore) -> SideStore:
    return SideStore(tuple((head, replace(codec, query=None)) for head, codec in side.codecs))


@contextmanager
def moved(whole: Any) -> Iterator[None]:
    """Within it, every embedding is off by one rounding at random."""
    random = torch.Generator().manual_seed(0)

    def move(module: Any, given: Any, out: torch.Tensor) -> torch.Tensor:
        up = torch.randint(0, 2, out.shape, generator=random) * 2 - 1
        return out * (1 + 2 * _ROUNDING * up)

    hook = whole.get_input_embeddings().register_forward_hook(move)
    try:
        yield
    finally:
        hook.remove()


def packed(
    whole: Any, base: Any, tokens: torch.Tensor, setting: str, calibration: Calibration | None,
    prefix: int,
) -> tuple[torch.Tensor, str]:  # fmt: skip
    """Hidden states through nybble.Cache, and what read it; all documents in one batch."""
    cache = Cache(whole, setting, calibration=calibration)
    parts = [tokens[:, :prefix], *tokens[:, prefix:].split(1, 1)]
    out = [base(input_ids=part, past_key_values=cache).last_hidden_state for part in parts]
    return torch.cat(out, 1), cache.kernel


def compare(
    model: TorchModel, found: Chunk, rows: Mapping[str, torch.Tensor],
    pairs: Sequence[tuple[str, str]], first: int,
) -> dict[tuple[str, str], np.ndarray]:  # fmt: skip
    """KLD rows of one document for pairs (candidate, reference) of hidden states."""
    parts: dict[tuple[str, str], list[np.ndarray]] = {pair: [] for pair in pairs}
    last = len(found.tokens)
    for start in range(first, last, _BLOCK):
        stop = min(start + _BLOCK, last)
        logits = {name: model.logits(x[start - 1 : stop - 1]) for name, x in rows.items()}
        made = {
            name: TorchReference(logits[name], found.tokens[start:stop], start)
            for name in {reference for _, reference in pairs}
        }
        for candidate, reference in pairs:
            parts[candidate, reference].append(made[reference].compare(logits[candidate]))
    return {pair: np.concatenate(some) for pair, some in parts.items()}


@torch.inference_mode()
def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Score everything."""
    path, fingerprint, taken, texts = chunks(args.model, args.documents, args.context)
    if any(parse(s).calibrated for s in args.settings) and not taken.exists():
        calibrate(args.model, out=taken)
    whole: Any = load(resolve(path), cache_dir(), torch.float32, "cpu", NAME)
    model = TorchModel(whole)
    base = getattr(whole, whole.base_model_prefix)
    tokens = torch.from_numpy(np.stack([chunk.tokens for chunk in texts])).long()
    prefix = args.context - min(_DECODED, args.context // 2)
    statistics = load_calibration(taken, fingerprint, model.layers) if taken.exists() else None

    def needed(setting: str) -> Calibration | None:
        return statistics if parse(setting).calibrated else None

    states: dict[str, torch.Tensor] = {}
    for setting in dict.fromkeys([REFERENCE, FLOOR, *args.settings]):
        say(f"simulated {setting}")
        states[f"simulated {setting}"] = simulated(model, tokens, setting, needed(setting))
    for setting in args.settings:
        say(f"simulated {setting}, again")
        with moved(whole):
            states[f"again {setting}"] = simulated(model, tokens, setting, needed(setting))
    attach(whole)
    kernels = {}
    for setting in args.settings:
        say(f"packed {setting}")
        states[f"packed {setting}"], kernels[setting] = packed(
            whole, base, tokens, setting, needed(setting), prefix
        )
    whole.set_attn_implementation(NAME)
    reference = f"simulated {REFERENCE}"
    pairs = [(f"simulated {FLOOR}", reference)]
    for setting in args.settings:
        same = f"simulated {setting}"
        pairs += [(f"{how} {setting}", other) for how in ("packed", "again")
                  for other in dict.fromkeys((reference, same))]  # fmt: skip
        pairs += [(same, reference)]
    scored: dict[tuple[str, str], list[ScoredChunk]] = {pair: [] for pair in pairs}
    for i, chunk in enumerate(texts):
        say(f"comparing {i + 1}/{len(texts)}")
        rows = {name: x[i] for name, x in states.items()}
        for pair, some in compare(model, chunk, rows, pairs, prefix).items():
            scored[pair].append(ScoredChunk(chunk.category, chunk.document, some))
    return {
        "model": path.stem, "context": args.context, "prefix": prefix,
        "documents": len({c.document for c in texts}), "kernel": kernels,
        "tokens": len(texts) * (args.context - prefix),
        "libraries": {n: package_version(n) for n in ("torch", "transformers")},
        **summary(scored, args.settings),
    }  # fmt: skip


def summary(
    scored: Mapping[tuple[str, str], Sequence[ScoredChunk]], settings: Sequence[str]
) -> dict[str, Any]:
    """Estimates of every setting: both ways, and the simulation against itself."""
    reference = f"simulated {REFERENCE}"
    samples = {pair: Sample(some) for pair, some in scored.items()}

    def mean(pair: tuple[str, str]) -> dict[str, Any]:
        return vars(metrics(samples[pair])["mean_kld"])

    def against(how: str, setting: str) -> dict[str, Any]:
        """A way against the simulation of its setting."""
        name, same = f"{how} {setting}", f"simulated {setting}"
        apart = paired_difference(samples[name, reference], samples[same, reference])
        kld = mean((name, reference))
        return {
            "kld": kld,
            "difference": vars(apart) if apart is not None
            else {"value": kld["value"] - mean((same, reference))["value"]},
            "to_simulated": mean((name, same)),
            "same_top": vars(metrics(samples[name, same])["same_top"]),
        }  # fmt: skip

    rows = {
        setting: {
            "simulated": mean((f"simulated {setting}", reference)),
            "packed": against("packed", setting), "again": against("again", setting),
        }
        for setting in settings
    }  # fmt: skip
    return {"floor": mean((f"simulated {FLOOR}", reference)), "rows": rows}


def say(what: str) -> None:
    """Progress."""
    print(what, file=sys.stderr, flush=True)


def main(given: Sequence[str] | None = None) -> None:
    """Measure, write the result and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="the demo model by default")
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--context", type=int, default=640)
    parser.add_argument("--settings", type=lambda t: t.split(","), default=list(SETTINGS))
    parser.add_argument("--no-save", action="store_true", help="only print")
    args = parser.parse_args(given)
    result = measure(args)
    if not args.no_save:
        save("runtime_quality", result)
        runtime_page.write()
    print(quality_lines(result))


if __name__ == "__main__":
    main()
