"""This machine and this installation: what a result must record and `nybble doctor` shows."""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import sys
from pathlib import Path

import platformdirs

VERSION = "0.1.0"


def cache_dir() -> Path:
    """Folder for copies of weights and the demo model: NYBBLE_CACHE, else the user's cache."""
    chosen = os.environ.get("NYBBLE_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("nybble"))


def usable_cpus() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def package_version(name: str) -> str | None:
    """Installed version of a distribution, or None."""
    from importlib import metadata  # a plan does without its 50 ms

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Versions that decide a measurement's numbers."""
    found = {"nybble": VERSION, "python": platform.python_version()}
    for name in ("xllamacpp", "numpy", "duckdb"):
        found[name] = package_version(name) or "not installed"
    return found


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def memory_bytes() -> int | None:
    """Physical memory, or None where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def keep_freed_memory() -> None:
    """Let the C library keep large blocks that are freed, for the rest of this process.

    glibc maps a tensor of 32 MiB or more anew every time and gives it back at once; the kernel
    then clears it page by page. That was two thirds of a training step (Gemma 3 270M on 2 cores:
    20 s a sequence, 7 without). Other C libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    # malloc.h: M_MMAP_MAX, no block of its own; M_TRIM_THRESHOLD, the most that is kept.
    mallopt(-4, 0)
    mallopt(-1, 2**31 - 1)


def hardware() -> dict[str, object]:
    """CPU, cores, memory and operating system."""
    memory = memory_bytes()
    return {
        "cpu": _cpu_name(),
        "machine": platform.machine(),
        "cores": usable_cpus(),
        "memory_gib": None if memory is None else round(memory / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
    }


def command_line() -> str:
    """The command that is running, fit to be pasted into a shell."""
    program = Path(sys.argv[0]).name if sys.argv else ""
    if program in ("nybble", "__main__.py"):
        return shlex.join(["nybble", *sys.argv[1:]])
    return "python: nybble.measure(...)"
