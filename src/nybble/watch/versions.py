"""Which releases are newer than the version that was read; every engine numbers its own way."""

from __future__ import annotations

import re

from packaging.version import Version

from nybble.engines.known.base import Engine, release
from nybble.engines.known.carried import carried, is_build, written
from nybble.errors import NybbleError

__all__ = ["candidate", "carried", "of_tag", "read", "written"]

_TAG = re.compile(r"v?[0-9][0-9A-Za-z.+_-]*")


def of_tag(engine: Engine, tag: str) -> Version | None:
    """The engine's version that a tag names; None for tags of other things (`gateway-v0.3.1`)."""
    builds = is_build(engine.version)
    if builds != is_build(tag) or not (builds or _TAG.fullmatch(tag)):
        return None
    try:
        return release(tag)
    except NybbleError:
        return None


def read(engine: Engine) -> Version:
    """The newest version that was read for the engine's file.

    Raises:
        NybbleError: the file has none that compares.
    """
    return release(engine.version)


def candidate(engine: Engine, version: Version) -> bool:
    """Whether it is no final release, while a final one was read."""
    return version.is_prerelease and not read(engine).is_prerelease
