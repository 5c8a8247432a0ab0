"""Serve the demo model in several KV settings and hold each server against what was asked.

    cd bench && python verify.py

For every setting: `nybble serve`, and `nybble verify` with all its sources (log, saved slot,
behaviour); then without log and slots, where only behaviour can tell; then behind a record that
asks for another type. README's block is made from the first.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import put, save
from nybble.environment import cache_dir
from nybble.formats.setting import parse
from nybble.models.demo import demo_model
from nybble.results.verification import Verification
from nybble.serving import runs
from nybble.serving.verify import VerifyRequest, verify

SETTINGS = ("q4_0/q4_0", "q8_0/q4_0", "q8_0/q8_0", "q5_1/q5_1", "q4_0/q4_0-norot", "f16/f16")
NYBBLE = [sys.executable, "-m", "nybble"]
README = Path(__file__).parents[1] / "README.md"


@contextmanager
def served(model: Path, kv: str, slots: Path) -> Iterator[tuple[str, int]]:
    """`nybble serve` as a user starts it; its address and port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*NYBBLE, "serve", str(model), "--kv", kv, "--context", "8192", "--port", str(port),
               "--slots", str(slots), "-q"]  # fmt: skip
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        yield child.stdout.readline().strip(), port
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(60)


def told(found: Verification, seconds: float) -> dict[str, Any]:
    """What is kept of a verification."""
    checks = {c.name: {"asked": c.asked, "reported": c.reported, "observed": c.observed,
                       "verdict": c.state} for c in found.checks}  # fmt: skip
    return {"outcome": found.outcome, "why": found.why, "seconds": round(seconds, 1),
            "checks": checks, "notes": found.notes}  # fmt: skip


def timed(request: VerifyRequest) -> dict[str, Any]:
    """Verify, with the time it takes."""
    began = time.perf_counter()
    found = verify(request)
    return told(found, time.perf_counter() - began)


def main() -> None:
    """Run all settings and save."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    model = demo_model(cache_dir())
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        slots = Path(folder)
        empty = slots / "empty.log"
        empty.write_text("")
        for kv in SETTINGS:
            with served(model, kv, slots) as (url, port):
                rows[kv] = {"all sources": timed(VerifyRequest(url))}
                if kv == SETTINGS[0]:
                    shown = subprocess.run(
                        [*NYBBLE, "verify", url], capture_output=True, text=True, check=False,
                        env={**os.environ, "COLUMNS": "100"},
                    )  # fmt: skip
                    text = re.sub(r":\d{4,5}\b", ":8080", shown.stdout).rstrip()
                run = runs.recall(port)
                assert run is not None
                runs.remember(replace(run, slots="", log=str(empty)), port)
                rows[kv]["behaviour alone"] = timed(VerifyRequest(url, log=empty))
                # Behind its back: the record asks for another type than the one that is served.
                other = "q8_0/q8_0" if kv != "q8_0/q8_0" else "q4_0/q4_0"
                runs.remember(replace(run, kv=other, slots="", log=str(empty)), port)
                rows[kv][f"asked {other}"] = timed(VerifyRequest(url, parse(other), log=empty))
            print(kv, {k: v["outcome"] for k, v in rows[kv].items()}, flush=True)
    print(save("verify", {"model": "gemma-3-270m-q4_k_m.gguf", "context": 8192, "rows": rows}))
    text = "\n".join(line.rstrip() for line in text.splitlines() if not line.startswith("note: 0."))
    lines = "\n".join(line for line in text.splitlines() if line.strip())
    put(README, "verify", f"```\n$ nybble serve model.gguf --kv q4_0/q4_0 --slots slots\nhttp://127.0.0.1:8080/v1\n\n"
        f"$ nybble verify http://127.0.0.1:8080\n{lines}\n```")  # fmt: skip


if __name__ == "__main__":
    main()
