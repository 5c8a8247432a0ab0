"""Every format on one model: mean KLD against stored bits, and the picture in the README.

    python bench/pareto.py [--documents 2] [--smollm2 FILE.gguf]

Gemma 3 270M on English prose, Python code and non-Latin scripts, none of it used for calibration;
the cache as generation reads it (--via decode). Stored bits are counted at 4,096 tokens, with
scales, protected tokens, windows and skipped layers. With --smollm2 that model is measured too,
with the formats of about four bits.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from common import put, save
from nybble import MeasureRequest, measure, parse_setting
from nybble.results.records import Measurement
from nybble.results.store import write_text

ROOT = Path(__file__).parents[1]
FOUR_BIT = (
    "q4_0", "iq4_nl", "int4_per_token_head", "nvfp4", "fp4_mx_block16", "turboquant_4bit_nc",
    "exl2_q4", "exl3_4", "mlx_4", "lmdeploy_int4", "nyb4",
)  # fmt: skip
MORE = (
    "q4_0-norot", "q4_0+mean+scale+search", "exl3_3", "kivi4", "quanto_4", "q4_1", "q5_1",
    "q8_0/q4_0", "q8_0", "exl3_6", "int8_per_token_head", "fp8_e4m3",
)  # fmt: skip
KINDS = ("prose", "code", "scripts")
AT = 4096  # tokens of context that stored bits are counted at
CONTEXT = 640  # past the demo model's window of 512


def run(model: Path | None, names: tuple[str, ...], documents: int, out: Path) -> Measurement:
    """Measure some settings; the same folder again continues."""
    request = MeasureRequest(
        model=model, settings=tuple(map(parse_setting, names)), engine="transformers",
        via="decode", contexts=(CONTEXT,), categories=KINDS, documents=documents,
        memory_at=(AT,), out=out,
    )  # fmt: skip
    return measure(request).measurement


def table(m: Measurement) -> list[dict[str, Any]]:
    """Setting, bits at AT, mean KLD with interval, and by kind of text; best first."""
    f16 = next(r for r in m.rows if r.role == "identity").cache_bytes_at[str(AT)]
    rows = [
        {
            "setting": r.setting,
            "bits": round(16 * r.cache_bytes_at[str(AT)] / f16, 4),
            "mean_kld": vars(r.metrics["mean_kld"]),
            **{s.name: s.metrics["mean_kld"].value for s in r.by_category},
        }
        for r in m.rows
        if r.role in ("candidate", "floor") and r.status == "done"
    ]
    return sorted(rows, key=lambda r: r["mean_kld"]["value"])


def ratios(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What nyb4 has to reach: its ratio to q4_0, and the best other format of 4.5 bits or less."""
    found: dict[str, Any] = {}
    mine = next(r for r in rows if r["setting"] == "nyb4/nyb4")
    q4_0 = next(r for r in rows if r["setting"] == "q4_0/q4_0")
    others = [r for r in rows if r["bits"] <= 4.5 and r["setting"] != "nyb4/nyb4"]
    for kind in KINDS:
        best = min(others, key=lambda r: r[kind])
        found[kind] = {
            "nyb4": mine[kind],
            "q4_0 over nyb4": round(q4_0[kind] / mine[kind], 2),
            "best other": best["setting"],
            "best other over nyb4": round(best[kind] / mine[kind], 2),
        }
    return {"bits": mine["bits"], **found}


def block(rows: list[dict[str, Any]]) -> str:
    """The README's table: what takes up to 4.6 bits, and three larger types to compare with."""
    known = ("q8_0/q8_0", "q8_0/q4_0", "q5_1/q5_1")
    lines = [
        "| KV type | bits at 4K | mean KLD | prose | code | non-Latin |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for r in sorted(rows, key=lambda r: r["mean_kld"]["value"]):
        if r["setting"] in known or r["bits"] <= 4.6:
            k = r["mean_kld"]
            span = f"{k['value']:.2g} [{k['low']:.2g}, {k['high']:.2g}]"
            kinds = " | ".join(f"{r[kind]:.2g}" for kind in KINDS)
            name = f"**{r['setting']}**" if r["setting"].startswith("nyb4") else r["setting"]
            lines.append(f"| {name} | {r['bits']:.2f} | {span} | {kinds} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, write the numbers and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=2)
    parser.add_argument("--smollm2", type=Path)
    parser.add_argument("--keep", type=Path, help="folder to continue in")
    args = parser.parse_args()
    keep = args.keep or Path(tempfile.mkdtemp())
    gemma = run(None, (*FOUR_BIT, *MORE), args.documents, keep / "gemma")
    numbers: dict[str, Any] = {"gemma-3-270m": {"nyb4": ratios(table(gemma)), "rows": table(gemma)}}
    if args.smollm2:
        smol = run(args.smollm2, FOUR_BIT, args.documents, keep / "smollm2")
        numbers["SmolLM2-135M"] = {"nyb4": ratios(table(smol)), "rows": table(smol)}
    path = save(
        "pareto", {"context": CONTEXT, "bits_at": AT, "documents": args.documents, **numbers}
    )
    from nybble.report.plots import pareto_svg

    write_text(ROOT / "docs" / "img" / "pareto.svg", pareto_svg(gemma, AT))
    put(ROOT / "README.md", "pareto", block(table(gemma)))
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
