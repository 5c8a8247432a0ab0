"""The cards of this machine: the driver's own tools are asked, nothing is installed for it."""

from __future__ import annotations

import csv
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace

from nybble.environment import hardware, memory_bytes
from nybble.planning.cards import Card, known

_SECONDS = 10  # a driver's tool that hangs is as good as none
_MIB = 2**20
Run = Callable[[list[str]], str | None]


def this_machine(run: Run | None = None) -> tuple[Card, ...]:
    """The cards here, one entry each; the CPU with the machine's memory where there is no GPU.

    Memory is what the driver reports now. Rates are those of `cards.csv` where the driver's name
    is known there, else None.

    Args:
        run: runs a command and returns its output, None if it is not there or fails; for tests.
    """
    ask = run or _run
    return _nvidia(ask) or _amd(ask) or _apple(ask) or (_cpu(),)


def _nvidia(ask: Run) -> tuple[Card, ...]:
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    found = []
    for row in csv.reader((ask(query) or "").splitlines()):
        if len(row) != 2:
            continue
        name, size = (cell.strip() for cell in row)
        # A unified memory is "[N/A]" there: the machine's own is what the GPU can use.
        n_bytes = int(size) * _MIB if size.isdigit() else (memory_bytes() or 0)
        found.append(_card(name, "nvidia", n_bytes, "nvidia-smi"))
    return tuple(found)


def _amd(ask: Run) -> tuple[Card, ...]:
    text = ask(["rocm-smi", "--showproductname", "--showmeminfo", "vram", "gtt", "--json"])
    try:
        parts = json.loads(text or "{}")
        cards = [p for key, p in sorted(parts.items()) if key.startswith("card")]
        return tuple(
            _card(
                str(p.get("Card Series") or p.get("Card series") or "AMD GPU"),
                "amd",
                int(p["VRAM Total Memory (B)"]),
                "rocm-smi",
                lent=int(p.get("GTT Total Memory (B)") or 0),
            )
            for p in cards
            if "VRAM Total Memory (B)" in p
        )
    except (ValueError, AttributeError, TypeError):
        return ()


def _apple(ask: Run) -> tuple[Card, ...]:
    chip = ask(["sysctl", "-n", "machdep.cpu.brand_string"]) or ""
    size = (ask(["sysctl", "-n", "hw.memsize"]) or "").strip()
    if not chip.strip().startswith("Apple") or not size.isdigit():
        return ()
    limit = (ask(["sysctl", "-n", "iogpu.wired_limit_mb"]) or "").strip()
    # 0 is the system's own limit, recommendedMaxWorkingSetSize in llama.cpp's logs: 28,991.03 MB
    # of 36 GiB are 3/4, 11,453.25 MB of 16 GiB are 2/3. A newer macOS lends 84 % of 128 GiB.
    own = int(size) * 3 // 4 if int(size) >= 36 * 2**30 else int(size) * 2 // 3
    lent = int(limit) * _MIB if limit.isdigit() and int(limit) else own
    return (_card(chip.strip(), "apple", lent, "sysctl: what Metal lends, an estimate", True),)


def _cpu() -> Card:
    about = hardware()
    return Card(
        name=str(about["cpu"]),
        vendor="cpu",
        memory_bytes=memory_bytes() or 0,
        unified=True,
        memory_from="the operating system",
        note="bandwidth and rates of a CPU are not known: give them, or calibrate",
    )


def _card(
    name: str, vendor: str, n_bytes: int, source: str, unified: bool = False, lent: int = 0
) -> Card:
    """A card as the driver names it; `lent` is what a unified one may take of the machine's."""
    listed = known(name) or known(f"{name} {round(n_bytes / 2**30 / 8) * 8}GB")
    if listed is None:
        return Card(
            name=name,
            vendor=vendor,
            memory_bytes=n_bytes,
            unified=unified,
            memory_from=source,
            note="not in cards.csv: bandwidth and rates are not known",
        )
    n_bytes += lent if listed.unified else 0
    return replace(listed, memory_bytes=n_bytes, memory_from=source)


def _run(command: list[str]) -> str | None:
    if command[0] == "sysctl" and platform.system() != "Darwin":
        return None
    program = shutil.which(command[0])
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *command[1:]],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None
