"""Reads sources and topics of the running Python's standard library, without importing them."""

from __future__ import annotations

import importlib.util
import os
import platform
import sysconfig
from pathlib import Path

from nybble.errors import NybbleError


def read_module(name: str) -> str | None:
    """Return the source text of a standard library module, or None when it is not there.

    The file is looked up in the standard library's own folder and not through `sys.path`,
    so that a file `calendar.py` in the user's folder is never taken for the module.
    """
    for root in _roots():
        base = root.joinpath(*name.split("."))
        for path in (base.parent / f"{base.name}.py", base / "__init__.py"):
            try:
                return importlib.util.decode_source(path.read_bytes())
            except (OSError, SyntaxError, UnicodeDecodeError):
                continue
    return None


def module_names() -> list[str]:
    """Return the dotted names of all modules of the standard library that are Python, sorted."""
    found = set()
    for root in _roots():
        for path in root.rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            if all(part.isidentifier() for part in parts):  # no site-packages, no config-3.11-...
                found.add(".".join(parts).removesuffix(".__init__"))
    return sorted(found)


def read_topics() -> dict[str, str]:
    """Return the language reference topics shipped for `help()`, sorted by name."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise NybbleError(
            "The topics of Python's help() are not installed",
            seen=str(error),
            hint="install the complete standard library, or leave out 'prose'",
        ) from error
    return {name: topics[name] for name in sorted(topics)}


def no_sources(category: str) -> NybbleError:
    """Return the error for a Python that ships no source files, for example a frozen one."""
    return NybbleError(
        f"Category '{category}' found no source files of the standard library",
        seen=", ".join(str(root) for root in _roots()),
        hint=f"run with a Python that ships its library as .py files, or leave out '{category}'",
    )


def origin(name: str) -> str:
    """Return the source note of a piece taken from the running Python, with its version."""
    return f"CPython {platform.python_version()}, {name}"


def _roots() -> list[Path]:
    # A relocated Python can report a stale path in sysconfig; os.__file__ is then right.
    found = [Path(sysconfig.get_path("stdlib")), Path(os.__file__).parent]
    return list(dict.fromkeys(found))
