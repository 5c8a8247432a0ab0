"""docs/runtime-numbers.md: the words of bench/runtime_numbers.md, and tables of the kept results.

python bench/runtime_page.py
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from common import RESULTS, put, table
from runtime_tables import generate_lines, quality_lines

PAGE = Path(__file__).parents[1] / "docs" / "runtime-numbers.md"
NOT_MEASURED = "not measured"
OLD = ("quanto 4 step", "hqq 4 step")  # transformers' 4-bit caches
K32 = 32768

Found = Mapping[str, Any] | None


def kept(name: str) -> dict[str, Any] | None:
    """A result as it was last written."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def machine(result: Mapping[str, Any]) -> str:
    """What a result was measured on."""
    hardware = result["hardware"]
    capability = result.get("cpu_capability")
    cpu = f"{hardware['cores']} cores of {hardware['cpu']}"
    if capability and capability != "DEFAULT":
        cpu += f" ({capability})"
    device = result.get("device", "cpu")
    return cpu if device == "cpu" else str(device)


def caption(result: Mapping[str, Any]) -> str:
    """Machine, versions and date."""
    versions = [f"{name} {v}" for name, v in result["libraries"].items() if v]
    about = [machine(result), result["hardware"]["system"], *versions]
    if "flush_bytes" in result:
        about.append(f"{result['runs']} runs a way, {result['threads']} threads")
    if result.get("load_before", 0) > 0.5:
        about.append(f"others at work (load average {result['load_before']:.1f} before the run)")
    return f"{', '.join(about)}; {result['date']}, commit {result['commit']}."


def span(found: Mapping[str, Any], unit: str = "") -> str:
    """A value with its interval, if it has one."""
    low, high = found.get("low"), found.get("high")
    text = f"{found['value']:.3g}{unit}"
    return text if low is None else f"{text} [{low:.3g}, {high:.3g}]"


# What decode measured.


def case_of(result: Found, shape: str, group: int, batch: int) -> Mapping[str, Any] | None:
    """A case at 32K."""
    for case in result["cases"] if result else ():
        key = (case["shape"], case["group"], case["batch"], case["context"])
        if key == (shape, group, batch, K32) and "ways" in case:
            found: Mapping[str, Any] = case
            return found
    return None


def decode_tables(result: Mapping[str, Any]) -> str:
    """Attention, then whole steps."""
    cases = [case for case in result["cases"] if "ways" in case]
    found = [attention_table(cases), step_table(cases), notes(result["cases"])]
    return "\n\n".join([caption(result), *(text for text in found if text)])


def label(case: Mapping[str, Any]) -> str:
    """A case in a few letters."""
    return f"{case['shape']} G{case['group']} B{case['batch']} {case['context'] // 1024}K"


def names_of(cases: Iterable[Mapping[str, Any]], step: bool) -> list[str]:
    """Ways, in the order of the results."""
    found = dict.fromkeys(name for case in cases for name in case["ways"])
    return [name for name in found if name.endswith(" step") == step]


def attention_table(cases: list[Mapping[str, Any]]) -> str:
    """Milliseconds, speed-up over bf16, share of the copy bandwidth."""
    names = names_of(cases, step=False)
    rows = []
    for case in cases:
        row = [label(case), f"{case['copy_bytes_per_s'] / 1e9:.1f}"]
        for name in names:
            way = case["ways"].get(name)
            row.append("" if way is None else attention_cell(way))
        rows.append(row)
    return table(["KV heads x size", "copy GB/s", *(f"{name}, ms" for name in names)], rows)


def attention_cell(way: Mapping[str, Any]) -> str:
    """One way in one case."""
    ratio = way["faster_than"].get("bf16")
    inside = [] if ratio is None else [f"{ratio['value']:.2f}x"]
    inside.append(f"{way['share_of_copy']:.0%}")
    slow = ", reference kernel" if way["kernel"] == "reference" else ""
    return f"{way['seconds'] * 1e3:.3g} ({', '.join(inside)}{slow})"


def step_table(cases: list[Mapping[str, Any]]) -> str:
    """Milliseconds of whole steps, and how many times slower than nybble's."""
    with_steps = [case for case in cases if "q4_0 step" in case["ways"]]
    names = names_of(with_steps, step=True)
    rows = []
    for case in with_steps:
        ours = case["ways"]["q4_0 step"]
        row = [label(case)]
        for name in names:
            way = case["ways"].get(name)
            text = "" if way is None else f"{way['seconds'] * 1e3:.3g}"
            if name in ours["faster_than"] and way is not None:
                text += f" ({ours['faster_than'][name]['value']:.3g}x ours)"
            row.append(text)
        rows.append(row)
    return table(["KV heads x size", *(f"{n}, ms" for n in names)], rows) if rows else ""


def notes(cases: list[Mapping[str, Any]]) -> str:
    """What was left out, and why."""
    found: dict[str, list[str]] = {}
    for case in cases:
        for name, why in case.get("left_out", {}).items():
            # A backend that refuses a shape says nothing a reader could use; the choice is kept.
            if not name.startswith(("bf16 sdpa", "f32 sdpa")):
                found.setdefault(f"{name}: {why}", []).append(label(case))
        if "skipped" in case:
            found.setdefault(case["skipped"], []).append(label(case))
    return "\n".join(f"- {what} ({', '.join(where)})" for what, where in found.items())


# What generate and runtime_quality measured.


def generate_tables(result: Mapping[str, Any]) -> str:
    """All runs."""
    return f"{caption(result)}\n\n{generate_lines(result['runs'])}"


def quality_tables(result: Mapping[str, Any]) -> str:
    """Every setting."""
    about = (
        f"{result['model']}, {result['documents']} documents of {result['context']:,} tokens, "
        f"{result['tokens']:,} scored, {result['context'] - result['prefix']} of each decoded one "
        f"by one. {caption(result)}"
    )
    return f"{about}\n\n{quality_lines(result)}"


# The targets.


def row(what: str, asked: str, measured: str, on: str, reached: bool | None) -> list[str]:
    """A line; None where nothing was measured."""
    verdict = {True: "reached", False: "not reached", None: NOT_MEASURED}[reached]
    return [what, asked, measured, on, verdict]


def ratio_row(
    what: str, least: float, result: Found, case: Found, way: str, bases: Iterable[str]
) -> list[str]:
    """A speed-up over the fastest of some ways."""
    found = [] if case is None or way not in case["ways"] else [
        case["ways"][way]["faster_than"][base] for base in bases
        if base in case["ways"][way]["faster_than"]
    ]  # fmt: skip
    asked = f"at least {least:g}x"
    if not found or result is None:
        return row(what, asked, "", "", None)
    worst = min(found, key=lambda ratio: ratio["value"])
    return row(what, asked, span(worst, "x"), machine(result), worst["value"] >= least)


def targets(
    cpu: Found, cuda: Found, generated: Found, quality: Found
) -> str:  # fmt: skip
    """Every target, what was measured for it, and on what."""
    rows = []
    for shape in ("1x256", "8x128"):
        case = case_of(cpu, shape, 4, 1)
        for way in ("q4_0", "nyb4"):
            rows.append(ratio_row(f"CPU, 32K, {shape}: {way} attention over bf16 SDPA", 3,
                                  cpu, case, way, ["bf16"]))  # fmt: skip
        rows.append(ratio_row(f"CPU, 32K, {shape}: a q4_0 step over QuantizedCache's", 20,
                              cpu, case, "q4_0 step", OLD))  # fmt: skip
    for kind in ("q4_0", "q8_0"):
        what = f"CPU, 32K, Gemma 4 31B global shape: latent {kind} over {kind}"
        latent = case_of(cpu, "4x512", 8, 1)
        rows.append(ratio_row(what, 1.6, cpu, latent, f"latent {kind}", [kind]))
    wide = case_of(cuda, "8x128", 8, 16)
    rows.append(ratio_row("GPU, 32K, batch 16, 8x128, G8: q4_0 over the best bf16 kernel", 3,
                          cuda, wide, "q4_0", ["bf16"]))  # fmt: skip
    rows.append(share_row("the same, share of copy bandwidth", 0.7, cuda, wide, "q4_0"))
    what = "GPU, 32K, batch 16, 4x512: latent q4_0 over the best bf16 kernel"
    global_ = case_of(cuda, "4x512", 8, 16)
    rows.append(ratio_row(what, 5, cuda, global_, "latent q4_0", ["bf16"]))
    rows += memory_rows(generated)
    rows += quality_rows(quality)
    return table(["what", "asked", "measured", "on", ""], rows)


def share_row(what: str, least: float, result: Found, case: Found, way: str) -> list[str]:
    """A share of the copy bandwidth."""
    asked = f"at least {least:.0%}"
    if result is None or case is None or way not in case["ways"]:
        return row(what, asked, "", "", None)
    share = case["ways"][way]["share_of_copy"]
    return row(what, asked, f"{share:.0%}", machine(result), share >= least)


def memory_rows(result: Found) -> list[list[str]]:
    """Peak memory of the longest prompts with packed caches."""
    asked = "at most 10 % over"
    runs = [
        run for run in (result["runs"] if result else ())
        if "/" in run["cache"] and run["prompt"] > 30_000 and run.get("over") is not None
    ]  # fmt: skip
    if result is None or not runs:
        return [row("peak memory at 32K over weights and bytes_stored", asked, "", "", None)]
    return [
        row(f"peak memory at 32K over weights and bytes_stored, {run['cache']}", asked,
            f"{run['over']:+.1%}", machine(result), run["over"] <= result["bound"])
        for run in runs
    ]  # fmt: skip


def quality_rows(result: Found) -> list[list[str]]:
    """Whether cache and simulation differ by more than the simulation from itself."""
    asked = "0 within the interval, or below the noise floor"
    if result is None:
        return [row("KLD through nybble.Cache less KLD simulated", asked, "", "", None)]
    found = []
    for setting, one in result["rows"].items():
        apart = one["packed"]["difference"]
        small = abs(apart["value"]) <= result["floor"]["value"]
        inside = apart.get("low") is not None and apart["low"] <= 0 <= apart["high"]
        found.append(row(f"KLD through nybble.Cache less KLD simulated, {setting}", asked,
                         span(apart), machine(result), small or inside))  # fmt: skip
    return found


def write() -> None:
    """Remake the page from the kept results."""
    cpu, cuda = kept("decode-cpu"), kept("decode-cuda")
    generated, quality = kept("generate"), kept("runtime_quality")
    words = Path(__file__).with_name("runtime_numbers.md").read_text(encoding="utf-8")
    PAGE.write_text(words, encoding="utf-8")
    put(PAGE, "targets", targets(cpu, cuda, generated, quality))
    put(PAGE, "decode-cpu", decode_tables(cpu) if cpu else "On a CPU: not measured.")
    put(PAGE, "decode-cuda", decode_tables(cuda) if cuda else "On a GPU: not measured.")
    put(PAGE, "generate", generate_tables(generated) if generated else "Not measured.")
    put(PAGE, "quality", quality_tables(quality) if quality else "Not measured.")


if __name__ == "__main__":
    write()
