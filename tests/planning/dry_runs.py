"""llama.cpp's own account of its memory, asked for in a child process, which it may abort.

Run as a program it reads one request and answers it: a model file and a list of cases.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """One context of one model.

    Attributes:
        kv: KV setting.
        context: tokens of one slot.
        slots: sequences.
        unified: one pool for all slots.
        ubatch: tokens of a micro-batch.
    """

    kv: str
    context: int
    slots: int = 1
    unified: bool = False
    ubatch: int = 512


@dataclass(frozen=True)
class Account:
    """What llama.cpp says one case takes, in bytes; `refused` is its reason, "" for none."""

    weights: int = 0
    memory: int = 0
    compute: int = 0
    output: int = 0
    kv_mib: float = 0.0
    refused: str = ""


def dry_runs(path: Path, cases: list[Case], *, allocate: bool = False) -> list[Account]:
    """Ask about all cases in one child.

    Args:
        path: a GGUF file.
        cases: what to ask about.
        allocate: read the weights and really make the caches.
    """
    request = {"path": str(path), "allocate": allocate,
               "cases": [dataclasses.asdict(case) for case in cases]}  # fmt: skip
    done = subprocess.run(
        [sys.executable, __file__], input=json.dumps(request), capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{path.name}: the child ended with {done.returncode}: {done.stderr}")
    return [Account(**found) for found in json.loads(done.stdout.splitlines()[-1])]


def _answer(request: dict[str, Any]) -> list[dict[str, Any]]:
    from nybble.engines.llamacpp.dryrun import dry_run
    from nybble.engines.llamacpp.model import Model
    from nybble.errors import EngineError
    from nybble.formats.setting import parse

    model = Model(Path(request["path"]), no_alloc=not request["allocate"])
    found = []
    for case in (Case(**c) for c in request["cases"]):
        try:
            run = dry_run(model, parse(case.kv), case.context * case.slots, slots=case.slots,
                          unified=case.unified, ubatch=case.ubatch)  # fmt: skip
        except EngineError as error:
            found.append(Account(refused=str(error.seen)))
            continue
        kv = run.logged.get("KV", 0.0)
        found.append(Account(run.weights, run.memory, run.compute, run.output, kv))
    return [dataclasses.asdict(account) for account in found]


if __name__ == "__main__":
    print(json.dumps(_answer(json.load(sys.stdin))))
