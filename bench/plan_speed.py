"""How long a plan takes, start-up included, and the header of a 31B GGUF.

    python bench/plan_speed.py

The GGUF has Gemma 4 31B's tensors and the demo model's vocabulary of 262,144 tokens; its weights
are a hole. Best of several runs: what the work takes, not what else the machine did.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import gguf

from common import save
from nybble.environment import cache_dir
from nybble.models.demo import demo_model
from nybble.models.gguf_header import read_header

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "planning"))
import sparse_gguf  # noqa: E402

TIMES = 9


def best(work: Callable[[], object]) -> float:
    """Seconds of the fastest run."""
    found = []
    for _ in range(TIMES):
        begun = time.perf_counter()
        work()
        found.append(time.perf_counter() - begun)
    return min(found)


def command(*words: str) -> Callable[[], object]:
    """A whole process, as a shell starts it."""
    return lambda: subprocess.run([sys.executable, *words], capture_output=True, check=True)


class WithVocabulary(sparse_gguf.Sparse):
    """A header as published files have it: tokens, scores and types of the demo model."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        reader = gguf.GGUFReader(demo_model(cache_dir()))
        for name in ("tokens", "scores", "token_type"):
            key = f"tokenizer.ggml.{name}"
            self.writer.add_array(key, reader.fields[key].contents())


def main() -> None:
    """Measure and keep."""
    with tempfile.TemporaryDirectory() as folder:
        with mock.patch.object(sparse_gguf, "Sparse", WithVocabulary):
            path = sparse_gguf.gemma4(Path(folder) / "gemma-4-31b.gguf")
        size = read_header(path).data_offset
        header = best(lambda: read_header(path))
        plan_file = best(command("-m", "nybble", "plan", str(path), "--gpu", "rtx-4090"))
    found = {
        "runs": TIMES,
        "python -c pass, s": best(command("-c", "pass")),
        "nybble --version, s": best(command("-m", "nybble", "--version")),
        "nybble plan gemma-4-31b-qat --gpu rtx-4090, s": best(
            command("-m", "nybble", "plan", "gemma-4-31b-qat", "--gpu", "rtx-4090")
        ),
        "nybble plan 31B.gguf --gpu rtx-4090, s": plan_file,
        "header of the 31B GGUF, s": header,
        "header of the 31B GGUF, bytes": size,
    }
    print(save("plan_speed", {k: round(v, 4) for k, v in found.items()}))


if __name__ == "__main__":
    main()
